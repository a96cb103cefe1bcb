"""What the command line prints with: results to stdout, everything else to stderr, and data is never markup."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from contextvars import ContextVar
from typing import IO, TYPE_CHECKING, Any

from agenthelm.tracing.scrub import scrub

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = [
    "arguments_line",
    "clean",
    "err",
    "escape_controls",
    "json_text",
    "note",
    "out",
    "print_json",
    "say",
    "scrubbed",
    "sign",
    "stdout_for_document",
    "to_json",
]

_BITS = 8192
_PLAIN = {"✓": "+", "✗": "x", "●": "*", "·": "-", "↶": "<", "…": ".", "█": "#"}
_ARGUMENT_WIDTH = 40
_PIPE_WIDTH = 200  # no terminal to fit into: wide enough that nothing worth grepping is wrapped


def _console(stream: IO[str]) -> Console:
    from agenthelm.tracing.screen import Screen

    width = None if stream.isatty() or os.environ.get("COLUMNS") else _PIPE_WIDTH
    return Screen(file=stream, markup=False, emoji=False, highlight=False, width=width, soft_wrap=False)


def out() -> Console:
    """The console for results. Markup is off: what looks like ``[/tag]`` in data is printed as it is."""
    return _console(sys.stdout)


def err() -> Console:
    """The console for everything that is not the result."""
    return _console(sys.stderr)


def escape_controls(text: str) -> str:
    """Make control characters visible, so that data can't drive the terminal; tabs and line ends stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


def sign(drawn: str, stream: IO[str] | None = None) -> str:
    """A sign as it is drawn, or a plain one for a stream whose encoding lacks it: an escape would take the place of six."""
    try:
        drawn.encode(getattr(stream or sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return _PLAIN[drawn]
    return drawn


def clean(value: object, *, width: int | None = None) -> str:
    """A value as one line of text: strings as they are, the rest as JSON; cut at ``width`` characters."""
    text = value if isinstance(value, str) else "" if value is None else json.dumps(to_json(value), ensure_ascii=False)
    text = escape_controls(" ".join(text.split()))
    return text if width is None or len(text) <= width else text[: width - 1] + "…"


def scrubbed(error: str | None) -> str | None:
    """What is known of a failure, without the secrets that it quotes."""
    return error and scrub(error)


def arguments_line(arguments: Mapping[str, object]) -> str:
    """Arguments as a person reads them; the idempotency key, which nobody chose, is left out."""
    shown = (
        f"{clean(key, width=_ARGUMENT_WIDTH)}={clean(value, width=_ARGUMENT_WIDTH)}"
        for key, value in arguments.items()
        if key != "idempotency_key"
    )
    return ", ".join(shown)


def say(what: RenderableType, *, style: str | None = None) -> None:
    """Print a line, without secrets, or something drawn to stderr. Where nobody reads it any more, it is left unsaid.

    A line stays one, however long: half of the command that it names would be another one.
    """
    told = escape_controls(scrub(what)) if isinstance(what, str) else what
    with suppress(OSError):
        err().print(told, style=style, soft_wrap=isinstance(told, str))


def note(text: str) -> None:
    """Print a line to stderr that a person may skip."""
    say(text, style="dim")


def to_json(value: Any) -> Any:
    """A JSON-compatible copy of anything: models and dataclasses by their fields, the rest by ``str``."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):  # Python refuses to print what has very many digits
        return value if value.bit_length() <= _BITS else f"<integer of {value.bit_length()} bits>"
    if isinstance(value, float):  # NaN and infinities are no JSON: they become their names
        return value if value - value == 0 else str(value)
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    dump = getattr(value, "model_dump", None)
    return to_json(dump(mode="json")) if callable(dump) else str(value)


def print_json(document: object) -> None:
    """Print the one JSON document of a ``--json`` call to stdout."""
    stream = _for_document.get() or sys.stdout
    stream.write(json_text(document, stream) + "\n")
    stream.flush()


def json_text(document: object, stream: IO[str]) -> str:
    """A document as JSON, indented: in ASCII for a stream that does not take every character.

    What is no printable character is told as JSON tells it, so that data can neither drive the terminal nor end a line.
    """
    every = (getattr(stream, "encoding", None) or "utf-8").lower().startswith("utf")
    text = json.dumps(to_json(document), ensure_ascii=not every, indent=2, allow_nan=False)
    lines = text.split("\n")
    if all(map(str.isprintable, lines)):
        return text
    return "\n".join("".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line) for line in lines)


_for_document: ContextVar[IO[str] | None] = ContextVar("agenthelm_cli_document", default=None)


@contextmanager
def stdout_for_document() -> Iterator[None]:
    """Keep stdout for `print_json`: what apps, agents, tools and their own processes print goes to stderr meanwhile."""
    stream: IO[str] = sys.stdout
    stream.flush()
    with ExitStack() as stack:
        with suppress(OSError):  # without a descriptor nobody but Python itself can print there
            place, elsewhere, encoding = stream.fileno(), sys.stderr.fileno(), sys.stdout.encoding
            stream = stack.enter_context(os.fdopen(os.dup(place), "w", encoding=encoding, errors="backslashreplace"))
            stack.callback(os.dup2, stream.fileno(), place)
            os.dup2(elsewhere, place)
        stack.enter_context(redirect_stdout(sys.stderr))
        stack.callback(_for_document.reset, _for_document.set(stream))
        yield
