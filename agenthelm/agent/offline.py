"""The built-in model that needs no network: it fills any signature with labelled placeholders, for nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import dspy
from dspy.lm15 import FunctionTool, Message, Request, Response, TextPart, ToolCallPart, Usage, response_to_events

from agenthelm.agent.placeholder import ENDINGS, fill_prompt, fill_schema, placeholder, render
from agenthelm.core.cost import Price

__all__ = ["OFFLINE", "AsyncOfflineEngine", "OfflineEngine", "offline_lm", "request_text", "system_text"]

OFFLINE = "offline"
"""The model name that selects it."""


def system_text(request: Request) -> str:
    """The system prompt of a request, wherever it stands."""
    system = request.system
    if isinstance(system, str):
        return system
    if system is not None:
        return "".join(part.text for part in system if isinstance(part, TextPart))
    return "\n".join(message.text or "" for message in request.messages if message.role == "developer")


def request_text(request: Request) -> str:
    """All text of a request."""
    return "\n".join([system_text(request), *(message.text or "" for message in request.messages)])


def _tokens(text: str) -> int:
    # Four characters a token is the usual rule of thumb; no tokenizer is worth its weight for placeholders.
    return len(text) // 4 + 1


class OfflineEngine:
    """A DSPy engine that answers from the request alone; deterministic, without network or state."""

    nonblocking = True
    """Answers at once, so it may be asked on the event loop."""

    price: Price = Price(input=0.0, output=0.0, source="offline")
    """What the meter books for its tokens."""

    supports_function_calling = False
    supports_reasoning = False
    supports_response_schema = False
    supported_params: frozenset[str] = frozenset({"temperature", "max_tokens", "response_format"})

    def complete(self, request: Request) -> Response:
        """Fill what the request asks for."""
        parts: list[Any] = []
        call = self._ending(request)
        if call is None:
            system = system_text(request)
            format_ = request.config.response_format
            values = fill_prompt(system, format_, prompt=request_text(request))
            text = render(values, system, format_) if values else placeholder("answer")
            parts.append(TextPart(text))
        else:
            text = str(call.input)
            parts.append(call)
        inputs, outputs = _tokens(request_text(request)), _tokens(text)
        return Response(
            id=None,
            model=request.model,
            message=Message.assistant(parts),
            finish_reason="stop" if call is None else "tool_call",
            usage=Usage(input_tokens=inputs, output_tokens=outputs, total_tokens=inputs + outputs),
        )

    def _ending(self, request: Request) -> ToolCallPart | None:
        """The call that ends a native tool loop, or the one that the request demands."""
        tools = [tool for tool in request.tools if isinstance(tool, FunctionTool)]
        choice = request.config.tool_choice
        chosen = next((tool for tool in tools if tool.name in ENDINGS), None)
        if chosen is None and tools and choice is not None and choice.mode == "required":
            chosen = next((tool for tool in tools if tool.name in choice.allowed), tools[0])
        if chosen is None:
            return None
        return ToolCallPart(id="offline-1", name=chosen.name, input=fill_schema(chosen.parameters))

    def stream(self, request: Request) -> Iterator[Any]:
        """The same answer, as events."""
        yield from response_to_events(self.complete(request))

    def close(self) -> None:
        """Nothing to close."""

    def dump_state(self) -> dict[str, Any]:
        """Nothing to save: programs that use it save and load."""
        return {}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> OfflineEngine:
        """The counterpart of `dump_state`."""
        return cls()


class AsyncOfflineEngine:
    """The async twin of `OfflineEngine`."""

    any_backend = True
    """Needs no asyncio, so it may be awaited on trio."""

    def __init__(self, engine: OfflineEngine | None = None) -> None:
        self._engine = engine or OfflineEngine()

    async def complete(self, request: Request) -> Response:
        """Fill what the request asks for."""
        return self._engine.complete(request)

    async def stream(self, request: Request) -> AsyncIterator[Any]:
        """The same answer, as events."""
        for event in self._engine.stream(request):
            yield event

    async def aclose(self) -> None:
        """Nothing to close."""

    def dump_state(self) -> dict[str, Any]:
        """Nothing to save."""
        return {}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> AsyncOfflineEngine:
        """The counterpart of `dump_state`."""
        return cls()


def offline_lm() -> dspy.LM:
    """A model that fills any signature with placeholders; it costs nothing and opens no connection."""
    engine = OfflineEngine()
    return dspy.LM(OFFLINE, engine=engine, async_engine=AsyncOfflineEngine(engine), cache=False, num_retries=0)
