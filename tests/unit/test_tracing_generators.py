"""No span of ours is in force in code of the user's that a generator or a scope of ours yields to."""

from __future__ import annotations

import contextvars
import gc
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import anyio.lowlevel
import dspy
import pytest
from dspy import lm15
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan

from agenthelm import MemoryHub, Orchestrator, ToolRegistry, saga
from agenthelm.agent.lm import lm_scope
from agenthelm.agent.offline import offline_lm
from agenthelm.testing import ScriptedLM
from tests.support.lm_run import lm_run
from tests.support.telemetry import Recorded, recorded

REQUEST = lm15.Request(model="scripted", messages=[lm15.Message.user("question?")])
MODELS: dict[str, Callable[[], dspy.BaseLM]] = {
    "scripted": lambda: ScriptedLM(["one two three"], repeat=True),
    "offline": offline_lm,
}
chat = pytest.mark.parametrize("model", MODELS)


@pytest.fixture
def telemetry() -> Iterator[Recorded]:
    with recorded() as made:
        yield made


@pytest.fixture(autouse=True)
def contexts_are_left_as_they_were_entered(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """OpenTelemetry only logs it when a span is detached in another context than it was attached in."""
    caplog.set_level(logging.DEBUG, "opentelemetry")
    yield
    gc.collect()
    assert "detach" not in caplog.text


def _current() -> Any:
    return trace.get_current_span()


def _chat(telemetry: Recorded) -> ReadableSpan:
    (span,) = [span for span in telemetry.spans if span.name.startswith("chat ")]
    return span


def _engines() -> tuple[Any, Any]:
    return dspy.settings.lm.engine, dspy.settings.lm._async_engine_spec


@chat
async def test_between_two_events_of_a_stream_the_caller_s_own_span_is_in_force(
    telemetry: Recorded, model: str
) -> None:
    host = telemetry.tracer_provider.get_tracer("host")
    async with lm_run(MODELS[model]()):
        assert _current() is trace.INVALID_SPAN
        async for _ in _engines()[1].stream(REQUEST):
            assert _current() is trace.INVALID_SPAN
        with host.start_as_current_span("host") as own:
            async for _ in _engines()[1].stream(REQUEST):
                assert _current() is own
            assert _current() is own
    first, second = [span for span in telemetry.spans if span.name.startswith("chat ")]
    assert first.parent is None
    assert second.parent == own.get_span_context()


@chat
async def test_a_stream_in_a_worker_thread_leaves_the_caller_s_span_in_force(telemetry: Recorded, model: str) -> None:
    host = telemetry.tracer_provider.get_tracer("host")

    def consume() -> int:
        seen = 0
        with host.start_as_current_span("host") as own:
            for _ in _engines()[0].stream(REQUEST):
                assert _current() is own
                seen += 1
        return seen

    async with lm_run(MODELS[model]()) as run:
        assert await run.executor.workers.run(consume) > 1
    assert _chat(telemetry).parent is not None


async def test_spans_made_by_a_stream_s_consumer_are_no_children_of_the_request(telemetry: Recorded) -> None:
    host = telemetry.tracer_provider.get_tracer("host")
    async with lm_run(MODELS["scripted"]()):
        async for _ in _engines()[1].stream(REQUEST):
            with host.start_as_current_span("host"):
                await anyio.lowlevel.checkpoint()
    assert {span.parent for span in telemetry.spans} == {None}


@chat
async def test_a_stream_that_is_closed_early_ends_its_span_and_nothing_else(telemetry: Recorded, model: str) -> None:
    async with lm_run(MODELS[model]()):
        events = _engines()[1].stream(REQUEST)
        await anext(events)
        await events.aclose()
        assert _current() is trace.INVALID_SPAN
    assert _chat(telemetry).end_time is not None


async def test_a_stream_may_be_read_by_one_task_and_closed_by_another(telemetry: Recorded) -> None:
    async def read(events: AsyncIterator[Any]) -> None:
        with telemetry.tracer_provider.get_tracer("host").start_as_current_span("reader") as own:
            await anext(events)
            assert _current() is own

    async def close(events: Any) -> None:
        with telemetry.tracer_provider.get_tracer("host").start_as_current_span("closer") as own:
            await events.aclose()
            assert _current() is own

    async with lm_run(MODELS["scripted"]()):
        events = _engines()[1].stream(REQUEST)
        for task in (read, close):
            async with anyio.create_task_group() as group:
                group.start_soon(task, events)
    assert _chat(telemetry).end_time is not None


async def test_a_sync_stream_may_be_closed_in_another_thread_and_context(telemetry: Recorded) -> None:
    async with lm_run(MODELS["scripted"]()) as run:

        def begin() -> Any:
            events = _engines()[0].stream(REQUEST)
            next(events)
            return events

        events = await run.executor.workers.run(begin)
        ended = threading.Thread(target=contextvars.Context().run, args=(events.close,))
        ended.start()
        await anyio.to_thread.run_sync(ended.join)
    assert _chat(telemetry).end_time is not None


async def test_a_streamified_program_yields_to_the_caller_s_own_span(
    telemetry: Recorded, anyio_backend_name: str
) -> None:
    if anyio_backend_name == "trio":
        return  # DSPy's own streaming needs asyncio
    lm = ScriptedLM([{"answer": "word " * 20}])
    ask = dspy.streamify(dspy.Predict("question -> answer"))
    async with lm_run(lm):
        with telemetry.tracer_provider.get_tracer("host").start_as_current_span("host") as own:
            async for _ in ask(question="?"):
                assert _current() is own
    assert _chat(telemetry).parent == own.get_span_context()


SCOPES: dict[str, Callable[[], AbstractAsyncContextManager[Any]]] = {
    "saga": lambda: saga("trip", tools=ToolRegistry()),
    "Orchestrator": lambda: Orchestrator(tools=ToolRegistry()),
    "MemoryHub": MemoryHub,
    "the models of a run": lambda: lm_scope(None),
}


@pytest.mark.parametrize("name", SCOPES)
async def test_in_a_scope_s_block_the_caller_s_own_span_is_in_force(telemetry: Recorded, name: str) -> None:
    async with SCOPES[name]():
        assert _current() is trace.INVALID_SPAN
    with telemetry.tracer_provider.get_tracer("host").start_as_current_span("host") as own:
        async with SCOPES[name]():
            assert _current() is own
        assert _current() is own
