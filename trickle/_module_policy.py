"""Which of this program's modules and files a host may be sent.  Sending them is _module_server.py's job."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

# Files and modules of the program's own that are kept here unless they are named in full; not those of installed
# packages, whose contents everybody can read anyway.
LOOKS_PRIVATE = (
    *("secret", "secrets", "*.secret", "*.secrets", "credentials", "*.credentials", "passwords", "*.passwords"),
    *("local_settings", "*.local_settings"),
    *("*/.*", "*/*.env", "*/*.key", "*/*.pem", "*/*.p12", "*/*.pfx", "*/*.kdbx", "*/id_*"),
    *("*/*secret*", "*/*credential*", "*/*password*"),
)


@dataclass(frozen=True)
class ModulePolicy:
    """Which of this program's modules a host may be sent, and which files that lie in its packages.

    Patterns are those of `fnmatch`: on the dotted names of modules, and on ``package.name/folder/file.txt`` for
    files.  A pattern that names a package counts for all that is in it, and the parents of what *allow* names are
    permitted with it.

    Args:
      allow: what may be sent: everything.
      deny: what may not, whatever else is said.
      private: what may not unless *allow* has its full name; only of code that is not installed (in
        ``site-packages``).  By default what looks like secrets, keys or credentials.
    """

    allow: tuple[str, ...] = ("*",)
    deny: tuple[str, ...] = ()
    private: tuple[str, ...] = LOOKS_PRIVATE

    def __post_init__(self) -> None:
        for field in ("allow", "deny", "private"):
            patterns = getattr(self, field)
            if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
                raise TypeError(f"{field}={patterns!r}: it is a tuple of patterns, such as ('mypackage', '*.tests')")
            object.__setattr__(self, field, tuple(patterns))

    def permits(self, name: str, *, installed: bool = True) -> bool:
        """Whether the module *name*, or the file ``package/path``, may be sent.

        Args:
          installed: whether it belongs to an installed package.
        """
        names = _around(name)
        if _matches(names, self.deny):
            return False
        if not (_matches(names, self.allow) or any(_leads_to(pattern, name) for pattern in self.allow)):
            return False
        return installed or name in self.allow or not _matches(names, self.private)


def _leads_to(pattern: str, name: str) -> bool:
    return pattern.startswith((f"{name}.", f"{name}/"))


def _around(name: str) -> list[str]:
    """*name*, and the packages and folders that it is in."""
    module, *path = name.split("/")
    parts = module.split(".")
    names = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    for count in range(1, len(path) + 1):
        names.append("/".join([module, *path[:count]]))
        if count < len(path):
            names.append(".".join([module, *path[:count]]))  # the folder may be a package itself
    return names


def _matches(names: list[str], patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(each, pattern) for pattern in patterns for each in names)
