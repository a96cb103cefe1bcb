"""The door to a language model: what is metered, refused, retried, recorded, whoever makes the call."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import anyio
import anyio.lowlevel
import dspy
import pytest
from dspy import lm15
from dspy.utils import DummyLM
from dspy.utils.exceptions import LMError

from agenthelm._runtime.context import RunContext, current_run, entered
from agenthelm._runtime.groups import named
from agenthelm.agent.home import threaded
from agenthelm.agent.lm import LMPolicy, agent_lm_scope, lm_scope, unwrap
from agenthelm.agent.metering import Meter
from agenthelm.core.cost import MODEL_PRICING, Amount, Budget, Price
from agenthelm.core.executor import ToolExecutor, charge, current_executor
from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry
from agenthelm.exceptions import BudgetExceededError, ConfigError, ModelCallError, ModelError
from agenthelm.testing.lm import Reply, ScriptedLM
from agenthelm.testing.storage import FaultyStorage
from tests.support.lm_run import QUICK, lm_run

PRICE = Price(input=1e-6, output=2e-6, source="test")
ANSWER = {"answer": "yes"}
program = dspy.Predict("question -> answer")


@pytest.fixture(autouse=True)
def clean_slate() -> Iterator[None]:
    MODEL_PRICING.clear()
    cache = dspy.cache
    dspy.configure_cache(enable_disk_cache=False)
    yield
    dspy.cache = cache
    MODEL_PRICING.clear()


def scripted(*replies: Any, **options: Any) -> ScriptedLM:
    return ScriptedLM(replies or [ANSWER], **{"repeat": True, "price": PRICE, "max_tokens": 50, **options})


async def test_a_call_is_booked_recorded_and_reported() -> None:
    lm = scripted(Reply(ANSWER, input_tokens=120, output_tokens=30, cached_input_tokens=20, reasoning_tokens=10))
    async with lm_run(lm) as run:
        result = await run.call(program, question="?")
        assert result.answer == "yes"
        (event,) = await run.events()
    assert event.kind == "lm"
    assert event.tool_name == "scripted"
    assert event.outcome == "success"
    assert event.token_usage is not None
    assert event.token_usage.input_tokens == 120
    assert event.token_usage.cached_input_tokens == 20
    assert event.token_usage.reasoning_tokens == 10
    assert event.estimated_cost_usd == 0.00018
    assert event.cost_source == "test"
    assert (event.agent_name, event.run_id, event.session_id) == ("writer", "run-1", "session-1")
    total = run.ledger.totals("agent")["writer"]
    assert (total.calls, total.tokens, total.cost_usd) == (1, 150, 0.00018)
    assert [(step.kind, step.cost_usd) for step in run.progress] == [("lm_started", None), ("lm_finished", 0.00018)]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("outputs", ["nights: int", "city: str, nights: list[int]", "nights: float | None"])
async def test_a_number_that_an_answer_was_cut_off_in_is_none(outputs: str, streamed: bool) -> None:
    text = "[[ ## city ## ]]\nLisbon\n\n[[ ## nights ## ]]\n1"  # of 14
    lm = scripted(Reply(text=text, cut=True, output_tokens=7))
    send, receive = anyio.create_memory_object_stream[Any](1000)
    async with lm_run(lm) as run, send, receive:
        with dspy.context(send_stream=send) if streamed else nullcontext(), pytest.raises(Exception) as raised:
            await run.call(dspy.Predict(f"question -> {outputs}"), question="?")
        (event,) = await run.events()
    error = unwrap(raised.value)
    assert isinstance(error, ModelCallError)
    assert str(error) == (
        "the answer of model 'scripted' was cut off, so its 'nights' can't be relied on; give the model more max_tokens"
    )
    assert (event.outcome, run.ledger.total().output_tokens, len(lm.requests)) == ("failed", 7, 1)


async def test_a_text_may_be_cut_off() -> None:
    async with lm_run(scripted(Reply(text="[[ ## answer ## ]]\nIt was a dark and", cut=True))) as run:
        assert (await run.call(program, question="?")).answer == "It was a dark and"


async def test_prompts_and_answers_stay_out_of_events() -> None:
    async with lm_run(scripted({"answer": "the secret answer"})) as run:
        await run.call(program, question="the secret question")
        (event,) = await run.events()
    assert "secret" not in event.model_dump_json()


async def test_no_history_and_no_trace_grows() -> None:
    lm = scripted()
    fresh = dspy.Predict("question -> answer")
    async with lm_run(lm) as run:
        await run.call(fresh, question="?")
        assert len(dspy.settings.trace) == 0
    assert lm.history == []
    assert fresh.history == []


async def test_the_lm_that_was_given_is_left_as_it_is() -> None:
    lm = scripted(num_retries=5, cache=True)
    engine = lm.engine
    async with lm_run(lm) as run:
        await run.call(program, question="?")
    assert lm.engine is engine
    assert (lm.num_retries, lm.cache, lm.callbacks) == (5, True, [])
    with dspy.context(lm=lm):
        assert program(question="outside").answer == "yes"
    assert len(lm.requests) == 2
    assert run.ledger.total().calls == 1


class Subclass(dspy.LM):
    """A user's own kind of LM."""


