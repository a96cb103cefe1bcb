"""Lets an orchestrator do what a command is for: shown while it happens, and told however it ends."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from agenthelm.cli._command import Failure, report, summary

if TYPE_CHECKING:
    from agenthelm.cli._live import View
    from agenthelm.config import Settings

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
    import anyio

    from agenthelm.cli import _journals, _result, _session
    from agenthelm.cli._loop import Interrupted, watch

    watch().restore = view.restore
    watch().first = "interrupted: undoing what was done (Ctrl-C again stops at once)"
    watch().last = "stopped: what is left to undo is in the journal; `agenthelm saga recover` finishes it"
    if json:
        watch().document = functools.partial(_result.print_stopped, view)
    saga: Any = None
    stuck: list[Any] = []
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
                        sagas = {run: await _journals.ended(orchestrator.storage, run) for run in view.runs}
                    stuck = [ended for ended in sagas.values() if ended and (ended.stuck or ended.status == "failed")]
                    saga = stuck[0] if stuck else sagas.get(view.run_id or "")
                    raise
    except KeyboardInterrupt:
        raise
    except BaseException as exc:
        error, signum = exc, watch().signal
        if not isinstance(exc, Exception):
            # A cancellation by a signal ends here: how the process ends depends on what could be undone. Without a signal
            # it came from something that an agent awaited, and is a failure like any other.
            if signum is not None and isinstance(exc, anyio.get_cancelled_exc_class()):
                error = Interrupted(signum)
            error.saga = saga  # type: ignore[attr-defined]
        code = report(error)
        if view.run_id is not None or getattr(error, "saga", None) is not None:
            ended = getattr(error, "saga", None)
            run_id = getattr(error, "run_id", None) or (stuck[0].run_id if stuck else None)
            _result.tell_undone(view, ended, run_id=run_id)
            for other in stuck[1:]:
                _result.tell_stuck(view, other, run_id=other.run_id)
        if json:
            _result.print_failure(error, view, code=code, message=summary(error))
        raise Failure(code) from exc
