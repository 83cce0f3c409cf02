"""The first code that runs over there: imports the agent's files out of the boot data, and starts the broker.

The boot line (see _boot.py) executes this file's text with ``stdin`` and ``files`` in its namespace.
"""

import binascii
import marshal
import sys
from _frozen_importlib_external import MAGIC_NUMBER  # importlib.util has it too, at a hundred times the cost

STAND_IN = "import sys; sys.modules[__name__].__class__ = type(sys.modules['trickle'])"
MODULE_SPEC = type(sys.__spec__)
CODE_TAG = "%s %r" % (sys.implementation.cache_tag, MAGIC_NUMBER)  # of those that run each other's code
DAMAGED = 85  # as the boot line has it


class AgentFinder:
    """Serves trickle's own far-end modules from memory."""

    def __init__(self, files, code):  # type: ignore[no-untyped-def]
        self.files = files  # module name -> (file name, source)
        self.code = code  # module name -> what to run, as far as it is there

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
        code = self.code.get(module.__name__) or compile(source, filename, "exec", dont_inherit=True)
        exec(code, module.__dict__)

    def get_source(self, name):  # type: ignore[no-untyped-def]
        return self.files[name][1]


def start(stdin, files):  # type: ignore[no-untyped-def]
    """Run the broker until it ends.  The configuration is the line after the boot data; compiled code may follow."""
    line = binascii.a2b_base64(stdin.readline())
    configuration = eval(line, {"__builtins__": {}, "inf": float("inf")})
    code = code_in(stdin, *configuration.pop("compiled"))  # type: ignore[no-untyped-call]
    sys.meta_path.insert(0, AgentFinder(files, code))  # type: ignore[no-untyped-call]
    from trickle._agent import broker

    broker.main(stdin, configuration)


def code_in(stdin, length, checksum):  # type: ignore[no-untyped-def]
    """Module name -> code, if what comes next is for a Python such as this one."""
    data = stdin.read(length)
    if binascii.crc32(data) != checksum:
        sys.exit(DAMAGED)
    if data:
        import zlib

        tag, code = marshal.loads(zlib.decompress(binascii.a2b_base64(data)))
        if tag == CODE_TAG:
            return marshal.loads(code)
    return {}
