"""``agenthelm cost``: what models cost, and what runs have cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from agenthelm.cli._command import Failure, command
from agenthelm.cli._options import Json, Since
from agenthelm.cli._spent import Spent, made
from agenthelm.cli._units import count

__all__ = ["app"]

app: typer.Typer = typer.Typer(
    help="Prices of models, and what runs have cost.", no_args_is_help=True, add_completion=False
)

_BAR = 30


@command(app, "report")
async def report(
    since: Since = "7d",
    by: Annotated[str, typer.Option("--by", metavar="WHAT", help="model, agent, tool or day.")] = "model",
    run: Annotated[
        str | None, typer.Option("--run", metavar="RUN", help="Only this run; last is the latest one.")
    ] = None,
    json: Json = False,
) -> None:
    """What was spent, on what."""
    from agenthelm.cli import _console, _events, _journals, _session
    from agenthelm.exceptions import RunNotFoundError

    _events.one_of("by", by, _GROUPS)
    settings = _session.settings_from()
    where = _events.conditions(run=run, since=since if run is None else None)
    groups: dict[str, Spent] = {}
    bill = _Bill()
    called_nothing = False
    if _session.stored(settings):
        async with _session.open_storage(settings) as storage:
            if run is not None:
                where["run_id"] = run = await _events.last_run(storage, run)
            events = _events.Reading(storage, where)
            async for page in events.pages():
                for record in page:
                    bill.add(record.data)
                    if (name := _group(record.data, by)) is not None:
                        groups.setdefault(name, Spent()).add(record.data, tools=by == "tool")
            if events.skipped:
                _console.say(f"left out: {count(events.skipped, 'unreadable record')}", style="yellow")
            called_nothing = not bill.run and await events.found_run()
            bill.lacks = None if run is None else await _journals.lacking(storage, run)
    if run is not None and not bill.run and not called_nothing:
        raise RunNotFoundError(run)
    names = sorted(groups) if by == "day" else sorted(groups, key=lambda name: -groups[name].pico)
    if json:
        rows = [{by: name, **groups[name].facts()} for name in names]
        _console.print_json({"by": by, "groups": rows, "total": bill.facts()})
        return
    if groups:
        _print(by, {name: groups[name] for name in names})
    elif not bill.run:
        lacks = f"; {bill.lacks}" if bill.lacks else ""
        _console.note("nothing was spent" + (f" in run {run}{lacks}" if run else f" since {since}"))
        return
    for line in bill.lines() if run else [bill.total_line()]:
        _console.out().print(line, soft_wrap=True)


_GROUPS = ("model", "agent", "tool", "day")


def _group(event: Mapping[str, Any], by: str) -> str | None:
    """Which row an event belongs to, if any.

    Models and tools have one column of calls each: a tool's row counts calls of the tool, the others calls of models.
    What a tool charged itself is money in every view.
    """
    lm = event.get("kind") == "lm"
    if by == "tool":
        inside = (event.get("inputs") or {}).get("tool") if lm else event.get("tool_name")
        return None if inside is None else str(inside)
    if not lm and event.get("estimated_cost_usd", 0) == 0:
        return None
    if by == "model":
        return str(event.get("tool_name")) if lm else "(charged by tools)"
    return str(event.get("timestamp", ""))[:10] if by == "day" else str(event.get("agent_name") or "(no agent)")


class _Bill(Spent):
    """Everything that was found, whatever it is grouped by."""

    def __init__(self) -> None:
        super().__init__()
        self.run = self.began = self.session = ""
        self.tool_calls = self.estimated = self.cached = 0
        self.models: dict[str, Spent] = {}
        self.sources: set[str] = set()
        self.lacks: str | None = None

    def add(self, event: Mapping[str, Any], *, tools: bool = False) -> None:
        """Add an event."""
        super().add(event, tools=tools)
        self.run = str(event.get("run_id") or self.run)
        self.session = str(event.get("session_id") or self.session)
        began = str(event.get("timestamp") or "")
        self.began = min(self.began or began, began)
        self.tool_calls += event.get("kind") != "lm" and made(event)
        if (name := _group(event, "model")) is not None:
            self.models.setdefault(name, Spent()).add(event)
        source, _, how = str(event.get("cost_source") or "").partition(", ")
        self.estimated += how == "estimated" or source == "estimated"
        self.cached += source == "cache"
        if source not in ("", "cache", "estimated"):
            self.sources.add("own settings" if source == "override" else source)

    def total_line(self) -> str:
        """One line under a report over many runs."""
        return f"total {self.cost()} for {count(self.calls, 'model call')}"

    def lines(self) -> Sequence[str]:
        """What one run cost, on what, and how sure that is: two lines that finance can file."""
        from agenthelm.cli._console import clean

        parts = (f"{clean(name)} {spent.cost(digits=6)}" for name, spent in sorted(self.models.items()))
        doubts = [
            f"{count(number, what)} {how}"
            for number, what, how in (
                (self.estimated, "call", "with lost answers, booked at the most that they can have cost"),
                (self.cached, "answer", "from the cache, free"),
            )
            if number
        ]
        doubts += [self.lacks] if self.lacks else []
        first = (
            f"run {clean(self.run)} of {self.began[:16].replace('T', ' ')} UTC, session {clean(self.session)}: "
            f"{self.cost(digits=6)} for {count(self.calls, 'model call')} ({self.tokens_in} tokens in, {self.tokens_out} out) "
            f"and {count(self.tool_calls, 'tool call')}"
        )
        sources = [f"prices: {', '.join(sorted(self.sources))}"] if self.sources else []
        second = [", ".join(parts) or "no model was called", *sources, *(doubts or ["nothing estimated"])]
        return first, "; ".join(second)

    def facts(self) -> dict[str, Any]:
        """For ``--json``."""
        more = {"tool_calls": self.tool_calls, "estimated_calls": self.estimated, "cached_calls": self.cached}
        return {**super().facts(), **more, "price_sources": sorted(self.sources), "lacks": self.lacks}


def _print(by: str, groups: Mapping[str, Spent]) -> None:
    from rich.text import Text

    from agenthelm.cli import _console, _tables

    most = max((group.pico for group in groups.values()), default=0) or 1
    rows: list[Sequence[object]] = [
        (
            name, group.calls, group.tokens_in, group.tokens_out, group.cost(),
            Text(_console.sign("█") * max(1 if group.pico else 0, round(_BAR * group.pico / most)), style="cyan"),
        )
        for name, group in groups.items()
    ]  # fmt: skip
    _tables.print_table([by, "#calls", "#tokens in", "#tokens out", "#cost", "?"], rows)


@command(app, "models")
def models(
    pattern: Annotated[
        str | None, typer.Argument(metavar="PATTERN", help="Part of a name, or a pattern with * and ?.")
    ] = None,
    json: Json = False,
) -> None:
    """The models whose price is known, in USD per million tokens."""
    from agenthelm.agent.pricing import METADATA
    from agenthelm.cli import _console, _session, _tables

    _session.apply_pricing(_session.settings_from())
    known = METADATA.known(pattern)
    if json:
        _console.print_json(
            {"source": METADATA.source, "models": [{"model": name, **_console.to_json(price)} for name, price in known]}
        )
    if not known:
        _console.note(f"no price is known for {pattern!r}; set one under [pricing] in agenthelm.toml")
        raise Failure(1)
    if json:
        return
    rows = [(name, _million(p.input), _million(p.output), _million(p.cached_input), p.source) for name, p in known]
    sources = {row[4] for row in rows}
    columns = ["model", "#input", "#output", "#cached input", "!source"]
    if len(sources) == 1:
        columns, rows = columns[:4], [row[:4] for row in rows]  # type: ignore[misc]
    _tables.print_table(columns, rows)
    _console.say(f"{len(known)} models, USD per million tokens; {METADATA.source}")


def _million(per_token: float | None) -> str:
    return "" if per_token is None else f"{per_token * 1e6:,.4g}"
