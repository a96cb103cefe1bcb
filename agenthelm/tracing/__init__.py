"""Spans and metrics; the only room that imports opentelemetry. Names are imported when they are first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agenthelm.lazy import lazily

if TYPE_CHECKING:
    from agenthelm.tracing.context import extract, inject
    from agenthelm.tracing.providers import use_providers
    from agenthelm.tracing.setup import Telemetry, configure
    from agenthelm.tracing.tracer import AgentHelmTracer

__all__ = [
    "AgentHelmTracer",
    "Telemetry",
    "configure",
    "extract",
    "inject",
    "use_providers",
]

_HOMES = {
    "AgentHelmTracer": "tracer",
    "Telemetry": "setup",
    "configure": "setup",
    "extract": "context",
    "inject": "context",
    "use_providers": "providers",
}


if not TYPE_CHECKING:  # a type checker must see which names are not there
    __getattr__ = lazily(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
