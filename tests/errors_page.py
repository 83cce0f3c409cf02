"""Write the table of docs/reference/errors.md from that of trickle/_diagnosis.py: ``python -m tests.errors_page``."""

from pathlib import Path

from trickle._diagnosis import causes

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "errors.md"
HEAD = "| `reason` | what happened | what to try | retried |\n|---|---|---|---|\n"


class _Placeholders(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return f"*{key}*"


def table() -> str:
    """A row for each cause; those that differ only in how they are known share one."""
    rows = {}
    for cause in causes():
        happened = cause.happened.format_map(_Placeholders())
        rows[f"| {cause.reason} | {happened} | {cause.advice} | {'yes' if cause.passing else ''} |\n"] = None
    return HEAD + "".join(sorted(rows))


def with_table(page: str) -> str:
    """The page with the table as it is now in the place of the one that it has."""
    before, _, behind = page.partition(HEAD)
    lines = behind.splitlines(keepends=True)
    rows = next((number for number, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return before + table() + "".join(lines[rows:])


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
