"""Numbers, money and time as a person reads them."""

from __future__ import annotations

import math

__all__ = ["count", "dollars", "seconds"]


def count(number: int, what: str) -> str:
    """A number of things: one call, two calls."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def dollars(usd: float | None, *, digits: int = 4) -> str:
    """An amount with so many digits after the point, or as many more as it takes to show two; unknown is not zero."""
    if usd is None:
        return "unknown"
    if usd == 0:
        return "$0"
    return f"${usd:.{max(digits, 1 - math.floor(math.log10(abs(usd))))}f}"


def seconds(value: float) -> str:
    """A duration."""
    if value < 1:
        return f"{value * 1000:.0f} ms" if value >= 0.01 else f"{value * 1000:.1f} ms"
    return f"{value:.1f} s" if value < 60 else f"{int(value // 60)} min {int(value % 60):02d} s"
