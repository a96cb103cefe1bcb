"""Counters as every backend understands them: 64-bit integers in their shortest form."""

from __future__ import annotations

import re

from agenthelm.exceptions import MemoryValueError

__all__ = ["added", "not_an_integer"]

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
_LOW, _HIGH = -(2**63), 2**63 - 1


def added(held: str | None, amount: int, *, key: str) -> int:
    """The sum of a counter and an amount.

    Raises:
        MemoryValueError: What is held is no integer, or the sum does not fit into 64 bits.
    """
    if held is not None and not _INTEGER.fullmatch(held):
        raise not_an_integer(key)
    total = (0 if held is None else int(held)) + amount
    if not _LOW <= total <= _HIGH:
        raise not_an_integer(key)
    return total


def not_an_integer(key: str) -> MemoryValueError:
    """The error for a counter that can't be counted on."""
    return MemoryValueError(
        f"the value under {key[:80]!r} is no 64-bit integer, or would not be one any more; nothing was changed"
    )
