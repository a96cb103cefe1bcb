"""What tokens cost, and the plan-style tracker that adds them up."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, TypeGuard

from pydantic import BaseModel, ConfigDict, Field

from agenthelm.exceptions import ConfigError

__all__ = ["MODEL_PRICING", "CostTracker", "Price", "PriceSource", "TokenUsage", "override_price", "to_pico", "to_usd"]

_PICO = 10**12

MODEL_PRICING: dict[str, Mapping[str, float]] = {}
"""Your own prices, in USD per 1,000 tokens: ``{"my-model": {"input": 0.005, "output": 0.015, "cached_input": 0.0025}}``.

It ships empty and overrides every other source. A name matches exactly, with or without its provider prefix, never by
part of it. ``cached_input`` may be left out; cached tokens then cost what others do. What is no price is refused with
`ConfigError` when a call needs it.
"""


class TokenUsage(BaseModel):
    """The tokens of one LM call.

    Attributes:
        input_tokens: All input tokens, cached ones included.
        output_tokens: All output tokens, reasoning included.
        model: The model's name, with its provider prefix where it has one.
        cached_input_tokens: Those of the input that the provider read from its prompt cache.
        cache_write_tokens: Those of the input that the provider wrote to its prompt cache.
        reasoning_tokens: Those of the output that the model spent on thinking.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True)

    input_tokens: int = Field(ge=0)
    output_tokens: int = Field(ge=0)
    model: str
    cached_input_tokens: int = Field(default=0, ge=0)
    cache_write_tokens: int = Field(default=0, ge=0)
    reasoning_tokens: int = Field(default=0, ge=0)


def to_pico(usd: float) -> int:
    """USD as whole picodollars (1e-12 USD), in which every published token price is an integer: sums are exact."""
    return round(usd * _PICO)


def to_usd(pico: int) -> float:
    """Picodollars as USD: the float nearest to the exact sum."""
    return pico / _PICO


_rate = functools.lru_cache(maxsize=1024)(to_pico)
"""`to_pico` for token prices, of which there are few and which every call needs again."""


@dataclass(frozen=True, slots=True)
class Price:
    """What one model's tokens cost, in USD per token.

    Attributes:
        input: Per input token.
        output: Per output token.
        cached_input: Per input token read from the provider's prompt cache; None for the price of other input.
        cache_write: Per input token written to that cache; None for the price of other input.
        reasoning: Per output token spent on thinking; None for the price of other output.
        source: Where the price comes from.
        above: Beyond so many input tokens the whole call is billed at another price; None where there is one price.
    """

    input: float
    output: float
    cached_input: float | None = None
    cache_write: float | None = None
    reasoning: float | None = None
    source: str = "override"
    above: tuple[int, Price] | None = None

    def pico(self, usage: TokenUsage) -> int:
        """What a call's tokens cost, in picodollars."""
        if self.above is not None and usage.input_tokens > self.above[0]:
            return self.above[1].pico(usage)
        cached = min(usage.cached_input_tokens, usage.input_tokens)
        written = min(usage.cache_write_tokens, usage.input_tokens - cached)
        thought = 0 if self.reasoning is None else min(usage.reasoning_tokens, usage.output_tokens)
        return (
            (usage.input_tokens - cached - written) * _rate(self.input)
            + cached * _rate(self.input if self.cached_input is None else self.cached_input)
            + written * _rate(self.input if self.cache_write is None else self.cache_write)
            + (usage.output_tokens - thought) * _rate(self.output)
            + thought * _rate(self.reasoning or 0.0)
        )

    def cost(self, usage: TokenUsage) -> float:
        """What a call's tokens cost, in USD."""
        return to_usd(self.pico(usage))

    def bound(self, input_tokens: int, output_tokens: int) -> float:
        """The most that a call of at most so many tokens can cost, in USD."""
        if self.above is not None and input_tokens > self.above[0]:
            return max(
                self.above[1].bound(input_tokens, output_tokens),
                replace(self, above=None).bound(input_tokens, output_tokens),
            )
        inputs, outputs = max(self.input, self.cache_write or 0.0), max(self.output, self.reasoning or 0.0)
        return to_usd(input_tokens * _rate(inputs) + output_tokens * _rate(outputs))


