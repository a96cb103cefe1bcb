"""Agents whose LM chooses among the tools they were given."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import dspy

from agenthelm.agent.base import Agent
from agenthelm.agent.tool_loop import DEFAULT_STEPS, ToolLoop
from agenthelm.exceptions import AgentError

if TYPE_CHECKING:
    from agenthelm.core.tool import Tool, ToolRegistry

__all__ = ["ToolAgent"]


class ToolAgent(Agent):
    """An agent whose LM works with its ``tools`` until it can fill the Signature.

    The LM sees each tool's description and the JSON schema of its arguments, and can call no other tool, whatever the
    orchestrator's registry holds. A tool's error and a denial are observations it may work around; a stop (a used-up
    budget, ``on_denial="stop"``, a lost lease) and a cancellation end the agent at once.

    Args:
        name: See `Agent`.
        description: See `Agent`.
        signature: What to fill; or a nested ``Signature`` class.
        tools: What the LM may choose from; at least one.
        lm: See `Agent`.
        max_steps: Tool calls after which the LM must answer with what it knows.

    Raises:
        AgentError: There is no tool or no Signature.
    """

    def __init__(
        self,
        name: str | None = None,
        description: str = "",
        *,
        signature: type[dspy.Signature] | str | None = None,
        tools: ToolRegistry | Iterable[Tool | Callable[..., Any] | str] = (),
        lm: Any = None,
        max_steps: int = DEFAULT_STEPS,
    ) -> None:
        super().__init__(name, description, signature=signature, tools=tools, lm=lm)
        if not self.tools:
            raise AgentError(f"agent {self.name!r} was given no tools; a plain Agent needs none")
        if self.signature is None:
            raise AgentError(f"agent {self.name!r} has no Signature to fill")
        self.predict: ToolLoop = ToolLoop(self.signature, self.tools, max_steps=max_steps)
