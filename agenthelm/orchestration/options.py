"""Refuses options that make no sense where they are given, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, get_args

from agenthelm.core.cost import Budget
from agenthelm.core.tool import Tool, ToolRegistry
from agenthelm.exceptions import ConfigError, nearest

__all__ = ["budget_of", "budgets_of", "check_number", "choice", "instance", "tools_of"]

T = TypeVar("T")

_BUDGET = "a Budget, such as Budget(usd=0.50)"


def choice(option: str, value: Any, choices: Any) -> Any:
    """A value that is among the choices of a ``Literal``.

    Raises:
        ConfigError: It is not; with the nearest ones.
    """
    known = get_args(choices)
    if value in known:
        return value
    raise ConfigError(
        f"{option} must be one of {', '.join(known)}, not {value!r}.{nearest(value, known)}", setting=option
    )


def instance(option: str, value: T | None, kind: Any, wanted: str) -> T | None:
    """An object of a kind, or None.

    Raises:
        ConfigError: It is something else; ``wanted`` says what is wanted.
    """
    if value is None or isinstance(value, kind):
        return value
    raise ConfigError(f"{option} must be {wanted}, not {value!r:.80}", setting=option)


def budget_of(value: Budget | None, option: str = "budget") -> Budget | None:
    """A budget, or None.

    Raises:
        ConfigError: It is something else.
    """
    return instance(option, value, Budget, _BUDGET)


def budgets_of(value: Mapping[str, Budget] | None) -> dict[str, Budget]:
    """Budgets by the names of agents.

    Raises:
        ConfigError: It holds something else.
    """
    budgets = dict(instance("budgets", value, Mapping, "a dict from agents' names to their budgets") or {})
    for name, budget in budgets.items():
        budget_of(budget, f"budgets[{name!r}]")
    return budgets


def check_number(
    option: str,
    value: float | None,
    *,
    at_least: float | None = None,
    above: float | None = None,
    whole: bool = False,
) -> None:
    """Refuse what is no number, no whole one where that is wanted, or too low a one; None passes.

    Raises:
        ConfigError: It is.
    """
    if value is None:
        return
    number = isinstance(value, int if whole else int | float) and not isinstance(value, bool) and not math.isnan(value)
    if not number or (at_least is not None and value < at_least) or (above is not None and value <= above):
        wanted = "a whole number" if whole else "a number"
        wanted += "" if at_least is None else f" of at least {at_least:g}"
        wanted += "" if above is None else f" above {above:g}"
        raise ConfigError(f"{option} must be {wanted}, not {value!r:.80}", setting=option)


def tools_of(value: ToolRegistry | Iterable[Any]) -> ToolRegistry:
    """A registry, or one made of functions.

    Raises:
        ConfigError: It is neither.
    """
    if isinstance(value, ToolRegistry):
        return value
    found = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else None
    odd = (
        value
        if found is None
        else next((item for item in found if not isinstance(item, Tool) and not callable(item)), None)
    )
    if found is None or odd is not None:
        raise ConfigError(
            f"tools must be a ToolRegistry or a list of functions; {odd!r:.80} is neither", setting="tools"
        )
    return ToolRegistry.of(found)
