"""Forward logging records to the controller, once a call's code has imported ``logging``.

It costs ten milliseconds to import, so the worker does not do it itself.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    Send = Callable[[int, bytes], None]

LONGEST = 32 * 1024  # bytes of one record


def install(send: "Send") -> None:
    """Have every record that reaches the root logger handed to *send*: its level, and NAME NUL MESSAGE."""
    if "logging" in sys.modules:
        _add_handler(sys.modules["logging"], send)
    else:
        sys.meta_path.insert(0, _Watcher(send))


class _Watcher:
    """Lets ``logging`` be imported by whoever does it, and adds our handler then."""

    def __init__(self, send: "Send") -> None:
        self.send = send

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        if name != "logging" or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        for finder in list(sys.meta_path):
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                self._wrap(spec.loader)
                return spec
        return None

    def _wrap(self, loader: "Any") -> None:
        execute = loader.exec_module

        def exec_module(module: "Any") -> None:
            execute(module)
            _add_handler(module, self.send)

        loader.exec_module = exec_module


def _add_handler(logging: "Any", send: "Send") -> None:
    class Forwarder(logging.Handler):  # type: ignore[misc]
        def emit(self, record: "Any") -> None:
            try:
                text = self.format(record)  # with the traceback, where there is one
                data = ("%s\0%s" % (record.name, text)).encode("utf-8", "backslashreplace")
                send(record.levelno, data[:LONGEST])
            except Exception:
                self.handleError(record)

    forwarder = Forwarder()
    logging.root.addHandler(forwarder)
    configure = logging.basicConfig

    def basic_config(**options: "Any") -> None:
        """``logging.basicConfig`` does nothing where there is a handler already, but the level is meant."""
        if logging.root.handlers != [forwarder] or options.get("force"):
            configure(**options)
        elif options.get("level") is not None:
            logging.root.setLevel(options["level"])

    logging.basicConfig = basic_config
