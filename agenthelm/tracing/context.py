"""Trace context that crosses processes: W3C headers, and links to spans of another run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from agenthelm.tracing.names import LINK_KIND

if TYPE_CHECKING:
    from contextvars import Token

    from opentelemetry.context import Context
    from opentelemetry.trace import Link

__all__ = ["extract", "inject", "link"]


class extract:  # noqa: N801 - reads as a verb: `with extract(headers):`
    """Continue the trace of an incoming request: ``with extract(request.headers): await orchestrator.run(...)``.

    Headers without a valid ``traceparent`` change nothing.

    Args:
        headers: The request's headers; names in any case.
    """

    __slots__ = ("_headers", "_token")

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers
        self._token: Token[Context] | None = None

    def __enter__(self) -> Self:
        from opentelemetry import context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        lowered = {name.lower(): value for name, value in self._headers.items()}
        self._token = context.attach(TraceContextTextMapPropagator().extract(lowered))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        from opentelemetry import context

        if self._token is not None:
            context.detach(self._token)


def inject(headers: dict[str, str] | None = None) -> dict[str, str]:
    """Add the current trace to the headers of an outgoing request.

    Args:
        headers: Changed in place; None makes new ones.

    Returns:
        The headers; without a trace in force they are as they came.
    """
    carrier = {} if headers is None else headers
    if "opentelemetry.trace" not in sys.modules:  # then there is no trace, and the import is spared
        return carrier
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    TraceContextTextMapPropagator().inject(carrier)
    return carrier


def link(trace_id: str | None, span_id: str | None, kind: str = "continues") -> Link | None:
    """A link to a span by its stored ids, or None when they are missing or malformed.

    Args:
        trace_id: 32 hex digits.
        span_id: 16 hex digits.
        kind: How the new span is related to it: ``undoes`` or ``continues``.
    """
    if not trace_id or not span_id:
        return None
    from opentelemetry.trace import Link, SpanContext, TraceFlags

    try:
        context = SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags.get_default())
    except ValueError:
        return None
    return Link(context, {LINK_KIND: kind}) if context.is_valid else None
