"""Fan-out: at once, bounded, merged, and with two ways to fail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio
import pytest

from agenthelm._runtime.context import RunContext, StopMark, entered
from agenthelm.agent import Agent
from agenthelm.exceptions import AgentOutputError, ConfigError, WiringError
from agenthelm.orchestration.parallel import Parallel
from agenthelm.orchestration.pipeline import Pipeline


def agent(name: str, signature: str = "task -> text", **gives: Any) -> Agent:
    class Given(Agent):
        async def aforward(self, context, **inputs):  # type: ignore[no-untyped-def]
            return {key: f"{key} by {name}" for key in self.get_signature().outputs} | gives

    return Given(name, signature=signature)


class Failing(Agent):
    async def aforward(self, context, task: str):  # type: ignore[no-untyped-def]
        raise ConnectionError(f"{self.name} is down")


class Waiting(Agent):
    """Waits until it is cancelled, and says so."""

    def __init__(self, name: str, cancelled: list[str]) -> None:
        super().__init__(name)
        self.cancelled = cancelled

    async def aforward(self, context, task: str):  # type: ignore[no-untyped-def]
        try:
            await anyio.sleep_forever()
        finally:
            self.cancelled.append(self.name)


async def test_results_are_keyed_by_agent_in_their_order() -> None:
    result = await Parallel([agent("b"), agent("a")]).run(task="t")
    assert list(result.items()) == [("b", {"text": "text by b"}), ("a", {"text": "text by a"})]


async def test_branches_run_at_once() -> None:
    here, there = anyio.Event(), anyio.Event()

    class Meeting(Agent):
        async def aforward(self, context, task: str):  # type: ignore[no-untyped-def]
            mine, other = (here, there) if self.name == "one" else (there, here)
            mine.set()
            await other.wait()
            return {}

    with anyio.fail_after(60):
        await Parallel([Meeting("one"), Meeting("two")]).run(task="t")


async def test_max_concurrency_bounds_how_many_run() -> None:
    running = most = 0

    class Counting(Agent):
        async def aforward(self, context, task: str):  # type: ignore[no-untyped-def]
            nonlocal running, most
            running += 1
            most = max(most, running)
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            running -= 1
            return {}

    await Parallel([Counting(str(number)) for number in range(8)], max_concurrency=3).run(task="t")
    assert most == 3


async def test_flat_merges_all_fields() -> None:
    flow = Parallel([agent("a", "task -> x"), agent("b", "task -> y")], "flat")
    assert await flow.run(task="t") == {"x": "x by a", "y": "y by b"}


def test_flat_refuses_outputs_that_two_declare() -> None:
    with pytest.raises(WiringError, match="'a' and 'b' both return 'text', which merge_strategy='flat'"):
        Parallel([agent("a"), agent("b")], "flat")


async def test_flat_refuses_extra_keys_that_two_return() -> None:
    flow = Parallel([agent("a", "task -> x", more=1), agent("b", "task -> y", more=1)], "flat")
    with pytest.raises(WiringError, match="both return 'more'"):
        await flow.run(task="t")


async def test_flat_does_not_take_inputs_that_pipelines_hand_on_for_results() -> None:
    one = Pipeline([agent("a", "topic -> x")], name="one")
    two = Pipeline([agent("b", "topic -> y")], name="two")
    assert await Parallel([one, two], "flat").run(topic="t") == {"x": "x by a", "y": "y by b"}


async def test_list_keeps_the_order_of_the_agents() -> None:
    flow = Parallel([agent("b"), agent("a")], "list")
    assert await flow.run(task="t") == {"results": [{"text": "text by b"}, {"text": "text by a"}]}


@pytest.mark.parametrize("how", ["merge", "merge_strategy"])
async def test_a_function_merges_as_it_likes(how: str) -> None:
    def longest(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        return {"names": list(results)}

    options: Any = {how: longest}
    assert await Parallel([agent("a"), agent("b")], **options).run(task="t") == {"names": ["a", "b"]}


async def test_a_merge_function_that_returns_no_mapping_is_named() -> None:
    with pytest.raises(AgentOutputError, match="returned a list"):
        await Parallel([agent("a")], merge=list).run(task="t")  # type: ignore[arg-type, return-value]


async def test_the_first_failure_cancels_the_others_and_is_raised_bare() -> None:
    cancelled: list[str] = []
    with pytest.raises(ConnectionError, match="down is down"):
        await Parallel([Waiting("w", cancelled), Failing("down")]).run(task="t")
    assert cancelled == ["w"]


async def test_failures_of_others_are_notes_on_the_first() -> None:
    class AlsoFailing(Agent):
        async def aforward(self, context, task: str):  # type: ignore[no-untyped-def]
            try:
                await anyio.sleep_forever()
            finally:
                raise KeyError("on the way out")

    with pytest.raises(ConnectionError) as caught:
        await Parallel([AlsoFailing("second"), Failing("first")]).run(task="t")
    assert caught.value.__notes__ == ["second failed too: KeyError: 'on the way out'"]


async def test_collect_keeps_what_succeeded_and_names_what_failed() -> None:
    flow = Parallel([agent("a"), Failing("down")], on_error="collect")
    assert await flow.run(task="t") == {"a": {"text": "text by a"}, "errors": {"down": "ConnectionError: down is down"}}


async def test_collect_tells_of_a_group_what_is_in_it() -> None:
    class Grouping(Agent):
        async def aforward(self, context, task: str):  # type: ignore[no-untyped-def]
            raise ExceptionGroup("two calls", [ValueError("no seat"), ConnectionError()])

    flow = Parallel([Grouping("both")], on_error="collect")
    assert (await flow.run(task="t"))["errors"] == {
        "both": "ExceptionGroup: two calls (2 sub-exceptions): ValueError: no seat; ConnectionError"
    }


async def test_collect_has_no_errors_when_nothing_failed() -> None:
    assert (await Parallel([agent("a")], on_error="collect").run(task="t"))["errors"] == {}


async def test_collect_does_not_swallow_cancellation() -> None:
    cancelled: list[str] = []
    flow = Parallel([Waiting("w", cancelled)], on_error="collect")
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: flow.run(task="t"))
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert cancelled == ["w"]


async def test_collect_does_not_swallow_the_runs_stop() -> None:
    mark = StopMark()

    class Stopping(Agent):
        async def aforward(self, context, task: str):  # type: ignore[no-untyped-def]
            mark.set(PermissionError("final"))
            return {}

    with entered(RunContext("r", "s", "n", stops=(mark,))), pytest.raises(PermissionError, match="final"):
        await Parallel([Stopping(), agent("a")], on_error="collect").run(task="t")


async def test_wiring_is_checked_before_any_branch_starts() -> None:
    with pytest.raises(WiringError, match="agent 'b' needs 'gap'"):
        await Parallel([Failing("down"), agent("b", "task, gap -> x")]).run(task="t")


async def test_what_runs_after_it_gets_its_merged_fields() -> None:
    class Judge(Agent):
        async def aforward(self, context, a: dict[str, str], b: dict[str, str]):  # type: ignore[no-untyped-def, type-arg]
            return {"both": [a["text"], b["text"]]}

    flow = Pipeline([Parallel([agent("a"), agent("b")]), Judge("judge")])
    assert (await flow.run(task="t"))["both"] == ["text by a", "text by b"]


@pytest.mark.parametrize(
    ("options", "outputs", "is_open"),
    [
        ({}, ["a", "b"], False),
        ({"on_error": "collect"}, ["a", "b", "errors"], False),
        ({"merge_strategy": "flat"}, ["x", "y"], False),
        ({"merge_strategy": "list"}, ["results"], False),
        ({"merge": dict}, [], True),
    ],
)
def test_its_signature_follows_from_the_merge(options: Any, outputs: list[str], is_open: bool) -> None:
    signature = Parallel([agent("a", "task -> x"), agent("b", "n: int -> y")], **options).get_signature()
    assert list(signature.inputs) == ["task", "n"]
    assert list(signature.outputs) == outputs
    assert signature.open_outputs is is_open


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merge_strategy": "flt"}, "merge_strategy must be one of dict, flat, list, not 'flt'. Did you mean 'flat'?"),
        ({"on_error": "colect"}, "Did you mean 'collect'?"),
        ({"max_concurrency": 0}, "max_concurrency must be a whole number of at least 1, not 0"),
        ({"max_concurrency": "2"}, "max_concurrency must be a whole number of at least 1, not '2'"),
    ],
)
def test_an_option_without_such_a_value_is_refused_when_it_is_given(options: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Parallel([agent("a")], **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agents": []}, "needs at least one agent"),
        ({"agents": [agent("a"), agent("a")]}, "two agents named 'a'"),
        ({"agents": [agent("errors")], "on_error": "collect"}, "would hide the errors"),
    ],
)
def test_malformed_fan_outs_are_refused_when_they_are_made(options: Any, message: str) -> None:
    with pytest.raises(WiringError) as caught:
        Parallel(**{"agents": [agent("a")], **options})
    assert message in str(caught.value)
