"""A pipeline carries a growing state from agent to agent.

Each agent gets the inputs it declares. Whether everything fits together is checked before the first model call.
"""

from __future__ import annotations

import pytest

from agenthelm import Agent, Orchestrator, WiringError
from agenthelm.testing.lm import ScriptedLM


async def test_what_one_agent_gives_the_next_one_takes() -> None:
    researcher = Agent("researcher", signature="task -> facts: list[str]")
    writer = Agent("writer", signature="task, facts: list[str] -> text")
    lm = ScriptedLM([{"facts": ["sagas undo"]}, {"text": "Sagas undo, last first."}])
    async with Orchestrator(lm=lm) as orchestrator:
        result = await orchestrator.run_pipeline([researcher, writer], "Sagas")
    assert dict(result) == {"facts": ["sagas undo"], "text": "Sagas undo, last first."}
    assert "sagas undo" in lm.prompts[1]


async def test_a_gap_is_found_before_anything_runs() -> None:
    lm = ScriptedLM()
    writer = Agent("writer", signature="task, facts: list[str] -> text")
    async with Orchestrator(lm=lm) as orchestrator:
        with pytest.raises(WiringError, match="'writer' needs 'facts'"):
            await orchestrator.run_pipeline([writer], "Sagas")
    assert lm.requests == []
