"""Agents: DSPy modules that can be awaited. Names are imported when they are first used, DSPy with them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
