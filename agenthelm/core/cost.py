"""What calls cost, and the budgets they are held to."""

from __future__ import annotations

from agenthelm.core.amounts import Amount, Budget, Totals, tightest
from agenthelm.core.ledger import Ledger, Reservation
from agenthelm.core.prices import MODEL_PRICING, CostTracker, Price, PriceSource, TokenUsage, override_price

__all__ = [
    "MODEL_PRICING",
    "Amount",
    "Budget",
    "CostTracker",
    "Ledger",
    "Price",
    "PriceSource",
    "Reservation",
    "TokenUsage",
    "Totals",
    "override_price",
    "tightest",
]
