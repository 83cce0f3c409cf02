"""trickle itself, over there: loaded in the place of its stand-ins by the first that opens hosts from here."""

import sys

from trickle._agent import worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

STAND_IN_FILE = "<trickle>/stand-in"


def realize(value: "Any") -> "Any":
    """What stand-ins stand for, also inside of lists and the like."""
    if type(type(value)).__name__ == "_Anything":
        real = getattr(load(), type(value).__name__)
        if "made_with" in vars(value):
            args, kwargs = value.made_with
            return real(*realize(args), **realize(kwargs))
        made = real.__new__(real)  # it was not made here, but came as an argument
        made.__dict__.update(realize(vars(value)))
        return made
    if type(value) in (list, tuple, set, frozenset):
        return type(value)([realize(item) for item in value])
    if type(value) is dict:
        return {key: realize(item) for key, item in value.items()}
    return value


def load() -> "ModuleType":
    """The package, executed in the module that had the stand-ins."""
    package = sys.modules["trickle"]
    assert worker._this is not None
    importer = worker._this.importer
    if importer.whole:
        return package
    before, kind = dict(package.__dict__), package.__class__
    importer.whole = True
    try:
        for name, module in list(sys.modules.items()):
            if name.startswith("trickle.") and getattr(module, "__file__", None) == STAND_IN_FILE:
                del sys.modules[name]
        for name, value in before.items():
            if type(value).__name__ == "_Anything" or getattr(value, "__file__", None) == STAND_IN_FILE:
                del package.__dict__[name]
        package.__class__ = type(sys)
        spec = importer.find_spec("trickle")
        if spec is None or spec.loader is None:
            raise ImportError(importer.why_missing("trickle") or "the controller does not send trickle", name="trickle")
        package.__spec__, package.__loader__, package.__file__ = spec, spec.loader, spec.origin
        package.__path__ = spec.submodule_search_locations or []
        spec.loader.exec_module(package)
    except BaseException:
        importer.whole = False
        package.__dict__.clear()
        package.__dict__.update(before)
        package.__class__ = kind
        raise
    _replace_stand_ins(package)
    return package


def _replace_stand_ins(package: "ModuleType") -> None:
    """What modules have imported by name is the real thing from now on: it may stand behind ``except`` and ``case``."""
    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", {})
        for name, value in list(names.items()):
            if type(value).__name__ == "_Anything":
                names[name] = getattr(package, value.__name__, value)
