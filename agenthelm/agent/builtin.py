"""The built-in agents: a researcher, a writer and a reviewer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import dspy

from agenthelm.agent.base import Agent
from agenthelm.agent.placeholder import is_placeholder
from agenthelm.agent.programs import predictor
from agenthelm.agent.signature import Runnable

if TYPE_CHECKING:
    from agenthelm.core.tool import Tool, ToolRegistry
    from agenthelm.memory.context import MemoryContext

__all__ = ["BUILTINS", "ResearcherAgent", "ReviewerAgent", "WriterAgent"]

_RELATED = 0.1
"""A score that texts about other things miss, with the lexical embedder and with MiniLM."""


class ResearcherAgent(Agent):
    """Researches a task with what memory and its tools know, and remembers the findings.

    They are also the session's ``latest_research``.

    Args:
        name: See `Agent`.
        tools: What its LM may look things up with; see `ToolAgent`. Without any it answers from what it knows.
        lm: See `Agent`.
    """

    class Signature(dspy.Signature):
        """Research the task. State facts, not opinions, and name a source for each; say where you are unsure."""

        task: str = dspy.InputField(desc="what to find out")
        prior_knowledge: list[str] = dspy.InputField(desc="what was found out earlier")
        findings: str = dspy.OutputField(desc="what there is to know, in full sentences")
        sources: list[str] = dspy.OutputField(desc="where it is known from")

    def __init__(
        self,
        name: str = "researcher",
        *,
        tools: ToolRegistry | Iterable[Tool | Callable[..., Any] | str] = (),
        lm: Any = None,
    ) -> None:
        super().__init__(name, "Finds out what there is to know about a task", tools=tools, lm=lm)
        self.research: Any = (
            predictor(self.Signature, self.tools) if self.tools else dspy.ChainOfThought(self.Signature)
        )

    async def aforward(self, context: MemoryContext, task: str) -> dict[str, Any]:
        """Recall, research, remember."""
        prior_knowledge = await context.recall(task, top_k=3, min_score=_RELATED)
        result = await self.ask(self.research, task=task, prior_knowledge=prior_knowledge)
        await context.write("latest_research", result.findings)
        # Remembered texts outlive the session: what the offline model made up would be prior knowledge to a real one.
        if not is_placeholder(result.findings):
            await context.remember(result.findings, {"agent": self.name, "task": task})
        return {"findings": result.findings, "sources": result.sources}


class WriterAgent(Agent):
    """Writes a text about a task, from findings where there are some.

    Args:
        name: See `Agent`.
        lm: See `Agent`.
    """

    class Signature(dspy.Signature):
        """Write the text that the task asks for. Use the findings and nothing that contradicts them."""

        task: str = dspy.InputField(desc="what to write about")
        findings: str = dspy.InputField(desc="what is known about it; may be empty")
        sources: list[str] = dspy.InputField(desc="where it is known from; may be empty")
        text: str = dspy.OutputField(desc="the text, in Markdown")

    def __init__(self, name: str = "writer", *, lm: Any = None) -> None:
        super().__init__(name, "Writes a text about a task, from findings where there are some", lm=lm)
        self.write: Any = dspy.ChainOfThought(self.Signature)

    async def aforward(
        self, context: MemoryContext, task: str, findings: str = "", sources: list[str] | None = None
    ) -> dict[str, Any]:
        """Write."""
        result = await self.ask(self.write, task=task, findings=findings, sources=sources or [])
        return {"text": result.text}


class ReviewerAgent(Agent):
    """Reviews a text and hands it back improved.

    Args:
        name: See `Agent`.
        lm: See `Agent`.
    """

    class Signature(dspy.Signature):
        """Review the draft for errors, gaps and unclear passages. Then give the whole text again, improved."""

        draft: str = dspy.InputField()
        findings: str = dspy.InputField(desc="what the text has to agree with; may be empty")
        review: str = dspy.OutputField(desc="what was wrong or missing, in a few sentences")
        text: str = dspy.OutputField(desc="the improved text, in Markdown, whole")

    def __init__(self, name: str = "reviewer", *, lm: Any = None) -> None:
        super().__init__(name, "Reviews a text and hands it back improved", lm=lm)
        self.review: Any = dspy.ChainOfThought(self.Signature)

    async def aforward(self, context: MemoryContext, text: str, findings: str = "") -> dict[str, Any]:
        """Review and improve."""
        result = await self.ask(self.review, draft=text, findings=findings)
        return {"review": result.review, "text": result.text}


BUILTINS: Mapping[str, Callable[[], Runnable]] = {
    "researcher": ResearcherAgent,
    "writer": WriterAgent,
    "reviewer": ReviewerAgent,
}
"""Names and what makes the agent."""
