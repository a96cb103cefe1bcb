"""The only thread hop of the package.

An agent in a thread waits for a tool that needs a thread of its own. With one limiter for both, as many agents as there
are tokens wait for ever. So each nesting depth has a limiter of its own: depth ``n`` only ever waits for ``n + 1``.
"""

from __future__ import annotations

import functools
import math
import signal
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from types import FrameType
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_process
import anyio.to_thread
from anyio import CancelScope, CapacityLimiter
from anyio.lowlevel import EventLoopToken

from agenthelm._runtime.groups import in_child, wait_through
from agenthelm._runtime.wake import wake

__all__ = [
    "DEFAULT_WORKERS",
    "Outlasted",
    "Workers",
    "answers",
    "await_on_loop",
    "hop_back",
    "in_worker_thread",
    "on_event_loop",
    "on_trio",
]

T = TypeVar("T")

DEFAULT_WORKERS = 64
"""Threads per nesting depth. Tools and LM calls wait for networks, so more than cores; anyio's own default is 40."""

_depth: ContextVar[int] = ContextVar("agenthelm_depth", default=0)
"""How many worker threads stand between here and the event loop."""

PATIENCE_SECONDS = 10.0
"""How long a thread that a run did not start waits for the run's event loop to answer before it takes it for blocked."""


class Outlasted(Generic[T]):
    """A function on its way through a worker thread, whose end is known even if nobody awaits the thread any more.

    Attributes:
        value: What it returned.
        error: What it raised, if it did.
        cancellation: The native cancellation that had to wait for it, if one came.
    """

    __slots__ = ("_claim", "_ended", "_function", "_over", "_token", "cancellation", "error", "value")

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._claim = threading.Lock()  # taken once: by the thread, or by whoever does not want it to begin any more
        self._over = False
        self._token: EventLoopToken | None = None
        self._ended: anyio.Event | None = None
        self.value: T | None = None
        self.error: BaseException | None = None
        self.cancellation: BaseException | None = None

    def run(self) -> None:
        """What the worker thread does."""
        if not self._claim.acquire(blocking=False):
            return
        try:
            self.value = self._function()
        except BaseException as error:  # noqa: BLE001 - raised again where it is awaited
            self.error = error
        # Each side first says its own and then looks at the other's, so at least one of them knows of both.
        self._over = True
        if self._ended is not None and self._token is not None:
            wake(self._token, self._ended.set)

    def disown_or_wait(self) -> anyio.Event | None:
        """An event for the end of the function; None if it has not begun, and then it never will."""
        if self._claim.acquire(blocking=False):
            return None
        self._token = anyio.lowlevel.current_token()
        self._ended = ended = anyio.Event()
        if self._over:
            ended.set()
        return ended


