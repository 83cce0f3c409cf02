"""Loops that are cancelled a thousand times each, so that this imports little: each runs in a worker of its own."""


def queue_loop():
    import queue

    waiting = queue.Queue()
    print("started")
    while True:
        waiting.put(1)
        waiting.get()


def import_loop():
    import importlib
    import sys

    print("started")
    while True:
        for name in ("json", "csv", "textwrap"):
            sys.modules.pop(name, None)
            importlib.import_module(name)
