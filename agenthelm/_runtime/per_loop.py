"""What belongs to one event loop, such as its connections, and ends with it at the latest."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from anyio import CancelScope
from anyio.lowlevel import current_token

__all__ = ["PerLoop"]

T = TypeVar("T")


class PerLoop(Generic[T]):
    """One value for each event loop that asks for it.

    A process may have many loops one after the other, one for each job, say, and use one object in all of them. What a
    job leaves open is closed when its loop ends.

    Args:
        close: Ends a value, in its own event loop.
    """

    def __init__(self, close: Callable[[T], Awaitable[None]]) -> None:
        self._close = close
        # Not a `RunVar`: one that somebody has set lives as long as the loop.
        self._kept: WeakKeyDictionary[object, tuple[T, AsyncGenerator[None, None]]] = WeakKeyDictionary()

    def get(self) -> T | None:
        """The running event loop's value, if it has one."""
        kept = self._kept.get(current_token().native_token)
        return None if kept is None else kept[0]

    async def set(self, value: T) -> None:
        """Give the running event loop, which has none yet, its value; no checkpoint."""
        loop = current_token().native_token
        keeper = _keeper(self._kept, loop, value, self._close)
        self._kept[loop] = value, keeper
        await anext(keeper)

    async def close(self) -> None:
        """End the running event loop's value now, through any cancellation."""
        kept = self._kept.get(current_token().native_token)
        if kept is not None:
            await kept[1].aclose()


async def _keeper(
    kept: MutableMapping[object, tuple[T, AsyncGenerator[None, None]]],
    loop: object,
    value: T,
    close: Callable[[T], Awaitable[None]],
) -> AsyncGenerator[None, None]:
    """Wait for the end: an event loop that ends closes the generators that were begun in it, and tells nobody else."""
    try:
        yield
    finally:
        kept.pop(loop, None)
        with CancelScope(shield=True):
            await close(value)
