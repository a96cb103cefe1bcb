"""Agents: DSPy modules that can be awaited. Names are imported when they are first used, DSPy with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agenthelm.lazy import lazily

if TYPE_CHECKING:
    from agenthelm.agent.base import Agent
    from agenthelm.agent.builtin import ResearcherAgent, ReviewerAgent, WriterAgent
    from agenthelm.agent.registry import AGENT_REGISTRY, AgentRegistry
    from agenthelm.agent.signature import AgentSignature, FieldSpec, Runnable
    from agenthelm.agent.tool_agent import ToolAgent

__all__ = [
    "AGENT_REGISTRY",
    "Agent",
    "AgentRegistry",
    "AgentSignature",
    "FieldSpec",
    "ResearcherAgent",
    "ReviewerAgent",
    "Runnable",
    "ToolAgent",
    "WriterAgent",
]

_HOMES = {
    "AGENT_REGISTRY": "registry",
    "Agent": "base",
    "AgentRegistry": "registry",
    "AgentSignature": "signature",
    "FieldSpec": "signature",
    "ResearcherAgent": "builtin",
    "ReviewerAgent": "builtin",
    "Runnable": "signature",
    "ToolAgent": "tool_agent",
    "WriterAgent": "builtin",
}


if not TYPE_CHECKING:  # a type checker must see which names are not there
    __getattr__ = lazily(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
