"""Counters as every backend understands them: 64-bit integers in their shortest form."""

from __future__ import annotations

import re

from agenthelm.memory.values import not_an_integer

__all__ = ["added"]

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
_LOW, _HIGH = -(2**63), 2**63 - 1


def added(held: str | None, amount: int, *, key: str) -> int:
    """The sum of a counter and an amount.

    Raises:
        MemoryValueError: What is held is no integer, or the sum does not fit into 64 bits.
    """
    counted = 0 if held is None else int(held) if _INTEGER.fullmatch(held) else None
    if counted is None or not _LOW <= counted <= _HIGH or not _LOW <= counted + amount <= _HIGH:
        raise not_an_integer(key)
    return counted + amount
