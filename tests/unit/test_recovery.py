"""After the fact: what a human may say about a run, and who may say it when."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from agenthelm.core.executor import current_executor
from agenthelm.core.storage.base import StreamInfo
from agenthelm.core.storage.memory_storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import PlanError, RunBusyError
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step, saga
from tests.support.saga_leases import Later


@pytest.fixture
def tools() -> ToolRegistry:
    registry = ToolRegistry()

    @tool(registry=registry, compensating_tool="take_back", side_effects=["x:write"])
    async def unsure() -> dict[str, str]:
        raise TimeoutError

    @tool(registry=registry)
    async def take_back(result: dict[str, str]) -> None: ...

    @tool(registry=registry, side_effects=["mail:send"])
    async def send() -> None: ...

    @tool(registry=registry)
    async def fail() -> None:
        raise ValueError

    return registry


async def test_doubt_left_in_a_good_run_can_be_settled_and_the_run_stays_good(tools: ToolRegistry) -> None:
    storage = InMemoryStorage()
    async with Orchestrator(tools=tools, storage=storage) as orchestrator:
        async with saga(tools=tools, storage=storage) as scope:
            with pytest.raises(TimeoutError):
                await scope.use("unsure")
        assert scope.result is not None
        assert scope.result.in_doubt == ("e1",)
        settled = await orchestrator.resolve(scope.run_id, "e1", outcome="undone")
        assert (settled.status, settled.in_doubt) == ("success", ())
        assert await orchestrator.recover() == []
        with pytest.raises(PlanError, match="stuck or in doubt: none"):
            await orchestrator.resolve(scope.run_id, "e1", outcome="done")


@pytest.mark.parametrize("needs_result", [True, False])
@pytest.mark.parametrize("finds", [{"thing": "a"}, True, False, None])
async def test_what_a_human_says_has_happened_is_undone_on_purpose_like_the_rest(
    needs_result: bool, finds: Any
) -> None:
    """The human knows that it happened; only what it returned may still be asked for."""
    tools, world, asked = ToolRegistry(), [], []

    def look() -> Any:
        asked.append(True)
        if len(asked) == 1:
            raise ConnectionError("down")
        return finds

    async def back(name: str) -> None:
        world.remove(name)

    async def back_by_result(thing: str) -> None:
        world.remove(thing)

    tool(registry=tools, name="back")(back_by_result if needs_result else back)

    @tool(registry=tools, compensating_tool="back", verify=None if finds is None else look)
    async def unsure(name: str) -> dict[str, str]:
        world.append(name)
        raise TimeoutError

    async with Orchestrator(tools=tools) as orchestrator:
        result = await orchestrator.run_saga([Step("unsure", {"name": "a"})], on_error="continue")
        assert (result.status, result.in_doubt) == ("success", ("e1",))
        settled = await orchestrator.resolve(result.run_id, "unsure", outcome="done")
        assert (settled.status, settled.in_doubt, world) == ("success", (), ["a"])
        undone = await orchestrator.undo(result.run_id)
    if needs_result and not isinstance(finds, dict):
        assert (undone.status, world) == ("failed", ["a"])
        assert [stuck.reason for stuck in undone.stuck] == ["back needs the result, which is not on record"]
    else:
        assert (undone.status, undone.undone, world) == ("rolled_back", ("e1",), [])


@pytest.mark.parametrize("outcome", ["done", "undone"])
async def test_a_stuck_run_ends_when_a_human_has_settled_its_last_effect(tools: ToolRegistry, outcome: Any) -> None:
    async with Orchestrator(tools=tools) as orchestrator:
        result = await orchestrator.run_saga([Step("send"), Step("fail")])
        assert (result.status, [stuck.effect_id for stuck in result.stuck]) == ("failed", ["e1"])
        still = await orchestrator.retry(result.run_id)
        assert still.status == "failed"
        settled = await orchestrator.resolve(result.run_id, "send", outcome=outcome)
        assert (settled.status, settled.stuck) == ("rolled_back", ())
        assert (await orchestrator.undo(result.run_id)).status == "rolled_back"


async def test_an_id_means_its_own_effect_whatever_steps_are_called(tools: ToolRegistry) -> None:
    async with Orchestrator(tools=tools) as orchestrator:
        result = await orchestrator.run_saga([Step("send", id="e2"), Step("send", id="b"), Step("fail")])
        assert [stuck.effect_id for stuck in result.stuck] == ["e1", "e2"]
        settled = await orchestrator.resolve(result.run_id, "e2", outcome="done")
        assert [(stuck.effect_id, stuck.step) for stuck in settled.stuck] == [("e1", "e2")]


async def test_a_run_in_progress_can_not_be_settled_or_undone(tools: ToolRegistry) -> None:
    storage = InMemoryStorage()
    orchestrator = Orchestrator(tools=tools, storage=storage)
    async with orchestrator, saga(tools=tools, storage=storage) as scope:
        await scope.use("send")
        with pytest.raises(RunBusyError):
            await orchestrator.resolve(scope.run_id, "e1", outcome="done")
        with pytest.raises(RunBusyError):
            await orchestrator.undo(scope.run_id)
        assert await orchestrator.recover() == []


async def test_what_was_undone_is_told_in_its_order_and_by_whoever_did_it() -> None:
    tools, closed = ToolRegistry(), ["b"]

    @tool(registry=tools, compensating_tool="unmake")
    async def make(name: str) -> None: ...

    @tool(registry=tools)
    async def unmake(name: str) -> None:
        if name in closed:
            raise ValueError("closed")

    async with Orchestrator(tools=tools) as orchestrator:
        run = await orchestrator.run_saga([Step("make", {"name": name}, id=name) for name in "abc"])
        ways = (orchestrator.undo, orchestrator.undo, orchestrator.retry)
        assert [(await end(run.run_id)).undone for end in ways] == [("e3", "e1"), ("e3", "e1"), ()]
        closed.clear()
        ways = (orchestrator.retry, orchestrator.undo)
        assert [(await end(run.run_id)).undone for end in ways] == [("e2",), ("e3", "e1", "e2")]


async def test_a_good_run_has_no_error_because_a_saga_inside_it_had_one(tools: ToolRegistry) -> None:
    storage = InMemoryStorage()
    async with saga(tools=tools, storage=storage) as scope:
        with pytest.raises(ValueError, match="fully booked"):
            async with saga("inside") as inside:
                with pytest.raises(TimeoutError):
                    await inside.use("unsure")
                raise ValueError("fully booked")
    async with Orchestrator(tools=tools, storage=storage) as orchestrator:
        settled = await orchestrator.resolve(scope.run_id, "e1", outcome="undone")
    assert (settled.status, settled.error) == ("success", None)


async def test_a_failed_run_is_left_to_retry_and_resolve(tools: ToolRegistry) -> None:
    async with Orchestrator(tools=tools) as orchestrator:
        result = await orchestrator.run_saga([Step("send"), Step("fail")])
        again = await orchestrator.undo(result.run_id)
        assert (again.status, [stuck.reason for stuck in again.stuck]) == ("failed", ["no tool undoes it"])


async def test_a_tool_that_did_several_things_is_not_enough_to_say_which_of_them(tools: ToolRegistry) -> None:
    async with Orchestrator(tools=tools) as orchestrator:
        result = await orchestrator.run_saga([Step("send", id="first"), Step("send", id="second"), Step("fail")])
        with pytest.raises(PlanError, match=r"'send' is the tool of several.*: e1 \(first\), e2 \(second\)"):
            await orchestrator.resolve(result.run_id, "send", outcome="done")
        with pytest.raises(PlanError, match=r"no effect, step or tool 'sned'.*: e1 \(first\), e2 \(second\)"):
            await orchestrator.resolve(result.run_id, "sned", outcome="done")
        await orchestrator.resolve(result.run_id, "first", outcome="done")
        assert (await orchestrator.resolve(result.run_id, "send", outcome="done")).stuck == ()


async def test_what_failed_cleanly_is_settled_by_a_human_once_undoing_it_has_failed() -> None:
    """It was tried because that is harmless; only a human can end it then."""
    tools = ToolRegistry()

    @tool(registry=tools, compensating_tool="cancel")
    async def book(idempotency_key: str) -> None:
        raise ValueError("fully booked")

    @tool(registry=tools)
    async def cancel(idempotency_key: str) -> None:
        raise ValueError("no such booking")

    async with Orchestrator(tools=tools) as orchestrator:
        result = await orchestrator.run_saga([Step("book")])
        assert (result.status, [stuck.effect_id for stuck in result.stuck]) == ("failed", ["e1"])
        settled = await orchestrator.resolve(result.run_id, "book", outcome="undone")
        assert (settled.status, settled.stuck) == ("rolled_back", ())


async def test_all_that_a_step_left_stuck_is_settled_by_its_name(tools: ToolRegistry) -> None:
    @tool(registry=tools)
    async def send_twice() -> None:
        for _ in range(2):
            await current_executor().call("send", {})  # type: ignore[union-attr]

    async with Orchestrator(tools=tools) as orchestrator:
        result = await orchestrator.run_saga([Step("send_twice", id="letters"), Step("send", id="last"), Step("fail")])
        assert [stuck.effect_id for stuck in result.stuck] == ["e1", "e2", "e3"]
        settled = await orchestrator.resolve(result.run_id, "letters", outcome="done")
        assert (settled.status, [stuck.step for stuck in settled.stuck]) == ("failed", ["last"])
        assert (await orchestrator.resolve(result.run_id, "last", outcome="undone")).status == "rolled_back"
        result = await orchestrator.run_saga([Step("send_twice", id="letters"), Step("fail")])
        assert (await orchestrator.resolve(result.run_id, "letters", outcome="undone")).status == "rolled_back"


async def test_of_what_is_known_to_stand_nobody_can_say_so(tools: ToolRegistry) -> None:
    async with Orchestrator(tools=tools) as orchestrator:
        result = await orchestrator.run_saga([Step("send")])
        with pytest.raises(PlanError, match="stuck or in doubt: none"):
            await orchestrator.resolve(result.run_id, "send", outcome="done")


async def test_a_run_that_ends_while_somebody_looks_for_dead_ones_is_left_alone() -> None:
    tools, undone = ToolRegistry(), list[str]()

    @tool(registry=tools, compensating_tool="unmake")
    async def make() -> None: ...

    @tool(registry=tools)
    async def unmake() -> None:
        undone.append("unmake")

    class Slow(InMemoryStorage):
        """A storage whose lists have been overtaken when they arrive."""

        async def streams(self, **options: Any) -> list[StreamInfo]:
            found = await super().streams(**options)
            ended.set()
            await closed.wait()
            return found

    ended, closed, storage = anyio.Event(), anyio.Event(), Slow()

    async def run() -> None:
        async with saga(tools=tools, storage=storage) as scope:
            await scope.use("make")
            await ended.wait()
        closed.set()

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await anyio.wait_all_tasks_blocked()
        assert await Orchestrator(tools=tools, storage=storage, clock=Later()).recover() == []
    assert undone == []
