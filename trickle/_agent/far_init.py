"""What ``import trickle`` gives over there: ``trickle.remote``, and stand-ins for names that only the controller uses.

A module whose functions are called over there often names ``trickle.Host`` in an annotation or ``trickle.HostLost``
in an ``except``: reading such a name is harmless, using it says where one is.
"""

import sys

import trickle.remote  # so that it is there, and no stand-in

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


def _refuse(cls: "Any", *args: "Any", **kwargs: "Any") -> "Any":
    raise RuntimeError("trickle.%s is not to be had on a remote host" % cls.__name__)


class _FarEnd(type(sys)):  # type: ignore[misc]
    def __getattr__(self, name: str) -> "Any":
        if name.startswith("_"):
            raise AttributeError(name)
        stand_in = _Anything(name, (Exception,), {"__new__": _refuse, "__module__": "trickle"})
        setattr(self, name, stand_in)
        return stand_in


sys.modules[__name__].__class__ = _FarEnd
