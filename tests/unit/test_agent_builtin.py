"""The agents that come along, and the one of the first plan."""

from __future__ import annotations

from typing import Any

import dspy

from agenthelm.agent import AGENT_REGISTRY, Agent, ResearcherAgent, ReviewerAgent, WriterAgent
from agenthelm.agent.offline import offline_lm, request_text
from agenthelm.core.executor import detached, using
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.memory.hub import MemoryHub
from agenthelm.orchestration.pipeline import Pipeline
from agenthelm.testing.lm import ScriptedLM


async def test_researcher_writer_and_reviewer_make_a_text_of_a_task() -> None:
    lm = ScriptedLM(
        [
            {"findings": "sagas undo", "sources": ["a paper"]},
            {"text": "a draft"},
            {"review": "too short", "text": "a longer text"},
        ]
    )
    team = [AGENT_REGISTRY[name] for name in ("researcher", "writer", "reviewer")]
    with dspy.context(lm=lm):
        result = await Pipeline(team).run(task="write about sagas")
    assert result == {
        "findings": "sagas undo",
        "sources": ["a paper"],
        "text": "a longer text",
        "review": "too short",
    }
    assert "sagas undo" in request_text(lm.requests[1])
    assert "a draft" in request_text(lm.requests[2])


async def test_each_of_them_can_work_alone_on_a_task() -> None:
    with dspy.context(lm=ScriptedLM([{}], repeat=True)):
        for agent in (ResearcherAgent(), WriterAgent(), ReviewerAgent()):
            assert await Pipeline([agent]).run(task="anything")


async def test_the_researcher_remembers_and_recalls() -> None:
    lm = ScriptedLM([{"findings": "Lisbon is by the sea", "sources": []}, {"findings": "more", "sources": []}])
    async with MemoryHub(embedder="lexical") as hub:
        with dspy.context(lm=lm):
            await ResearcherAgent().run(hub.create_context("one"), task="where is Lisbon")
            await ResearcherAgent().run(hub.create_context("two"), task="is Lisbon by the sea")
    assert "Lisbon is by the sea" not in request_text(lm.requests[0])
    assert "Lisbon is by the sea" in request_text(lm.requests[1])


async def test_the_session_holds_the_latest_research() -> None:
    async with MemoryHub(embedder="lexical") as hub:
        context = hub.create_context("one")
        with dspy.context(lm=ScriptedLM([{"findings": "Lisbon is by the sea", "sources": []}])):
            await ResearcherAgent().run(context, task="where is Lisbon")
        assert await context.read("latest_research") == "Lisbon is by the sea"


async def test_the_researcher_is_not_told_of_what_was_found_out_about_other_things() -> None:
    lm = ScriptedLM([{"findings": "Lisbon is by the sea, and has trams", "sources": []}, {"findings": "eggs"}])
    async with MemoryHub(embedder="lexical") as hub:
        with dspy.context(lm=lm):
            await ResearcherAgent().run(hub.create_context("one"), task="where is Lisbon")
            await ResearcherAgent().run(hub.create_context("two"), task="the best recipe for pasta")
    assert "Lisbon" not in request_text(lm.requests[1])


async def test_what_the_offline_model_made_up_is_no_prior_knowledge() -> None:
    async with MemoryHub(embedder="lexical") as hub:
        context = hub.create_context("one")
        with dspy.context(lm=offline_lm()):
            found = await ResearcherAgent().run(context, task="offline placeholder findings")
        assert found["findings"] == "[offline placeholder: findings]"
        assert await context.count() == 0
        lm = ScriptedLM([{"findings": "more"}])
        with dspy.context(lm=lm):
            await ResearcherAgent().run(hub.create_context("two"), task="offline placeholder findings")
        assert "[offline placeholder" not in request_text(lm.requests[0])


async def test_a_researcher_with_tools_looks_things_up() -> None:
    tools = ToolRegistry()

    @tool(registry=tools)
    def look_up(word: str) -> str:
        """Look a word up."""
        return f"{word} means something"

    lm = ScriptedLM(
        [
            {"next_tool_name": "look_up", "next_tool_args": {"word": "saga"}},
            {"next_tool_name": "finish", "next_tool_args": {}},
            {"findings": "found", "sources": []},
        ]
    )
    with using(detached(tools)):
        result = await ResearcherAgent(tools=tools, lm=lm).run(task="saga")
    assert result["findings"] == "found"
    assert "saga means something" in request_text(lm.requests[1])


class PlansResearcherAgent(Agent):
    """The agent of the plan, as written there but for the declared prior_knowledge."""

    class Signature(dspy.Signature):
        topic: str = dspy.InputField()
        prior_knowledge: list[str] = dspy.InputField()
        findings: str = dspy.OutputField()
        sources: list[str] = dspy.OutputField()

    def __init__(self) -> None:
        super().__init__(name="researcher", description="Research any topic")
        self.research = dspy.ChainOfThought(self.Signature)

    def forward(self, context: Any, topic: str) -> Any:
        # Pull any relevant context from memory
        prior_knowledge = context.recall(topic, top_k=3)

        # Run DSPy module
        result = self.research(topic=topic, prior_knowledge=prior_knowledge)

        # Store findings in memory for other agents
        context.write("latest_research", result.findings)
        context.remember(result.findings, metadata={"agent": self.name})

        return result


async def test_the_plans_researcher_runs_as_written() -> None:
    lm = ScriptedLM([{"findings": "qubits", "sources": ["s"]}, {"findings": "more qubits", "sources": []}])
    async with MemoryHub(embedder="lexical") as hub:
        context = hub.create_context("session")
        with dspy.context(lm=lm):
            result = await PlansResearcherAgent().run(context, topic="quantum qubits")
            await PlansResearcherAgent().run(context, topic="qubits")
        assert result["findings"] == "qubits"
        assert result["sources"] == ["s"]
        assert await context.read("latest_research") == "more qubits"
    assert list(PlansResearcherAgent().get_signature().inputs) == ["topic"]