class Engine:
    """A custom engine without an async twin, a price or a stream."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def complete(self, request: lm15.Request) -> lm15.Response:
        self.threads.add(threading.get_ident())
        return lm15.Response(
            id="r", model=request.model, message=lm15.Message.assistant("[[ ## answer ## ]]\nyes"), finish_reason="stop",
            usage=lm15.Usage(input_tokens=7, output_tokens=3, total_tokens=10),
        )  # fmt: skip

    def close(self) -> None:
        """Nothing."""


async def test_a_custom_engine_without_async_twin_is_metered_off_the_loop() -> None:
    engine = Engine()
    async with lm_run(Subclass("mine/engine", engine=engine, cache=False)) as run:
        assert (await run.call(program, question="?")).answer == "yes"
    assert run.ledger.total().tokens == 10
    assert threading.get_ident() not in engine.threads


WHERE: contextvars.ContextVar[str] = contextvars.ContextVar("where", default="outside")


class Streams(Engine):
    """One that sets what it needs while it streams."""

    def stream(self, request: lm15.Request) -> Iterator[Any]:
        token = WHERE.set("inside")
        try:
            for event in lm15.response_to_events(self.complete(request)):
                assert WHERE.get() == "inside"
                yield event
        finally:
            WHERE.reset(token)


class Awaited:
    """The async half of a custom engine, which holds on to all sorts of things from event to event."""

    async def complete(self, request: lm15.Request) -> lm15.Response:
        return Engine().complete(request)

    async def stream(self, request: lm15.Request) -> AsyncIterator[Any]:
        token = WHERE.set("inside")
        try:
            async with asyncio.timeout(60):
                with anyio.fail_after(60):
                    for event in lm15.response_to_events(Engine().complete(request)):
                        await asyncio.sleep(0)
                        assert WHERE.get() == "inside"
                        yield event
        finally:
            WHERE.reset(token)


class Iterable(Awaited):
    """One whose streams are no iterators."""

    def stream(self, request: lm15.Request) -> Any:
        events = super().stream(request)

        class Events:
            def __aiter__(self) -> AsyncIterator[Any]:
                return events

        return Events()


class Whole:
    """One that can't stream."""

    async def complete(self, request: lm15.Request) -> lm15.Response:
        return Engine().complete(request)


@pytest.mark.parametrize("twin", [None, Awaited(), Iterable(), Whole()])
@pytest.mark.parametrize("awaited", [False, True])
async def test_engines_of_many_kinds_stream(twin: Any, awaited: bool, anyio_backend_name: str) -> None:
    if awaited and anyio_backend_name == "trio":
        return
    lm = dspy.LM("mine/engine", engine=Streams(), async_engine=twin, cache=False)
    send, receive = anyio.create_memory_object_stream[Any](100)
    async with lm_run(lm) as run, send, receive:
        with dspy.context(send_stream=send):
            answer = await program.acall(question="?") if awaited else await run.call(program, question="?")
    assert answer.answer == "yes"
    assert run.ledger.total().tokens == 10
    assert run.ledger.total().estimated_calls == 0


