"""``agenthelm run``: a task, its agents, and what came of it."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from agenthelm.cli._command import command
from agenthelm.cli._options import (
    Agents,
    ApiBase,
    App,
    Approve,
    Dollars,
    Inputs,
    Json,
    MaxCalls,
    MaxTokens,
    Model,
    Namespace,
    RunId,
    Session,
    Timeout,
    Trace,
    check_timeout,
)
from agenthelm.exceptions import ConfigError

__all__ = ["app"]

app: typer.Typer = typer.Typer(add_completion=False)

_MERGES = ("dict", "flat", "list")


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
    inputs: Inputs = None,
    app: App = None,
    model: Model = None,
    api_base: ApiBase = None,
    session: Session = None,
    namespace: Namespace = "default",
    run_id: RunId = None,
    budget: Dollars = None,
    max_tokens_total: MaxTokens = None,
    max_calls: MaxCalls = None,
    timeout: Timeout = None,
    approve: Approve = None,
    rollback: Annotated[
        bool, typer.Option("--rollback/--no-rollback", help="Undo the run's effects if it fails.")
    ] = True,
    trace: Trace = None,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
) -> None:
    """Run a task with one or more agents.

    One after the other, each agent gets what the ones before it found out.
    If the run fails, or Ctrl-C ends it, what its tools did is undone.
    """
    from agenthelm.cli import _events, _journals, _result, _saga, _session
    from agenthelm.cli._live import View
    from agenthelm.cli._perform import perform

    settings = _session.settings_from(
        model=model, api_base=api_base, budget_usd=budget, approve=approve, trace=trace, app=app
    )
    check_timeout(timeout)
    if merge is not None and not parallel:
        raise ConfigError("--merge needs --parallel", setting="merge")
    _events.one_of("merge", merge, _MERGES)
    text = _task(task)
    chosen = _session.choose_agents(settings, agents or [])
    further = _session.parse_inputs(inputs or [], chosen)
    _session.check_inputs(chosen, further)
    lm = _session.model_for(settings)
    given = {
        "session_id": session,
        "namespace": namespace,
        "timeout": timeout,
        "rollback": rollback,
        "run_id": run_id,
        "inputs": further,
    }
    view = View(quiet=quiet)

    async def work(orchestrator: Any) -> tuple[Any, dict[str, str]]:
        if parallel:
            merging = {"merge_strategy": merge} if merge else {}
            result = await orchestrator.run_parallel(chosen, text, **merging, **given)
        else:
            result = await orchestrator.run_pipeline(chosen, text, **given)
        loose = result.in_doubt or result.irreversible
        return result, _saga.effect_names(await _journals.read(orchestrator.storage, result.run_id)) if loose else {}

    limits = _session.budget_from(settings, tokens=max_tokens_total, calls=max_calls)
    result, names = await perform(settings, view, work, json=json, lm=lm, budget=limits)
    _result.show(result, names, as_json=json, quiet=view.quiet)


def _task(task: str) -> str:
    text = (sys.stdin.read() if task == "-" else task).strip()
    if not text:
        raise ConfigError("the task is empty; say what is to be done", setting="task")
    return text
