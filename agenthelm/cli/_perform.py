"""Lets an orchestrator do what a command is for: shown while it happens, and told however it ends."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from agenthelm.cli import _journals, _result, _session
from agenthelm.cli._command import Failure, report, summary
from agenthelm.cli._loop import Interrupted, watch

if TYPE_CHECKING:
    from agenthelm.cli._live import View
    from agenthelm.config import Settings
    from agenthelm.core.storage.base import BaseStorage

__all__ = ["perform"]

T = TypeVar("T")


async def perform(
    settings: Settings, view: View, work: Callable[[Any], Awaitable[T]], *, json: bool, **options: Any
) -> T:
    """Do something with an orchestrator.

    Args:
        settings: What to open.
        view: Follows it.
        work: Gets the orchestrator.
        json: Whether stdout is for a JSON document, which a failure is as well.
        **options: See `_session.open_orchestrator`.

    Raises:
        Failure: It failed, or was interrupted and has unwound; what had to be said has been said.
    """
    watch().restore = view.restore
    watch().first = "interrupted: undoing what was done (Ctrl-C again stops at once)"
    watch().last = "stopped: what is left to undo is in the journal; `agenthelm saga recover` finishes it"
    if json:
        watch().document = functools.partial(_result.print_stopped, view)
    sagas: dict[str, Any] = {}
    try:
        with _session.telemetry(settings), view.shown():
            async with _session.open_orchestrator(
                settings, prompt=view.prompting, observer=view.observe, quiet=view.quiet, **options
            ) as orchestrator:
                try:
                    return await work(orchestrator)
                except (Exception, KeyboardInterrupt):
                    raise
                except BaseException:  # which does not say what became of its runs
                    with anyio.CancelScope(shield=True):
                        sagas = await _ended(orchestrator.storage, view)
                    raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise Failure(_told(error, view, sagas, json=json)) from error


async def _ended(storage: BaseStorage, view: View) -> dict[str, Any]:
    """How the runs of a command ended, by their ids; None for those of which that can't be said."""
    return {run: await _journals.ended(storage, run) for run in view.runs}


def _told(raised: BaseException, view: View, sagas: dict[str, Any], *, json: bool) -> int:
    """Say what a command ended with, and what became of its runs; returns the exit code."""
    stuck = [saga for saga in sagas.values() if saga and (saga.stuck or saga.status == "failed")]
    error, signum = raised, watch().signal
    if not isinstance(raised, Exception):
        # A cancellation by a signal ends here: how the process ends depends on what could be undone. Without a signal
        # it came from something that an agent awaited, and is a failure like any other.
        if signum is not None and isinstance(raised, anyio.get_cancelled_exc_class()):
            error = Interrupted(signum)
        error.saga = stuck[0] if stuck else sagas.get(view.run_id or "")  # type: ignore[attr-defined]
    code = report(error)
    saga = getattr(error, "saga", None)
    if view.run_id is not None or saga is not None:
        run_id = getattr(error, "run_id", None) or (stuck[0].run_id if stuck else None)
        _result.tell_undone(view, saga, run_id=run_id)
        for other in stuck[1:]:
            _result.tell_stuck(view, other, run_id=other.run_id)
    if json:
        _result.print_failure(error, view, code=code, message=summary(error))
    return code
