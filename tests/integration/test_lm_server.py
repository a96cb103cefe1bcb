"""Language models over real HTTP: what goes wrong, what it costs, and how soon it ends."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import dspy
import pytest
from dspy.lm15 import Message, Request

from agenthelm._runtime.retry import Backoff
from agenthelm._runtime.workers import answers, on_event_loop
from agenthelm.agent import Agent, metering
from agenthelm.agent.lm import LMPolicy, connections, unwrap
from agenthelm.agent.lm_call import ASSUMED_OUTPUT_TOKENS
from agenthelm.agent.models import resolve_model
from agenthelm.core.cost import Budget
from agenthelm.core.storage.base import EVENTS
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import BudgetExceededError, ModelCallError
from agenthelm.orchestration.orchestrator import Orchestrator
from tests.support.lm_run import QUICK, lm_run
from tests.support.openai_server import Behaviour, OpenAIServer

program = dspy.Predict("question -> answer, count: int")


def model(server: OpenAIServer, **options: Any) -> dspy.LM:
    return resolve_model("openai/gpt-4o-mini", api_base=server.base_url, **options)


def answers_twice_by_prose() -> list[Behaviour]:
    return [Behaviour("prose"), Behaviour("prose")]


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as running:
        yield running


@pytest.fixture
def uncollected() -> Iterator[None]:
    """What nobody closes stays open."""
    gc.disable()
    yield
    gc.enable()


async def test_our_books_equal_the_servers_to_the_token(server: OpenAIServer) -> None:
    server.script = [Behaviour(input_tokens=1000, output_tokens=200, cached_tokens=400, reasoning_tokens=150)]
    async with lm_run(model(server)) as run:
        result = await run.call(program, question="?")
    (seen,) = server.seen
    total = run.ledger.total()
    assert result.answer == "[offline placeholder: answer]"
    assert (seen.input_tokens, seen.output_tokens) == (total.input_tokens, total.output_tokens)
    assert (total.cached_input_tokens, total.reasoning_tokens) == (400, 150)
    assert total.cost_usd == (600 * 150 + 400 * 75 + 200 * 600) / 10**9


FAILURES = [
    pytest.param([Behaviour("status", status=429, retry_after=0.02)], "answered", 2, 1, 0, id="429"),
    pytest.param([Behaviour("status", status=500)], "answered", 2, 1, 0, id="500"),
    pytest.param([Behaviour("status", status=503)] * 3, "503", 3, 3, 0, id="503-for-good"),
    pytest.param([Behaviour("status", status=400)], "400", 1, 1, 0, id="400"),
    pytest.param([Behaviour("refuse_key")], "401", 1, 1, 0, id="401"),
    pytest.param([Behaviour("not_json")], "not JSON", 1, 1, 1, id="not-json"),
    pytest.param([Behaviour("drop")], "answered", 2, 1, 1, id="dropped"),
    pytest.param([Behaviour("cut")], "answered", 2, 1, 1, id="cut"),
    pytest.param([Behaviour("no_usage")], "answered", 1, 0, 1, id="no-usage"),
    pytest.param([Behaviour("half_usage")], "answered", 1, 0, 1, id="half-usage"),
    pytest.param(answers_twice_by_prose(), "can't be read as answer, count", 2, 0, 0, id="prose"),
]


@pytest.mark.parametrize(("script", "end", "calls", "failed", "estimated"), FAILURES)
async def test_each_failure_is_counted_and_ends_in_one_clear_line(
    server: OpenAIServer, script: list[Behaviour], end: str, calls: int, failed: int, estimated: int
) -> None:
    server.script = script
    async with lm_run(model(server)) as run:
        if end == "answered":
            await run.call(program, question="?")
        else:
            with pytest.raises(dspy.DSPyError) as caught:
                await run.call(program, question="?")
            error = unwrap(caught.value)
            assert isinstance(error, ModelCallError)
            assert end in str(error)
            assert "\n" not in str(error)
    total = run.ledger.total()
    assert server.asked == calls == total.calls
    lost = total.estimated_calls
    assert lost == estimated
    assert total.failed_calls == failed + (1 if "usage" in script[0].mode else 0)


async def test_retry_after_is_waited(server: OpenAIServer) -> None:
    server.script = [Behaviour("status", status=429, retry_after=0.15)]
    async with lm_run(model(server)) as run:
        began = time.monotonic()
        await run.call(program, question="?")
    assert time.monotonic() - began >= 0.15


async def test_a_dead_endpoint_is_named_and_costs_nothing() -> None:
    with OpenAIServer() as server:
        lm = model(server)
    async with lm_run(lm) as run:
        with pytest.raises(dspy.LMTransportError) as caught:
            await run.call(program, question="?")
    error = unwrap(caught.value)
    assert isinstance(error, ModelCallError)
    assert "3 attempts" in str(error)
    assert f"127.0.0.1:{server.port}" in str(error)
    total = run.ledger.total()
    assert (total.calls, total.estimated_calls, total.cost_usd) == (0, 0, 0.0)


async def test_a_missing_key_is_said_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with lm_run(dspy.LM("openai/gpt-4o-mini")) as run:
        with pytest.raises(dspy.LMNotConfiguredError) as caught:
            await run.call(program, question="?")
    assert "OPENAI_API_KEY" in str(unwrap(caught.value))
    assert run.ledger.total().calls == 0


@pytest.mark.parametrize("mode", ["hang", "slow"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_the_deadline_holds_against_a_half_open_connection(
    server: OpenAIServer, mode: str, streamed: bool
) -> None:
    server.script = [Behaviour("hang") if mode == "hang" else Behaviour(delay=30)]
    send, receive = anyio.create_memory_object_stream[Any](1000)
    async with lm_run(model(server), policy=LMPolicy(timeout=0.2)) as run, send, receive:
        with pytest.raises(dspy.LMTimeoutError), dspy.context(send_stream=send if streamed else None):
            await run.call(program, question="?")
    assert run.ledger.total().estimated_calls == 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_cancelling_an_agent_does_not_wait_for_the_model(server: OpenAIServer, streamed: bool) -> None:
    hanging = Behaviour("hang")
    server.script = [hanging]
    send, receive = anyio.create_memory_object_stream[Any](1000)
    async with lm_run(model(server), policy=LMPolicy(timeout=3600)) as run, send, receive:
        with dspy.context(send_stream=send if streamed else None):
            async with anyio.create_task_group() as group:
                group.start_soon(run.call, program)
                await anyio.to_thread.run_sync(hanging.started.wait)
                group.cancel_scope.cancel()  # whoever waited for the model now would wait for ever
    (event,) = await run.events()
    assert event.outcome == "cancelled"
    assert run.ledger.total().estimated_calls == 1


async def test_a_stream_that_nobody_waits_for_any_more_is_closed(
    server: OpenAIServer, anyio_backend_name: str, uncollected: None
) -> None:
    """A model that writes on costs money. On trio a thread reads it, and closes it when its event has come."""
    slow = Behaviour(delay=30.0, text="word " * 500)
    server.script = [slow]
    send, receive = anyio.create_memory_object_stream[Any](1000)
    async with lm_run(model(server)) as run, send, receive:
        with dspy.context(send_stream=send):
            async with anyio.create_task_group() as group:
                group.start_soon(run.call, program)
                await anyio.to_thread.run_sync(slow.started.wait)
                group.cancel_scope.cancel()
        if anyio_backend_name == "trio":
            server.closing.set()  # it answers now
        with anyio.fail_after(60):
            while server.open_connections:
                await anyio.sleep(0.001)


async def test_a_stream_that_is_collected_half_read_is_closed_with_its_run_and_does_not_hold_up_the_event_loop(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script = [Behaviour(text="word " * 500)]
    half_read: list[Any] = []

    def read() -> None:
        events = dspy.settings.lm.engine.stream(Request(model="gpt-4o-mini", messages=(Message.user("?"),)))
        next(events)
        half_read.append(events)

    def blocks(token: object) -> bool:
        assert not on_event_loop(), "this waits for the event loop"
        return answers(token)  # type: ignore[arg-type]

    monkeypatch.setattr(metering, "answers", blocks)
    async with lm_run(model(server)) as run:
        await anyio.to_thread.run_sync(read)
        half_read.clear()
        gc.collect()
    with anyio.fail_after(60):
        while server.open_connections:
            await anyio.sleep(0.001)
    assert run.ledger.total().estimated_calls == 1


async def test_what_a_tool_asks_when_it_is_let_go_is_on_the_bill_of_its_run(server: OpenAIServer) -> None:
    tools, slow = ToolRegistry(), Behaviour(delay=30.0)
    server.script = [slow]

    @tool(registry=tools, abandonable=True)
    def look_up() -> str:
        return str(program(question="?"))

    class Impatient(Agent):
        async def aforward(self, context: Any, task: str) -> dict[str, Any]:
            async with anyio.create_task_group() as group:
                group.start_soon(self.ause, "look_up")
                await anyio.to_thread.run_sync(slow.started.wait)
                group.cancel_scope.cancel()
            return {}

    async with Orchestrator(lm=model(server), tools=tools) as orchestrator:
        result = await orchestrator.run(Impatient(), "go")
        events = await orchestrator.storage.read(EVENTS)
    assert result.usage.calls == result.usage.estimated_calls == 1
    assert sum(event.data["estimated_cost_usd"] for event in events) == result.usage.priced_usd > 0


async def test_a_streamed_answer_is_metered_and_really_streams(server: OpenAIServer) -> None:
    server.script = [Behaviour(fields={"answer": "word " * 40}, input_tokens=50, output_tokens=60)]
    send, receive = anyio.create_memory_object_stream[Any](1000)
    async with lm_run(model(server)) as run, send, receive:
        with dspy.context(send_stream=send, track_usage=True):
            result = await run.call(program, question="?")
        chunks = receive.statistics().current_buffer_used
        (event,) = await run.events()
    assert result.answer.startswith("word word")
    assert chunks > 5
    (seen,) = server.seen
    assert seen.streamed
    total = run.ledger.total()
    assert (total.calls, total.input_tokens, total.output_tokens) == (1, 50, 60)
    assert event.outcome == "success"


async def test_an_awaited_stream_is_metered(server: OpenAIServer, anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio":
        return  # DSPy's own acall needs asyncio
    send, receive = anyio.create_memory_object_stream[Any](1000)
    async with lm_run(model(server)) as run, send, receive:
        with dspy.context(send_stream=send, track_usage=True):
            await program.acall(question="?")
        assert receive.statistics().current_buffer_used > 2
    (seen,) = server.seen
    assert run.ledger.total().tokens == seen.input_tokens + seen.output_tokens


async def test_asyncified_programs_are_metered(server: OpenAIServer, anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio":
        return  # DSPy keeps one limiter per process, which belongs to the first event loop that used it
    ask = dspy.asyncify(program)
    async with lm_run(model(server), budget=Budget(calls=3)) as run:
        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(lambda number=number: ask(question=str(number)))  # type: ignore[misc]
        with pytest.raises(dspy.LMError) as caught:
            await ask(question="one too many")
        events = await run.events()
    assert isinstance(unwrap(caught.value), BudgetExceededError)
    total = run.ledger.total()
    assert server.asked == total.calls == 3
    assert (total.input_tokens, total.output_tokens) == (
        sum(seen.input_tokens for seen in server.seen),
        sum(seen.output_tokens for seen in server.seen),
    )
    assert {event.agent_name for event in events} == {"writer"}


async def test_streamified_programs_are_metered(server: OpenAIServer, anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio":
        return  # DSPy's own streaming needs asyncio
    server.script = [Behaviour(fields={"answer": "word " * 40}, input_tokens=50, output_tokens=60)]
    listeners = [dspy.streaming.StreamListener(signature_field_name="answer")]
    ask = dspy.streamify(program, stream_listeners=listeners)
    async with lm_run(model(server)) as run:
        chunks = [chunk async for chunk in ask(question="?")]
        (event,) = await run.events()
    assert isinstance(chunks[-1], dspy.Prediction)
    assert len(chunks) > 5
    assert server.seen[0].streamed
    total = run.ledger.total()
    assert (total.calls, total.input_tokens, total.output_tokens) == (1, 50, 60)
    assert (event.calls, event.outcome, event.agent_name) == (1, "success", "writer")


async def test_a_stream_is_on_record_when_its_agent_was_cancelled(server: OpenAIServer) -> None:
    slow = Behaviour(delay=30.0, input_tokens=50, output_tokens=60)
    server.script = [slow]
    send, receive = anyio.create_memory_object_stream[Any](1000)
    async with lm_run(model(server)) as run, send, receive:
        with dspy.context(send_stream=send):
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: run.call(program, question="?"))
                await anyio.to_thread.run_sync(slow.started.wait)
                group.cancel_scope.cancel()
                server.closing.set()  # it answers now
    (event,) = await run.events()
    total = run.ledger.total()
    assert event.calls == total.calls == 1
    assert event.estimated_cost_usd == total.cost_usd > 0


async def test_a_stream_that_breaks_is_a_lost_answer(server: OpenAIServer) -> None:
    server.script = [Behaviour("cut")]
    send, receive = anyio.create_memory_object_stream[Any](1000)
    async with lm_run(model(server)) as run, send, receive:
        with dspy.context(send_stream=send), pytest.raises(dspy.LMError):
            await run.call(program, question="?")
    total = run.ledger.total()
    assert (total.calls, total.estimated_calls) == (1, 1)
    assert server.asked == 1


async def test_connections_are_used_again_by_later_runs(server: OpenAIServer) -> None:
    lm = model(server)
    async with connections():
        for _ in range(3):
            async with lm_run(lm) as run:
                await run.call(program, question="?")
    assert server.asked == 3
    assert server.connections == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # on trio a thread asks, where an import blocks nobody
async def test_a_subclass_of_dspys_lm_needs_no_litellm_where_dspy_needs_none(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its import takes seconds."""

    class Logged(dspy.LM):
        async def aforward(self, prompt: Any = None, messages: Any = None, **options: Any) -> Any:
            return await super().aforward(prompt, messages, **options)

        def forward(self, prompt: Any = None, messages: Any = None, **options: Any) -> Any:
            return super().forward(prompt, messages, **options)

    def imported() -> None:
        raise AssertionError("nothing needs it")

    monkeypatch.setattr("agenthelm.agent.backends._import_litellm", imported)
    monkeypatch.delitem(sys.modules, "litellm", raising=False)
    lm = Logged("openai/gpt-4o-mini", api_base=server.base_url, api_key="k", cache=False)
    async with lm_run(lm) as run:
        await run.call(program, question="?")
    assert server.asked == run.ledger.total().calls == 1
    await lm.aclose()


