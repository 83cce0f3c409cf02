"""What ``import trickle`` gives over there: ``trickle.remote``, ``hosts``, and stand-ins for what controllers use.

A module whose functions are called over there often names ``trickle.Host`` in an annotation, or makes a tunnel at its
top level: reading and making such things is harmless.  Who enters ``open_host`` or ``open_group`` gets trickle itself,
where this Python is one that it supports; recursion.py sees to that.
"""

import sys

import trickle.remote  # here at once, so that it is no stand-in

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
        self.made_with = args, kwargs

    def __getattr__(self, name: str) -> "Any":
        if name.startswith("__"):
            raise AttributeError(name)  # Python looks for these
        raise RuntimeError("trickle.%s is not to be had on a remote host" % type(self).__name__)

    def __aenter__(self) -> "Any":
        if sys.version_info < (3, 11):
            raise RuntimeError(
                "trickle.%s needs Python 3.11 or later on the host that uses it; %s has %d.%d.%d"
                % ((type(self).__name__, trickle.remote.host_name) + sys.version_info[:3])
            )
        from trickle._agent import recursion

        self.real = recursion.realize(self)
        return self.real.__aenter__()

    def __aexit__(self, *exc_info: "Any") -> "Any":
        return self.real.__aexit__(*exc_info)


class _FarEnd(type(sys)):  # type: ignore[misc]
    def __getattr__(self, name: str) -> "Any":
        if name.startswith("_"):
            raise AttributeError(name)
        if name == "hosts":
            from trickle._agent.host_names import hosts

            return hosts
        stand_in = _Anything(name, (_StandIn,), {"__module__": "trickle"})
        setattr(self, name, stand_in)
        return stand_in


sys.modules[__name__].__class__ = _FarEnd
