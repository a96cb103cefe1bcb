"""``agenthelm saga``: what runs did to the world, and taking it back."""

from __future__ import annotations

import functools
import select
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agenthelm.cli._command import Failure, command
from agenthelm.cli._ending import to_stderr
from agenthelm.cli._options import (
    App,
    Approve,
    Dollars,
    Inputs,
    Json,
    Limit,
    MaxCalls,
    MaxTokens,
    RunId,
    Timeout,
    Trace,
    Yes,
    check_timeout,
)

if TYPE_CHECKING:
    from agenthelm.orchestration.results import SagaResult
    from agenthelm.orchestration.state import RunState

__all__ = ["app"]

app: typer.Typer = typer.Typer(
    help="Run, look at, undo and recover what runs did to the world.", no_args_is_help=True, add_completion=False
)

_AFTERWARDS = frozenset({"success", "rolled_back", "stopped"})  # all but failed: there is nothing left to do

Run = Annotated[str, typer.Argument(metavar="RUN", help="The run's id; last is the latest one.")]


@command(app, "list")
async def list_runs(
    state: Annotated[
        str | None, typer.Option("--state", help="Only runs in this state: open, success, rolled_back, …")
    ] = None,
    limit: Limit = 50,
    json: Json = False,
) -> None:
    """The runs with a journal, newest first."""
    from agenthelm.cli import _console, _events, _saga, _session, _tables
    from agenthelm.orchestration.runs import states

    _events.one_of("state", state, _saga.STATES)
    settings = _session.settings_from()
    runs: list[RunState] = []
    if _session.stored(settings):
        async with _session.open_storage(settings) as storage:
            runs = [run async for run in states(storage, status=state, limit=limit)]
    if json:
        _console.print_json([_saga.facts(run) for run in runs])
    elif not runs:
        _console.note("no runs" + (f" in state {state!r}" if state else " yet"))
    else:
        _tables.print_table(["!run", "!began (UTC)", "what", "state", "effects"], map(_saga.row, runs))


@command(app, "show")
async def show(run: Run, json: Json = False) -> None:
    """Draw a run's journal: what was done, is in doubt, was undone, or is stuck."""
    from agenthelm.cli import _console, _journals, _saga, _session

    async with _session.open_storage(_existing(_session.settings_from(), run)) as storage:
        state = await _journals.read(storage, run)
    if json:
        _console.print_json(_saga.facts(state, effects=True))
    else:
        _console.out().print(_saga.tree(state))


def _existing(settings: Any, run: str) -> Any:
    from agenthelm.cli import _session
    from agenthelm.exceptions import RunNotFoundError

    if not _session.stored(settings):
        raise RunNotFoundError(run)
    return settings


@command(app, "run")
async def run_plan(
    plan: Annotated[Path, typer.Argument(metavar="FILE", help="The steps, as YAML or JSON.")],
    app: App = None,
    inputs: Inputs = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the order and what undoes what; do nothing.")
    ] = False,
    on_error: Annotated[str, typer.Option("--on-error", help="rollback, stop or continue.")] = "rollback",
    budget: Dollars = None,
    max_tokens_total: MaxTokens = None,
    max_calls: MaxCalls = None,
    timeout: Timeout = None,
    run_id: RunId = None,
    approve: Approve = None,
    trace: Trace = None,
    json: Json = False,
) -> None:
    """Run a saga that is written as YAML or JSON."""
    from agenthelm.cli import _events, _outcome, _plan, _session
    from agenthelm.core.tool import TOOL_REGISTRY

    _events.one_of("on-error", on_error, ("rollback", "stop", "continue"))
    check_timeout(timeout)
    settings = _session.settings_from(app=app, budget_usd=budget, approve=approve, trace=trace)
    _session.load_app(settings)
    name, steps = _plan.read(plan, _session.input_texts(inputs or []), tools=TOOL_REGISTRY)
    if dry_run:
        _plan.preview(steps, TOOL_REGISTRY, json=json)
        return

    async def work(orchestrator: Any) -> list[SagaResult]:
        return [await orchestrator.run_saga(steps, on_error=on_error, name=name, timeout=timeout, run_id=run_id)]

    limits = _session.budget_from(settings, tokens=max_tokens_total, calls=max_calls)
    await _outcome.perform(settings, work, wanted=frozenset({"success"}), json=json, budget=limits)


