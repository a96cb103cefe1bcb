"""``agenthelm init``: a project that runs, with an agent, a tool with its undo, and a test."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agenthelm.cli._command import command
from agenthelm.cli._options import expanded
from agenthelm.exceptions import ConfigError

__all__ = ["app"]

app: typer.Typer = typer.Typer(add_completion=False)


@command(app, "init")
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where; made if it isn't there.")] = Path(),
) -> None:
    """Make a project: an agent, a tool and its undo, and a test, that runs as it is."""
    from agenthelm.cli import _console, _templates

    folder = expanded(folder)
    taken = [name for name in _templates.FILES if (folder / name).exists()]
    if taken:
        raise ConfigError(f"{folder / taken[0]} is there already, so nothing was written; choose an empty folder")
    try:
        for name, text in _templates.FILES.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
    except OSError as exc:
        raise ConfigError(f"can't write {exc.filename or folder}: {exc.strerror or exc}") from exc
    for name in _templates.FILES:
        _console.say(f"  {folder / name}")
    enter = "" if folder.resolve() == Path.cwd() else f"cd {folder} && "
    _console.out().print(f'{enter}agenthelm run "buy milk" --model offline\n{enter}python -m pytest -q')
