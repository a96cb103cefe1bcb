"""Our books against the server's, over random programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import anyio
import dspy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agenthelm.agent.lm import LMPolicy
from agenthelm.agent.models import resolve_model
from agenthelm.core.cost import Ledger
from tests.support.lm_run import QUICK, lm_run
from tests.support.openai_server import Behaviour, OpenAIServer, Seen

program = dspy.Predict("question -> answer, count: int")
once = dspy.ChatAdapter(use_json_adapter_fallback=False)

answer = st.builds(
    Behaviour,
    mode=st.just("answer"),
    input_tokens=st.integers(1, 5000),
    output_tokens=st.integers(0, 60),
    cached_tokens=st.just(0),
    reasoning_tokens=st.integers(0, 5),
)
behaviour = st.one_of(
    answer,
    answer.map(lambda given: replace(given, cached_tokens=given.input_tokens // 2)),
    answer.map(lambda given: replace(given, mode="prose")),
    st.sampled_from([429, 500, 503, 400, 401]).map(lambda status: Behaviour("status", status=status)),
    st.just(Behaviour("status", status=429, retry_after=0.001)),
    st.sampled_from(["not_json", "drop", "cut", "no_usage", "half_usage"]).map(Behaviour),
)


@dataclass(frozen=True)
class Ask:
    """One call of a program: how it is made."""

    question: int
    streamed: bool
    fallback: bool


ask = st.builds(Ask, question=st.integers(0, 2), streamed=st.booleans(), fallback=st.booleans())
plan = st.recursive(
    ask, lambda inner: st.tuples(st.sampled_from(["one by one", "at once"]), st.lists(inner, max_size=4)), max_leaves=8
)


async def follow(run: Any, step: Any) -> None:
    """Make the calls of a plan; failures are what they are."""
    if isinstance(step, Ask):
        try:
            await one(run, step)
        except dspy.DSPyError:
            pass
        return
    order, steps = step
    if order == "at once":
        async with anyio.create_task_group() as group:
            for inner in steps:
                group.start_soon(follow, run, inner)
    else:
        for inner in steps:
            await follow(run, inner)


async def one(run: Any, step: Ask) -> None:
    send, receive = anyio.create_memory_object_stream[Any](10_000)
    changes: dict[str, Any] = {"track_usage": True, "adapter": None if step.fallback else once}
    if step.streamed:
        changes["send_stream"] = send
    with send, receive, dspy.context(**changes):
        await run.call(program, question=str(step.question))


def check(ledger: Ledger, seen: list[Seen], events: list[Any]) -> None:
    """Equal to the call and to the token, but for answers that were lost."""
    total = ledger.total()
    received = [one for one in seen if one.answered and one.counted]
    assert total.calls == len(seen)
    assert total.calls == sum(1 + event.retry_count for event in events if event.cost_source != "cache")
    assert total.input_tokens == sum(one.input_tokens for one in received)
    assert total.output_tokens == sum(one.output_tokens for one in received)
    assert total.cached_input_tokens == sum(one.cached_tokens for one in received)
    assert total.reasoning_tokens == sum(one.reasoning_tokens for one in received)
    lost = [one for one in seen if one.status in (None, 200) and not (one.answered and one.counted)]
    assert total.estimated_calls == len(lost)
    bill = sum(
        (one.input_tokens - one.cached_tokens) * 150_000 + one.cached_tokens * 75_000 + one.output_tokens * 600_000
        for one in received
    )
    assert total.cost_usd is not None
    if lost:
        assert total.cost_usd > bill / 10**12
        assert total.estimated_tokens > 0
    else:
        assert total.cost_usd == bill / 10**12
    assert sum(event.estimated_cost_usd for event in events) == pytest.approx(total.cost_usd, abs=1e-12)
    assert ledger.spent().usd == total.cost_usd


def books_are_equal(backend: str, steps: Any, script: list[Behaviour], cache: bool) -> None:
    """Run a plan against a server with a script, and compare."""

    async def main() -> None:
        with OpenAIServer(script) as server:
            lm = resolve_model("openai/gpt-4o-mini", api_base=server.base_url, max_tokens=80)
            policy = replace(QUICK, cache=cache)
            async with lm_run(lm, policy=policy) as run:
                await follow(run, steps)
                storage = run.executor.storage
            server.wait_idle()
            check(run.ledger, server.seen, await run.events())
            assert storage is run.executor.storage

    kept = dspy.cache
    dspy.configure_cache(enable_disk_cache=False)
    try:
        anyio.run(main, backend=backend)
    finally:
        dspy.cache = kept


def random_programs(examples: int) -> Callable[[Any], Any]:
    def decorate(test: Any) -> Any:
        given_all = given(steps=plan, script=st.lists(behaviour, max_size=16), cache=st.booleans())
        quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
        return settings(max_examples=examples, deadline=None, suppress_health_check=quiet)(given_all(test))

    return decorate


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@random_programs(25)
def test_our_books_equal_the_servers_for_any_program(
    backend: str, steps: Any, script: list[Behaviour], cache: bool
) -> None:
    books_are_equal(backend, steps, script, cache)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@random_programs(500)
def test_our_books_equal_the_servers_for_many_programs(
    backend: str, steps: Any, script: list[Behaviour], cache: bool
) -> None:
    books_are_equal(backend, steps, script, cache)


def test_the_policy_under_test_is_the_ordinary_one() -> None:
    assert QUICK.retries == LMPolicy().retries
