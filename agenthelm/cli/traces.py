"""``agenthelm traces``: what was called, by whom, how long it took and how it ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agenthelm.cli._command import command
from agenthelm.cli._options import Json, Limit, Since, countable
from agenthelm.cli._spent import Spent, made

if TYPE_CHECKING:
    from rich.tree import Tree

    from agenthelm.cli._events import Reading
    from agenthelm.core.storage.base import StoredRecord

__all__ = ["app"]

app: typer.Typer = typer.Typer(
    help="Look through what was called, by whom, and how it ended.", no_args_is_help=True, add_completion=False
)

DEFAULT_LIMIT = 50

Run = Annotated[str | None, typer.Option("--run", metavar="RUN", help="Only this run; last is the latest one.")]
AgentName = Annotated[str | None, typer.Option("--agent", help="Only calls by this agent.")]
ToolName = Annotated[str | None, typer.Option("--tool", help="Only this tool, or this model.")]
SessionId = Annotated[str | None, typer.Option("--session", help="Only this session.")]
Kind = Annotated[str | None, typer.Option("--kind", metavar="KIND", help="Only tool calls (tool) or model calls (lm).")]
Status = Annotated[
    str | None, typer.Option("--status", help="Only calls that ended so: success, failed, denied, timeout, …")
]
Until = Annotated[
    str | None, typer.Option("--until", metavar="WHEN", help="Up to then; a date: to the end of that day.")
]
LongerThan = Annotated[
    float | None, typer.Option("--longer-than", metavar="SECONDS", help="Only calls that took longer.")
]
CostOver = Annotated[float | None, typer.Option("--cost-over", metavar="USD", help="Only calls that cost more.")]


@command(app, "list")
async def list_events(limit: Limit = DEFAULT_LIMIT, run: Run = None, json: Json = False) -> None:
    """The latest calls, newest first."""
    await _list({"run": run}, limit=limit, after=None, json=json)


@command(app, "filter")
async def filter_events(
    run: Run = None,
    agent: AgentName = None,
    tool: ToolName = None,
    session: SessionId = None,
    kind: Kind = None,
    status: Status = None,
    since: Since = None,
    until: Until = None,
    longer_than: LongerThan = None,
    cost_over: CostOver = None,
    limit: Limit = DEFAULT_LIMIT,
    before: Annotated[
        int | None,
        typer.Option(
            "--before", metavar="NUMBER", min=0, callback=countable, help="The next page: older than this call."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """The calls that fulfil all conditions, newest first."""
    wanted = {
        "run": run, "agent": agent, "tool": tool, "session": session, "kind": kind, "status": status,
        "since": since, "until": until, "longer_than": longer_than, "cost_over": cost_over,
    }  # fmt: skip
    await _list(wanted, limit=limit, after=before, json=json)


async def _list(wanted: dict[str, Any], *, limit: int, after: int | None, json: bool) -> None:
    from agenthelm.cli import _console, _tables

    async with _opened(wanted) as events:
        found = await events.latest(limit, after=after)
    if json:
        _console.print_json([{"number": record.position, **record.data} for record in found])
        return
    if not found:
        _console.note(_nothing(wanted))
        return
    columns = ["#number", "!when (UTC)", "agent", "call", "ended", "#took", "#cost", "!run"]
    _tables.print_table(columns, map(_row, found), heading="run")
    if len(found) == limit:
        _console.note(f"older ones: {_older(wanted, limit, found[-1].position)}")


def _nothing(wanted: Mapping[str, Any]) -> str:
    return "no calls" + (" that fulfil this" if any(value is not None for value in wanted.values()) else " yet")


def _older(wanted: Mapping[str, Any], limit: int, position: int) -> str:
    """The command for the next page: the same conditions, before the last call of this one."""
    import shlex

    options = {**wanted, "limit": None if limit == DEFAULT_LIMIT else limit, "before": position}
    given = (
        text
        for name, value in options.items()
        if value is not None
        for text in (f"--{name.replace('_', '-')}", str(value))
    )
    return shlex.join(["agenthelm", "traces", "filter", *given])


@asynccontextmanager
async def _opened(wanted: dict[str, Any]) -> AsyncIterator[Reading]:
    """The events that are looked for; at the end it is told how many could not be read."""
    from agenthelm.cli import _console, _events, _session
    from agenthelm.core.storage import InMemoryStorage

    settings = _session.settings_from()
    where = _events.conditions(**{**wanted, "run": None if wanted.get("run") == "last" else wanted.get("run")})
    if not _session.stored(settings):
        yield _events.Reading(InMemoryStorage(), where)  # looking makes no files
        return
    async with _session.open_storage(settings) as storage:
        if wanted.get("run") == "last":
            where["run_id"] = await _events.last_run(storage, "last")
        events = _events.Reading(storage, where)
        yield events
        if events.skipped:
            from agenthelm.cli._units import count

            _console.say(f"left out: {count(events.skipped, 'unreadable record')}", style="yellow")


def _row(record: StoredRecord) -> Sequence[object]:
    from rich.text import Text

    from agenthelm.cli import _console, _tables

    event = record.data
    return (
        str(record.position),
        _tables.When(str(event.get("timestamp", ""))[:19].replace("T", " ")),
        event.get("agent_name"),
        _console.clean(event.get("tool_name"), width=40),
        Text(_console.clean(event.get("outcome")), style=_style(event)),
        _took(event),
        _cost(event),
        event.get("run_id"),
    )


def _style(event: Mapping[str, Any]) -> str:
    return {"success": "green", "in_doubt": "bold yellow"}.get(str(event.get("outcome")), "red")


def _took(event: Mapping[str, Any]) -> str:
    from agenthelm.cli._units import seconds

    late = " late" if event.get("late") else ""
    return seconds(float(event.get("execution_time") or 0)) + late


def _cost(event: Mapping[str, Any]) -> str:
    from agenthelm.cli._units import dollars

    cost = event.get("estimated_cost_usd")
    return "" if cost == 0 else dollars(cost)


@command(app, "show")
async def show(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id; last is the latest one.")], json: Json = False
) -> None:
    """One run as a tree: which agent called what, with what, and what came of it."""
    from agenthelm.cli import _console
    from agenthelm.exceptions import RunNotFoundError

    async with _opened({"run": run}) as events:
        found = [record.data for record in reversed(await events.latest(None))]
        if not found and not await events.found_run():
            raise RunNotFoundError(run)
    if json:
        _console.print_json(found)
    elif not found:
        _console.note(f"{'the latest run' if run == 'last' else f'run {run}'} called nothing")
    else:
        _console.out().print(_tree(found))


def _tree(events: Sequence[Mapping[str, Any]]) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    from agenthelm.cli import _console
    from agenthelm.cli._units import seconds

    events = sorted(events, key=_start)  # they are on record in the order in which they ended
    first, last = events[0], max(_end(event) for event in events)
    spent = Spent()
    for event in events:
        spent.add(event)
    head = Text.assemble((f"run {_console.clean(first.get('run_id'))}", "bold"))
    head.append(
        f"  {seconds(last - _start(first))}  {spent.cost()}  session {_console.clean(first.get('session_id'))}", "dim"
    )
    if trace := next((event["trace_id"] for event in events if event.get("trace_id")), None):
        head.append(f"  trace {trace}", "dim")
    tree = Tree(head, guide_style="dim")
    branch, name = tree, None
    for event in events:
        agent = event.get("agent_name") or "(no agent)"
        if agent != name:
            branch, name = tree.add(Text(_console.clean(agent), style="cyan")), agent
        _add(branch, event, _start(event) - _start(first))
    return tree


def _add(branch: Tree, event: Mapping[str, Any], offset: float) -> None:
    from rich.text import Text

    from agenthelm.cli import _console

    line = Text.assemble((f"{offset:8.3f}s  ", "dim"), "undo: " if event.get("compensates") else "")
    line.append(_console.clean(event.get("tool_name"), width=50))
    if event.get("kind") != "lm":
        line.append(f"({_console.arguments_line(event.get('inputs') or {})})", "dim")
    line.append(f"  {event.get('outcome')}", _style(event))
    line.append(f"  {_took(event)}", "dim")
    if usage := event.get("token_usage"):
        line.append(f"  {usage.get('input_tokens', 0)} + {usage.get('output_tokens', 0)} tokens", "dim")
    if cost := _cost(event):
        line.append(f"  {cost}", "dim")
    if event.get("retry_count"):
        line.append(f"  {event['retry_count']} {'retry' if event['retry_count'] == 1 else 'retries'}", "yellow")
    node = branch.add(line)
    if event.get("llm_reasoning_trace"):
        node.add(Text(f"because: {_console.clean(event['llm_reasoning_trace'], width=160)}", style="dim italic"))
    if event.get("approver"):
        node.add(
            Text(
                f"decided by {_console.clean(event['approver'])}: {_console.clean(event.get('approval_reason'))}",
                style="dim",
            )
        )
    if event.get("error_state"):
        node.add(Text(_console.clean(event["error_state"], width=200), style="red"))
    elif (result := (event.get("outputs") or {}).get("result")) is not None:
        node.add(Text(f"= {_console.clean(result, width=120)}", style="dim"))


def _start(event: Mapping[str, Any]) -> float:
    from datetime import datetime

    try:
        return datetime.fromisoformat(str(event.get("timestamp"))).timestamp()
    except ValueError:
        return 0.0


def _end(event: Mapping[str, Any]) -> float:
    return _start(event) + float(event.get("execution_time") or 0)


@command(app, "export")
async def export(
    form: Annotated[str, typer.Option("--format", "-f", metavar="FORMAT", help="json, csv or md.")] = "json",
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Instead of stdout.")] = None,
    run: Run = None,
    agent: AgentName = None,
    tool: ToolName = None,
    session: SessionId = None,
    kind: Kind = None,
    status: Status = None,
    since: Since = None,
    until: Until = None,
    longer_than: LongerThan = None,
    cost_over: CostOver = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", "-n", metavar="N", min=1, callback=countable, help="Only the latest so many."),
    ] = None,
) -> None:
    """Write calls to a file or to stdout, oldest first, as JSON, CSV or Markdown."""
    from agenthelm.cli import _console, _events, _export
    from agenthelm.cli._units import count

    _events.one_of("format", form, _export.FORMATS)
    wanted = {
        "run": run,
        "agent": agent,
        "tool": tool,
        "session": session,
        "kind": kind,
        "status": status,
        "since": since,
        "until": until,
        "longer_than": longer_than,
        "cost_over": cost_over,
    }
    written = 0
    async with _opened(wanted) as events:

        async def found() -> AsyncIterator[Sequence[Mapping[str, Any]]]:
            nonlocal written
            async for page in events.pages(limit=limit):
                written += len(page)
                yield [record.data for record in page]

        with _export.target(output) as stream:
            async for text in _export.FORMATS[form](found(), stream):
                stream.write(text)
    if output is not None:
        _console.note(f"{count(written, 'call')} written to {output}")


@command(app, "stats")
async def stats(
    run: Run = None, agent: AgentName = None, since: Since = None, until: Until = None, json: Json = False
) -> None:
    """Calls, failures, durations and cost by tool and model."""
    from agenthelm.cli import _console, _tables
    from agenthelm.cli._units import dollars, seconds

    groups: dict[tuple[str, str], _Stats] = {}
    wanted = {"run": run, "agent": agent, "since": since, "until": until}
    async with _opened(wanted) as events:
        async for page in events.pages():
            for record in page:
                event = record.data
                key = (str(event.get("kind", "tool")), str(event.get("tool_name")))
                groups.setdefault(key, _Stats()).add(event)
    summaries = [{"kind": kind, "name": name, **group.summary()} for (kind, name), group in sorted(groups.items())]
    if json:
        _console.print_json(summaries)
    elif not summaries:
        _console.note(_nothing(wanted))
    else:
        rows = [
            (
                s["name"],
                s["kind"],
                s["calls"],
                s["failures"],
                *("" if s[at] is None else seconds(s[at]) for at in ("p50", "p95")),
                dollars(s["cost_usd"]),
            )
            for s in summaries
        ]
        _tables.print_table(["tool / model", "!kind", "#calls", "#failed", "#p50", "#p95", "#cost"], rows)


class _Stats:
    """What a tool's calls add up to."""

    def __init__(self) -> None:
        self.calls = self.failures = 0
        self.times: list[float] = []
        self.cost: float | None = 0.0

    def add(self, event: Mapping[str, Any]) -> None:
        self.calls += 1
        self.failures += event.get("outcome") != "success"
        if made(event):  # others would make whatever is often refused look quick
            self.times.append(float(event.get("execution_time") or 0))
        cost = event.get("estimated_cost_usd")
        self.cost = None if cost is None or self.cost is None else self.cost + cost

    def summary(self) -> dict[str, Any]:
        times = sorted(self.times)

        def at(share: float) -> float | None:
            return times[round(share * (len(times) - 1))] if times else None

        return {"calls": self.calls, "failures": self.failures, "p50": at(0.5), "p95": at(0.95), "cost_usd": self.cost}
