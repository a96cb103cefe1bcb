"""Limits, amounts and sums: the figures that the books of a run are kept in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from agenthelm.exceptions import ConfigError, nearest

__all__ = ["Amount", "Budget", "Totals", "tightest"]


def _countable(limit: float) -> float | None:
    """A limit, or None for one that is beyond what can be counted in picodollars: infinity, and what comes near it."""
    return limit if math.isfinite(limit * 1e12) else None


_Quantity = Annotated[float, Field(ge=0), AfterValidator(_countable)]
_Count = Annotated[int, Field(ge=0)]


class Budget(BaseModel):
    """What a run, an agent or a tool call may use. None means no limit, as infinity does; 0 means none at all.

    Attributes:
        usd: US dollars.
        tokens: Input and output tokens of LM calls.
        calls: LM calls, retries included.
        tool_calls: Tool calls; retries inside one are not counted again.
        seconds: Wall-clock seconds since the scope began; checked at each call.

    Raises:
        ConfigError: A limit is no number, or below 0, or there is no such limit.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="forbid")

    usd: _Quantity | None = None
    tokens: _Count | None = None
    calls: _Count | None = None
    tool_calls: _Count | None = None
    seconds: _Quantity | None = None

    if not TYPE_CHECKING:  # which knows what it takes by its fields

        def __init__(self, **limits: object) -> None:
            try:
                super().__init__(**limits)
            except ValidationError as exc:
                raise _refused(exc.errors()[0]) from None


def _refused(wrong: Mapping[str, Any]) -> ConfigError:
    """What is wrong with a budget, in one line."""
    name = str(wrong["loc"][0])
    if name not in Budget.model_fields:
        hint = nearest(name, Budget.model_fields) or f" It has: {', '.join(Budget.model_fields)}."
        return ConfigError(f"Budget has no limit {name!r}.{hint}", setting=name)
    kind = "number" if name in ("usd", "seconds") else "whole number"
    return ConfigError(
        f"Budget({name}=...) must be a {kind} of at least 0, or None for no limit, not {wrong['input']!r:.80}",
        setting=name,
    )


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
