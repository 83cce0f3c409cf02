"""Run every Python snippet of the README and the documentation.

Each fenced ``python`` block is a program that runs in a process of its own, in an empty directory, where
``ssh`` is a stand-in that leads every host name to this machine.  An HTML comment on the line before a block
changes that:

- ``<!-- continues -->``: the block is appended to the one before it in the same file;
- ``<!-- prints -->`` before a ``text`` block: what the program before it writes to stdout (``...`` stands for
  anything);
- ``<!-- compiled only: REASON -->``: the block is compiled, and not run;
- ``<!-- needs: docker -->``: the block is run where there can be an engine, with a container called ``web``.

As in the text, ``await`` may stand at a block's top level: from there on it goes into a ``main()``.
"""

import ast
import doctest
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import fake_ssh
from tests.containers import IMAGE, Docker

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PATIENCE = 120  # seconds: only ends a snippet that hangs

FENCE = re.compile(
    r"(?:^[ ]*<!--[ ]*(?P<mark>[^\n]*?)[ ]*-->\n+)?"
    r"^(?P<indent>[ ]*)```(?P<language>python|text)\n(?P<code>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass
class Snippet:
    page: Path
    line: int
    code: str
    compiled_only: bool = False
    needs_docker: bool = False
    prints: str | None = None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def snippets_of(page: Path, text: str) -> Iterator[Snippet]:
    current: Snippet | None = None
    for match in FENCE.finditer(text):
        mark = match["mark"] or ""
        code = textwrap.dedent(match["code"])
        line = text.count("\n", 0, match.start("code")) + 1
        if match["language"] == "text":
            if mark == "prints":
                assert current is not None, f"{page}:{line}: no program before this output"
                current.prints = (current.prints or "") + code
        elif mark == "continues":
            assert current is not None, f"{page}:{line}: no program to continue"
            current.code += code
        else:
            if current is not None:
                yield current
            kind, _, reason = mark.partition(":")
            assert kind != "compiled only" or reason.strip(), f"{page}:{line}: say why it is not run"
            needs_docker = mark == "needs: docker"
            current = Snippet(page, line, code, compiled_only=kind == "compiled only", needs_docker=needs_docker)
    if current is not None:
        yield current


def program(code: str) -> str:
    """The same as a script: statements from the first one that awaits go into an async function."""
    tree = ast.parse(code)
    awaits = ast.Await | ast.AsyncWith | ast.AsyncFor
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if any(isinstance(node, awaits) for node in ast.walk(statement)):
            lines = code.splitlines(keepends=True)
            head, body = lines[: statement.lineno - 1], lines[statement.lineno - 1 :]
            start = ["async def main():\n", *(f"    {line}" for line in body), "\n\n"]
            return "".join(
                [*head, "\n\n", *start, 'if __name__ == "__main__":\n    import trio\n\n    trio.run(main)\n']
            )
    return code


SNIPPETS = [snippet for page in PAGES for snippet in snippets_of(page, page.read_text())]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("bin")
    fake_ssh.install(directory)
    path = f"{directory}:{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def web(docker: Docker) -> Iterator[Docker]:
    """An engine in which a container called ``web`` runs."""
    docker.run("run", "--detach", "--init", "--name", "web", IMAGE, "sleep", "1000000")
    yield docker
    docker.remove("web")


def test_there_are_snippets() -> None:
    assert any(snippet.page.name == "README.md" for snippet in SNIPPETS)
    assert any(not snippet.compiled_only for snippet in SNIPPETS)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=str)
def test_snippet_does_what_the_page_says(
    snippet: Snippet, tmp_path: Path, environment: dict[str, str], request: pytest.FixtureRequest
) -> None:
    script = tmp_path / "snippet.py"
    script.write_text(program(snippet.code))
    compile(script.read_text(), str(script), "exec")
    if snippet.compiled_only:
        return
    if snippet.needs_docker:
        web: Docker = request.getfixturevalue("web")
        environment = {**environment, **web.environment}

    done = subprocess.run(
        [sys.executable, script.name],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )

    assert done.returncode == 0, f"{snippet}:\n{done.stdout}\n{done.stderr}"
    if snippet.prints is not None:
        checker = doctest.OutputChecker()
        if not checker.check_output(snippet.prints, done.stdout, doctest.ELLIPSIS):
            pytest.fail(f"{snippet} prints:\n{done.stdout}\nand not:\n{snippet.prints}", pytrace=False)


def test_await_at_top_level_goes_into_a_main() -> None:
    code = "import trio\ndef f():\n    return 1\nasync def g():\n    await x\nx = 1\nawait trio.sleep(x)\nprint(x)\n"

    head, _, body = program(code).partition("async def main():\n")

    assert head.rstrip() == "import trio\ndef f():\n    return 1\nasync def g():\n    await x\nx = 1"
    assert body.startswith("    await trio.sleep(x)\n    print(x)\n")


def test_marks_join_leave_out_and_expect() -> None:
    page = ROOT / "README.md"
    text = """
```python
x = 1
```
<!-- continues -->
```python
print(x)
```
<!-- prints -->
```text
1
```

- item
  <!-- compiled only: for a reason -->
  ```python
  if x:
      pass
  ```
"""

    first, second = snippets_of(page, text)

    assert (first.code, first.prints, first.line) == ("x = 1\nprint(x)\n", "1\n", 3)
    assert (second.code, second.compiled_only) == ("if x:\n    pass\n", True)
