"""Who is running: the identity that follows a run through tasks and threads."""

from __future__ import annotations

import itertools
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType

from anyio.lowlevel import EventLoopToken

from agenthelm._runtime.frozen import changed
from agenthelm._runtime.progress import Progress

__all__ = [
    "RunContext",
    "StopMark",
    "current_run",
    "entered",
    "new_call_id",
    "new_run_id",
    "raise_if_stopped",
    "refuse_reimport",
    "report",
]

_log = logging.getLogger(__name__)

_process_prefix = secrets.token_hex(4)
_CALLS = itertools.count(1)


def _forked() -> None:
    global _process_prefix  # a fork is another process
    _process_prefix = secrets.token_hex(4)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)


def new_call_id() -> str:
    """A process-unique id for one call; a counter behind a random prefix, because uuid4 is dear on the hot path."""
    return f"{_process_prefix}-{next(_CALLS):x}"


def new_run_id() -> str:
    """A globally unique id for one run that sorts by its start time (UTC).

    Raises:
        RuntimeError: No run begins here; see `refuse_reimport`.
    """
    refuse_reimport()
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"


def refuse_reimport() -> None:
    """Refuse to work while a worker process imports the program's main file, which does that work elsewhere already.

    A program that starts its work when it is imported would do all of it twice. While the file is imported, anyio has
    taken ``__main__`` away in the worker, and ``runpy`` has put ``__mp_main__`` there.

    Raises:
        RuntimeError: This is such an import.
    """
    if "__main__" not in sys.modules and "__mp_main__" in sys.modules:
        raise RuntimeError(
            "a worker process imports the program's main file, which must not start anything then: "
            "put what it starts under `if __name__ == '__main__':`"
        )


class StopMark:
    """The decision that a scope makes no further calls, and why.

    A budget, a final denial or a lost lease must end its scope whatever the code in between swallows (DSPy's ReAct
    catches every ``Exception`` of a tool). So the reason is remembered here: every later door raises it again, and the
    edge of the scope raises it in the end.
    """

    __slots__ = ("error",)

    def __init__(self) -> None:
        self.error: Exception | None = None

    def set(self, error: Exception) -> None:
        """Remember why; the first reason stays."""
        if self.error is None:
            self.error = error


@dataclass(frozen=True)  # without slots, for `changed`: two copies are made for every effect
class RunContext:
    """The identity of what is running right now.

    Attributes:
        run_id: The run; nested runs share the outermost one's.
        session_id: The conversation whose memory is used.
        namespace: The tenant boundary.
        agent: The agent at work.
        step: The saga step at work.
        effect: The id of the effect whose tool body is running; effects begun inside are its inner effects.
        attempt: Which attempt of that effect's call it is.
        stops: The stop marks that bind this code, innermost scope first.
        memory: The ``MemoryContext`` that agents get when none is passed; opaque to this layer.
        models: The language models of the run, set and read by ``agent.lm``; opaque to this layer.
        observer: Told about progress (see `agenthelm._runtime.progress`).
        loop: The event loop of the run, so that threads which anyio did not start find the way back.
    """

    run_id: str
    session_id: str
    namespace: str
    agent: str | None = None
    step: str | None = None
    effect: str | None = None
    attempt: int = 1
    stops: tuple[StopMark, ...] = ()
    memory: object | None = None
    models: object | None = None
    observer: Callable[[Progress], None] | None = None
    loop: EventLoopToken | None = None

    def evolve(self, **changes: object) -> RunContext:
        """A copy with some fields changed."""
        if not _FIELDS.issuperset(changes):
            raise TypeError(f"a run context has no {', '.join(sorted(changes.keys() - _FIELDS))}")
        return changed(self, changes)


_FIELDS = frozenset(RunContext.__dataclass_fields__)

_current: ContextVar[RunContext | None] = ContextVar("agenthelm_run", default=None)


def current_run() -> RunContext | None:
    """The identity in force, or None outside of any run."""
    return _current.get()


class entered:  # noqa: N801 - used like a function: `with entered(context):`
    """Puts an identity in force for a ``with`` block; child tasks and worker threads inherit it."""

    __slots__ = ("_context", "_token")

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._token: Token[RunContext | None] | None = None

    def __enter__(self) -> RunContext:
        self._token = _current.set(self._context)
        return self._context

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._token is not None
        _current.reset(self._token)


def raise_if_stopped() -> None:
    """Raise the reason for which an enclosing scope was stopped, if one was.

    Raises:
        Exception: The very error that stopped the scope; every door calls this first.
    """
    context = _current.get()
    if context is not None:
        for mark in context.stops:
            if mark.error is not None:
                raise mark.error


def report(progress: Progress) -> None:
    """Tell the run's observer, if it has one; what that raises is nobody's failure and stops no undo."""
    context = _current.get()
    if context is not None and context.observer is not None:
        try:
            context.observer(progress)
        except Exception as error:  # noqa: BLE001 - see above
            _log.debug("the observer raised %s: %s", type(error).__name__, error)