class Breaks(Engine):
    """One whose first stream breaks before it has said anything."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = False

    def stream(self, request: lm15.Request) -> Iterator[Any]:
        for event in lm15.response_to_events(self.complete(request)):
            yield event
            if not self.broken:
                self.broken = True
                raise lm15.ServerError("gone")


class BreaksAwaited(Awaited):
    """The async half of such a one."""

    def __init__(self) -> None:
        self.engine = Breaks()

    async def stream(self, request: lm15.Request) -> AsyncIterator[Any]:
        for event in self.engine.stream(request):
            yield event


@pytest.mark.parametrize("awaited", [False, True])
async def test_a_stream_that_breaks_before_its_answer_is_asked_for_again(
    awaited: bool, anyio_backend_name: str
) -> None:
    if awaited and anyio_backend_name == "trio":
        return
    lm = dspy.LM("mine/engine", engine=Breaks(), async_engine=BreaksAwaited(), cache=False)
    send, receive = anyio.create_memory_object_stream[Any](100)
    async with lm_run(lm) as run, send, receive:
        with dspy.context(send_stream=send):
            answer = await program.acall(question="?") if awaited else await run.call(program, question="?")
    assert answer.answer == "yes"
    assert (run.ledger.total().calls, run.ledger.total().failed_calls) == (2, 1)


async def test_dspys_dummy_lm_is_metered() -> None:
    async with lm_run(DummyLM([{"answer": "one"}, {"answer": "two"}])) as run:
        assert (await run.call(program, question="1")).answer == "one"
        assert (await run.call(program, question="2")).answer == "two"
    assert run.ledger.total().calls == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_a_legacy_base_lm_is_metered() -> None:
    class Legacy(dspy.BaseLM):
        def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
            from dspy.clients.call_result import attributes

            return attributes(
                {
                    "model": "legacy",
                    "choices": [{"message": {"content": "[[ ## answer ## ]]\nold"}, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15},
                }
            )

    async with lm_run(Legacy("legacy/model")) as run:
        assert (await run.call(program, question="?")).answer == "old"
    total = run.ledger.totals("model")["legacy/model"]
    assert (total.input_tokens, total.output_tokens, total.cost_usd) == (11, 4, None)


async def test_each_second_try_of_an_adapter_is_a_call() -> None:
    async with lm_run(scripted("prose", ANSWER)) as run:
        assert (await run.call(program, question="?")).answer == "yes"
    assert run.ledger.total().calls == 2
    assert run.ledger.total().tokens == 300


async def test_an_awaited_call_passes_the_same_door(anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio":
        return  # DSPy's own acall needs asyncio; agents ask in a thread there
    async with lm_run(scripted()) as run:
        assert (await program.acall(question="?")).answer == "yes"
        assert len(await run.events()) == 1
    assert run.ledger.total().calls == 1


async def test_a_sync_call_on_the_event_loop_is_metered_and_recorded_later() -> None:
    async with lm_run(scripted()) as run:
        program(question="?")
        assert run.ledger.total().calls == 1
        storage = run.executor.storage
    assert [record.data["outcome"] for record in await storage.read("events")] == ["success"]


async def test_threads_that_nobody_gave_an_identity_are_metered() -> None:
    """DSPy's own thread pools carry DSPy's settings into their threads, and no context variables."""
    parallel = dspy.Parallel(num_threads=3, disable_progress_bar=True)
    lm = scripted()
    async with lm_run(lm) as run:
        fan_out = threaded(parallel, [(program, {"question": str(n)}) for n in range(5)])
        results = await run.executor.workers.run(fan_out)
        assert [result.answer for result in results] == ["yes"] * 5
        events = await run.events()
    assert run.ledger.total().calls == 5
    assert {event.agent_name for event in events} == {"writer"}


async def test_a_plain_thread_pool_with_dspys_settings_is_metered() -> None:
    async with lm_run(scripted()) as run:
        running = dspy.settings.lm

        def ask() -> str:
            assert current_run() is None
            with dspy.context(lm=running):
                return str(program(question="?").answer)

        def body() -> list[str]:
            with ThreadPoolExecutor(2) as pool:
                return [future.result() for future in [pool.submit(ask) for _ in range(3)]]

        assert await run.executor.workers.run(body) == ["yes"] * 3
    assert run.ledger.total().calls == 3


async def test_copies_that_dspy_makes_of_the_running_lm_stay_metered() -> None:
    best = dspy.BestOfN(module=dspy.Predict("question -> answer"), N=3, reward_fn=lambda *_: 0.0, threshold=1.0)
    async with lm_run(scripted()) as run:
        await run.call(best, question="?")
    assert run.ledger.total().calls == 3


async def test_outside_of_a_run_the_lm_answers_plainly() -> None:
    lm = scripted()
    async with lm_run(lm) as run:
        kept = dspy.settings.lm
    with dspy.context(lm=kept):
        answer = await anyio.to_thread.run_sync(lambda: program(question="?").answer)
    assert answer == "yes"
    assert run.ledger.total().calls == 0
    async with lm_run(kept) as second:  # an LM that a past run left behind is no way round the door
        await second.call(program, question="?")
    assert second.ledger.total().calls == 1


async def test_what_a_run_leaves_behind_asks_nothing_when_it_is_over() -> None:
    """A thread that was let go, or a task: what it asked for would be on nobody's bill."""
    lm, over = scripted(), threading.Event()

    def leave_behind() -> dspy.Prediction:
        assert over.wait(60)
        return program(question="?")

    with ThreadPoolExecutor(1) as pool:
        async with lm_run(lm) as run:
            left = pool.submit(contextvars.copy_context().run, leave_behind)
        over.set()
        with pytest.raises(dspy.LMError) as caught:
            await anyio.to_thread.run_sync(left.result)
    error = unwrap(caught.value)
    assert isinstance(error, ModelError)
    assert str(error) == (
        "model 'scripted' was asked after its run 'run-1' had ended; don't let threads or tasks outlive the run"
    )
    assert len(lm.requests) == run.ledger.total().calls == 0


