"""What contract tests expect to fail; pytest is theirs who run them, and is not imported here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["raises"]


async def raises(kind: type[BaseException], function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Await a call that must raise; returns what it raised.

    Raises:
        AssertionError: It returned.
    """
    try:
        value = await function(*args, **kwargs)
    except kind as exc:
        return exc
    raise AssertionError(f"expected {kind.__name__}, got {value!r}")
