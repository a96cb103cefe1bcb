"""Does something to sagas for ``agenthelm saga``, and shows how each of them ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from agenthelm.cli._command import Failure
from agenthelm.exceptions import CorruptRecordError, PlanError, RunNotFoundError
from agenthelm.telling import message_of

if TYPE_CHECKING:
    from agenthelm.config import Settings
    from agenthelm.core.cost import Budget
    from agenthelm.core.storage.base import BaseStorage
    from agenthelm.orchestration.results import SagaResult

__all__ = ["perform"]


async def perform(
    settings: Settings,
    work: Callable[[Any], Awaitable[list[SagaResult]]],
    *,
    wanted: frozenset[str],
    json: bool,
    several: bool = False,
    budget: Budget | None = None,
) -> None:
    """Do something to sagas with an orchestrator, show it, and end with the right exit code.

    Args:
        settings: What to open.
        work: Gets the orchestrator.
        wanted: The statuses that count as done.
        json: Whether stdout is for a JSON document.
        several: Whether that is a list, of however many sagas; else it is the one.
        budget: What one run may spend; the settings' by default.
    """
    from agenthelm.cli import _perform
    from agenthelm.cli._console import print_json
    from agenthelm.cli._live import View

    async def named(orchestrator: Any) -> tuple[list[SagaResult], dict[str, dict[str, str]]]:
        results = await work(orchestrator)
        return results, {r.run_id: await _tools(orchestrator.storage, r.run_id) for r in results}

    results, names = await _perform.perform(settings, View(), named, json=json, memory=False, budget=budget)
    if json:
        documents = [_document(result) for result in results]
        print_json(documents if several else documents[0])
    else:
        _show(results, names)
    codes = [_code(result, wanted) for result in results]
    if any(codes):
        raise Failure(max(codes))


def _code(result: SagaResult, wanted: frozenset[str]) -> int:
    if result.status == "failed" or result.stuck:
        return 3
    # An exception of this process is a plan's that went on here and failed, however well it was undone.
    return 0 if result.status in wanted and result.exception is None else 1


async def _tools(storage: BaseStorage, run: str) -> dict[str, str]:
    from agenthelm.cli import _journals, _saga

    try:
        return _saga.effect_names(await _journals.read(storage, run))
    except (RunNotFoundError, CorruptRecordError):  # refused before it had a journal, or its journal can't be read
        return {}


def _untouched(result: SagaResult) -> bool:
    """Whether a run was refused: its journal can't be read, or its tools are not loaded."""
    refused = isinstance(result.exception, (PlanError, CorruptRecordError))
    return refused and result.status == "failed" and not result.stuck and not result.undone


def _show(results: list[SagaResult], names: Mapping[str, Mapping[str, str]]) -> None:
    from agenthelm.cli import _saga
    from agenthelm.cli._console import clean, out, say

    for result in results:
        for record in result.steps:
            out().print(f"{clean(record.step.name)}: {clean(record.result, width=160) or 'done'}")
        if result.exception is not None and _untouched(result):
            say(f"error: {clean(message_of(result.exception))}", style="bold red")
            say(f"run {result.run_id}: left as it is", style="bold")
            continue
        if result.error and result.error != "undone on purpose":
            say(f"because: {clean(result.error)}")
        for step, error in result.errors.items():
            say(f"step {clean(step)} failed: {clean(error)}")
        for effect in result.stuck:
            say(f"could not be undone: {effect.tool} [{effect.effect_id}] ({clean(effect.reason)})", style="bold red")
        if result.stuck:
            say(_saga.what_to_do(result.run_id))
        called = names.get(result.run_id, {})
        named = {effect.effect_id for effect in result.stuck}
        for words, effects in (
            ("undone", result.undone),
            ("in doubt", result.in_doubt),
            ("can't be taken back", result.irreversible),
        ):
            if left := [clean(called.get(effect, effect)) for effect in effects if effect not in named]:
                say(f"{words}: {', '.join(left)}")
        end = f"; 'agenthelm saga recover {result.run_id} --app APP' ends it" if result.status == "open" else ""
        say(f"run {result.run_id}: {result.status}{end}", style="bold")


def _document(result: SagaResult) -> dict[str, Any]:
    from agenthelm.cli._console import scrubbed
    from agenthelm.cli._result import stuck_effects

    return {
        "run_id": result.run_id,
        "status": result.status,
        "steps": {record.step.name: record.result for record in result.steps},
        "error": scrubbed(result.error),
        "errors": {step: scrubbed(error) for step, error in result.errors.items()},
        "undone": result.undone,
        "stuck": stuck_effects(result),
        "in_doubt": result.in_doubt,
        "irreversible": result.irreversible,
    }