async def test_models_that_a_service_makes_as_it_goes_leave_no_connections_open(server: OpenAIServer) -> None:
    """One for each customer's key, say; on trio threads ask, whose connections end with their model."""
    async with Orchestrator() as orchestrator:
        for number in range(20):
            own = model(server, api_key=f"key-{number}")
            await orchestrator.run(Agent("asker", signature="question -> answer", lm=own), "?")
            del own
        gc.collect()
        with anyio.fail_after(60):
            while server.open_connections > 16:
                await anyio.sleep(0.001)
        assert server.connections == 20


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "anyio_backend", ["asyncio", pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop")]
)  # on trio threads ask
async def test_a_model_call_that_is_cancelled_while_it_connects_leaves_no_connection(
    server: OpenAIServer, streamed: bool, uncollected: None
) -> None:
    """A scope cancels at every pass of the event loop, in the middle of the clean-up of the pass before as well."""

    class Asker(Agent):
        async def aforward(self, context: Any, task: str = "") -> dict[str, Any]:
            send, receive = anyio.create_memory_object_stream[Any](100)
            with send, receive, dspy.context(send_stream=send if streamed else None):
                await program.acall(question=task)
            return {}

    async with Orchestrator(lm=model(server)) as orchestrator:
        for passes in range(6, 46):
            async with anyio.create_task_group() as group:
                for number in range(3):
                    group.start_soon(orchestrator.run, Asker("asker"), f"{passes} {number}")
                for _ in range(passes):
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
    with anyio.fail_after(60):
        while server.open_connections:
            await anyio.sleep(0.001)
    assert server.connections > 10


