"""What is asked before a call that needs approval, what is answered, and the port between the two."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ApprovalHandler", "ApprovalRequest", "Decision"]


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """What is asked: one call, with the very arguments that will be executed.

    Attributes:
        id: Unique id of the request.
        tool_name: The tool.
        arguments: The bound arguments as they may be shown: secrets masked. Read-only.
        digest: SHA-256 over the tool's name and the exact arguments, secrets included; what is executed must match it.
        agent: The agent that asks.
        run_id: Its run.
        session_id: Its conversation.
        namespace: Its tenant.
        reason: What the tool says it does.
        side_effects: What it changes.
        tags: The contract's tags.
        compensating_tool: What could undo it; None when nothing can.
        irreversible: Whether it has side effects that nothing undoes.
        max_cost: What one call may spend, USD.
        expires_at: When an answer no longer counts, seconds since the epoch; None for never.
    """

    id: str
    tool_name: str
    arguments: Mapping[str, Any]
    digest: str
    agent: str | None = None
    run_id: str | None = None
    session_id: str | None = None
    namespace: str | None = None
    reason: str = ""
    side_effects: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    compensating_tool: str | None = None
    irreversible: bool = False
    max_cost: float | None = None
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer.

    Attributes:
        approved: Whether the call may be made.
        reason: Why; shown to the agent on a denial.
        approver: Who or what decided.
        digest: The digest the approver saw; where given, it must match the request's.
    """

    approved: bool
    reason: str = ""
    approver: str = ""
    digest: str | None = None


class ApprovalHandler(ABC):
    """Decides on requests. One coroutine; raising counts as a denial.

    Attributes:
        gates: Whether the handler also wants to see calls whose contract asks for no approval. `covers` then picks.
    """

    gates: bool = False

    def covers(self, request: ApprovalRequest) -> bool:
        """Whether a call needs this handler's approval although its contract asks for none. Only asked if `gates`."""
        return False

    @abstractmethod
    async def request_approval(self, request: ApprovalRequest) -> Decision:
        """Decide on one call. May take as long as a human takes; cancelling it denies nothing and runs nothing."""