class _Errands:
    """What the thread of an abandonable function has the event loop do; it ends when the thread is let go."""

    __slots__ = ("_open", "_over")

    def __init__(self) -> None:
        self._open: dict[CancelScope, anyio.Event] = {}
        self._over = False

    async def run(self, function: Callable[..., Awaitable[T]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
        """Await a coroutine function for the thread."""
        if not self._over:
            done = anyio.Event()
            with CancelScope() as scope:
                self._open[scope] = done
                try:
                    return await function(*args, **kwargs)
                finally:
                    del self._open[scope]
                    done.set()
        raise RuntimeError("this thread was let go, and nothing is done for it any more")

    async def end(self) -> None:
        """Cancel what is under way, and wait for its end: it may be an effect, or money that is spent."""
        self._over = True
        under_way = list(self._open.items())
        for scope, _ in under_way:
            scope.cancel()
        for _, done in under_way:
            await wait_through(done)


_errands: ContextVar[_Errands | None] = ContextVar("agenthelm_errands", default=None)


class Workers:
    """Worker threads with one limiter per nesting depth.

    Safe to share between runs, tasks and event loops: limiters are made on first use in each loop.

    Args:
        size: Threads per nesting depth.
    """

    def __init__(self, size: int = DEFAULT_WORKERS) -> None:
        if size < 1:
            raise ValueError(f"the number of worker threads must be at least 1, not {size}")
        self.size = size
        # By event loop. A `RunVar` would live as long as the loop, and a service makes workers for every saga of its own.
        self._limiters: WeakKeyDictionary[object, dict[object, CapacityLimiter]] = WeakKeyDictionary()

    def limiter(self, key: object) -> CapacityLimiter:
        """The limiter of one nesting depth in the running event loop."""
        loop = anyio.lowlevel.current_token().native_token
        limiters = self._limiters.get(loop)
        if limiters is None:
            limiters = self._limiters[loop] = {}
        limiter = limiters.get(key)
        if limiter is None:
            limiter = limiters[key] = CapacityLimiter(self.size)
        return limiter

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """Run a function in a worker thread and wait for its end, whatever is cancelled meanwhile.

        Waiting for a free thread is cancellable; once the function runs, the value it returns is the value returned
        here, and a cancellation shows at the caller's next checkpoint (a native one when the thread has ended).
        """
        return await in_child(self._hop, function, args)

    async def hop(self, function: Callable[..., T], *args: Any) -> T:
        """As `run`, for functions that may be left to end alone by a native cancellation: reads, for example."""
        return await self._hop(function, args)

    async def outlast(self, function: Callable[[], T]) -> Outlasted[T]:
        """As `run`, without the price of a child task, for callers that have something to write down afterwards.

        A native cancellation that comes while the function runs is held off and handed back, to be raised when the
        outcome is on record. One that comes before the function has begun is raised, and it never begins.
        """
        thread = Outlasted(function)
        try:
            await self._hop(thread.run, ())
        except anyio.get_cancelled_exc_class() as pierced:
            ended = thread.disown_or_wait()
            if ended is None:
                raise
            thread.cancellation = pierced
            try:
                await wait_through(ended)
            except anyio.get_cancelled_exc_class():
                pass  # one is pending already
        return thread

    async def _hop(self, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        depth = _depth.get()
        deeper, own = _depth.set(depth + 1), _errands.set(None)
        try:
            return await anyio.to_thread.run_sync(function, *args, limiter=self.limiter(depth))
        finally:
            _errands.reset(own)
            _depth.reset(deeper)

    async def run_abandonable(
        self, function: Callable[..., T], *args: Any, begins: Callable[[], None] | None = None
    ) -> T:
        """Run a function without side effects in a thread that is let go when the caller is cancelled.

        A thread that was let go keeps its place in the limiter until it ends, so there are never more than ``size``
        of them. What it awaits on the event loop just then is cancelled, and waited for.

        Args:
            function: What is run.
            args: Its arguments.
            begins: Called when there is a place for it.
        """
        limiter = self.limiter("abandonable")
        borrower = object()
        token = anyio.lowlevel.current_token()
        await limiter.acquire_on_behalf_of(borrower)
        gate = threading.Lock()
        started = abandoned = False

        def body() -> T:
            nonlocal started
            with gate:
                if abandoned:  # nobody waits any more, and the place is already given back
                    raise RuntimeError("abandoned before it began")
                started = True
            try:
                return function(*args)
            finally:
                # Not waited for: a loop that is just ending never answers, and the thread, and so the process, would
                # never end.
                wake(token, limiter.release_on_behalf_of, borrower)

        errands = _Errands()
        own = _errands.set(errands)
        try:
            if begins is not None:
                begins()
            # `borrower` holds the place; this second limiter only keeps anyio from counting it again.
            return await anyio.to_thread.run_sync(body, abandon_on_cancel=True, limiter=CapacityLimiter(1))
        except BaseException:
            with gate:
                abandoned = not started
            if abandoned:
                limiter.release_on_behalf_of(borrower)
            await errands.end()
            raise
        finally:
            _errands.reset(own)

    async def run_in_process(
        self,
        function: Callable[..., T],
        *args: Any,
        needs: Any = None,
        begins: Callable[[], None] | None = None,
    ) -> T:
        """Run a function in a worker process, which is killed when the caller is cancelled.

        For CPU-bound work, which threads can't keep off the event loop under the GIL. The function, its arguments and
        its value must pickle, and the process re-imports ``__main__``.

        Args:
            function: What is run.
            args: Its arguments.
            needs: What else is unpickled there beforehand, so that its modules are imported.
            begins: Called when a process is there and the function is about to be sent to it.
        """
        # The place is held here; the limiters below only keep anyio from counting it again.
        async with self.limiter("process"):
            await anyio.to_process.run_sync(_is_there, (function, needs), cancellable=True, limiter=CapacityLimiter(1))
            if begins is not None:
                begins()
            return await anyio.to_process.run_sync(function, *args, cancellable=True, limiter=CapacityLimiter(1))


def _is_there(_: Any) -> None:
    """What a worker process does first.

    A terminal's Ctrl-C goes to it as well. What becomes of the call is for the process that waits for it to say, which
    kills this one or goes on waiting; interrupted here, a service that ends in good order would be interrupted there.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _left_alone)  # a function, since processes that are started here inherit SIG_IGN


def _left_alone(number: int, frame: FrameType | None) -> None:
    """Do nothing about a signal."""


def on_event_loop() -> bool:
    """Whether this is code that an event loop runs."""
    try:
        anyio.lowlevel.current_token()
    except RuntimeError:  # anyio's own, or asyncio's in a thread to which `asyncio.to_thread` copied the loop's context
        return False
    return True


def on_trio() -> bool:
    """Whether the running event loop is trio's, on which what is made for asyncio can't be awaited."""
    return type(anyio.lowlevel.current_token().native_token).__module__.startswith("trio")


def in_worker_thread() -> bool:
    """Whether this is a thread that an event loop of ours waits for; a cancellation point if it is."""
    try:
        anyio.from_thread.check_cancelled()
    except anyio.NoEventLoopError:
        return False
    return True


def answers(token: EventLoopToken) -> bool:
    """Whether an event loop runs; one that is blocked, perhaps by code that waits for this very thread, does not."""
    answered = threading.Event()
    return wake(token, answered.set) and answered.wait(PATIENCE_SECONDS)


def await_on_loop(function: Callable[..., Any], /, *args: Any, token: EventLoopToken | None = None) -> Any:
    """Await a coroutine function on the event loop that waits for this thread, or on the one of ``token``."""
    return anyio.from_thread.run(functools.partial(_told, function, *args), token=token)


async def _told(function: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> T:
    """Await what a thread has sent, which hears of a cancellation that came while it was on its way.

    On asyncio anyio tells the tasks in a cancelled scope so, again and again, until there is none. Where a thread is waited
    for there is none, and where it was let go the scope is left; so what the thread sends after that would never be told,
    and its first ``checkpoint_if_cancelled``, which waits to be told, would spin for ever. A scope of its own tells it.
    """
    errands = _errands.get()
    with CancelScope() as scope:
        if anyio.current_effective_deadline() == -math.inf:
            scope.cancel()
        return await (function(*args, **kwargs) if errands is None else errands.run(function, args, kwargs))
    raise AssertionError("a scope lets through what another one around it has sent as well")


def hop_back(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Await a coroutine function on the event loop from a worker thread; a cancellation point.

    Raises:
        RuntimeError: Not called from a worker thread of a run.
    """
    try:
        # On asyncio the hop alone is none: a coroutine that ends within a turn of the loop is never told.
        anyio.from_thread.check_cancelled()
        return await_on_loop(functools.partial(function, *args, **kwargs))
    except anyio.NoEventLoopError as exc:
        raise RuntimeError(
            "this call hops back to a run's event loop, so it only works inside a sync forward() or a sync tool; "
            "from other code await the async method"
        ) from exc
