"""Limits, amounts and sums: the figures that the books of a run are kept in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Amount", "Budget", "Totals", "tightest"]


class Budget(BaseModel):
    """What a run, an agent or a tool call may use. None means no limit; 0 means none at all.

    Attributes:
        usd: US dollars.
        tokens: Input and output tokens of LM calls.
        calls: LM calls, retries included.
        tool_calls: Tool calls; retries inside one are not counted again.
        seconds: Wall-clock seconds since the scope began; checked at each call.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    usd: float | None = Field(default=None, ge=0)
    tokens: int | None = Field(default=None, ge=0)
    calls: int | None = Field(default=None, ge=0)
    tool_calls: int | None = Field(default=None, ge=0)
    seconds: float | None = Field(default=None, ge=0)


def tightest(one: Mapping[str, Budget], other: Mapping[str, Budget]) -> Mapping[str, Budget]:
    """Budgets by name under which the limits of both hold."""
    if one is other or not one:
        return other
    both = {**one, **other}
    for name in one.keys() & other.keys():
        pairs = {limit: (value, getattr(other[name], limit)) for limit, value in one[name]}
        both[name] = Budget(
            **{
                limit: min((value for value in pair if value is not None), default=None)
                for limit, pair in pairs.items()
            }
        )
    return both


@dataclass(frozen=True, slots=True)
class Amount:
    """What one call takes, at most (when reserved) or in fact (when settled).

    Attributes:
        usd: US dollars; None when the price is not known, which no dollar limit can hold.
        tokens: Input and output tokens.
        calls: LM calls.
        tool_calls: Tool calls.
    """

    usd: float | None = 0.0
    tokens: int = 0
    calls: int = 0
    tool_calls: int = 0


@dataclass(frozen=True, slots=True)
class Totals:
    """What was used so far.

    Attributes:
        calls: LM calls that were made, failed ones and retries included.
        cached_calls: Answers from a local cache, for nothing; they are in no other count.
        failed_calls: Those calls that gave no answer.
        estimated_calls: Those of them whose answer was lost, so that their reservation stands as spent.
        unpriced_calls: Those of them whose price is not known, and calls of tools whose process ended before it said.
        tool_calls: Tool calls.
        input_tokens: All input tokens, cached ones included.
        output_tokens: All output tokens, reasoning included.
        cached_input_tokens: Input tokens read from the provider's prompt cache.
        reasoning_tokens: Output tokens spent on thinking.
        estimated_tokens: Tokens of the estimated calls, which are not in the other counts.
        priced_usd: What everything with a known price cost, USD.
    """

    calls: int = 0
    cached_calls: int = 0
    failed_calls: int = 0
    estimated_calls: int = 0
    unpriced_calls: int = 0
    tool_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0
    estimated_tokens: int = 0
    priced_usd: float = 0.0

    @property
    def cost_usd(self) -> float | None:
        """What everything cost, or None as soon as one call had no known price."""
        return None if self.unpriced_calls else self.priced_usd

    @property
    def tokens(self) -> int:
        """Input and output tokens, estimated ones included."""
        return self.input_tokens + self.output_tokens + self.estimated_tokens
