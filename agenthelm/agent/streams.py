"""The events of a streamed answer, read so that a cancelled stream is closed: its model writes on otherwise, and is paid."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterator
from typing import Any

from dspy.lm15 import Request, Response, response_to_events

from agenthelm._runtime.apart import closing, streamed_once
from agenthelm._runtime.workers import Workers, on_trio

__all__ = ["events", "read", "whole"]


def events(source: AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    """What an async engine streams; its connection is closed at the end."""
    return _plainly(source) if on_trio() else streamed_once(source)


async def _plainly(source: AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    async with closing(aiter(source)) as values:
        async for event in values:
            yield event


async def whole(
    ask: Callable[[Request, Workers], Awaitable[Response]], request: Request, workers: Workers
) -> AsyncGenerator[Any, None]:
    """A whole answer, as events; asked for when the first of them is."""
    for event in response_to_events(await ask(request, workers)):
        yield event


async def read(source: Iterator[Any], workers: Workers) -> AsyncGenerator[Any, None]:
    """What an engine streams that can only block."""
    stream = _Blocking(source)
    try:
        while (event := await workers.run_abandonable(stream.next)) is not None:
            yield event
    finally:
        stream.close()


class _Blocking:
    """A stream that threads read, one at a time. One that was let go closes it when its event is there.

    Whichever threads read it, it has one context from its beginning to its end: what it sets, it can set back.
    """

    def __init__(self, source: Iterator[Any]) -> None:
        self._source = source
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
        self._waited_for = self._over = False

    def next(self) -> Any | None:
        """The next event, or None at the end."""
        with self._lock:
            self._waited_for = True
        try:
            return self._context.run(next, self._source, None)
        finally:
            with self._lock:
                self._waited_for = False
                over = self._over
            if over:
                self._end()

    def close(self) -> None:
        """Read no more."""
        with self._lock:
            self._over = True
            waited_for = self._waited_for
        if not waited_for:
            self._end()

    def _end(self) -> None:
        close = getattr(self._source, "close", None)
        if close is not None:
            self._context.run(close)
