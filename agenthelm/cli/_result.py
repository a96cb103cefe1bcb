"""Shows what a run came to: its result on stdout, its cost and its loose ends on stderr."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from agenthelm.cli._console import clean, err, escape_controls, out, print_json, say, scrubbed, to_json
from agenthelm.cli._tables import print_table
from agenthelm.cli._units import count, dollars
from agenthelm.exceptions import RunExistsError

if TYPE_CHECKING:
    from agenthelm.cli._live import View

__all__ = ["print_failure", "print_stopped", "show", "stuck_effects", "tell_stuck", "tell_undone"]

_MAIN_KEYS = ("text", "answer")


def show(result: Any, names: Mapping[str, str], *, as_json: bool, quiet: bool) -> None:
    """Print a finished run; ``names`` says what its effects are called."""
    if as_json:
        print_json(
            {
                "run_id": result.run_id,
                "session_id": result.session_id,
                "status": "success",
                "result": dict(result),
                "cost_usd": result.cost_usd,
                "priced_usd": result.priced_usd,
                "usage": result.usage,
                "in_doubt": [{"effect_id": effect, "tool": names.get(effect)} for effect in result.in_doubt],
                "irreversible": [{"effect_id": effect, "tool": names.get(effect)} for effect in result.irreversible],
                "trace_id": result.trace_id,
            }
        )
    else:
        render(dict(result))
    sys.stdout.flush()
    if result.in_doubt:
        say(f"in doubt (may or may not have happened): {_called(names, result.in_doubt)}", style="yellow")
    if result.irreversible and not as_json:
        say(f"can't be taken back: {_called(names, result.irreversible)}", style="yellow")
    if quiet or as_json:
        return
    _cost_table(result)
    say(f"run {result.run_id}  session {result.session_id}", style="dim")


def _called(names: Mapping[str, str], effects: Sequence[str]) -> str:
    return ", ".join(clean(names.get(effect, effect)) for effect in effects)


def render(result: Mapping[str, Any]) -> None:
    """Print a result as a person reads it: Markdown where there is a text, else each value under its name."""
    console = out()
    main = next((key for key in _MAIN_KEYS if isinstance(result.get(key), str)), None)
    if main is None:
        for key, value in result.items():
            _panel(console, key, value)
        return
    text = escape_controls(result[main])
    if console.is_terminal:
        from rich.markdown import Markdown

        console.print(Markdown(text))
    else:
        sys.stdout.write(text.rstrip("\n") + "\n")
    others = [key for key in result if key != main]
    if others:
        say(f"also in the result: {', '.join(others)} (--json prints all of it)", style="dim")


def _panel(console: Any, key: str, value: object) -> None:
    if isinstance(value, str):
        text = escape_controls(value)
    elif isinstance(value, list) and all(isinstance(item, str) for item in value):
        text = "\n".join(f"- {clean(item)}" for item in value)
    else:
        import json

        text = escape_controls(json.dumps(to_json(value), ensure_ascii=False, indent=2))
    if console.is_terminal:
        from rich.panel import Panel
        from rich.text import Text

        console.print(Panel(Text(text), title=Text(clean(key)), title_align="left", border_style="dim"))
    else:
        separator = "\n" if "\n" in text else " "
        sys.stdout.write(f"{clean(key)}:{separator}{text}\n")


def tell_undone(view: View, saga: Any, *, run_id: str | None = None) -> None:
    """Say what became of the effects of a run that did not succeed."""
    run_id = run_id or view.run_id or getattr(saga, "run_id", None)
    if view.undone:
        say(f"undone: {', '.join(clean(name) for name in view.undone)}")
    if not tell_stuck(view, saga, run_id=run_id) and getattr(saga, "status", None) == "stopped":
        say(f"nothing was undone, as asked; `agenthelm saga undo {run_id or 'RUN'}` does it", style="yellow")
    if run_id:
        say(f"run {run_id}" + (f"  cost {dollars(view.cost)}" if view.cost else ""), style="dim")


def tell_stuck(view: View, saga: Any, *, run_id: str | None) -> bool:
    """Say what could not be undone of a run's effects, and what to do about it; False if there is nothing."""
    stuck = [f"{effect['tool']} ({effect['reason']})" for effect in stuck_effects(saga)] or view.not_undone
    if stuck:
        say(f"could not be undone: {', '.join(clean(name) for name in stuck)}", style="bold red")
        say(f"`agenthelm saga show {run_id or 'RUN'}` says more; `saga retry` and `saga resolve` end it")
    return bool(stuck)


