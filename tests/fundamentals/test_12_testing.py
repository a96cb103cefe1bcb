"""Agents are tested with a model that says what the test tells it to.

`ScriptedLM` gives its replies in order, opens no connection, and remembers what it was asked. A reply can also be an
error, to see what the agent makes of it.
"""

from __future__ import annotations

import dspy
import pytest

from agenthelm import Agent, ModelCallError, Orchestrator
from agenthelm.testing.lm import Reply, ScriptedLM

writer = Agent("writer", signature="task -> text, mood: str")


async def test_a_script_replaces_the_model() -> None:
    lm = ScriptedLM([Reply({"text": "Once upon a time"}, input_tokens=70, output_tokens=30)])
    async with Orchestrator(lm=lm) as orchestrator:
        result = await orchestrator.run(writer, "A story about the sea")
    assert result["text"] == "Once upon a time"
    assert result["mood"] == "[offline placeholder: mood]"  # what the script leaves open is filled in, and says so
    assert result.usage.tokens == 100
    assert "A story about the sea" in lm.prompts[0]


async def test_a_script_can_fail() -> None:
    lm = ScriptedLM([dspy.lm15.RateLimitError("slow down")], repeat=True)
    async with Orchestrator(lm=lm, lm_retries=0) as orchestrator:
        with pytest.raises(ModelCallError, match="slow down"):
            await orchestrator.run(writer, "A story about the sea")
