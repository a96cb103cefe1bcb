"""Whether one tool can undo another."""

from __future__ import annotations

from agenthelm.core.binding import KEY_PARAMETER
from agenthelm.core.function import Tool

__all__ = ["compensation_problem", "needs_result", "secret_problem"]

_EXTRAS = frozenset({"result", KEY_PARAMETER})
"""What a compensator may ask for beside arguments and fields of the result."""
_KEY = {KEY_PARAMETER: "20260101-000000-0123abcd:0123abcd-1"}
"""A key as the executor makes them."""


def compensation_problem(forward: Tool, compensator: Tool) -> str | None:
    """Why a compensator could not be called for a tool, or None when it can.

    A compensator receives, by parameter name, the forward arguments, then the fields of the result, ``result``, and
    ``idempotency_key``.
    """
    if (secret := secret_problem(forward, compensator)) is not None:
        return secret
    fields = forward.binding.declared_fields()
    for name in _needed(compensator):
        if name not in forward.parameters and fields is not None and name not in fields:
            return (
                f"needs {name!r}, which is neither an argument of {forward.name!r} nor a field of its declared result"
            )
    return _key_problem(forward, compensator)


def secret_problem(forward: Tool, compensator: Tool) -> str | None:
    """Why a compensator could not be called after a crash, because it needs a secret; None when it needs none."""
    fields = forward.binding.declared_fields() or frozenset()
    for name in _needed(compensator):
        if name in forward.parameters:
            secret = name in forward.binding.guarded and name not in fields
        else:
            secret = name in forward.binding.secret_fields
        if secret:
            return (
                f"needs {name!r}, a secret that no journal may hold; let it take the idempotency key or a field of the "
                f"result instead"
            )
    return None


def _needed(compensator: Tool) -> list[str]:
    return [p.name for p in compensator.parameters.values() if p.required and p.name not in _EXTRAS]


def _key_problem(forward: Tool, compensator: Tool) -> str | None:
    """Why a compensator could not be given the key of a call, whether it must have one or not."""
    if forward.binding.takes_key and KEY_PARAMETER in forward.binding.unfit(_KEY):
        return None  # then the tool itself is only called with keys of its callers
    reason = compensator.binding.unfit(_KEY).get(KEY_PARAMETER) if compensator.binding.takes_key else None
    return None if reason is None else f"can't be given the key of a call ({reason}); annotate it as str"


def needs_result(forward: Tool, compensator: Tool) -> bool:
    """Whether a compensator can only be called once the forward call's result is known."""
    return any(
        p.required and p.name != KEY_PARAMETER and p.name not in forward.parameters
        for p in compensator.parameters.values()
    )