async def test_an_lm_that_a_past_run_left_in_a_predictor_is_booked() -> None:
    own = dspy.Predict("question -> answer")
    async with lm_run(scripted()):
        own.lm = dspy.settings.lm
    async with lm_run(scripted()) as run:
        await run.call(own, question="?")
    (event,) = await run.events()
    assert event.calls == run.ledger.total().calls == 1
    assert event.estimated_cost_usd == run.ledger.cost_usd == 0.0002


async def test_a_call_that_would_pass_the_budget_is_not_made() -> None:
    lm = scripted()
    async with lm_run(lm, budget=Budget(calls=1)) as run:
        await run.call(program, question="1")
        with pytest.raises(dspy.LMError) as caught:
            await run.call(program, question="2")
        events = await run.events()
    assert len(lm.requests) == 1
    error = unwrap(caught.value)
    assert isinstance(error, BudgetExceededError)
    assert error is run.stop.error
    assert [event.outcome for event in events] == ["success", "over_budget"]


async def test_a_react_loop_that_swallows_errors_makes_no_further_call() -> None:
    def look(place: str) -> str:
        """Look."""
        charge(1.0)
        return "seen"

    step = {"next_thought": "t", "next_tool_name": "look", "next_tool_args": {"place": "x"}}
    lm = scripted(step)
    async with lm_run(lm, budget=Budget(usd=0.5)) as run:
        with pytest.raises(dspy.LMError) as caught:
            await run.call(dspy.ReAct("question -> answer", tools=[look]), question="?")
    assert isinstance(unwrap(caught.value), BudgetExceededError)
    assert len(lm.requests) == 1
    assert run.stop.error is not None


async def test_a_stopped_run_asks_nothing_more() -> None:
    lm = scripted()
    async with lm_run(lm) as run:
        reason = RuntimeError("stopped by a human")
        run.stop.set(reason)
        with pytest.raises(dspy.LMError) as caught:
            await run.call(program, question="?")
        assert caught.value.__cause__ is reason
    assert lm.requests == []


