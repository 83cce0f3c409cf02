"""What the agent says in its hello of the host that it is on."""

import os
import sys


def about_this_host() -> bytes:
    """Lines of ``name=value``."""
    uname = os.uname()
    try:
        import pwd

        user = pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):  # a container's user need not have a name
        user = str(os.getuid())
    about = {
        "hostname": uname.nodename,
        "pid": str(os.getpid()),
        "user": user,
        "python": sys.executable or "",
        "python_version": "%d.%d.%d" % sys.version_info[:3],
        "implementation": sys.implementation.name,
        "system": uname.sysname,
        "machine": uname.machine,
        "lacks": " ".join(name for name in ("contextvars", "queue", "ssl") if not _has_module(name)),
    }
    return "\n".join("%s=%s" % item for item in about.items()).encode("utf-8", "surrogateescape")


def _has_module(name: str) -> bool:
    return any(finder.find_spec(name, None) is not None for finder in sys.meta_path)
