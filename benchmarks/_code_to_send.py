"""Functions that use packages which the far end lacks.  They import them when they run, as both ends can."""


def jinja2() -> str:
    import jinja2

    return jinja2.Template("{{ x|upper }}").render(x="a")


def sqlparse() -> str:
    import sqlparse

    return str(sqlparse.format("select a from b", reindent=True))


def sympy() -> str:
    import sympy

    x = sympy.Symbol("x")
    return str(sympy.diff(sympy.sin(x) ** 2, x))
