"""What needs sympy.  It imports that when it runs, as both ends can."""


def run() -> str:
    import sympy

    x = sympy.Symbol("x")
    return str(sympy.diff(sympy.sin(x) ** 2, x))