@command(app, "undo")
def undo(
    run: Run,
    app: App = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be undone.")] = False,
    yes: Yes = False,
    trace: Trace = None,
    json: Json = False,
) -> None:
    """Take back a finished run, after a preview and a yes."""
    from agenthelm.cli import _console, _journals, _loop, _outcome, _saga, _session
    from agenthelm.core.tool import TOOL_REGISTRY

    settings = _existing(_session.settings_from(app=app, trace=trace), run)
    _session.load_app(settings)

    async def look() -> tuple[RunState, list[dict[str, Any]]]:
        async with _session.open_storage(settings) as storage:
            state = await _journals.read(storage, run)
            return state, _saga.undo_preview(state, TOOL_REGISTRY, storage, refuse=not dry_run)

    state, rows = _loop.run(look)
    if dry_run and json:
        _console.print_json(rows)
        return
    lines = _saga.undo_lines(state, rows)
    if not (json and yes):
        for line in lines or [_saga.nothing_to_undo(state)]:
            _console.say(_console.clean(line))
    if dry_run:
        return
    if state.status == "rolled_back" and not json:
        _console.say(f"run {state.run_id}: {state.status}", style="bold")
        return
    if lines and not yes:
        _confirm(f"Undo run {state.run_id}?")  # outside of the event loop, where Ctrl-C ends the question

    async def work(orchestrator: Any) -> list[SagaResult]:
        return [await orchestrator.undo(state.run_id)]

    _loop.run(functools.partial(_outcome.perform, settings, work, wanted=_AFTERWARDS, json=json))


def _confirm(question: str) -> None:
    from agenthelm.cli import _console

    if not sys.stdin.isatty():
        _console.say("error: nobody to ask at this terminal; say --yes to go ahead")
        raise Failure(2)
    answer = ""
    try:
        to_stderr(f"{question} [y/N] ")
        answer = _line()
    finally:
        if not answer.endswith("\n"):  # Ctrl-C or Ctrl-D: what is printed next does not belong behind the question
            to_stderr("\n")
    if answer.strip().lower() not in ("y", "yes"):
        _console.say("left as it is")
        raise Failure(1)


def _line() -> str:
    """A line that is typed. A Ctrl-C right before a blocking read would wait for the read; so it is polled for."""
    if sys.platform != "win32":
        while not select.select([sys.stdin], [], [], 0.2)[0]:
            pass
    return sys.stdin.readline()


@command(app, "recover")
async def recover(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Only this run.")] = None,
    app: App = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with sagas of steps instead of undoing them.")
    ] = False,
    trace: Trace = None,
    json: Json = False,
) -> None:
    """Undo (or resume) the runs whose process died."""
    from agenthelm.cli import _console, _journals, _outcome, _saga, _session
    from agenthelm.exceptions import RunNotFoundError

    settings = _session.settings_from(app=app, trace=trace)
    _session.load_app(settings)
    if not _session.stored(settings):
        if run is not None:
            raise RunNotFoundError(run)
        _console.note("nothing to recover")
        if json:
            _console.print_json([])
        return

    async def work(orchestrator: Any) -> list[SagaResult]:
        one = None if run is None else await _journals.run_id(orchestrator.storage, run)
        results: list[SagaResult] = await orchestrator.recover(one, resume=resume)
        held = 0 if one else await _journals.count_perhaps_dead(orchestrator.storage)
        if held:
            _console.note(_saga.too_early_to_recover(held))
        elif not results:
            _console.note("nothing to recover")
        return results

    await _outcome.perform(settings, work, wanted=_AFTERWARDS, json=json, several=True)