class PriceSource(Protocol):
    """Where prices come from. The model's name carries its provider prefix where it has one."""

    def price(self, model: str) -> Price | None:
        """A model's price, or None when it is not known. Never a guess by a similar name."""
        ...


def override_price(model: str) -> Price | None:
    """A model's price in `MODEL_PRICING`, or None.

    Raises:
        ConfigError: What stands there is no price.
    """
    if not MODEL_PRICING:
        return None
    _, slash, bare = model.partition("/")
    names = [name for name in (model, bare) if name in MODEL_PRICING]
    if not names and not slash:
        names = [name for name in MODEL_PRICING if name.partition("/")[2] == model]
        names = names if len(names) == 1 else []
    return _override(names[0], MODEL_PRICING[names[0]]) if names else None


_RATES = ("input", "output", "cached_input")


def _override(name: str, entry: object) -> Price:
    def refused(what: str) -> ConfigError:
        return ConfigError(
            f"MODEL_PRICING[{name!r}] {what}; a price is input and output, and cached_input if it differs, in USD per "
            "1,000 tokens",
            setting="MODEL_PRICING",
        )

    def rate(key: str, usd: object) -> float:
        if not _is_rate(usd):
            raise refused(f"says {usd!r:.80} for {key!r}")
        return usd / 1000

    if not isinstance(entry, Mapping):
        raise refused(f"is {entry!r:.80}")
    wrong = next((f"has {key!r}" for key in entry if key not in _RATES), None)
    wrong = wrong or next((f"has no {key!r}" for key in _RATES[:2] if key not in entry), None)
    if wrong is not None:
        raise refused(wrong)
    cached = entry.get("cached_input")
    return Price(
        input=rate("input", entry["input"]),
        output=rate("output", entry["output"]),
        cached_input=None if cached is None else rate("cached_input", cached),
    )


def _is_rate(usd: object) -> TypeGuard[float]:
    """Whether it is an amount that can be counted in picodollars."""
    if not isinstance(usd, int | float) or isinstance(usd, bool):
        return False
    try:
        return to_pico(float(usd)) >= 0
    except (OverflowError, ValueError):
        return False


class CostTracker:
    """Adds up the tokens and the cost of LM calls; safe for concurrent use.

    Runs keep their own books (`RunResult.totals`); this one is for code that calls models by itself.

    Args:
        prices: Asked for models that `MODEL_PRICING` does not name.
    """

    def __init__(self, prices: PriceSource | None = None) -> None:
        self._prices = prices
        self._lock = threading.Lock()
        self._pico = 0
        self._unpriced = 0
        self._events: list[TokenUsage] = []

    def track(self, usage: TokenUsage) -> float | None:
        """Count one call.

        Returns:
            What it cost in USD, or None when the model's price is not known.
        """
        price = override_price(usage.model) or (self._prices.price(usage.model) if self._prices else None)
        pico = None if price is None else price.pico(usage)
        with self._lock:
            self._events.append(usage)
            if pico is None:
                self._unpriced += 1
            else:
                self._pico += pico
        return None if pico is None else to_usd(pico)

    def charge(self, usd: float) -> None:
        """Count money that was spent otherwise than on tokens."""
        with self._lock:
            self._pico += max(0, to_pico(usd))

    def check_budget(self, max_cost: float) -> bool:
        """Whether no more than ``max_cost`` USD were spent; unpriced calls are not in that sum. 0.0 means free."""
        with self._lock:
            return self._pico <= to_pico(max_cost)

    @property
    def total_cost(self) -> float | None:
        """USD spent, or None as soon as one call had no known price."""
        with self._lock:
            return None if self._unpriced else to_usd(self._pico)

    @property
    def priced_cost(self) -> float:
        """USD spent on calls whose price is known."""
        with self._lock:
            return to_usd(self._pico)

    @property
    def events(self) -> list[TokenUsage]:
        """The calls so far, as a copy."""
        with self._lock:
            return list(self._events)
