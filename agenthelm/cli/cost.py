"""``agenthelm cost``: what models cost, and what runs have cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from agenthelm.cli._command import command
from agenthelm.cli._options import Json, Since

__all__ = ["app"]

app: typer.Typer = typer.Typer(help="Prices of models, and what runs have cost.", no_args_is_help=True)

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
    from agenthelm.cli import _console, _events, _session
    from agenthelm.exceptions import ConfigError, nearest

    if by not in _GROUPS:
        raise ConfigError(f"--by must be one of {', '.join(_GROUPS)}, not {by!r}.{nearest(by, _GROUPS)}", setting="by")
    settings = _session.settings_from()
    where = _events.conditions(run=run, since=None if run else since)
    groups: dict[str, _Spent] = {}
    if _session.stored(settings):
        async with _session.open_storage(settings) as storage:
            if run == "last":
                where["run_id"] = await _events.last_run(storage, run)
            async for page in _events.pages(storage, where):
                for record in page:
                    if (name := _group(record.data, by)) is not None:
                        groups.setdefault(name, _Spent()).add(record.data)
    names = sorted(groups) if by == "day" else sorted(groups, key=lambda name: -groups[name].usd)
    if json:
        _console.print_json({"by": by, "groups": [{by: name, **groups[name].facts()} for name in names]})
    elif not groups:
        _console.note("nothing was spent" + ("" if run else f" since {since}"))
    else:
        _print(by, {name: groups[name] for name in names})


_GROUPS = ("model", "agent", "tool", "day")


def _group(event: Mapping[str, Any], by: str) -> str | None:
    """Which row an event belongs to. Tools that ask models are booked under the models' own calls."""
    if (event.get("kind") == "lm") != (by != "tool"):
        return None
    if by in ("model", "tool"):
        return str(event.get("tool_name"))
    return str(event.get("timestamp", ""))[:10] if by == "day" else str(event.get("agent_name") or "(no agent)")


class _Spent:
    """What a row adds up to."""

    def __init__(self) -> None:
        self.calls = self.tokens_in = self.tokens_out = self.unpriced = 0
        self.usd = 0.0

    def add(self, event: Mapping[str, Any]) -> None:
        usage = event.get("token_usage") or {}
        self.calls += 1
        self.tokens_in += usage.get("input_tokens") or 0
        self.tokens_out += usage.get("output_tokens") or 0
        cost = event.get("estimated_cost_usd")
        self.unpriced += cost is None
        self.usd += cost or 0.0

    def facts(self) -> dict[str, Any]:
        return {
            "calls": self.calls,
            "input_tokens": self.tokens_in,
            "output_tokens": self.tokens_out,
            "priced_usd": round(self.usd, 12),
            "unpriced_calls": self.unpriced,
            "cost_usd": None if self.unpriced else round(self.usd, 12),
        }


def _print(by: str, groups: Mapping[str, _Spent]) -> None:
    from rich.text import Text

    from agenthelm.cli import _console
    from agenthelm.cli._units import dollars

    most = max((group.usd for group in groups.values()), default=0.0) or 1.0
    rows: list[Sequence[object]] = [
        (
            name, group.calls, group.tokens_in, group.tokens_out,
            dollars(group.usd) + (f" + {group.unpriced} unpriced" if group.unpriced else ""),
            Text("█" * max(1 if group.usd else 0, round(_BAR * group.usd / most)), style="cyan"),
        )
        for name, group in groups.items()
    ]  # fmt: skip
    console = _console.out()
    console.print(_console.table([by, "#calls", "#tokens in", "#tokens out", "#cost", ""], rows))
    total = sum(group.usd for group in groups.values())
    unpriced = sum(group.unpriced for group in groups.values())
    caveat = f", and {unpriced} calls without a known price" if unpriced else ""
    console.print(f"total {dollars(total)} for {sum(group.calls for group in groups.values())} calls{caveat}")


@command(app, "models")
def models(
    pattern: Annotated[
        str | None, typer.Argument(metavar="[PATTERN]", help="Part of a name, or a pattern with * and ?.")
    ] = None,
    json: Json = False,
) -> None:
    """The models whose price is known, in USD per million tokens."""
    from agenthelm.agent.pricing import METADATA
    from agenthelm.cli import _console, _session

    _session.apply_pricing(_session.settings_from())
    known = METADATA.known(pattern)
    if json:
        _console.print_json(
            {"source": METADATA.source, "models": [{"model": name, **_console.to_json(price)} for name, price in known]}
        )
        return
    if not known:
        _console.note(f"no price is known for {pattern!r}; set one under [pricing] in agenthelm.toml")
        return
    rows = [(name, _million(p.input), _million(p.output), _million(p.cached_input), p.source) for name, p in known]
    sources = {row[4] for row in rows}
    columns = ["model", "#input", "#output", "#cached input", "source"]
    if len(sources) == 1:
        columns, rows = columns[:4], [row[:4] for row in rows]  # type: ignore[misc]
    _console.out().print(_console.table(columns, rows))
    _console.say(f"{len(known)} models, USD per million tokens; {METADATA.source}")


def _million(per_token: float | None) -> str:
    return "" if per_token is None else f"{per_token * 1e6:,.4g}"
