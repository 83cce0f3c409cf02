"""Trio, over there: call Python functions on many hosts, with structured concurrency across the wire."""

from trickle import abc, remote
from trickle._agent.host_names import hosts
from trickle._channels import RemoteChannel
from trickle._exceptions import (
    CallTimeout,
    ConnectError,
    HostLost,
    NotNeeded,
    ProtocolError,
    RemoteError,
    UnsafeResult,
    Unsendable,
    WorkerDied,
)
from trickle._explanation import Explanation
from trickle._files import TransferResult
from trickle._group import Group, open_group
from trickle._host import Host, Session, open_host
from trickle._host_core import HostStatistics
from trickle._link import HostInfo
from trickle._module_policy import ModulePolicy
from trickle._processes import RemoteProcess
from trickle._progress import HostProgress
from trickle._results import Failure, Results, Success
from trickle._settings import OutputLine, Sink
from trickle._spread import MapResult
from trickle._tunnels import SSH, Command, Docker, DockerExec, Local, Sudo
from trickle._unpickling import allow

__version__ = "0.1.0.dev0"

__all__ = [
    "SSH",
    "CallTimeout",
    "Command",
    "ConnectError",
    "Docker",
    "DockerExec",
    "Explanation",
    "Failure",
    "Group",
    "Host",
    "HostInfo",
    "HostLost",
    "HostProgress",
    "HostStatistics",
    "Local",
    "MapResult",
    "ModulePolicy",
    "NotNeeded",
    "OutputLine",
    "ProtocolError",
    "RemoteChannel",
    "RemoteError",
    "RemoteProcess",
    "Results",
    "Session",
    "Sink",
    "Success",
    "Sudo",
    "TransferResult",
    "UnsafeResult",
    "Unsendable",
    "WorkerDied",
    "abc",
    "allow",
    "hosts",
    "open_group",
    "open_host",
    "remote",
]

for _name in __all__:
    _value = globals()[_name]
    if isinstance(_value, type) or callable(_value):
        _value.__module__ = __name__  # as users know it
del _name, _value
