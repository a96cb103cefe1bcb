"""Whether one tool can undo another."""

from __future__ import annotations

from agenthelm.core.binding import KEY_PARAMETER
from agenthelm.core.function import Tool

__all__ = ["compensation_problem", "needs_result"]

_EXTRAS = frozenset({"result", KEY_PARAMETER})
"""What a compensator may ask for beside arguments and fields of the result."""
_KEY = {KEY_PARAMETER: "20260101-000000-0123abcd:0123abcd-1"}
"""A key as the executor makes them."""


def compensation_problem(forward: Tool, compensator: Tool) -> str | None:
    """Why a compensator could not be called for a tool, or None when it can.

    A compensator receives, by parameter name, the forward arguments, then the fields of the result, ``result``, and
    ``idempotency_key``.
    """
    fields = forward.binding.declared_fields()
    for parameter in compensator.parameters.values():
        if not parameter.required or parameter.name in _EXTRAS:
            continue
        from_result = fields is None or parameter.name in fields
        forwarded = forward.parameters.get(parameter.name)
        declared = fields is not None and parameter.name in fields
        secret_argument = forwarded is not None and parameter.name in forward.binding.guarded
        if (secret_argument and not declared) or (
            forwarded is None and parameter.name in forward.binding.secret_fields
        ):
            return (
                f"needs {parameter.name!r}, a secret that no journal may hold; let it take the idempotency key or a "
                f"field of the result instead"
            )
        if forwarded is None and not from_result:
            return (
                f"needs {parameter.name!r}, which is neither an argument of {forward.name!r} nor a field of its "
                f"declared result"
            )
    return _key_problem(forward, compensator)


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
