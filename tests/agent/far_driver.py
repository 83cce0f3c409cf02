"""Run by a far end's Python: the agent's importer and functions, with nothing else of the agent around them.

Messages are pickles, each behind its length: see far_end.py.  Works on Python 3.6.
"""

import os
import pathlib
import pickle
import struct
import sys
import threading
import traceback


def read():
    size = struct.unpack("<Q", requests.read(8))[0]
    return pickle.loads(requests.read(size))


def write(*message):
    data = pickle.dumps(message, protocol=4)
    answers.write(struct.pack("<Q", len(data)) + data)
    answers.flush()


def load_agent(root):
    """Make trickle's far-end modules as the agent's loader does, without a package on sys.path."""
    for name, path in (
        ("trickle", None),
        ("trickle._agent", None),
        ("trickle.remote", "trickle/remote.py"),
        ("trickle._agent.importer", "trickle/_agent/importer.py"),
        ("trickle._agent.functions", "trickle/_agent/functions.py"),
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


def fetch(name):
    with link:
        if not importer.has_answer(name):
            write("fetch", name)
            answer = read()
            if answer is None:
                raise OSError("the link is gone")
            importer.add_bundle(answer)


def call(payload):
    fn, args, kwargs = functions.loads_call(payload)
    return fn(*args, **kwargs)


def run(source, arguments):
    namespace = {"importer": importer, "functions": functions, "threading": threading, "sys": sys}
    namespace.update(arguments)
    exec(compile(source, "<test>", "exec"), namespace)
    return namespace.get("result")


requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
link = threading.Lock()
load_agent(sys.argv[1])
importer_module = sys.modules["trickle._agent.importer"]
functions = sys.modules["trickle._agent.functions"]
importer = importer_module.Importer(fetch)
importer.install(list(sys.path))
sys.path.extend(sys.argv[2:])  # what stands for this host's site-packages
actions = {"bundle": importer.add_bundle, "call": call, "run": run}
while True:
    try:
        action, arguments = read()
    except struct.error:
        break
    try:
        write("returned", actions[action](*arguments))
    except BaseException as exc:
        functions.show_sources()
        lines = traceback.format_exception(type(exc), exc, exc.__traceback__)
        write("raised", type(exc).__name__, str(exc), "".join(lines))
