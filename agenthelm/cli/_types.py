"""Types as a person reads them, who knows nothing of the modules they are from."""

from __future__ import annotations

import functools
import types
import typing
from typing import Any

__all__ = ["function_name", "type_name"]


def type_name(annotation: Any) -> str:
    """A type in one phrase, and whether what it holds is kept secret."""
    from agenthelm.core.sensitive import holds_secrets

    return _name(annotation) + (" (secret)" if holds_secrets(annotation) else "")


def function_name(function: Any) -> str:
    """A function in one phrase."""
    while isinstance(function, functools.partial):
        function = function.func
    name = str(getattr(function, "__name__", type(function).__name__))
    return "a function without a name" if name == "<lambda>" else name


def _name(annotation: Any) -> str:
    if annotation is None or annotation is type(None):
        return "None"
    if annotation is ...:
        return "..."
    if isinstance(annotation, list):  # the parameters of a callable
        return f"[{', '.join(map(_name, annotation))}]"
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _name(parts[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_name, parts))
    if origin is typing.Literal:
        return f"Literal[{', '.join(map(repr, parts))}]"
    if origin is not None:
        return f"{_name(origin)}[{', '.join(map(_name, parts))}]" if parts else _name(origin)
    if isinstance(annotation, typing.ForwardRef):
        return annotation.__forward_arg__
    return str(getattr(annotation, "__name__", annotation)).replace("typing.", "")
