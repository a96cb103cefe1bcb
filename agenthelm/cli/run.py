"""``agenthelm run``: a task, its agents, and what came of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agenthelm.cli._command import Failure, command, exit_code, report, summary
from agenthelm.cli._options import Agents, ApiBase, App, Approve, Json, Model, Namespace, Session, Trace
from agenthelm.exceptions import ConfigError

if TYPE_CHECKING:
    from agenthelm.cli._live import View
    from agenthelm.config import Settings

__all__ = ["app"]

app: typer.Typer = typer.Typer()


@command(app, "run")
async def run(
    task: Annotated[str, typer.Argument(metavar="TASK", help="What to do; - reads it from stdin.")],
    agents: Agents = None,
    parallel: Annotated[
        bool, typer.Option("--parallel", help="All agents at once instead of one after the other.")
    ] = False,
    merge: Annotated[
        str | None, typer.Option("--merge", metavar="HOW", help="With --parallel: dict, flat or list.")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="KEY=VALUE", help="A further input; JSON or text. Repeatable."),
    ] = None,
    app: App = None,
    model: Model = None,
    api_base: ApiBase = None,
    session: Session = None,
    namespace: Namespace = "default",
    budget: Annotated[
        float | None, typer.Option("--budget", metavar="USD", min=0, help="Stop before spending more.")
    ] = None,
    max_tokens_total: Annotated[
        int | None, typer.Option("--max-tokens-total", min=1, help="Stop before using more tokens.")
    ] = None,
    max_calls: Annotated[
        int | None, typer.Option("--max-calls", min=1, help="Stop before making more LM calls.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", help="The deadline of the whole run.")
    ] = None,
    approve: Approve = None,
    rollback: Annotated[
        bool, typer.Option("--rollback/--no-rollback", help="Undo the run's effects if it fails.")
    ] = True,
    trace: Trace = None,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Run a task with one or more agents.

    One after the other, each agent gets what the ones before it found out. If the run fails, or Ctrl-C ends it,
    what its tools did is undone.
    """
    from agenthelm.cli import _session
    from agenthelm.cli._live import View

    settings = _session.settings_from(
        model=model, api_base=api_base, budget_usd=budget, approve=approve, trace=trace, app=app
    )
    if timeout is not None and timeout <= 0:
        raise ConfigError("--timeout must be above 0", setting="timeout")
    if merge is not None and not parallel:
        raise ConfigError("--merge needs --parallel", setting="merge")
    text = _task(task)
    chosen = _session.choose_agents(settings, agents or [])
    further = _session.parse_inputs(inputs or [])
    _session.check_inputs(chosen, further)
    lm = _session.model_for(settings)
    given = {
        "session_id": session,
        "namespace": namespace,
        "timeout": timeout,
        "rollback": rollback,
        "inputs": further,
        "budget": _session.budget_from(settings, tokens=max_tokens_total, calls=max_calls),
    }
    view = View(quiet=quiet)
    with _session.telemetry(settings):
        await _perform(settings, view, chosen, text, given, lm=lm, parallel=parallel, merge=merge, json=json)


def _task(task: str) -> str:
    text = (sys.stdin.read() if task == "-" else task).strip()
    if not text:
        raise ConfigError("the task is empty; say what is to be done", setting="task")
    return text


async def _perform(
    settings: Settings,
    view: View,
    agents: Sequence[Any],
    task: str,
    given: dict[str, Any],
    *,
    lm: object,
    parallel: bool,
    merge: str | None,
    json: bool,
) -> None:
    import anyio

    from agenthelm.cli import _result, _saga, _session
    from agenthelm.cli._loop import watch

    watch().restore = view.restore
    watch().first = "interrupted: undoing what was done (Ctrl-C again stops at once)"
    watch().last = "stopped: what is left to undo is in the journal; `agenthelm saga recover` finishes it"
    try:
        with view.shown():
            async with _session.open_orchestrator(
                settings, lm=lm, prompt=view.prompting, observer=view.observe, quiet=view.quiet
            ) as orchestrator:
                if parallel:
                    merging = {"merge_strategy": merge} if merge else {}
                    result = await orchestrator.run_parallel(agents, task, **merging, **given)
                else:
                    result = await orchestrator.run_pipeline(agents, task, **given)
                loose = result.in_doubt or result.irreversible
                names = _saga.effect_names(await _saga.read(orchestrator.storage, result.run_id)) if loose else {}
    except anyio.get_cancelled_exc_class() as exc:
        _result.tell_undone(view, getattr(exc, "saga", None))
        raise
    except Exception as exc:
        code = report(exc)
        _result.tell_undone(view, getattr(exc, "saga", None), run_id=getattr(exc, "run_id", None))
        if json:
            _result.print_failure(exc, code=exit_code(exc), message=summary(exc))
        raise Failure(code) from exc
    _result.show(result, names, as_json=json, quiet=view.quiet)
