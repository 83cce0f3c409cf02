"""The first code that runs over there: imports the agent's files out of the boot data, and starts the broker.

The boot line (see _boot.py) executes this file's text with ``stdin`` and ``files`` in its namespace.
"""

import binascii
import sys

STAND_IN = "import sys; sys.modules[__name__].__class__ = type(sys.modules['trickle'])"
MODULE_SPEC = type(sys.__spec__)


class AgentFinder:
    """Serves trickle's own far-end modules from memory."""

    def __init__(self, files):  # type: ignore[no-untyped-def]
        self.files = files  # module name -> (file name, source)

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name not in self.files:
            if name.count(".") != 1 or not name.startswith("trickle."):
                return None
            self.files[name] = ("<trickle>/stand-in", STAND_IN)  # trickle.abc, say: as harmless as trickle itself
        filename = self.files[name][0]
        is_package = "init" in filename.rpartition("/")[2]  # __init__.py, and far_init.py for trickle itself
        spec = MODULE_SPEC(
            name,
            self,  # type: ignore[arg-type]
            origin=filename,
            is_package=is_package,
        )
        spec.has_location = True
        return spec

    def create_module(self, spec):  # type: ignore[no-untyped-def]
        return None

    def exec_module(self, module):  # type: ignore[no-untyped-def]
        filename, source = self.files[module.__name__]
        exec(compile(source, filename, "exec", dont_inherit=True), module.__dict__)

    def get_source(self, name):  # type: ignore[no-untyped-def]
        return self.files[name][1]


def start(stdin, files):  # type: ignore[no-untyped-def]
    """Run the broker until it ends.  The configuration is the line after the boot data."""
    sys.meta_path.insert(0, AgentFinder(files))  # type: ignore[no-untyped-call]
    line = binascii.a2b_base64(stdin.readline())
    configuration = eval(line, {"__builtins__": {}, "inf": float("inf")})
    from trickle._agent import broker

    broker.main(stdin, configuration)
