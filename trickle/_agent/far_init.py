"""What ``import trickle`` gives over there: ``trickle.remote``, and stand-ins for names that only the controller uses.

A module whose functions are called over there often names ``trickle.Host`` in an annotation or ``trickle.HostLost``
in an ``except``: reading such a name is harmless, using it says where one is.
"""

import sys

import trickle.remote  # noqa: F401 (so that it is there, and no stand-in)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Anything(type):
    """So that annotations such as ``trickle.Results[int]`` can be evaluated."""

    def __getitem__(cls, item: "Any") -> "Any":
        return cls

    def __or__(cls, other: "Any") -> "Any":
        return cls

    __ror__ = __or__


class _StandIn(Exception):
    """What making one of those things gives: a module may do so at its top level, to use it on the controller."""

    def __init__(self, *args: "Any", **kwargs: "Any") -> None:
        Exception.__init__(self, *args)

    def __getattr__(self, name: str) -> "Any":
        raise RuntimeError("trickle.%s is not to be had on a remote host" % type(self).__name__)

    def __aenter__(self) -> "Any":
        return self.__getattr__("__aenter__")

    def __aexit__(self, *exc_info: "Any") -> "Any":
        return self.__getattr__("__aexit__")


class _FarEnd(type(sys)):  # type: ignore[misc]
    def __getattr__(self, name: str) -> "Any":
        if name.startswith("_"):
            raise AttributeError(name)
        stand_in = _Anything(name, (_StandIn,), {"__module__": "trickle"})
        setattr(self, name, stand_in)
        return stand_in


sys.modules[__name__].__class__ = _FarEnd
