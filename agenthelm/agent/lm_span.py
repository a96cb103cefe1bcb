"""What the span of an LM call says, in the words of the conventions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dspy.lm15 import Request, Response

from agenthelm.core.cost import TokenUsage
from agenthelm.tracing import names, spans

__all__ = ["tell_request", "tell_response", "tell_usage"]


def tell_request(span: spans.SpanHandle, request: Request) -> None:
    """How the model was asked."""
    if span.recording:
        config = request.config
        span.set(names.REQUEST_MAX_TOKENS, config.max_tokens)
        span.set(names.REQUEST_TEMPERATURE, config.temperature)
        span.set(names.REQUEST_TOP_P, config.top_p)
        span.set(names.REQUEST_SEED, config.seed)


def tell_response(span: spans.SpanHandle, request: Request, response: Response) -> None:
    """What came back; what was said only where content is opted in."""
    if not span.recording:
        return
    span.set(names.RESPONSE_ID, response.id)
    span.set(names.RESPONSE_MODEL, response.model)
    span.set(names.RESPONSE_FINISH_REASONS, [response.finish_reason])
    if spans.captures_content():
        system = request.system
        if system is not None:
            span.set(names.SYSTEM_INSTRUCTIONS, [_text(system)] if isinstance(system, str) else _parts(system))
        span.set(names.INPUT_MESSAGES, [{"role": m.role, "parts": _parts(m.parts)} for m in request.messages])
        answer = {"role": "assistant", "parts": _parts(response.message.parts), "finish_reason": response.finish_reason}
        span.set(names.OUTPUT_MESSAGES, [answer])


def tell_usage(span: spans.SpanHandle, usage: TokenUsage) -> None:
    """What it took."""
    span.set(names.USAGE_INPUT, usage.input_tokens)
    span.set(names.USAGE_OUTPUT, usage.output_tokens)
    span.set(names.USAGE_CACHE_READ, usage.cached_input_tokens or None)
    span.set(names.USAGE_CACHE_CREATION, usage.cache_write_tokens or None)
    span.set(names.USAGE_REASONING, usage.reasoning_tokens or None)


def _parts(parts: Sequence[Any]) -> list[dict[str, Any]]:
    """A message's parts; of what is neither text nor a tool call only the kind."""
    return [_part(part) for part in parts]


def _part(part: Any) -> dict[str, Any]:
    if part.type == "text":
        return _text(part.text)
    if part.type == "tool_call":
        return {"type": "tool_call", "id": part.id, "name": part.name, "arguments": part.input}
    return {"type": part.type}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "content": text}