async def test_the_prompt_is_reserved_by_its_bytes_and_the_answer_by_max_tokens() -> None:
    lm = scripted(max_tokens=1000)
    async with lm_run(lm, budget=Budget(tokens=1500)) as run:
        with pytest.raises(dspy.LMError) as caught:
            await run.call(program, question="ü" * 400)
    error = unwrap(caught.value)
    assert isinstance(error, BudgetExceededError)
    assert 1800 < error.requested < 3200
    assert lm.requests == []


async def test_an_unknown_price_is_none_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        async with lm_run(scripted(price=None), budget=Budget(usd=0.000_001)) as run:
            await run.call(program, question="1")
            await run.call(program, question="2")
            (first, _) = await run.events()
    assert run.ledger.cost_usd is None
    assert first.estimated_cost_usd is None
    assert len([record for record in caplog.records if "no price is known" in record.message]) == 1


async def test_an_unknown_price_can_be_denied_or_allowed_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    denied = scripted(price=None)
    async with lm_run(denied, unpriced="deny") as run:
        with pytest.raises(dspy.LMError) as caught:
            await run.call(program, question="?")
    error = unwrap(caught.value)
    assert isinstance(error, BudgetExceededError)
    assert error.resource == "price"
    assert denied.requests == []
    async with lm_run(scripted(price=None), unpriced="allow") as run:
        await run.call(program, question="?")
    assert not caplog.records


async def test_an_override_prices_an_engine_of_your_own() -> None:
    MODEL_PRICING["scripted"] = {"input": 1.0, "output": 2.0}
    async with lm_run(scripted(price=None)) as run:
        await run.call(program, question="?")
    assert run.ledger.cost_usd == 0.1 * 1 + 0.05 * 2


async def test_an_override_that_is_no_price_refuses_the_call_and_is_named() -> None:
    MODEL_PRICING["scripted"] = {"input": 1.0}
    lm = scripted(price=None)
    async with lm_run(lm) as run:
        with pytest.raises(LMError) as caught:
            await run.call(program, question="?")
    error = unwrap(caught.value)
    assert isinstance(error, ConfigError)
    assert str(error).startswith("MODEL_PRICING['scripted'] has no 'output'")
    assert lm.requests == []


RETRYABLE = [
    lm15.RateLimitError("slow down", retry_after=0.001),
    lm15.ServerError("oops"),
    lm15.TransportError("connection reset"),
    lm15.TimeoutError("read timed out"),
]
FINAL = [
    lm15.AuthError("bad key"),
    lm15.BillingError("no money"),
    lm15.InvalidRequestError("bad request"),
    lm15.ContextLengthError("too long"),
    ValueError("a bug in the engine"),
]


@pytest.mark.parametrize("error", RETRYABLE, ids=lambda error: type(error).__name__)
async def test_failures_that_may_pass_are_retried(error: Exception) -> None:
    lm = scripted(error, error, ANSWER)
    async with lm_run(lm) as run:
        assert (await run.call(program, question="?")).answer == "yes"
        (event,) = await run.events()
    assert event.retry_count == 2
    total = run.ledger.total()
    assert (total.calls, total.failed_calls) == (3, 2)


@pytest.mark.parametrize("error", FINAL, ids=lambda error: type(error).__name__)
async def test_failures_that_stay_are_not_retried(error: Exception) -> None:
    lm = scripted(error)
    async with lm_run(lm) as run:
        with pytest.raises(dspy.LMError) as caught:
            await run.call(program, question="?")
        (event,) = await run.events()
    assert len(lm.requests) == 1
    made = unwrap(caught.value)
    assert isinstance(made, ModelCallError)
    assert "\n" not in str(made)
    assert str(error).splitlines()[0] in str(made)
    assert (event.outcome, event.error_type) == ("failed", type(error).__name__)


