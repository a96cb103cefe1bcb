"""Events as JSON, CSV and Markdown, safe for whoever opens them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agenthelm.cli._console import clean, to_json

__all__ = ["FORMATS"]

_Events = Sequence[Mapping[str, Any]]

_COLUMNS = (
    "timestamp", "run_id", "session_id", "agent_name", "step", "kind", "tool_name", "outcome", "execution_time", "retry_count",
    "late", "estimated_cost_usd", "error_state", "approver", "compensates", "trace_id", "inputs", "outputs",
)  # fmt: skip


def _as_json(events: _Events) -> str:
    return json.dumps(to_json(list(events)), ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def _as_csv(events: _Events) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for event in events:
        writer.writerow([_csv_cell(event.get(column)) for column in _COLUMNS])
    return text.getvalue()


def _csv_cell(value: object) -> object:
    """Spreadsheets run what begins with ``=`` and its like; an apostrophe makes it a text."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(to_json(value), ensure_ascii=False)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _as_markdown(events: _Events) -> str:
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
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    lines += [f"| {' | '.join(_markdown_cell(event.get(column)) for column in columns)} |" for event in events]
    return "\n".join(lines) + "\n"


def _markdown_cell(value: object) -> str:
    text = clean(value, width=200)
    for mark in ("\\", "|", "*", "_", "`", "<", "[", "]"):
        text = text.replace(mark, "&lt;" if mark == "<" else f"\\{mark}")
    return text


FORMATS: dict[str, Callable[[_Events], str]] = {"json": _as_json, "csv": _as_csv, "md": _as_markdown}
