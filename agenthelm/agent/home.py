"""The way back into a run from threads that it did not start itself: DSPy's, and those of an agent's own pools.

DSPy's fan-outs (``dspy.Parallel``, ``Module.batch``) carry DSPy's settings into their threads, but no context variables.
So the run is among the settings. Other pools carry neither: there a call is refused rather than made outside of the run.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import dspy

from agenthelm._runtime.context import RunContext, current_run, entered
from agenthelm._runtime.workers import on_event_loop
from agenthelm.core.executor import ToolExecutor, current_executor, detached

__all__ = ["HOME", "Home", "at_home", "at_work", "executor_here", "threaded"]

P = ParamSpec("P")
T = TypeVar("T")

HOME = "agenthelm_home"
"""The name among DSPy's settings."""


class Home:
    """A run, as it was where code began that may start threads.

    Attributes:
        executor: The executor in force there.
        run: The identity in force there.
    """

    __slots__ = ("_context", "executor", "run")

    def __init__(self) -> None:
        self._context = contextvars.copy_context()
        self.executor: ToolExecutor | None = current_executor()
        run = current_run()
        # Code on the event loop blocks it while it waits for threads, so they don't find their way back by it.
        self.run: RunContext | None = run.evolve(loop=None) if run is not None and on_event_loop() else run

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function as a part of the run, under the DSPy settings of this thread."""
        settings = dspy.settings.copy()

        def inside() -> T:
            with dspy.context(**settings):
                if self.run is None:
                    return function(*args, **kwargs)
                with entered(self.run):
                    return function(*args, **kwargs)

        # A context can only be entered once at a time, hence the copy.
        return self._context.copy().run(inside)


def at_home(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function as a part of the run that this thread belongs to, if it is one that DSPy started in a run."""
    home = dspy.settings.get(HOME) if current_run() is None else None
    return function(*args, **kwargs) if home is None else home.call(function, *args, **kwargs)


def threaded(function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Callable[[], T]:
    """The same call, for a worker thread: what it starts finds an event loop that is not blocked."""

    def call() -> T:
        with dspy.context(**{HOME: Home()}):
            return function(*args, **kwargs)

    return call


_at_work: dict[int, int] = {}
_gate = threading.Lock()


@contextmanager
def at_work(tools: object) -> Iterator[None]:
    """Remember that the agent with this toolset, or a copy of it, is at work in a run."""
    key = id(tools)
    with _gate:
        _at_work[key] = _at_work.get(key, 0) + 1
    try:
        yield
    finally:
        with _gate:
            _at_work[key] -= 1
            if not _at_work[key]:
                del _at_work[key]


def executor_here(tools: object) -> ToolExecutor:
    """The executor in force for the agent with this toolset; outside of runs a detached one.

    Raises:
        RuntimeError: The agent is at work in a run, and here is a thread that is not known to belong to it.
    """
    executor = current_executor()
    if executor is None and id(tools) in _at_work:
        raise RuntimeError(
            "this agent is at work in a run, and what is called here would be outside of it: not recorded, not undone. "
            "The thread has no context variables; hand them to it with pool.submit(contextvars.copy_context().run, ...)"
        )
    return executor or detached()
