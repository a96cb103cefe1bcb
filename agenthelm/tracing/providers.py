"""Which OpenTelemetry providers the library's spans and metrics go to.

By default those the host has set up globally; `use_providers` overrides them for this library alone. Nothing of
OpenTelemetry is imported before somebody has set up telemetry: without an SDK there is nothing to send it to.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from agenthelm.tracing.names import SCHEMA_URL, SCOPE

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter, MeterProvider
    from opentelemetry.trace import Tracer, TracerProvider

__all__ = ["current_meter", "current_tracer", "use_providers", "version"]

_own_tracers: TracerProvider | None = None
_own_meters: MeterProvider | None = None

# The last provider seen and what it gave, so that a span site asks it for a tracer once and not each time.
_tracer: tuple[object, Tracer | None] = (None, None)
_meter: tuple[object, Meter | None] = (None, None)

# A provider that the environment names is loaded by the API itself.
_TRACERS_NAMED = "OTEL_PYTHON_TRACER_PROVIDER" in os.environ
_METERS_NAMED = "OTEL_PYTHON_METER_PROVIDER" in os.environ


def use_providers(tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None) -> None:
    """Send this library's spans and metrics to these providers instead of the global ones.

    Holds for the whole process, until the next call; None goes back to the global provider.
    """
    global _own_tracers, _own_meters
    _own_tracers, _own_meters = tracer_provider, meter_provider


def current_tracer() -> Tracer | None:
    """The tracer to use, or None where nobody would see its spans."""
    global _tracer
    provider = _own_tracers
    if provider is None:
        api: Any = sys.modules.get("opentelemetry.trace")
        if api is None:
            if not _TRACERS_NAMED:
                return None
            from opentelemetry import trace as api
        try:
            provider = api.get_tracer_provider()
        except AttributeError:  # another thread is importing it right now
            return None
    seen, tracer = _tracer
    if provider is not seen:
        # The API's own providers (proxy, no-op) record nothing.
        idle = type(provider).__module__.startswith("opentelemetry.trace")
        tracer = None if idle else provider.get_tracer(SCOPE, version(), SCHEMA_URL)
        _tracer = (provider, tracer)
    return tracer


def current_meter() -> Meter | None:
    """The meter to use, or None where nobody would see its measurements."""
    global _meter
    provider = _own_meters
    if provider is None:
        api: Any = sys.modules.get("opentelemetry.metrics")
        if api is None:
            if not _METERS_NAMED:
                return None
            from opentelemetry import metrics as api
        try:
            provider = api.get_meter_provider()
        except AttributeError:
            return None
    seen, meter = _meter
    if provider is not seen:
        idle = type(provider).__module__.startswith("opentelemetry.metrics")
        meter = None if idle else provider.get_meter(SCOPE, version(), SCHEMA_URL)
        _meter = (provider, meter)
    return meter


def version() -> str:
    """The package's version; empty for a source tree that was never installed."""
    from importlib import metadata

    try:
        return metadata.version(SCOPE)
    except metadata.PackageNotFoundError:
        return ""
