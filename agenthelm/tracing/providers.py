"""Which OpenTelemetry providers the library's spans and metrics go to.

By default those the host has set up globally; `use_providers` overrides them for this library alone. Nothing of
OpenTelemetry is imported before somebody has set up telemetry: without an SDK there is nothing to send it to.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agenthelm.tracing.names import SCHEMA_URL, SCOPE

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter, MeterProvider
    from opentelemetry.trace import Tracer, TracerProvider

__all__ = ["current_meter", "current_tracer", "use_providers", "version"]


class _Source:
    """Where one kind of telemetry comes from: the provider, and what it gave, so that it is asked once and not each time.

    Args:
        api: OpenTelemetry's module for that kind.
        kind: What its providers give.
        variable: Where the environment may name a provider, which the API then loads by itself.
    """

    __slots__ = ("_api", "_get", "_get_provider", "_made", "_named", "own")

    def __init__(self, api: str, kind: str, variable: str) -> None:
        self._api = api
        self._get = f"get_{kind}"
        self._get_provider = f"get_{kind}_provider"
        self._named = variable in os.environ
        self._made: tuple[object, Any] = (None, None)
        self.own: object = None

    def current(self) -> Any:
        """What to use, or None where nobody would see it."""
        provider = self.own
        if provider is None:
            api = sys.modules.get(self._api)
            if api is None:
                if not self._named:
                    return None
                api = importlib.import_module(self._api)
            try:
                provider = getattr(api, self._get_provider)()
            except AttributeError:  # another thread is importing it right now
                return None
        seen, made = self._made
        if provider is not seen:
            # The API's own providers (proxy, no-op) record nothing.
            idle = type(provider).__module__.startswith(self._api)
            made = None if idle else getattr(provider, self._get)(SCOPE, version(), SCHEMA_URL)
            self._made = (provider, made)
        return made


_tracers = _Source("opentelemetry.trace", "tracer", "OTEL_PYTHON_TRACER_PROVIDER")
_meters = _Source("opentelemetry.metrics", "meter", "OTEL_PYTHON_METER_PROVIDER")

current_tracer: Callable[[], Tracer | None] = _tracers.current
"""The tracer to use, or None where nobody would see its spans."""

current_meter: Callable[[], Meter | None] = _meters.current
"""The meter to use, or None where nobody would see its measurements."""


def use_providers(tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None) -> None:
    """Send this library's spans and metrics to these providers instead of the global ones.

    Holds for the whole process, until the next call; None goes back to the global provider.
    """
    _tracers.own, _meters.own = tracer_provider, meter_provider


def version() -> str:
    """The package's version; empty for a source tree that was never installed."""
    from importlib import metadata

    try:
        return metadata.version(SCOPE)
    except metadata.PackageNotFoundError:
        return ""
