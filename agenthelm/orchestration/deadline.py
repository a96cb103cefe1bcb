"""The deadline of a whole run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from agenthelm.exceptions import RunTimeoutError

__all__ = ["in_time"]

T = TypeVar("T")


async def in_time(timeout: float | None, work: Callable[[], Awaitable[T]]) -> T:
    """Await what a run does, for so many seconds at most; None for no limit.

    Raises:
        RunTimeoutError: The deadline passed, also if somebody inside has swallowed the cancellation.
    """
    if timeout is None:
        return await work()
    with anyio.move_on_after(timeout) as deadline:
        value = await work()
    if deadline.cancel_called:
        raise RunTimeoutError(timeout)
    return value
