"""A host's deadline that passes while code is where a test wants it, however busy the machine is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio
import anyio.lowlevel
import pytest

__all__ = ["LIMITS", "overruns"]

LIMITS = (0.05, 0.5, 5.0, 50.0)
"""Seconds that a run is given to come somewhere before they pass; where it had not come there, the next ones are tried."""


async def overruns(
    code: Coroutine[Any, Any, Any], inside: Callable[[], Awaitable[Any]], let_go: Callable[[], None]
) -> None:
    """Check that ``wait_for`` on code that does not let go of what it does ends in its deadline.

    Args:
        code: What is awaited.
        inside: Returns once the code is where the deadline is to find it; only then the deadline is set.
        let_go: Lets the code end, once the deadline has passed and the code was cancelled.
    """
    task = asyncio.ensure_future(code)
    with anyio.fail_after(60):
        await inside()

    async def release() -> None:
        while not task.cancelling():
            await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()
        assert not task.done()
        let_go()

    async with anyio.create_task_group() as group:
        group.start_soon(release)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(task, 0.01)
