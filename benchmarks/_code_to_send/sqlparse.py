"""What needs sqlparse.  It imports that when it runs, as both ends can."""


def run() -> str:
    import sqlparse

    return str(sqlparse.format("select a from b", reindent=True))
