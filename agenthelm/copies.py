"""Copies of values that nobody else can change, and that somebody else's code may."""

from __future__ import annotations

import copy
from typing import Any

__all__ = ["own"]


def own(value: Any) -> Any:
    """A deep copy; what can't be copied (handles, locks, clients) is shared as it is."""
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - somebody else's class
        return value