async def test_a_model_that_is_being_asked_keeps_its_connections(server: OpenAIServer) -> None:
    slow = Behaviour(delay=30.0)
    server.script = lambda number, body: slow if number == 1 else Behaviour()

    async def others(orchestrator: Orchestrator) -> None:
        await anyio.to_thread.run_sync(slow.started.wait)
        for number in range(20):
            asker = Agent("asker", signature="question -> answer", lm=model(server, api_key=f"key-{number}"))
            await orchestrator.run(asker, "?")
        server.closing.set()  # the slow one answers now

    async with Orchestrator() as orchestrator, anyio.create_task_group() as group:
        group.start_soon(others, orchestrator)
        result = await orchestrator.run(Agent("first", signature="question -> answer", lm=model(server)), "?")
    assert result["answer"]
    assert result.usage.failed_calls == 0


async def ask_until_refused(run: Any) -> None:
    while run.stop.error is None:
        with suppress(dspy.LMError):
            await run.call(program, question="?")


@pytest.mark.parametrize("callers", [1, 8, 64])
async def test_parallel_callers_on_one_budget_never_overshoot_it(callers: int) -> None:
    """With ``max_tokens`` set, what is reserved bounds what is spent: nothing is overshot, at any number of callers."""
    with OpenAIServer(jitter=callers) as server:
        lm = model(server, max_tokens=60)
        limit = 0.002
        async with lm_run(lm, budget=Budget(usd=limit)) as run, anyio.create_task_group() as group:
            for _ in range(callers):
                group.start_soon(ask_until_refused, run)
        total = run.ledger.total()
        bill = sum(seen.input_tokens * 150 + seen.output_tokens * 600 for seen in server.seen) / 10**9
    assert server.asked == total.calls > 0
    assert total.cost_usd == pytest.approx(bill, abs=1e-12)
    assert bill <= limit
    assert bill > limit * 0.2


