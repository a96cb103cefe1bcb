"""A small façade over the span verbs, for code that traces its own agents and memories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from agenthelm.tracing import names, spans
from agenthelm.tracing.site import prepared

__all__ = ["AgentHelmTracer"]


class _Named(Protocol):
    @property
    def name(self) -> str: ...


class AgentHelmTracer:
    """Opens spans as the library itself does, under the GenAI conventions.

    They go where the library's spans go: to the host's global provider, or to what `use_providers` names. Without
    either, they cost next to nothing.

    Args:
        service_name: What its spans name as ``agenthelm.service.name``, where that is another service than the provider's.
    """

    def __init__(self, service_name: str | None = None) -> None:
        self.service_name = service_name

    def trace_agent(self, agent: _Named | str, input: Mapping[str, Any] | str | None = None) -> spans.SpanHandle:  # noqa: A002
        """A span around one run of an agent: ``with tracer.trace_agent(agent, {"task": ...}) as span:``.

        Args:
            agent: The agent, or its name.
            input: What it is given; recorded, masked, only where content is opted in.

        Returns:
            A context manager that yields the span's handle: ``set(key, value)``, ``fail(error)``, and ``ids``, the
            trace and the span in hex. An exception that leaves the block marks the span as failed.
        """
        name = agent if isinstance(agent, str) else agent.name
        description = None if isinstance(agent, str) else getattr(agent, "description", None)
        span = spans.agent(name, description=description or None)
        return self._prepared(span, {names.INPUT: input})

    def trace_memory_op(self, op: str, key: str | None = None) -> spans.SpanHandle:
        """A span around one operation on a memory.

        Args:
            op: The operation: ``remember``, ``recall``, ``read``, ``write`` …
            key: What it is about; recorded only where content is opted in.
        """
        return self._prepared(spans.memory(op), {names.MEMORY_KEY: key})

    def _prepared(self, span: spans.SpanHandle, values: Mapping[str, object]) -> spans.SpanHandle:
        return prepared(span, {**values, names.SERVICE_NAME: self.service_name})
