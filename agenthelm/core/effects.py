"""What a tool call tells the saga: the port between the executor and whoever remembers how to undo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

__all__ = ["Effect", "EffectLog", "LostResult", "Outcome"]

Outcome = Literal["ok", "failed", "doubt"]
"""How a call ended: with a value, cleanly without an effect, or nobody can say."""


class Effect(NamedTuple):
    """One tool call that may change the world.

    Attributes:
        id: Unique within its run.
        tool: The tool's name.
        arguments: The arguments that are executed, by parameter name, in full and never redacted.
        key: The idempotency key, stable over retries and resumption.
        parent: The effect inside whose tool body this one was begun.
        step: The saga step it belongs to.
        agent: The agent that asked for it.
        digest: Digest of tool and arguments, as approved.
        compensating_tool: What undoes it: the contract's, or the step's own.
        sensitive: Names of arguments whose values must never be stored.
        secret_fields: Fields of the result whose values must never be stored.
        secret_result: Whether nothing of the result may be.
        trace_id: The trace of the call, 32 hex digits.
        span_id: Its span, 16 hex digits; what undoes it links to that.
    """

    id: str
    tool: str
    arguments: Mapping[str, Any]
    key: str
    parent: str | None = None
    step: str | None = None
    agent: str | None = None
    digest: str = ""
    compensating_tool: str | None = None
    sensitive: frozenset[str] = frozenset()
    secret_fields: frozenset[str] = frozenset()
    secret_result: bool = False
    trace_id: str | None = None
    span_id: str | None = None


class LostResult:
    """In place of the value of a call that happened, but whose value could not be had.

    Args:
        reason: Why not.
    """

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason: str = reason


class EffectLog(Protocol):
    """Where the executor announces effects. Both calls are durable when they return.

    The executor calls ``begin`` before the first attempt and ``finish`` once after the last, on every path.
    """

    def next_id(self) -> str:
        """A fresh effect id of this run."""
        ...

    async def begin(self, effect: Effect) -> None:
        """Announce an effect.

        Raises:
            StorageError: It could not be recorded, so it must not be performed.
        """
        ...

    async def finish(
        self,
        effect: Effect,
        outcome: Outcome,
        *,
        value: Any = None,
        error: BaseException | None = None,
        event: Mapping[str, Any],
    ) -> None:
        """Record how an effect ended, together with its event, in one commit."""
        ...
