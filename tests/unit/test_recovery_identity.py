"""Undoing and resuming happen under the run they belong to, with the orchestrator's models and whoever watches it."""

from __future__ import annotations

from typing import Any

import dspy

from agenthelm import InMemoryStorage, Orchestrator, Step, ToolRegistry, tool
from agenthelm._runtime.context import current_run
from agenthelm._runtime.progress import Progress
from agenthelm.core.storage import EVENTS
from agenthelm.testing.lm import ScriptedLM

registry = ToolRegistry()
seen: list[tuple[str, str, str]] = []


@tool(compensating_tool="apologise", side_effects=["mail:send"], registry=registry)
async def promise(to: str) -> None:
    """Promise something."""


@tool(registry=registry)
def apologise(to: str) -> None:
    """Say sorry, in words that a model finds."""
    run = current_run()
    assert run is not None
    reply = dspy.Predict("to -> words")(to=to)
    seen.append((run.run_id, run.namespace, reply.words))


async def test_a_compensator_may_ask_the_model_and_its_event_names_the_run() -> None:
    seen.clear()
    heard: list[Progress] = []
    options: dict[str, Any] = {"storage": InMemoryStorage(), "tools": registry, "observer": heard.append}
    async with Orchestrator(lm=ScriptedLM([{"words": "so sorry"}]), **options) as orchestrator:
        done = await orchestrator.run_saga([Step("promise", {"to": "ada"})], session_id="s", namespace="acme")
        heard.clear()
        undone = await orchestrator.undo(done.run_id)
    assert (undone.status, undone.error) == ("rolled_back", "undone on purpose")
    assert seen == [(done.run_id, "acme", "so sorry")]
    assert [(p.kind, p.name) for p in heard if p.kind in ("unwinding", "undone")] == [
        ("unwinding", "apologise"), ("undone", "promise"),
    ]  # fmt: skip
    events = await options["storage"].read(EVENTS, where={"tool_name": "apologise"})
    assert [(e.data["run_id"], e.data["session_id"], e.data["namespace"]) for e in events] == [
        (done.run_id, "s", "acme"),
    ]  # fmt: skip