async def test_after_the_last_retry_one_line_says_how_often_it_was_tried() -> None:
    lm = scripted(lm15.ServerError("overloaded", status=503))
    async with lm_run(lm) as run:
        with pytest.raises(dspy.LMServerError) as caught:
            await run.call(program, question="?")
    assert len(lm.requests) == 3
    error = unwrap(caught.value)
    assert isinstance(error, ModelCallError)
    assert (error.attempts, error.status) == (3, 503)
    assert "3 attempts" in str(error)
    assert "overloaded" in str(error)
    assert run.progress[-1].kind == "lm_failed"


async def test_a_failure_costs_nothing_and_a_lost_answer_its_reservation() -> None:
    lm = scripted(lm15.ServerError("oops"), lm15.TransportError("cut"), ANSWER)
    async with lm_run(lm) as run:
        await run.call(program, question="?")
        (event,) = await run.events()
    total = run.ledger.total()
    assert (total.calls, total.failed_calls, total.estimated_calls) == (3, 2, 1)
    assert total.estimated_tokens > 50
    assert total.priced_usd == event.estimated_cost_usd
    assert event.cost_source == "test, estimated"


async def test_retries_need_budget_too() -> None:
    lm = scripted(lm15.ServerError("oops"))
    async with lm_run(lm, budget=Budget(calls=2)) as run:
        with pytest.raises(dspy.LMError) as caught:
            await run.call(program, question="?")
    assert len(lm.requests) == 2
    assert isinstance(unwrap(caught.value), BudgetExceededError)


async def test_a_peer_that_asks_for_a_long_wait_is_not_waited_for() -> None:
    lm = scripted(lm15.RateLimitError("come back tomorrow", retry_after=3600))
    async with lm_run(lm) as run:
        with pytest.raises(dspy.LMRateLimitError):
            await run.call(program, question="?")
    assert len(lm.requests) == 1


async def test_the_deadline_is_the_calls_and_not_a_bytes() -> None:
    lm = scripted(Reply(ANSWER, latency=60))
    async with lm_run(lm, policy=LMPolicy(timeout=0.05)) as run:
        with pytest.raises(dspy.LMTimeoutError) as caught:
            await run.call(program, question="?")
        (event,) = await run.events()
    assert event.outcome == "timeout"
    assert run.ledger.total().estimated_calls == 1
    assert isinstance(unwrap(caught.value), ModelCallError)


async def test_a_cancelled_call_is_on_record_and_its_reservation_stands() -> None:
    lm = scripted(Reply(ANSWER, latency=60))
    async with lm_run(lm) as run:
        async with anyio.create_task_group() as group:
            group.start_soon(run.call, program)
            while not lm.requests:
                await anyio.lowlevel.checkpoint()
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        (event,) = await run.events()
    assert event.outcome == "cancelled"
    assert run.ledger.total().estimated_calls == 1


async def test_answers_are_not_cached_unless_asked_for() -> None:
    lm = scripted({"answer": "first"}, {"answer": "second"}, cache=True)
    async with lm_run(lm) as run:
        assert (await run.call(program, question="?")).answer == "first"
        assert (await run.call(program, question="?")).answer == "second"


async def test_cached_answers_cost_nothing_and_are_marked() -> None:
    lm = scripted(cache=True)
    question = f"asked once {id(lm)}"
    async with lm_run(lm, policy=LMPolicy(cache=True), budget=Budget(calls=1)) as run:
        for _ in range(3):
            assert (await run.call(program, question=question)).answer == "yes"
        storage = run.executor.storage
    total = run.ledger.total()
    assert (total.calls, total.cached_calls) == (1, 2)
    assert total.cost_usd == 0.0002
    assert len(lm.requests) == 1
    events = [record.data for record in await storage.read("events")]
    assert [event["cost_source"] for event in events] == ["test", "cache", "cache"]
    assert sum(event["estimated_cost_usd"] for event in events) == total.cost_usd


async def test_each_agent_may_have_a_model_of_its_own() -> None:
    default, own, assigned = (scripted(model=name) for name in ("default", "own", "assigned"))
    async with lm_run(default, lms={"chosen": assigned}) as run:
        with agent_lm_scope("plain"):
            await run.call(program, question="?")
        with agent_lm_scope("selfish", own):
            await run.call(program, question="?")
            with agent_lm_scope("nested"):
                await run.call(program, question="?")
        with agent_lm_scope("chosen", own):
            await run.call(program, question="?")
    calls = {name: total.calls for name, total in run.ledger.totals("model").items()}
    assert calls == {"default": 2, "own": 1, "assigned": 1}


