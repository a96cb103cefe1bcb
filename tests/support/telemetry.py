"""Telemetry that stays in memory, and the conventions' list of names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agenthelm.tracing import names
from agenthelm.tracing.providers import use_providers

CONVENTIONS = {
    "error.type", "server.address", "server.port", "exception.type", "exception.message",
    *(
        f"gen_ai.{name}"
        for name in ["agent.id", "agent.name", "agent.description", "agent.version", "conversation.id", "data_source.id", "embeddings.dimension.count", "input.messages", "output.messages", "output.type", "operation.name", "provider.name", "request.model", "request.choice.count", "request.frequency_penalty", "request.presence_penalty", "request.max_tokens", "request.seed", "request.stop_sequences", "request.stream", "request.temperature", "request.top_k", "request.top_p", "response.id", "response.model", "response.finish_reasons", "response.time_to_first_chunk", "retrieval.query.text", "retrieval.documents", "system_instructions", "token.type", "tool.name", "tool.type", "tool.description", "tool.definitions", "tool.call.id", "tool.call.arguments", "tool.call.result", "usage.input_tokens", "usage.output_tokens", "usage.cache_read.input_tokens", "usage.cache_creation.input_tokens", "usage.reasoning.output_tokens", "workflow.name", "usage.cache_write.input_tokens", "memory.store.id", "memory.record.id", "memory.record.count", "memory.query.text", "memory.records"]
    ),
}  # fmt: skip
"""The attributes of the GenAI semantic conventions 1.41.1, and the later ones that are emitted beside them."""

METRICS = {
    "gen_ai.client.token.usage": "{token}",
    "gen_ai.client.operation.duration": "s",
    "gen_ai.invoke_agent.duration": "s",
    "gen_ai.execute_tool.duration": "s",
    "gen_ai.invoke_workflow.duration": "s",
}
"""The conventions' metrics and their units."""


OURS = {value for value in vars(names).values() if isinstance(value, str) and value.startswith("agenthelm.")}
"""Our own attributes and metrics, as the table lists them."""


def foreign(attributes: Any) -> set[str]:
    """The attributes that are neither in the conventions nor in our own table."""
    return set(attributes or {}) - CONVENTIONS - OURS - set(names.BUDGET.values())


@dataclass
class Recorded:
    """What the library's telemetry came to."""

    exporter: InMemorySpanExporter
    reader: InMemoryMetricReader
    tracer_provider: TracerProvider

    @property
    def spans(self) -> list[ReadableSpan]:
        """The finished spans, in the order of their ends."""
        return list(self.exporter.get_finished_spans())

    def span(self, name: str) -> ReadableSpan:
        """The one span of that name."""
        (found,) = [span for span in self.spans if span.name == name]
        return found

    def metrics(self) -> dict[str, Any]:
        """The metrics by name."""
        data = self.reader.get_metrics_data()
        return {
            metric.name: metric
            for resource in (data.resource_metrics if data else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def points(self, name: str) -> list[Any]:
        """The data points of a metric."""
        metric = self.metrics().get(name)
        return list(metric.data.data_points) if metric else []


@contextmanager
def recorded() -> Iterator[Recorded]:
    """Record the library's spans and metrics for a ``with`` block."""
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    meters = MeterProvider([reader], shutdown_on_exit=False)
    use_providers(tracers, meters)
    try:
        yield Recorded(exporter, reader, tracers)
    finally:
        use_providers()
        tracers.shutdown()
        meters.shutdown()
