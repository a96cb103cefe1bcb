"""Changed copies of frozen dataclasses, cheap enough to be made for every call."""

from __future__ import annotations

from typing import Any, TypeVar

__all__ = ["changed"]

T = TypeVar("T")


def changed(instance: T, changes: dict[str, Any]) -> T:
    """As ``dataclasses.replace``, at a tenth of its price: nothing is checked.

    Args:
        instance: A frozen dataclass without slots and without ``__post_init__``.
        changes: New values by field.
    """
    copy = object.__new__(type(instance))
    object.__setattr__(copy, "__dict__", instance.__dict__ | changes)
    return copy
