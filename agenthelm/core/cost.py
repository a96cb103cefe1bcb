"""What calls cost, and the budgets they are held to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from agenthelm._runtime.context import StopMark
from agenthelm.exceptions import BudgetExceededError

__all__ = [
    "MODEL_PRICING", "Amount", "Budget", "CostTracker", "Ledger", "Price", "PriceSource", "Reservation", "TokenUsage",
]


class TokenUsage(BaseModel):
    """The tokens of one LM call."""

    model_config = ConfigDict(frozen=True)

    input_tokens: int = Field(ge=0)
    output_tokens: int = Field(ge=0)
    model: str
    cached_input_tokens: int = Field(default=0, ge=0)
    reasoning_tokens: int = Field(default=0, ge=0)
