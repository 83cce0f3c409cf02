"""Run by a far end's Python: transfers from one directory to another, each of which fails at one of its system calls.

    python files_driver.py ROOT DIRECTORY SCENARIO

Every call that changes or reads files is made to fail, before it or after it has been made: by a kill -9, by an
error, by a cancel.  Prints a line for each thing that is not as promised, and how many failures were made.  Works on
Python 3.6.
"""

import json
import os
import pathlib
import shutil
import signal
import sys

CALLS = (
    *("open", "close", "write", "pread", "lseek", "ftruncate", "fsync", "link", "replace", "unlink", "symlink"),
    *("mkdir", "chmod", "chown", "utime", "stat", "lstat", "fstat", "listdir", "readlink"),
)
BIG = 3 * 128 * 1024 + 17
OPTIONS = {"mode": None, "preserve": True, "fsync": True, "resume": False}
NO_SPACE = 28
FAULTS = [
    *(("kill", False), ("error", True), ("cancel", False)),
    *(("kill", True), ("error", False), ("cancel", True)),
]


class Cancelled(BaseException):
    pass


def load_agent(root):
    for name, path in (
        ("trickle", None),
        ("trickle._agent", None),
        ("trickle._wire", None),
        ("trickle.remote", "trickle/remote.py"),
        ("trickle._wire.frames", "trickle/_wire/frames.py"),
        ("trickle._agent.files", "trickle/_agent/files.py"),
        ("trickle._agent.file_source", "trickle/_agent/file_source.py"),
        ("trickle._agent.file_writing", "trickle/_agent/file_writing.py"),
        ("trickle._agent.file_target", "trickle/_agent/file_target.py"),
    ):
        module = sys.modules[name] = type(sys)(name)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
        if path is None:
            module.__path__ = []
            continue
        filename = pathlib.Path(root, path)
        exec(compile(filename.read_text("utf-8"), str(filename), "exec", dont_inherit=True), module.__dict__)


def transfer(source, target, options):
    source = file_source.Source(os.fsencode(str(source)))
    target = file_target.Target(os.fsencode(str(target)), options)
    try:
        had = {}
        for batch in source.listing():
            had.update(enumerate(target.have(batch), len(had)))
        for ops in source.contents(had):
            target.write(ops)
        return target.finish()
    finally:
        target.abandon()


class Fault:
    """Counts the calls, and has one of them fail."""

    def __init__(self, number, kind, after):
        self.count = 0
        self.number = number
        self.kind = kind
        self.after = after

    def install(self):
        for name in CALLS:
            setattr(os, name, self.wrap(getattr(os, name)))

    def wrap(self, real):
        def call(*args, **kwargs):
            self.count += 1
            due = self.count == self.number
            if due and not self.after:
                self.fail()
            result = None if real is FSYNC else real(*args, **kwargs)
            if due and self.after:
                self.fail()
            return result

        return call

    def fail(self):
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "cancel":
            raise Cancelled
        else:
            raise OSError(NO_SPACE, "No space left on device")


