"""The ways between a sync agent and the event loop: its context, and calls that must be awaited."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

from agenthelm._runtime.context import current_run
from agenthelm._runtime.workers import answers, await_on_loop, hop_back, in_worker_thread, on_event_loop
from agenthelm.agent.home import at_home
from agenthelm.agent.scratch import AsyncScratch, Scratch
from agenthelm.core.executor import current_executor
from agenthelm.memory.context import MemoryContext
from agenthelm.memory.sync_context import SyncMemoryContext

__all__ = ["async_context", "await_from_sync", "sync_context"]

T = TypeVar("T")


def async_context(context: object | None) -> Any:
    """The memory for code on the event loop: the one given, or the running one, or a scratch pad."""
    context = _given_or_running(context)
    if isinstance(context, SyncMemoryContext):
        return MemoryContext(context.session_id, context.hub, namespace=context.namespace)
    return AsyncScratch() if context is None else context


def sync_context(context: object | None) -> Any:
    """The memory for code in a worker thread, with the same method names as plain calls."""
    context = _given_or_running(context)
    if isinstance(context, (MemoryContext, AsyncScratch)):
        return context.sync()
    return Scratch() if context is None else context


def _given_or_running(context: object | None) -> object | None:
    if context is not None:
        return context
    running = current_run()
    return running.memory if running is not None else None


def await_from_sync(function: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Await a coroutine function from sync code.

    In a worker thread of a run that happens on the run's event loop, and is a cancellation point. So it does in a
    thread that belongs to the run without being one of its own, such as DSPy's, but there it is none. Outside of runs,
    as in an optimizer's thread, an event loop of its own runs until the call is done.

    Raises:
        RuntimeError: Called on the event loop itself, which it would block; or the run's event loop is blocked by code
            that waits for this thread.
    """
    return at_home(_await, function, *args)


def _await(function: Callable[..., Awaitable[T]], *args: Any) -> T:
    if on_event_loop():
        raise RuntimeError("this sync call would block the event loop: await the async method (ause, run) instead")
    if in_worker_thread():
        return hop_back(function, *args)  # type: ignore[no-any-return]
    run, executor = current_run(), current_executor()
    if run is not None and run.loop is not None and answers(run.loop):
        return await_on_loop(function, *args, token=run.loop)  # type: ignore[no-any-return]
    if executor is None or executor.effects is None:
        return anyio.run(function, *args)
    raise RuntimeError(
        "the run's event loop does not answer this thread: async code seems to block it while it waits for threads. Fan "
        "out in a sync forward, or in a module that is awaited (await self.ask(module, ...)), or await the async methods"
    )