@command(app, "retry")
async def retry(run: Run, app: App = None, trace: Trace = None, json: Json = False) -> None:
    """Try again to undo what could not be undone."""
    from agenthelm.cli import _journals, _outcome, _session

    settings = _existing(_session.settings_from(app=app, trace=trace), run)
    _session.load_app(settings)

    async def work(orchestrator: Any) -> list[SagaResult]:
        return [await orchestrator.retry(await _journals.run_id(orchestrator.storage, run))]

    await _outcome.perform(settings, work, wanted=_AFTERWARDS, json=json)


@command(app, "resolve")
async def resolve(
    run: Run,
    step: Annotated[
        str, typer.Argument(metavar="STEP", help="The step, the effect's id, or the tool if it is the only one.")
    ],
    as_: Annotated[
        str, typer.Option("--as", metavar="done|undone", help="done: it stands. undone: it was taken back by hand.")
    ],
    json: Json = False,
) -> None:
    """Record a human's word on an effect that is in doubt or stuck, or was taken back by hand."""
    from agenthelm.cli import _events, _journals, _outcome, _session

    _events.one_of("as", as_, ("done", "undone"))
    settings = _existing(_session.settings_from(), run)

    async def work(orchestrator: Any) -> list[SagaResult]:
        run_id = await _journals.run_id(orchestrator.storage, run)
        return [await orchestrator.resolve(run_id, step, outcome=as_)]

    await _outcome.perform(settings, work, wanted=_AFTERWARDS | {"open"}, json=json)


@command(app, "prune")
def prune(
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="SPAN", help="Those that ended before that: 30d, 12w, or a date."),
    ] = None,
    unreadable: Annotated[
        str | None,
        typer.Option("--unreadable", metavar="RUN", help="This run's, which can't be read: give it up, after a yes."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count them.")] = False,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Drop the journals of finished runs, or of one that can't be read; they can't be undone any more then."""
    from agenthelm.cli import _console, _session, _units
    from agenthelm.exceptions import ConfigError

    if (older_than is None) == (unreadable is None):
        raise ConfigError("say which journals: either --older-than SPAN or --unreadable RUN", setting="older_than")
    settings = _session.settings_from()
    if unreadable is not None:
        dropped = _prune_unreadable(_existing(settings, unreadable), unreadable, dry_run=dry_run, yes=yes)
    else:
        dropped = _prune_older(settings, older_than or "", dry_run=dry_run)
    if json:
        _console.print_json({"dropped": dropped, "dry_run": dry_run})
    else:
        _console.out().print(f"{'would drop' if dry_run else 'dropped'} {_units.count(len(dropped), 'journal')}")


def _prune_older(settings: Any, older_than: str, *, dry_run: bool) -> list[str]:
    from agenthelm._runtime.retry import SystemClock
    from agenthelm.cli import _events, _loop, _session
    from agenthelm.orchestration.pruning import prune_older

    before = _events.parse_when(older_than, option="older-than").timestamp()

    async def work() -> list[str]:
        if not _session.stored(settings):
            return []
        async with _session.open_storage(settings) as storage:
            return await prune_older(storage, SystemClock(), before=before, dry_run=dry_run)

    return _loop.run(work)


def _prune_unreadable(settings: Any, run: str, *, dry_run: bool, yes: bool) -> list[str]:
    from agenthelm._runtime.retry import SystemClock
    from agenthelm.cli import _console, _journals, _loop, _session
    from agenthelm.orchestration.pruning import prune_unreadable, why_unreadable

    async def look() -> tuple[str, str]:
        async with _session.open_storage(settings) as storage:
            run_id = await _journals.run_id(storage, run)
            return run_id, str(await why_unreadable(storage, run_id))

    async def drop() -> None:
        async with _session.open_storage(settings) as storage:
            await prune_unreadable(storage, run_id, SystemClock())

    run_id, why = _loop.run(look)
    _console.say(why)
    _console.say(f"Without its journal nothing of run {run_id} can ever be undone here; what it did stays as it is.")
    if not dry_run:
        if not yes:
            _confirm(f"Drop the journal of run {run_id}?")
        _loop.run(drop)
    return [run_id]
