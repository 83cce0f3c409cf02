"""What needs jinja2.  It imports that when it runs, as both ends can."""


def run() -> str:
    import jinja2

    return jinja2.Template("{{ x|upper }}").render(x="a")
