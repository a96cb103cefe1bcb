"""Sets up the OpenTelemetry SDK for those who have none: the command line, and programs that ask for it.

The providers made here are the library's own. The global ones are left to the host.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from agenthelm.exceptions import ConfigError, nearest
from agenthelm.tracing.names import SCOPE
from agenthelm.tracing.providers import use_providers, version

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

__all__ = ["Telemetry", "configure"]

_log = logging.getLogger(__name__)

_CONSOLE: Final = frozenset({"console", "true", "1", "yes", "on"})
_LONGEST_ATTRIBUTE: Final = 16_384
_EXPORTERS: Final = tuple(
    f"opentelemetry.exporter.otlp.proto.http.{module}" for module in ("_common", "trace_exporter", "metric_exporter")
)


class Telemetry:
    """What `configure` set up. A context manager that shuts it down.

    Attributes:
        tracer_provider: Where the library's spans go.
        meter_provider: Where its measurements go; None where the target takes none.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider,
        meter_provider: MeterProvider | None = None,
        *,
        close: Callable[[bool], None] = lambda flushed: None,
    ) -> None:
        self.tracer_provider = tracer_provider
        self.meter_provider = meter_provider
        self._close = close
        self._open = True
        use_providers(tracer_provider, meter_provider)

    def shutdown(self, timeout: float = 1.5) -> None:
        """Flush what was recorded and let go. Never raises, never takes longer than ``timeout`` seconds; may be repeated."""
        if not self._open:
            return
        self._open = False
        use_providers()
        flushing = [threading.Thread(target=self.tracer_provider.shutdown, daemon=True)]
        if self.meter_provider is not None:
            flushing.append(threading.Thread(target=self.meter_provider.shutdown, daemon=True))
        for thread in flushing:
            thread.start()
        deadline = time.monotonic() + timeout
        for thread in flushing:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._close(not any(thread.is_alive() for thread in flushing))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()


def configure(target: str | Path | bool) -> Telemetry:
    """Send the library's spans somewhere.

    Args:
        target: ``"console"`` (or True): a tree on standard error when a trace ends. ``"otlp"``: spans and metrics over
            OTLP/HTTP, by the standard ``OTEL_*`` variables. Anything else is the path of a JSON Lines file, one span
            a line, that is appended to.

    Returns:
        What was set up, to be shut down at the end.

    Raises:
        ConfigError: The target is nothing of these, the file can't be written, or the OTLP exporter is not installed.
    """
    text = "console" if target is True else str(target)
    if text.lower() in _CONSOLE:
        return _console()
    if text.lower() == "otlp":
        return _otlp()
    if target is False or not ("." in text or os.sep in text):
        hint = nearest(text, ("console", "otlp"))
        raise ConfigError(
            f"trace is 'console', 'otlp', or the path of a .jsonl file, not {text!r}.{hint}", setting="trace"
        )
    return _file(Path(text).expanduser())


def _console() -> Telemetry:
    from agenthelm.tracing.console import TreeProcessor

    return Telemetry(_tracer_provider(TreeProcessor()))


def _file(path: Path) -> Telemetry:
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor, SpanExportResult

    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as exc:
        raise ConfigError(f"traces can't be written to {path}: {exc.strerror}", setting="trace") from exc
    stream = os.fdopen(descriptor, "a", encoding="utf-8")

    class Lines(ConsoleSpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            if stream.closed:  # a line after one that was cut off would be lost with it
                return SpanExportResult.FAILURE
            try:
                return super().export(spans)
            except OSError as exc:
                _log.warning("traces can't be written to %s any more; the run is not affected: %s", path, exc.strerror)
                close()
                return SpanExportResult.FAILURE

    def close(flushed: bool = True) -> None:
        if flushed:
            with suppress(OSError):  # it tries once more to write what it could not
                stream.close()

    exporter = Lines(out=stream, formatter=lambda span: span.to_json(indent=None) + "\n")
    return Telemetry(_tracer_provider(SimpleSpanProcessor(exporter)), close=close)


def _otlp() -> Telemetry:
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as exc:
        message = "OTLP export needs an extra package: pip install 'agenthelm[otlp]'"
        raise ConfigError(message, setting="trace") from exc
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricExportResult, PeriodicExportingMetricReader
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

    warning = _OneWarning()

    class Spans(OTLPSpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            result = super().export(spans)
            if result is SpanExportResult.SUCCESS:
                warning.reached = True
            else:
                warning.give(self._endpoint)
            return result

    class Metrics(OTLPMetricExporter):
        def export(self, *args: Any, **kwargs: Any) -> MetricExportResult:
            result = super().export(*args, **kwargs)
            if result is not MetricExportResult.SUCCESS:
                warning.refuse(self._endpoint)
            return result

    meters = None
    if os.environ.get("OTEL_METRICS_EXPORTER", "otlp").strip().lower() != "none":
        reader = PeriodicExportingMetricReader(Metrics())
        meters = MeterProvider([reader], resource=_resource(), shutdown_on_exit=False)
    exporter = Spans()

    def close(flushed: bool) -> None:
        if flushed:
            warning.lift()
        else:  # its threads are still trying; the process need not wait for them
            warning.give(exporter._endpoint)

    return Telemetry(_tracer_provider(BatchSpanProcessor(exporter)), meters, close=close)


class _OneWarning(logging.Filter):
    """Says once that the collector can't be reached, in place of the exporter's own word on every batch.

    Attributes:
        reached: Whether it has taken spans.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reached = False
        self._given = threading.Lock()
        self._refused: str | None = None
        for name in _EXPORTERS:
            logging.getLogger(name).addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        return False

    def give(self, endpoint: str, what: str = "telemetry", advice: str = "the run is not affected") -> None:
        """Warn, the first time."""
        if self._given.acquire(blocking=False):
            where = endpoint.partition("?")[0].rpartition("@")[2]
            _log.warning("%s could not be delivered to %s and is lost; %s", what, where, advice)

    def refuse(self, endpoint: str) -> None:
        """Measurements were not taken: many a collector of traces has no place for them, which is no outage."""
        self._refused = endpoint
        if self.reached:
            self.give(endpoint, "metrics", "for a collector that takes none, set OTEL_METRICS_EXPORTER=none")

    def lift(self) -> None:
        """Say what is left to say, and let the exporter speak again."""
        if self._refused is not None:
            self.reached = True
            self.refuse(self._refused)
        for name in _EXPORTERS:
            logging.getLogger(name).removeFilter(self)


def _tracer_provider(processor: SpanProcessor) -> TracerProvider:
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider

    limits = SpanLimits() if _limited() else SpanLimits(max_attribute_length=_LONGEST_ATTRIBUTE)
    provider = TracerProvider(resource=_resource(), shutdown_on_exit=False, span_limits=limits)
    provider.add_span_processor(processor)
    return provider


def _limited() -> bool:
    return "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT" in os.environ or "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT" in os.environ


def _resource() -> Resource:
    from opentelemetry.sdk.resources import Resource

    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return Resource.create({} if named else {"service.name": SCOPE, "service.version": version()})
