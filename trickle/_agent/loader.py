"""The first code that runs over there: imports the agent's files out of the boot data, and starts the broker.

The boot line (see _boot.py) executes this file's text with ``f``, which is stdin, in its namespace.
"""

import binascii
import marshal
import sys
import zlib
from _frozen_importlib_external import MAGIC_NUMBER  # importlib.util has it too, at a hundred times the cost

STAND_IN = "import sys; sys.modules[__name__].__class__ = type(sys.modules['trickle'])"
STAND_IN_FILE = "<trickle>/stand-in"
LAST = "trickle._agent.worker"  # of the modules that every agent needs: the broker imports it before the first fork
MODULE_SPEC = type(sys.__spec__)
CODE_TAG = "%s %r" % (sys.implementation.cache_tag, MAGIC_NUMBER)  # of those that run each other's code
DAMAGED = 85  # as the boot line has it


class AgentFinder:
    """Serves trickle's own far-end modules from memory.

    Once all of it runs, their sources are kept packed alone: only tracebacks need them then.
    """

    def __init__(self, filenames, packed, code):  # type: ignore[no-untyped-def]
        self.filenames = filenames  # by the names of modules
        self.packed = packed
        self.code = code  # module name -> what to run, as far as it is there
        self.sources = {} if code else self.unpacked()  # type: ignore[no-untyped-call]

    def unpacked(self):  # type: ignore[no-untyped-def]
        """Module name -> source."""
        return marshal.loads(zlib.decompress(binascii.a2b_base64(self.packed)))

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name not in self.filenames:
            if name.count(".") != 1 or not name.startswith("trickle."):
                return None
            # trickle.abc, say: as harmless as trickle itself
            self.filenames[name] = STAND_IN_FILE
        filename = self.filenames[name]
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
        name = module.__name__
        code = self.code.get(name)
        if code is None:
            code = self.compiled(name)  # type: ignore[no-untyped-call]
        exec(code, module.__dict__)
        if name == LAST:
            self.sources = {}

    def compiled(self, name):  # type: ignore[no-untyped-def]
        source = self.get_source(name)  # type: ignore[no-untyped-call]
        call_whole = getattr(sys.modules.get("trickle._agent.importer"), "call_whole", lambda fn: fn())
        return call_whole(lambda: compile(source, self.filenames[name], "exec", dont_inherit=True))

    def get_source(self, name):  # type: ignore[no-untyped-def]
        if self.filenames[name] == STAND_IN_FILE:
            return STAND_IN
        return self.sources[name] if name in self.sources else self.unpacked()[name]  # type: ignore[no-untyped-call]


def start(stdin, filenames, packed):  # type: ignore[no-untyped-def]
    """Run the broker until it ends.  The configuration is the line after the boot data; compiled code may follow."""
    globals().pop("b", None)  # what the boot line has read
    line = binascii.a2b_base64(stdin.readline())
    configuration = eval(line, {"__builtins__": {}, "inf": float("inf")})
    code = code_in(stdin, *configuration.pop("compiled"))  # type: ignore[no-untyped-call]
    sys.meta_path.insert(0, AgentFinder(filenames, packed, code))  # type: ignore[no-untyped-call]
    from trickle._agent import broker

    broker.main(stdin, configuration)


def code_in(stdin, length, checksum):  # type: ignore[no-untyped-def]
    """Module name -> code, if what comes next is for a Python such as this one."""
    data = stdin.read(length)
    if binascii.crc32(data) != checksum:
        sys.exit(DAMAGED)
    if data:
        tag, code = marshal.loads(zlib.decompress(binascii.a2b_base64(data)))
        if tag == CODE_TAG:
            return marshal.loads(code)
    return {}
