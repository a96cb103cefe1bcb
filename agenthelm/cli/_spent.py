"""What calls add up to: their number, their tokens and their cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agenthelm.cli._units import count, dollars

__all__ = ["Spent", "made"]


def made(event: Mapping[str, Any]) -> bool:
    """Whether a tool or a model was called at all; a call that was refused took no time."""
    return event.get("outcome") == "success" or bool(event.get("execution_time"))


class Spent:
    """What a row adds up to; money in whole picodollars, as in the books of a run."""

    def __init__(self) -> None:
        self.calls: int = 0
        self.tokens_in: int = 0
        self.tokens_out: int = 0
        self.unpriced: int = 0
        self.pico: int = 0

    def add(self, event: Mapping[str, Any], *, tools: bool = False) -> None:
        """Add an event; ``tools`` counts calls of tools instead of models."""
        from agenthelm.core.prices import to_pico

        lm = event.get("kind") == "lm"
        usage = event.get("token_usage") or {}
        calls = event.get("calls") or 0
        self.calls += (not lm and made(event)) if tools else calls
        self.tokens_in += usage.get("input_tokens") or 0
        self.tokens_out += usage.get("output_tokens") or 0
        cost = event.get("estimated_cost_usd")
        self.unpriced += (calls if lm else 1) if cost is None else 0
        self.pico += to_pico(cost or 0.0)

    @property
    def usd(self) -> float:
        """What is known of the cost."""
        from agenthelm.core.prices import to_usd

        return to_usd(self.pico)

    def facts(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "calls": self.calls,
            "input_tokens": self.tokens_in,
            "output_tokens": self.tokens_out,
            "priced_usd": self.usd,
            "unpriced_calls": self.unpriced,
            "cost_usd": None if self.unpriced else self.usd,
        }

    def cost(self, *, digits: int = 4) -> str:
        """The cost as a person reads it; what has no known price is named, never taken for nothing."""
        return dollars(self.usd, digits=digits) + (
            f" + {count(self.unpriced, 'unpriced call')}" if self.unpriced else ""
        )