def run(source, target, options, fault):
    """In a process of its own.  Returns what became of it, and how many calls were made."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            fault.install()
            try:
                transfer(source, target, options)
                said = ["done", fault.count]
            except Cancelled:
                said = ["cancelled", fault.count]
            except Exception as exc:
                said = ["failed", fault.count, type(exc).__name__, str(exc)]
            WRITE(write, json.dumps(said).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(said.decode()) if said else ["killed", fault.number]


# ---- scenarios: what is there before


def old_and_new():
    old = bytes(range(256)) * (BIG // 256 + 1)
    new = bytearray(old[:BIG])
    new[200000] ^= 1
    return old[:BIG], bytes(new)


def a_file(here, there):
    old, new = old_and_new()
    here.write_bytes(new)
    there.write_bytes(old)


def a_new_file(here, there):
    here.write_bytes(old_and_new()[1])


def a_tree(here, there):
    for top, big in zip((there, here), old_and_new()):
        (top / "a").mkdir(parents=True)
        (top / "a" / "big").write_bytes(big)
        (top / "same").write_bytes(b"same")
        (top / "small").write_bytes(b"small" + big[200000:200001])
    os.utime(str(here / "same"), (1000000000, 1000000000))
    (here / "new").mkdir()
    (here / "new" / "file").write_bytes(b"new file")
    (here / "link").symlink_to("a/big")
    (here / "other").symlink_to("small")
    (there / "other").symlink_to("same")


def contents(top):
    """All that is there: path below -> contents."""
    found = {}
    for path in [top] if top.is_file() else sorted(top.rglob("*")) if top.is_dir() else []:
        below = str(path.relative_to(top))
        found[below] = os.readlink(str(path)) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


def leftovers(directory):
    return sorted(path.name for path in directory.rglob("*") if ".trickle-" in path.name)


SCENARIOS = {
    "file": (a_file, {}, True),
    "new file": (a_new_file, {}, True),
    "file with a name": (a_file, {}, False),
    "tree": (a_tree, {}, True),
    "tree with names": (a_tree, {}, False),
    "resumed": (a_file, {"resume": True}, True),
    "given": (a_tree, {"mode": 0o600, "preserve": False}, True),
}


def check(scenario, work):
    prepare, changes, nameless = SCENARIOS[scenario]
    options = dict(OPTIONS, **changes)
    if not nameless and hasattr(os, "O_TMPFILE"):
        del os.O_TMPFILE
    here, place = work / "here", work / "place"
    there = place / "there"

    def prepared():
        shutil.rmtree(str(work), ignore_errors=True)
        place.mkdir(parents=True)
        prepare(here, there)
        return contents(there), contents(here)

    old, new = prepared()
    complete = dict(old, **new)
    said = run(here, there, options, Fault(0, "", False))
    problems = [] if said[0] == "done" and contents(there) == complete else ["without a fault: %r" % (said,)]
    total = said[1]
    made = 0
    for number in range(1, total + 1):
        # Of a tree, whose files are much alike, each call fails in one of the ways; of a file, in half of them.
        for index in range(number, number + 6, 2 if len(complete) == 1 else 6):
            kind, after = FAULTS[index % len(FAULTS)]
            made += 1
            where = "%s, %s %s call %d of %d" % (scenario, kind, "after" if after else "before", number, total)
            prepared()
            said = run(here, there, options, Fault(number, kind, after))
            for problem in judge(said, old, complete, contents(there), leftovers(place), options):
                problems.append("%s: %s: %r" % (where, problem, said))
            again = run(here, there, dict(options, resume=False), Fault(0, "", False))
            if again[0] != "done" or contents(there) != complete or leftovers(place):
                problems.append("%s: then %r, %r" % (where, again, leftovers(place)))
    return problems, made


def judge(said, old, new, found, left, options):
    is_part = options["resume"] and left == [".there.trickle-part"]
    found = {below: data for below, data in found.items() if ".trickle-" not in below}
    for below in {*old, *new, *found}:
        if found.get(below, "nothing") not in (old.get(below, "nothing"), new.get(below, "nothing")):
            yield "%r is neither the old nor the new one" % below
    if said[0] == "done" and found != new:
        yield "it is not there"
    if said[0] != "killed" and left and not is_part:
        yield "left: %r" % left
    if said[0] == "failed" and ("while" not in said[3] or "/" not in said[3]):
        yield "an error that does not say what, where and when"


if __name__ == "__main__":
    FSYNC, WRITE = os.fsync, os.write
    load_agent(sys.argv[1])
    file_source = sys.modules["trickle._agent.file_source"]
    file_target = sys.modules["trickle._agent.file_target"]
    found, made = check(sys.argv[3], pathlib.Path(sys.argv[2]) / "work")
    for line in found[:20]:
        print(line)
    print("%d failures, %d problems" % (made, len(found)))
