"""What was written for asyncio's own cancellation, awaited under cancel scopes; on asyncio only.

asyncio's comes once. A scope's comes again at every pass of the event loop until it is obeyed, and so interrupts the
clean-up as well: a connection that was just being made belongs to nobody then, and is never closed.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import anyio
from anyio.lowlevel import current_token

from agenthelm._runtime.groups import wait_through

__all__ = ["cancelled_once", "closing", "streamed_once"]

T = TypeVar("T")

CLEAN_UP_SECONDS = 1.0
"""How long a clean-up may take before the task hears of its cancellation again, which it may as well have swallowed."""

_under_way: set[_Apart[Any]] = set()


class _Apart(Generic[T]):
    """Work in a task of asyncio's that no scope reaches."""

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._value: T
        self._error: Exception | SystemExit | None = None
        self._over = anyio.Event()
        loop: Any = current_token().native_token
        self._task = loop.create_task(self._run(work))  # anyio has none that a scope can't reach
        self._task.add_done_callback(self._ended)
        _under_way.add(self)  # asyncio alone lets a task go that waits for a reader who was dropped

    def _ended(self, _: object) -> None:
        _under_way.discard(self)
        self._over.set()

    async def _run(self, work: Callable[[], Awaitable[T]]) -> None:
        try:
            self._value = await work()
        # asyncio ends at once, with nothing undone, when a SystemExit leaves a task.
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - raised where it is awaited
            self._error = exc

    async def end(self) -> T:
        """Wait for its end; what it raised is raised."""
        await self._over.wait()
        try:
            if self._error is not None:
                raise self._error
            self._task.result()  # its cancellation, by whoever may have sent it
            return self._value
        finally:
            self._error = None  # it must not keep its own frames alive

    async def cancel(self) -> None:
        """Cancel it and wait for its end, through any cancellation; what it raises by then is nobody's concern."""
        if not self._over.is_set():
            self._task.cancel()
            await wait_through(self)

    async def wait(self) -> None:
        """Wait until it obeys its cancellation. What has swallowed one hears of it again after a while."""
        while not self._over.is_set():
            with anyio.move_on_after(CLEAN_UP_SECONDS):
                await self._over.wait()
                return
            self._task.cancel()


async def cancelled_once(function: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Await, on asyncio, what was written for asyncio's own cancellation."""
    apart = _Apart(functools.partial(function, *args))
    try:
        return await apart.end()
    finally:
        await apart.cancel()


async def streamed_once(source: AsyncIterable[T]) -> AsyncGenerator[T, None]:
    """As `cancelled_once`, for what yields.

    Whichever tasks ask for its values, it runs in one from its beginning to its end: what it holds between two of them,
    a time limit or a span, belongs to a task.
    """
    offered: list[T] = []  # one at a time
    ready, taken = anyio.Event(), anyio.Event()

    async def read() -> None:
        nonlocal taken
        try:
            async with closing(aiter(source)) as values:
                async for value in values:
                    taken = anyio.Event()
                    offered.append(value)
                    ready.set()
                    await taken.wait()
        finally:
            ready.set()

    apart = _Apart(read)
    try:
        while True:
            await ready.wait()
            if not offered:
                break
            ready = anyio.Event()
            value = offered.pop()
            taken.set()
            yield value
        await apart.end()
    finally:
        await apart.cancel()


@asynccontextmanager
async def closing(values: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Close an iterator at the end, if it can be."""
    try:
        yield values
    finally:
        close = getattr(values, "aclose", None)
        if close is not None:
            await close()
