"""How mitogen gets files: here from over there, and over there, where this module is sent, from here."""

from __future__ import annotations

from pathlib import Path

import mitogen.core
import mitogen.service


def get_all(context: mitogen.core.Context, source: str, target: str, names: list[str]) -> None:
    """Get the files of these names below *source* from the FileService of *context*; "" is *source* itself."""
    for name in names:
        path = Path(target, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            complete, _ = mitogen.service.FileService.get(context, str(Path(source, name)), file)
        assert complete, name