def print_failure(error: BaseException, view: View, *, code: int, message: str) -> None:
    """The JSON document of a run that failed, or was interrupted."""
    from agenthelm.core.cost import Totals

    saga, usage = getattr(error, "saga", None), getattr(error, "usage", None)
    if not isinstance(usage, Totals):  # an error from before the run began, or somebody else's word
        usage = None
    own = None if saga is None and isinstance(error, RunExistsError) else getattr(error, "run_id", None)
    spent = 0.0 if view.run_id is None else view.cost  # of an interrupted run only what was last heard is known
    print_json(
        {
            "run_id": own or getattr(saga, "run_id", None) or view.run_id,
            "status": getattr(saga, "status", None) or "failed",
            "error": {"type": type(error).__name__, "message": scrubbed(message)},
            "cost_usd": spent if usage is None else usage.cost_usd,
            "priced_usd": (spent or 0.0) if usage is None else usage.priced_usd,
            "usage": usage,
            "stuck": stuck_effects(saga),
            "exit_code": code,
        }
    )


def print_stopped(view: View, code: int) -> None:
    """The JSON document of a run whose unwinding was stopped: its journal is open, and `recover` finishes it."""
    from agenthelm.cli._loop import Interrupted
    from agenthelm.orchestration.results import SagaResult

    error = Interrupted(code - 128)
    if view.run_id is not None:
        error.saga = SagaResult("open", run_id=view.run_id)
    print_failure(error, view, code=code, message="interrupted twice: stopped before everything was undone")


def stuck_effects(saga: Any) -> list[dict[str, Any]]:
    """What could not be undone of a run's effects, and why not."""
    return [{**to_json(effect), "reason": scrubbed(effect.reason)} for effect in getattr(saga, "stuck", None) or ()]


def _cost_table(result: Any) -> None:
    """Who used what, and what it comes to; ``agenthelm cost report --run`` tells the same from the events."""
    total = result.usage
    if not (total.calls or total.cached_calls or total.priced_usd):
        return
    rows = [
        (
            by,
            name,
            entry.calls,
            entry.input_tokens,
            entry.output_tokens + entry.estimated_tokens,
            dollars(entry.cost_usd),
        )
        for by in ("agent", "model", "tool")
        for name, entry in result.totals(by).items()
        if by != "tool" or entry.calls or entry.cached_calls or entry.priced_usd
    ]
    with suppress(OSError):  # as what is said: where nobody reads it any more, it is left out
        print_table(["!by", "", "#calls", "#tokens in", "#tokens out", "#cost"], rows, console=err())
    say(
        f"total {dollars(total.cost_usd)}{_caveats(total)} for {count(total.calls, 'model call')} and "
        f"{count(total.tool_calls, 'tool call')}, {count(total.tokens, 'token')}"
    )


def _caveats(total: Any) -> str:
    parts = []
    if total.unpriced_calls:
        parts.append(f"{dollars(total.priced_usd)} known, {count(total.unpriced_calls, 'call')} without a known price")
    if total.estimated_calls:
        parts.append(f"{count(total.estimated_calls, 'lost answer')} estimated")
    if total.cached_calls:
        parts.append(f"{count(total.cached_calls, 'answer')} from the cache")
    return f" ({'; '.join(parts)})" if parts else ""
