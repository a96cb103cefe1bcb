"""A language model that says what a test tells it to."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

import anyio
import dspy
from dspy.lm15 import Message, Request, Response, TextPart, ToolCallPart, Usage, response_to_events
from pydantic import BaseModel

from agenthelm.agent.offline import system_text
from agenthelm.agent.placeholder import fill_prompt, render
from agenthelm.core.cost import Price

__all__ = ["Reply", "ScriptedLM"]

FREE = Price(input=0.0, output=0.0, source="scripted")


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of a `ScriptedLM`, where its short forms don't say enough.

    Attributes:
        fields: Output fields by name; fields that the prompt asks for and that are not named are filled with
            placeholders.
        text: Raw text in place of fields, whatever the prompt asks for.
        tool_calls: Native tool calls, as ``(name, arguments)``.
        error: Raised in place of an answer. ``dspy.lm15.RateLimitError(...)`` and its like are failures of a provider;
            anything else counts as a bug of the engine.
        latency: Seconds before the answer; None for the LM's own.
        input_tokens: None for the LM's own.
        output_tokens: None for the LM's own.
        cached_input_tokens: Input tokens that a provider's prompt cache held.
        reasoning_tokens: Output tokens spent on thinking.
        cut: Whether the answer was cut off where it ends, at the limit of its tokens.
    """

    fields: Mapping[str, Any] | None = None
    text: str | None = None
    tool_calls: Sequence[tuple[str, Mapping[str, Any]]] = ()
    error: BaseException | type[BaseException] | None = None
    latency: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0
    cut: bool = False


Scripted: TypeAlias = Reply | Mapping[str, Any] | str | BaseException | type[BaseException]
"""A reply in full, or short: output fields, raw text, or an error."""


@dataclass
class _Script:
    """The engine: one script for an LM and all its copies."""

    replies: Sequence[Scripted] | Callable[[Request], Scripted]
    repeat: bool
    latency: float
    input_tokens: int
    output_tokens: int
    price: Price | None
    requests: list[Request] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    supports_function_calling = False
    supports_reasoning = False
    supports_response_schema = False
    supported_params = frozenset({"temperature", "max_tokens", "response_format", "tools", "tool_choice"})

    def __deepcopy__(self, memo: object) -> _Script:
        return self

    def next(self, request: Request) -> Reply:
        """The reply to the next request, which is kept."""
        with self.lock:
            index = len(self.requests)
            self.requests.append(request)
        if callable(self.replies):
            found = self.replies(request)
        elif index < len(self.replies):
            found = self.replies[index]
        elif self.repeat and self.replies:
            found = self.replies[-1]
        else:
            raise AssertionError(f"ScriptedLM has {len(self.replies)} replies and was asked {index + 1} times")
        return _in_full(found)

    def respond(self, request: Request, reply: Reply) -> Response:
        """The response that a reply stands for; raises the reply's error."""
        if reply.error is not None:
            raise reply.error
        parts: list[Any] = [
            ToolCallPart(id=f"call-{number}", name=name, input=dict(arguments))
            for number, (name, arguments) in enumerate(reply.tool_calls, 1)
        ]
        if reply.text is not None:
            parts.insert(0, TextPart(reply.text))
        elif reply.fields is not None:
            system, format_ = system_text(request), request.config.response_format
            values = {**fill_prompt(system, format_), **{name: _plain(value) for name, value in reply.fields.items()}}
            parts.insert(0, TextPart(render(values, system, format_)))
        inputs = self.input_tokens if reply.input_tokens is None else reply.input_tokens
        outputs = self.output_tokens if reply.output_tokens is None else reply.output_tokens
        return Response(
            id=None,
            model=request.model,
            message=Message.assistant(parts),
            finish_reason="length" if reply.cut else "tool_call" if reply.tool_calls else "stop",
            usage=Usage(
                input_tokens=inputs,
                output_tokens=outputs,
                total_tokens=inputs + outputs,
                cache_read_tokens=reply.cached_input_tokens or None,
                reasoning_tokens=reply.reasoning_tokens or None,
            ),
        )

    def complete(self, request: Request) -> Response:
        """Answer after the latency, blocking this thread."""
        reply = self.next(request)
        time.sleep(self.latency if reply.latency is None else reply.latency)
        return self.respond(request, reply)

    def stream(self, request: Request) -> Iterator[Any]:
        """The same answer, as events."""
        yield from response_to_events(self.complete(request))

    def close(self) -> None:
        """Nothing to close."""


class _AsyncScript:
    """The async twin; waits on whatever event loop is running, a virtual clock's included."""

    any_backend = True

    def __init__(self, script: _Script) -> None:
        self._script = script

    def __deepcopy__(self, memo: object) -> _AsyncScript:
        return self

    async def complete(self, request: Request) -> Response:
        """Answer after the latency."""
        reply = self._script.next(request)
        latency = self._script.latency if reply.latency is None else reply.latency
        if latency:
            await anyio.sleep(latency)
        return self._script.respond(request, reply)

    async def stream(self, request: Request) -> AsyncIterator[Any]:
        """The same answer, as events."""
        for event in response_to_events(await self.complete(request)):
            yield event

    async def aclose(self) -> None:
        """Nothing to close."""


class ScriptedLM(dspy.LM):
    """A ``dspy.LM`` that gives fixed replies and remembers what it was asked; it opens no connection.

    Usable wherever an LM goes: ``Orchestrator(lm=ScriptedLM([{"city": "Lisbon"}]))``. Copies share the script, so what
    a run asked is seen here.

    Args:
        replies: The replies in order, or a function of the request. A dict stands for output fields, a string for raw
            text, an exception for a failure, a `Reply` for everything else.
        model: The name under which its calls are booked.
        repeat: Give the last reply again when the script is over, instead of failing.
        latency: Seconds before each answer.
        input_tokens: Input tokens that each answer reports.
        output_tokens: Output tokens that each answer reports.
        price: What its tokens cost; free unless told otherwise. None makes it a model without a known price.
        **options: Whatever else ``dspy.LM`` takes, such as ``max_tokens``.

    Raises:
        AssertionError: (from a call) It was asked more often than it has replies.
    """

    def __init__(
        self,
        replies: Sequence[Scripted] | Callable[[Request], Scripted] = (),
        *,
        model: str = "scripted",
        repeat: bool = False,
        latency: float = 0.0,
        input_tokens: int = 100,
        output_tokens: int = 50,
        price: Price | None = FREE,
        **options: Any,
    ) -> None:
        script = _Script(replies, repeat, latency, input_tokens, output_tokens, price)
        options = {"cache": False, "num_retries": 0, **options}
        super().__init__(model, engine=script, async_engine=_AsyncScript(script), **options)
        self._script = script

    @property
    def requests(self) -> list[Request]:
        """What it was asked so far, failed attempts included, as a copy."""
        with self._script.lock:
            return list(self._script.requests)

    @property
    def prompts(self) -> list[str]:
        """The text of the last message of each request."""
        return [request.messages[-1].text or "" for request in self.requests]


def _in_full(reply: Scripted) -> Reply:
    if isinstance(reply, Reply):
        return reply
    if isinstance(reply, str):
        return Reply(text=reply)
    if isinstance(reply, BaseException) or (isinstance(reply, type) and issubclass(reply, BaseException)):
        return Reply(error=reply)
    if isinstance(reply, Mapping):
        return Reply(fields=reply)
    raise TypeError(f"a reply is a Reply, a dict of fields, a text or an exception, not {reply!r}")


def _plain(value: Any) -> Any:
    """A value as a model would write it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
