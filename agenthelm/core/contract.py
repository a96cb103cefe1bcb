"""What a tool promises: the fields of a contract, and which combinations contradict each other."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from agenthelm._runtime.retry import Backoff
from agenthelm.exceptions import OutcomeUnknown, ToolContractError

__all__ = ["ToolContract", "check_contract"]


@dataclass(frozen=True, slots=True)
class ToolContract:
    """How a tool may be called, how it is undone, and what it costs.

    Attributes:
        inputs: Parameter types that override the function's hints: name -> type, or the type's name as a string.
        outputs: Result fields that override the return hint. With one field and a result that is no mapping, the
            result itself is that field.
        side_effects: What the tool touches, as ``"thing:verb"``. The verb ``read`` changes nothing; any other does.
        max_cost: The most one call may spend, all attempts together, in USD. None for no limit; 0.0 for free.
        requires_approval: Whether somebody must say yes first; or a predicate on the arguments, called with those it
            names. A predicate that raises asks, and so does NaN anywhere in the arguments, which no comparison holds for.
        retries: Attempts after the first.
        retry_on: Which exceptions are retried. Denials, budgets and validation never are, and an outcome in doubt only
            if the tool is idempotent or has no side effects.
        backoff: The delays between attempts.
        compensating_tool: The name of the tool that undoes this one.
        verify: A tool's name, or a function, that says whether the effect happened. It gets the forward arguments and
            the idempotency key, by parameter name. None or False: it did not; True: it did; anything else: it did,
            with this result. Raising leaves the doubt.
        unknown_on: Exceptions after which nobody knows whether the effect happened, beyond `OutcomeUnknown`,
            ``TimeoutError`` and ``ConnectionError``.
        timeout: The deadline of one attempt in seconds. None for no limit.
        tags: For filtering, discovery and policies.
        idempotent: Whether calling twice with one idempotency key is calling once. A tool that takes such a key is,
            unless it says otherwise.
        abandonable: Whether a sync tool's thread may be let go at its deadline. Only without side effects.
        runs_in: Where a sync tool runs; ``"process"`` is for CPU-bound work.
    """

    inputs: Mapping[str, Any] | None = None
    outputs: Mapping[str, Any] | None = None
    side_effects: tuple[str, ...] = ()
    max_cost: float | None = None
    requires_approval: bool | Callable[..., bool] = False
    retries: int = 0
    retry_on: tuple[type[Exception], ...] = (Exception,)
    backoff: Backoff = field(default_factory=Backoff)
    compensating_tool: str | None = None
    verify: str | Callable[..., Any] | None = None
    unknown_on: tuple[type[Exception], ...] = ()
    timeout: float | None = None
    tags: tuple[str, ...] = ()
    idempotent: bool = False
    abandonable: bool = False
    runs_in: Literal["thread", "process"] = "thread"

    @property
    def changes_something(self) -> bool:
        """Whether a side effect is declared that is more than reading."""
        return any(effect.rsplit(":", 1)[-1] != "read" for effect in self.side_effects)

    @property
    def effectful(self) -> bool:
        """Whether calls are journaled: they change something, or something is declared to undo them."""
        return self.compensating_tool is not None or self.changes_something

    @property
    def irreversible(self) -> bool:
        """Whether calls change something that no tool undoes."""
        return self.changes_something and self.compensating_tool is None

    def in_doubt_after(self, error: BaseException) -> bool:
        """Whether an effect that ended with this exception, or a group with it, may have happened all the same."""
        if isinstance(error, BaseExceptionGroup):
            return any(self.in_doubt_after(inner) for inner in error.exceptions)
        return isinstance(error, (OutcomeUnknown, TimeoutError, ConnectionError, *self.unknown_on))


_PICO = 1e12
"""Money is counted in millionths of millionths; what is beyond that counting is no limit."""


def check_contract(name: str, contract: ToolContract, *, is_async: bool) -> None:
    """Refuse a contract that contradicts itself.

    Raises:
        ToolContractError: Naming the tool and the fields.
    """

    def refuse(what: str) -> None:
        raise ToolContractError(f"tool {name!r}: {what}", tool_name=name)

    for label, (fits, what) in _TYPES.items():
        if not fits(value := getattr(contract, label)):
            refuse(f"{label} {what}, not {value!r}")
    if contract.retries < 0:
        refuse(f"retries counts attempts after the first and can't be {contract.retries}")
    if contract.timeout is not None and contract.timeout <= 0:
        refuse(f"timeout is in seconds and must be above 0, not {contract.timeout:g}; None means no limit")
    if contract.max_cost is not None and contract.max_cost < 0:
        refuse(f"max_cost can't be negative ({contract.max_cost:g}); None means no limit and 0.0 free")
    if contract.compensating_tool == name:
        refuse("a tool can't be its own compensating_tool")
    if contract.abandonable and contract.effectful:
        refuse(
            "abandonable lets a thread go on unobserved, so it is only for tools without side effects; "
            "remove it, or the side effects"
        )
    if contract.abandonable and (is_async or contract.runs_in == "process"):
        refuse(
            "abandonable is for sync tools in threads; async tools and processes are stopped at their deadline anyway"
        )
    if contract.runs_in not in ("thread", "process"):
        refuse(f"runs_in must be 'thread' or 'process', not {contract.runs_in!r}")
    if contract.runs_in == "process" and is_async:
        refuse("runs_in='process' is for sync functions; an async tool runs on the event loop")
    for effect in contract.side_effects:
        if not effect.strip():
            refuse(f"side_effects are strings such as 'booking:write', not {effect!r}")


def _is_finite(it: Any) -> bool:
    if it is None:
        return True
    if isinstance(it, bool) or not isinstance(it, (int, float, Decimal)):
        return False
    try:
        return math.isfinite(float(it) * _PICO)
    except OverflowError:
        return False


def _is_name(it: Any) -> bool:
    return it is None or (isinstance(it, str) and bool(it))


def _are_texts(it: Any) -> bool:
    return isinstance(it, (tuple, list, set, frozenset)) and all(isinstance(text, str) for text in it)


def _are_errors(it: Any) -> bool:
    return isinstance(it, tuple) and all(isinstance(kind, type) and issubclass(kind, Exception) for kind in it)


def _is_flag(it: Any) -> bool:
    return isinstance(it, bool)


def _awaits(it: Any) -> bool:
    return inspect.iscoroutinefunction(it) or inspect.iscoroutinefunction(type(it).__call__)


def _are_types(it: Any) -> bool:
    return it is None or isinstance(it, Mapping)


_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "inputs": (_are_types, "maps names to types, as in {'nights': int}"),
    "outputs": (_are_types, "maps names to types, as in {'booking': str}"),
    "side_effects": (_are_texts, "are strings such as 'booking:write'"),
    "tags": (_are_texts, "are strings such as 'travel'"),
    "max_cost": (_is_finite, "is a number of USD, or None for no limit"),
    "timeout": (_is_finite, "is a number of seconds, or None for no limit"),
    "retries": (lambda it: isinstance(it, int) and not isinstance(it, bool), "is a whole number of further attempts"),
    "backoff": (lambda it: isinstance(it, Backoff), "takes a Backoff(initial=...)"),
    "retry_on": (_are_errors, "takes exception classes"),
    "unknown_on": (_are_errors, "takes exception classes"),
    "compensating_tool": (_is_name, "is a tool's name, or a function that has one"),
    "verify": (lambda it: _is_name(it) or callable(it), "is a tool's name, or a function"),
    "requires_approval": (
        lambda it: isinstance(it, bool) or (callable(it) and not _awaits(it)),
        "is True, False, or a predicate on the arguments that answers at once",
    ),
    "idempotent": (_is_flag, "is True or False"),
    "abandonable": (_is_flag, "is True or False"),
}
"""What no annotation would let through, and what would fail in the middle of a call."""
