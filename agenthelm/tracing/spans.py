"""The span verbs of the library: what happens, under the names of the conventions.

Each verb is a context manager that yields a handle. Where no telemetry is set up they all are one shared handle that
does nothing. Durations, tokens, cost and outcomes also reach the metrics from here, so that a call site says them once.
"""

from __future__ import annotations

from collections.abc import Iterable

from agenthelm.tracing import names
from agenthelm.tracing.providers import current_meter, current_tracer
from agenthelm.tracing.site import NOTHING, Site, SpanHandle, SpanIds, SpanLink, captures_content

__all__ = ["SpanHandle", "agent", "captures_content", "chat", "current", "embeddings", "memory", "tool", "workflow"]


def current() -> SpanIds:
    """Trace id and span id of the span in force, in hex; None where there is none."""
    return NOTHING.ids


def workflow(
    name: str,
    *,
    run_id: str | None = None,
    session_id: str | None = None,
    namespace: str | None = None,
    links: Iterable[SpanLink] = (),
) -> SpanHandle:
    """One run, one flow inside a run, or one undo or recovery of a run.

    Args:
        name: The flow's, or the run's.
        run_id: The run; None for a flow outside of any.
        session_id: Its conversation.
        namespace: Its tenant.
        links: The spans of the same run in another process.
    """
    tracer, meter = current_tracer(), current_meter()
    if tracer is None and meter is None:
        return NOTHING
    values = {
        names.OPERATION_NAME: names.INVOKE_WORKFLOW,
        names.WORKFLOW_NAME: name,
        names.RUN_ID: run_id,
        names.CONVERSATION_ID: session_id,
        names.NAMESPACE: namespace,
    }
    return Site(tracer, meter, f"{names.INVOKE_WORKFLOW} {name}", values, links=links)


def agent(name: str, *, description: str | None = None, session_id: str | None = None) -> SpanHandle:
    """One run of an agent."""
    tracer, meter = current_tracer(), current_meter()
    if tracer is None and meter is None:
        return NOTHING
    values = {
        names.OPERATION_NAME: names.INVOKE_AGENT,
        names.AGENT_NAME: name,
        names.AGENT_DESCRIPTION: description,
        names.CONVERSATION_ID: session_id,
    }
    return Site(tracer, meter, f"{names.INVOKE_AGENT} {name}", values)


def tool(name: str, *, call_id: str | None = None, links: Iterable[SpanLink] = ()) -> SpanHandle:
    """One call of a tool through the executor, its retries included.

    Args:
        name: The tool.
        call_id: The id of the call; the same as its event's.
        links: For a compensation, the span of the call it undoes: ``(trace_id, span_id, "undoes")``.
    """
    tracer, meter = current_tracer(), current_meter()
    if tracer is None and meter is None:
        return NOTHING
    values = {
        names.OPERATION_NAME: names.EXECUTE_TOOL,
        names.TOOL_NAME: name,
        names.TOOL_TYPE: "function",
        names.TOOL_CALL_ID: call_id,
    }
    return Site(tracer, meter, f"{names.EXECUTE_TOOL} {name}", values, links=links)


def chat(
    model: str,
    *,
    provider: str | None = None,
    server_address: str | None = None,
    server_port: int | None = None,
    session_id: str | None = None,
) -> SpanHandle:
    """One request to a language model.

    Args:
        model: The model as it was asked for.
        provider: Who serves it, by the conventions' names (``openai``, ``anthropic``, ``mistral_ai``).
        server_address: The host that is called.
        server_port: Its port.
        session_id: The conversation.
    """
    tracer, meter = current_tracer(), current_meter()
    if tracer is None and meter is None:
        return NOTHING
    values = {
        names.OPERATION_NAME: names.CHAT,
        names.PROVIDER_NAME: provider,
        names.REQUEST_MODEL: model,
        names.SERVER_ADDRESS: server_address,
        names.SERVER_PORT: server_port,
        names.CONVERSATION_ID: session_id,
    }
    return Site(tracer, meter, f"{names.CHAT} {model}", values, client=True)


def embeddings(model: str, *, provider: str | None = None) -> SpanHandle:
    """One request for embeddings.

    Args:
        model: The model, or the name of what embeds in this very process.
        provider: Who serves it; None for nobody else.
    """
    tracer, meter = current_tracer(), current_meter()
    if tracer is None and meter is None:
        return NOTHING
    values = {names.OPERATION_NAME: names.EMBEDDINGS, names.PROVIDER_NAME: provider, names.REQUEST_MODEL: model}
    return Site(tracer, meter, f"{names.EMBEDDINGS} {model}", values, client=provider is not None)


def memory(operation: str, *, store: str | None = None) -> SpanHandle:
    """One operation on a memory.

    Args:
        operation: Our verb (``recall``, ``write`` …) or the conventions' name (``search_memory``).
        store: Which memory.
    """
    tracer, meter = current_tracer(), current_meter()
    if tracer is None and meter is None:
        return NOTHING
    name = names.MEMORY_OPERATIONS.get(operation, operation)
    values = {names.OPERATION_NAME: name, names.MEMORY_OPERATION: operation, names.MEMORY_STORE_ID: store}
    return Site(tracer, meter, name, values)
