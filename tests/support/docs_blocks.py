"""Runs the code blocks of one page, in order, as one program, in the working directory.

    python docs_blocks.py PAGE

* A ``python`` block runs in the namespace of those before it. With ``title="app.py"`` it is written to that file instead,
  and so is any other block with a file's name as its title.
* Lines of a ``console``, ``bash`` or ``sh`` block that begin with ``$ agenthelm`` or ``$ uv run agenthelm`` are run by the shell.
* An HTML comment right above a block changes that: ``<!-- not run: why -->``, or ``<!-- exits 1 -->`` for a command that is
  to end with that code.

Whatever names a model of a provider gets the offline one, so a page runs unchanged with a real key and without any.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FENCE = re.compile(r"^(?P<indent>[ \t]*)(?P<ticks>`{3,})[ \t]*(?P<info>[^`\n]*)$")
_TITLE = re.compile(r'title="(?P<title>[^"]+)"')
_MARK = re.compile(r"<!--\s*(?:(?P<skip>not run:\s*\S.*?)|exits (?P<code>\d+))\s*-->\s*$")
_COMMAND = re.compile(r"^\$ (?:uv run )?(?P<command>agenthelm(?: .*)?)$")
_SHELLS = ("console", "bash", "sh", "shell")


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, text, the line its text begins in, and what the comment above it says."""

    language: str
    text: str
    line: int
    title: str | None = None
    skipped: bool = False
    exits: int = 0

    @property
    def commands(self) -> list[str]:
        """The commands of a shell block that are to be run; a trailing backslash continues a line."""
        if self.language not in _SHELLS:
            return []
        lines = re.sub(r"\\\n>?\s*", " ", self.text).splitlines()
        return [match["command"] for line in lines if (match := _COMMAND.match(line.strip()))]

    @property
    def runs(self) -> bool:
        """Whether there is anything to do for it."""
        return not self.skipped and (self.language == "python" or self.title is not None or bool(self.commands))


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a Markdown page."""
    lines = page.splitlines()
    number = 0
    while number < len(lines):
        opening = _FENCE.match(lines[number])
        if opening is None:
            number += 1
            continue
        above = next((line for line in reversed(lines[:number]) if line.strip()), "")
        mark = _MARK.search(above)
        begin = number + 1
        end = begin
        while end < len(lines) and lines[end].strip() != opening["ticks"]:
            end += 1
        indent = len(opening["indent"])
        language, _, rest = opening["info"].strip().partition(" ")
        title = _TITLE.search(rest)
        yield Block(
            language=language,
            text="\n".join(line[indent:] for line in lines[begin:end]) + "\n",
            line=begin + 1,
            title=title["title"] if title else None,
            skipped=bool(mark and mark["skip"]),
            exits=int(mark["code"]) if mark and mark["code"] else 0,
        )
        number = end + 1


def run(path: Path) -> None:
    """Run one page.

    Raises:
        SystemExit: A command ended with another code than the page says.
    """
    page = types.ModuleType("__main__")  # classes of the page find their annotations' names through it
    page.__file__ = str(path)
    sys.modules["__main__"] = page
    sys.path.insert(0, str(Path.cwd()))
    ready = False
    for block in blocks(path.read_text("utf-8")):
        if not block.runs:
            continue
        if block.title is not None:
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.text, "utf-8")
        elif block.language == "python":
            if not ready:
                _without_network()
                ready = True
            code = compile("\n" * (block.line - 1) + block.text, str(path), "exec", dont_inherit=True)
            exec(code, page.__dict__)
        for command in block.commands:
            print(f"$ {command}", flush=True)
            code_ = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], check=False).returncode
            if code_ != block.exits:
                raise SystemExit(f"{path.name}:{block.line}: `{command}` exited {code_}, not {block.exits}")


def _without_network() -> None:
    """Let every ``dspy.LM`` be the offline model under the name it was given."""
    import dspy

    from agenthelm.agent.offline import AsyncOfflineEngine, OfflineEngine

    real = dspy.LM

    class Offline(real):  # type: ignore[misc, valid-type]
        def __init__(self, model: str, **options: Any) -> None:
            if "engine" not in options:
                options = {"engine": OfflineEngine(), "async_engine": AsyncOfflineEngine(), "cache": False}
            super().__init__(model, **options)

    dspy.LM = Offline  # type: ignore[misc]


if __name__ == "__main__":
    os.environ.setdefault("AGENTHELM_MODEL", "offline")
    run(Path(sys.argv[1]).resolve())
