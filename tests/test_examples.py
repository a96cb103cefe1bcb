"""What is shown is run: every code block of README and docs, and every example, offline and in an empty directory."""

from __future__ import annotations

import ast
import builtins
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.docs_blocks import Block, blocks

ROOT = Path(__file__).resolve().parent.parent
RUNNER = ROOT / "tests" / "support" / "docs_blocks.py"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUNNABLE = [page for page in PAGES if any(block.runs for block in blocks(page.read_text("utf-8")))]
EXAMPLES = sorted(path.parent for path in (ROOT / "examples").glob("*/main.py"))
DEADLINE = 120


PAGE = """\
```python
x = 1
```
```toml title="agenthelm.toml"
model = 'offline'
```
<!-- not run: it never ends -->

```python
while True: ...
```
- a list
    <!-- exits 2 -->
    ```console
    $ agenthelm run \\
        x
    error: no
    $ ls
    ```
````text
```python
nothing = 1
```
````
"""


def environment(home: Path) -> dict[str, str]:
    """A world without keys, settings and network, in which `agenthelm` is this one."""
    kept = ("PATH", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")
    return {
        **{name: value for name, value in os.environ.items() if name in kept},
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error::RuntimeWarning",  # a coroutine nobody awaited
        "HOME": str(home),
        "AGENTHELM_MODEL": "offline",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "ORT_DISABLE_TELEMETRY": "1",
    }


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-6000:]}"
    return done.stdout


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in RUNNABLE])
def test_the_blocks_of_a_page_run_in_order_as_one_program(page: Path, tmp_path: Path) -> None:
    run([sys.executable, str(RUNNER), str(page)], tmp_path)


def test_the_programs_of_a_tutorial_that_has_several_need_nothing_from_each_other() -> None:
    page = ROOT / "docs" / "tutorials" / "undo-a-run.md"
    for block in blocks(page.read_text("utf-8")):
        if block.language == "python":
            nodes = list(ast.walk(ast.parse(block.text)))
            bound = {
                alias.asname or alias.name
                for node in nodes
                if isinstance(node, (ast.Import, ast.ImportFrom))
                for alias in node.names
            }
            bound |= {
                node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            }
            bound |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
            bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
            bound |= {node.name for node in nodes if isinstance(node, ast.ExceptHandler) and node.name}
            read = {node.id for node in nodes if isinstance(node, ast.Name)}
            assert read - bound - set(dir(builtins)) == set(), f"line {block.line}"


@pytest.mark.parametrize("example", [pytest.param(example, id=example.name) for example in EXAMPLES])
def test_an_example_runs_offline_and_says_what_it_did(example: Path, tmp_path: Path) -> None:
    assert run([sys.executable, str(example / "main.py")], tmp_path).strip()


@pytest.mark.parametrize(
    "example", [pytest.param(path, id=path.name) for path in sorted((ROOT / "examples").glob("*/"))]
)
def test_an_example_has_a_program_and_a_page_that_says_how_to_run_it(example: Path) -> None:
    assert (example / "main.py").is_file()
    assert f"examples/{example.name}/main.py" in (example / "README.md").read_text("utf-8")


def test_blocks_are_read_with_their_language_title_place_and_marks() -> None:
    found = list(blocks(PAGE))
    assert found[0] == Block(language="python", text="x = 1\n", line=2)
    assert (found[1].title, found[1].runs) == ("agenthelm.toml", True)
    assert (found[2].skipped, found[2].runs) == (True, False)
    assert (found[3].commands, found[3].exits) == (["agenthelm run  x"], 2)
    assert [block.language for block in found] == ["python", "toml", "python", "console", "text"]


def test_a_block_that_fails_is_reported_with_its_page_and_line(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n```python\nx = 1\n```\n\n```python\nassert x == 2, 'here'\n```\n", "utf-8")
    done = subprocess.run(
        [sys.executable, str(RUNNER), str(page)], env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert 'page.md", line 8' in done.stderr
