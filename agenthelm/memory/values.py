"""What a memory can hold: JSON, and nothing that would come back as something else."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from agenthelm.exceptions import MemoryStoreError, MemoryValueError

__all__ = ["LONGEST_TTL", "check_key", "check_ttl", "decode", "encode", "not_an_integer", "same"]

LONGEST_TTL = 10**10
"""Seconds, about 317 years: more than this is a mistake, and some stores can't hold it."""

_HINTS = {
    "datetime": "store value.isoformat()",
    "date": "store value.isoformat()",
    "Decimal": "store str(value)",
    "UUID": "store str(value)",
    "bytes": "store base64 text",
    "set": "store a sorted list",
    "frozenset": "store a sorted list",
}


def encode(value: Any, *, where: str = "the value") -> str:
    """A value as JSON text.

    Pydantic models and dataclasses are dumped, at any depth; tuples become lists, as JSON has no others.

    Args:
        value: What to encode.
        where: How the error message names it.

    Raises:
        MemoryValueError: JSON can't hold it: another type, a key that is no string, NaN or an infinity, a cycle.
    """
    try:
        return _dump(_plain(value))
    except _UnfitError as exc:
        raise MemoryValueError(f"{where}{''.join(reversed(exc.path))} {exc.why}") from None
    except RecursionError:
        raise MemoryValueError(f"{where} is nested too deeply, or contains itself") from None
    except ValueError as exc:  # an integer with more digits than Python turns into text
        raise MemoryValueError(f"{where} can't be stored as JSON: {exc}") from exc


_dump = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class _UnfitError(Exception):
    """What is wrong with a value, and where in it; the way is noted while the exception passes back through it."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why
        self.path: list[str] = []


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, int)):  # bools are integers
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _UnfitError(f"is {value}, which JSON can't hold; store None or a text instead")
        return value
    step: object = None
    try:
        if isinstance(value, Mapping):
            made = {}
            for step, item in value.items():
                if not isinstance(step, str):
                    kind = type(step).__name__
                    raise _UnfitError(f"is a key of type {kind}; JSON keys are strings, so store it under str(key)")
                made[step] = _plain(item)
            return made
        if isinstance(value, (list, tuple)):
            items: list[Any] = []
            for item in value:
                step = len(items)
                items.append(_plain(item))
            return items
    except _UnfitError as exc:
        exc.path.append(f"[{step!r}]")
        raise
    if isinstance(value, BaseModel):
        return _plain(value.model_dump(mode="json"))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain({item.name: getattr(value, item.name) for item in dataclasses.fields(value)})
    kind = type(value).__name__
    hint = _HINTS.get(kind, "store plain data, a pydantic model or a dataclass")
    raise _UnfitError(f"is a {kind}, which JSON can't hold; {hint}")


def decode(text: str, *, key: str) -> Any:
    """The value that a JSON text holds.

    Raises:
        MemoryStoreError: It is not JSON, so somebody else wrote it.
    """
    try:
        return json.loads(text)
    except ValueError as exc:
        raise MemoryStoreError(
            f"what is stored under {_short(key)} is not JSON ({exc}); something other than AgentHelm wrote it, delete it"
        ) from exc


def same(left: Any, right: Any) -> bool:
    """Whether two decoded values are the same JSON: the order of keys is nothing, 1 is not 1.0 and not true."""
    return left is right or json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


def check_key(key: Any, *, what: str = "a key") -> str:
    """A key as it came, if a store can hold it.

    Raises:
        MemoryValueError: It is no string, empty, or has code points that UTF-8 can't hold (lone surrogates).
    """
    if not isinstance(key, str) or not key:
        raise MemoryValueError(f"{what} must be a non-empty string, not {key!r}")
    if not key.isascii():
        try:
            key.encode()
        except UnicodeEncodeError as exc:
            raise MemoryValueError(f"{what} must be valid Unicode text: {exc.reason} in {_short(key)}") from exc
    return key


def check_ttl(ttl: float | None) -> float | None:
    """A time to live in seconds, if it makes sense.

    Raises:
        MemoryValueError: It is no positive, finite number.
    """
    if ttl is None:
        return None
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not 0 < ttl <= LONGEST_TTL:
        raise MemoryValueError(
            f"ttl must be a positive number of seconds up to {LONGEST_TTL:g}, or None to keep the value; not {ttl!r}"
        )
    return ttl


def not_an_integer(key: str) -> MemoryValueError:
    """The error for a counter that can't be counted on."""
    return MemoryValueError(
        f"the value under {_short(key)} is no 64-bit integer, or would not be one any more; nothing was changed"
    )


def _short(text: str) -> str:
    return repr(text) if len(text) <= 80 else f"{text[:60]!r}… ({len(text)} characters)"
