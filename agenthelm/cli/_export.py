"""Events as JSON, CSV and Markdown, page by page, safe for whoever opens them."""

from __future__ import annotations

import csv
import io
import json
import re
import secrets
import shutil
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

from agenthelm.cli._console import clean, escape_controls, json_text, to_json
from agenthelm.cli._options import expanded
from agenthelm.exceptions import ConfigError, StorageError

__all__ = ["FORMATS", "target"]

_Pages: TypeAlias = AsyncIterator[Sequence[Mapping[str, Any]]]

_COLUMNS = (
    "timestamp", "run_id", "session_id", "agent_name", "step", "kind", "tool_name", "outcome", "execution_time", "retry_count",
    "late", "estimated_cost_usd", "error_state", "approver", "compensates", "trace_id", "inputs", "outputs",
)  # fmt: skip


async def _as_json(pages: _Pages, stream: IO[str]) -> AsyncIterator[str]:
    opening = "[\n"
    async for events in pages:
        texts = (json_text(event, stream) for event in events)
        yield opening + ",\n".join(textwrap.indent(text, "  ") for text in texts)
        opening = ",\n"
    yield "[]\n" if opening == "[\n" else "\n]\n"


async def _as_csv(pages: _Pages, stream: IO[str]) -> AsyncIterator[str]:
    yield _csv_lines([_COLUMNS])
    async for events in pages:
        yield _csv_lines([[_csv_cell(event.get(column)) for column in _COLUMNS] for event in events])


def _csv_lines(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


_FORMULA = re.compile(r"(^|\n)(?=[=+\-@\t＝＋－＠])")


def _csv_cell(value: object) -> object:
    """Spreadsheets run what begins with ``=`` and its like; an apostrophe makes it a text.

    Control characters are told: what reads the file may take any line break for the end of a row, also between quotes.
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(to_json(value), ensure_ascii=False)
    return _FORMULA.sub(r"\1'", escape_controls(text))


async def _as_markdown(pages: _Pages, stream: IO[str]) -> AsyncIterator[str]:
    columns = (
        "timestamp",
        "agent_name",
        "tool_name",
        "inputs",
        "outcome",
        "execution_time",
        "estimated_cost_usd",
        "error_state",
    )
    yield f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}\n"
    async for events in pages:
        yield "".join(
            f"| {' | '.join(_markdown_cell(event.get(column)) for column in columns)} |\n" for event in events
        )


def _markdown_cell(value: object) -> str:
    text = clean(value, width=200)
    for mark in ("\\", "|", "*", "_", "`", "<", "[", "]"):
        text = text.replace(mark, "&lt;" if mark == "<" else f"\\{mark}")
    return text


FORMATS: dict[str, Callable[[_Pages, IO[str]], AsyncIterator[str]]] = {
    "json": _as_json,
    "csv": _as_csv,
    "md": _as_markdown,
}
"""By their names; each is told which stream its text is for."""


@contextmanager
def target(output: Path | None) -> Iterator[IO[str]]:
    """Where an export goes: stdout, or a file that is replaced only when all of it is written.

    Raises:
        ConfigError: The file can't be written.
    """
    if output is None:
        yield sys.stdout
        return
    try:
        path = expanded(output)
        whole = not path.exists() or path.is_file()  # what is neither, such as a pipe, is written as it comes
        # In a folder where others may write, nobody has put a link in the place of a new file whose name can't be guessed.
        place = path.resolve().with_name(f".{path.name}.{secrets.token_hex(8)}") if whole else path
        try:
            with place.open("x" if whole else "w", encoding="utf-8", errors="backslashreplace") as stream:
                if whole and path.exists():
                    shutil.copymode(path, place)
                yield stream
            if whole:
                place.replace(path.resolve())
        finally:
            if whole:
                place.unlink(missing_ok=True)
    except StorageError:
        raise
    except OSError as exc:
        raise ConfigError(f"can't write {output}: {exc.strerror or exc}", setting="output") from exc