@pytest.mark.parametrize("callers", [1, 8, 64])
async def test_without_max_tokens_only_the_calls_in_flight_at_the_limit_can_overshoot(callers: int) -> None:
    """Answers are longer than what was set aside for them, so the budget is passed: by those calls, and by no other."""
    beyond = 476
    longer = ASSUMED_OUTPUT_TOKENS + beyond
    with OpenAIServer(lambda number, body: Behaviour(input_tokens=100, output_tokens=longer), jitter=callers) as server:
        lm = model(server)
        lm.kwargs.pop("max_tokens", None)
        limit = 0.05
        async with lm_run(lm, budget=Budget(usd=limit)) as run, anyio.create_task_group() as group:
            for _ in range(callers):
                group.start_soon(ask_until_refused, run)
        total = run.ledger.total()
    assert all("max_tokens" not in seen.body and "max_completion_tokens" not in seen.body for seen in server.seen)
    each = (100 * 150 + longer * 600) / 10**9
    assert server.asked == total.calls
    assert total.cost_usd == pytest.approx(server.asked * each, abs=1e-12)
    assert total.cost_usd <= limit + callers * beyond * 600 / 10**9


class Stubborn(Agent):
    """Asks again and again, and hears no error."""

    class Signature(dspy.Signature):
        task: str = dspy.InputField()
        answer: str = dspy.OutputField()

    def forward(self, context: Any, task: str) -> dict[str, Any]:
        ask = dspy.Predict(
            program.signature
        )  # Python 3.11's `ast.parse`, which reads one from text, may fail in threads
        for number in range(5):
            with suppress(Exception):
                ask(question=f"{self.name} {number}")
        return {"answer": "whatever"}


async def test_64_parallel_agents_that_swallow_every_error_make_no_call_too_many(server: OpenAIServer) -> None:
    agents = [Stubborn(f"agent{number}") for number in range(64)]
    async with Orchestrator(lm=model(server), budget=Budget(calls=100)) as orchestrator:
        with pytest.raises(BudgetExceededError, match="budget of run is 100 calls"):
            await orchestrator.run_parallel(agents, "go")
    assert server.asked <= 100  # fewer where the first refusal ends the run while others have yet to ask


async def test_the_wait_between_attempts_ends_with_the_deadline(server: OpenAIServer) -> None:
    server.script = [Behaviour("status", status=500)] * 9
    wait = Backoff(initial=3600, maximum=3600, jitter=False)  # longer than any test may take
    policy = LMPolicy(timeout=300.0, retries=8, backoff=wait)
    async with lm_run(model(server), policy=policy) as run:
        with pytest.raises(dspy.LMServerError):
            await run.call(program, question="?")
    assert server.asked == 1


async def test_quick_policy_is_the_ordinary_one_without_waits() -> None:
    assert (QUICK.retries, QUICK.cache) == (LMPolicy().retries, LMPolicy().cache)
