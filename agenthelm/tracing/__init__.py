"""Spans and metrics; the only room that imports opentelemetry. Names are imported when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