async def test_an_agents_own_model_works_outside_of_runs() -> None:
    lm = scripted()
    with agent_lm_scope("alone", lm):
        assert dspy.settings.lm is lm
    with agent_lm_scope("alone"):
        assert dspy.settings.lm is not lm


async def test_runs_at_the_same_time_keep_separate_books() -> None:
    lm = scripted()

    async def one(calls: int) -> int:
        async with lm_run(lm) as run:
            for _ in range(calls):
                await run.call(program, question="?")
        return run.ledger.total().calls

    results, _ = await named({str(n): lambda n=n: one(n) for n in range(1, 6)})
    assert list(results.values()) == [1, 2, 3, 4, 5]


async def test_a_compensation_is_never_refused_and_always_booked() -> None:
    from dataclasses import replace

    from agenthelm.core.executor import using

    async with lm_run(scripted(), budget=Budget(calls=0)) as run:
        run.stop.set(RuntimeError("stopped"))
        undoing = replace(run.executor, ledger=run.ledger.unlimited(), passes_doors=True)
        with using(undoing):
            assert (await run.call(program, question="?")).answer == "yes"
    assert run.ledger.total().calls == 1


async def test_a_compensation_goes_on_where_what_it_asks_cant_be_put_on_record(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from dataclasses import replace

    from agenthelm.core.executor import using

    async with lm_run(scripted()) as run:
        undoing = replace(run.executor, storage=FaultyStorage(InMemoryStorage(), times=None), passes_doors=True)
        with using(undoing):
            assert (await run.call(program, question="?")).answer == "yes"
    assert run.ledger.total().calls == 1
    assert run.stop.error is None
    assert "the event of scripted could not be written" in caplog.text


async def test_what_a_tool_asks_draws_on_its_max_cost() -> None:
    from dataclasses import replace

    from agenthelm.core.executor import using

    async with lm_run(scripted(), budget=Budget(usd=0.001)) as run:
        hold = run.ledger.reserve(Amount(usd=0.001, tool_calls=1))
        inner = run.ledger.child("tool:search", Budget(usd=0.001), drawn_from=hold)
        with using(replace(run.executor, ledger=inner)):
            await run.call(program, question="?")
        hold.settle()
        (event,) = await run.events()
    assert event.inputs == {"tool": "search"}
    assert run.ledger.spent().usd == 0.0002
    assert run.ledger.totals("tool")["search"].calls == 1


async def test_a_model_that_a_predictor_brought_along_is_booked_too(caplog: pytest.LogCaptureFixture) -> None:
    stray = scripted(model="stray")
    MODEL_PRICING["stray"] = {"input": 1.0, "output": 1.0}
    own = dspy.Predict("question -> answer")
    own.lm = stray
    async with lm_run(scripted(), budget=Budget(usd=0.2)) as run:
        with caplog.at_level(logging.WARNING):
            await run.call(own, question="?")
        assert run.ledger.totals("model")["stray"].cost_usd == 0.15
        await run.call(own, question="?")  # can't be refused beforehand, and stops the run at its next door
        with pytest.raises(dspy.LMError) as caught:
            await run.call(program, question="?")
        storage = run.executor.storage
    assert isinstance(unwrap(caught.value), BudgetExceededError)
    assert len([record for record in caplog.records if "not the run's" in record.message]) == 1
    assert [record.data["tool_name"] for record in await storage.read("events")] == ["stray", "stray", "scripted"]


REFUSED = lm15.AuthError("Incorrect API key provided: sk-proj-abcdefghij0123456789abcdefghij", status=401)
UNSENT = lm15.TransportError("no route")
UNSENT.__cause__ = ConnectionRefusedError()


async def test_such_a_model_is_booked_in_threads_of_dspys_as_well() -> None:
    own = dspy.Predict("question -> answer")
    own.lm = scripted(model="stray")
    questions = [dspy.Example(question=str(number)).with_inputs("question") for number in range(3)]
    async with lm_run(scripted()) as run:
        await run.call(own.batch, examples=questions, num_threads=2, disable_progress_bar=True)
        assert run.ledger.totals("model")["stray"].calls == 3
        storage = run.executor.storage
    assert [record.data["agent_name"] for record in await storage.read("events")] == ["writer"] * 3


@pytest.mark.parametrize(
    ("error", "calls", "usd"),
    [(REFUSED, 1, 0.0), (UNSENT, 0, 0.0), (lm15.TransportError("reset"), 1, None)],
    ids=["refused", "unsent", "lost"],
)
async def test_a_failed_call_of_such_a_model_is_booked_like_any_other(
    error: Exception, calls: int, usd: float | None
) -> None:
    own = dspy.Predict("question -> answer")
    own.lm = scripted(error)
    async with lm_run(scripted(), budget=Budget(calls=0)) as run:  # also where it is over a budget already
        with pytest.raises(dspy.LMError):
            await run.call(own, question="?")
        storage = run.executor.storage
    (record,) = await storage.read("events")
    total = run.ledger.total()
    assert record.data["calls"] == total.calls == total.failed_calls == calls
    assert record.data["estimated_cost_usd"] == total.priced_usd
    assert total.priced_usd == usd if usd is not None else total.priced_usd > 0
    assert "sk-proj" not in str(record.data)


async def test_such_a_model_of_a_run_inside_a_run_is_booked_once() -> None:
    own = dspy.Predict("question -> answer")
    own.lm = scripted()
    async with lm_run(scripted()) as run:
        async with lm_scope(None, policy=QUICK):
            await run.call(own, question="?")
        assert len(await run.events()) == run.ledger.total().calls == 1
        assert run.ledger.cost_usd == 0.0002


async def test_models_of_one_name_keep_their_own_prices() -> None:
    dear = Price(input=1.0, output=0.0)
    async with lm_run(scripted(), lms={"other": scripted(price=dear), "third": scripted(price=None)}) as run:
        running = current_run()
        assert running is not None
        for agent in ("writer", "other", "third"):
            with entered(running.evolve(agent=agent)), agent_lm_scope(agent):
                await run.call(program, question="?")
        totals = run.ledger.totals("agent")
    assert [totals[agent].cost_usd for agent in ("writer", "other", "third")] == [0.0002, 100.0, None]


async def test_usage_that_dspy_tracks_is_tracked_in_runs() -> None:
    async with lm_run(scripted()) as run:
        with dspy.context(track_usage=True):
            result = await run.call(program, question="?")
    assert result.get_lm_usage()["scripted"]["total_tokens"] == 150


async def test_a_scope_outside_of_a_run_only_sets_the_model() -> None:
    lm = scripted()
    async with lm_scope(lm, policy=QUICK):
        assert current_executor() is None
        assert (await anyio.to_thread.run_sync(lambda: program(question="?"))).answer == "yes"
    assert len(lm.requests) == 1


async def test_a_scope_that_can_t_be_entered_leaves_nothing_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    meters: list[Meter] = []

    def refused(lm: dspy.BaseLM, meter: Meter) -> dspy.LM:
        meters.append(meter)
        raise ValueError("no such model")

    monkeypatch.setattr("agenthelm.agent.lm.metered", refused)
    context = RunContext(run_id="r", session_id="s", namespace="n")
    executor = ToolExecutor(ToolRegistry(), InMemoryStorage())
    with pytest.raises(ValueError, match="no such model"):
        async with lm_scope(scripted(), context=context, executor=executor):
            pytest.fail("it was entered")
    assert (current_run(), current_executor()) == (None, None)
    assert meters[0].closed


async def test_the_identity_of_the_call_is_the_agents() -> None:
    async with lm_run(scripted()) as run:
        with entered(run.context.evolve(agent="other", step="s1")), agent_lm_scope("other"):
            await run.call(program, question="?")
        (event,) = await run.events()
    assert (event.agent_name, event.step) == ("other", "s1")
