"""A plan that goes on after its process died is the same run: one order of undoing, scopes and keys of its own, no gaps."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from pydantic import SecretStr

from agenthelm.core.executor import current_executor
from agenthelm.core.storage import InMemoryStorage, Record
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.core.tracer import ExecutionTracer
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.results import SagaResult
from agenthelm.orchestration.saga import Ref, SagaOrchestrator, Step, saga
from agenthelm.testing.storage import FaultyStorage, SimulatedCrash
from tests.support.making import making_and_failing
from tests.support.saga_leases import Later


@pytest.fixture
def world() -> list[str]:
    return []


@pytest.fixture
def tools(world: list[str]) -> ToolRegistry:
    return making_and_failing(world)


def at(kind: str, effect: str | None) -> Any:
    """Whether a record is that one, of an effect or of none."""

    def matches(record: Record) -> bool:
        return (record.data.get("type"), record.data.get("effect")) == (kind, effect)

    return matches


async def dying(tools: ToolRegistry, steps: list[Step], kind: str, effect: str | None) -> InMemoryStorage:
    """Run a plan in a process that dies before it writes that record; returns what it has left."""
    inner = InMemoryStorage()
    storage = FaultyStorage(inner, matching=at(kind, effect), do="crash")
    with pytest.raises(SimulatedCrash):
        await Orchestrator(tools=tools, storage=storage).run_saga(steps)
    return inner


async def resumed(tools: ToolRegistry, storage: InMemoryStorage) -> SagaResult:
    (result,) = await Orchestrator(tools=tools, storage=storage, clock=Later()).recover(resume=True)
    return result


@pytest.mark.parametrize(
    ("kind", "effect", "resume", "left"),
    [("begin", "e2", True, ["a", "b"]), ("begin", "e2", False, []), ("closed", None, True, [])],
    ids=["on demand", "not by itself", "not once it was undone"],
)
async def test_a_plan_goes_on_only_on_demand_and_never_once_it_was_undone(
    tools: ToolRegistry, world: list[str], kind: str, effect: str | None, resume: bool, left: list[str]
) -> None:
    @tool(registry=tools)
    async def fail_before_the_crash() -> None:
        if not died:
            raise ValueError("no car left")

    died: list[bool] = []
    steps = [Step("make", {"name": name}, id=name) for name in "ab"]
    storage = await dying(tools, [*steps, Step("fail_before_the_crash")], kind, effect)
    died.append(True)
    (result,) = await Orchestrator(tools=tools, storage=storage, clock=Later()).recover(resume=resume)
    assert (result.status, world) == ("success" if left else "rolled_back", left)


async def test_what_came_after_the_crash_is_undone_before_what_came_before_it(
    tools: ToolRegistry, world: list[str]
) -> None:
    undone: list[str] = []

    @tool(registry=tools)
    async def note(thing: str) -> None:
        undone.append(thing)

    steps = [Step("make", {"name": name}, id=name, compensate_with="note") for name in "abcdef"]
    storage = await dying(tools, [*steps, Step("fail")], "begin", "e4")
    assert world == ["a", "b", "c"]
    result = await resumed(tools, storage)
    assert (result.status, undone) == ("rolled_back", ["f", "e", "d", "c", "b", "a"])


async def test_a_nested_saga_after_the_crash_takes_nothing_back_of_one_before_it(
    tools: ToolRegistry, world: list[str]
) -> None:
    @tool(registry=tools, compensating_tool="unmake")
    async def good() -> dict[str, str]:
        async with saga("good") as scope:
            await scope.use("make", name="of the good one")
        return {"thing": "of the good one"}

    @tool(registry=tools)
    async def bad() -> None:
        with pytest.raises(ValueError, match="no"):
            async with saga("bad") as scope:
                await scope.use("make", name="of the bad one")
                await scope.use("fail")

    storage = await dying(tools, [Step("good"), Step("make", {"name": "a"}), Step("bad")], "begin", "e3")
    assert world == ["of the good one"]
    result = await resumed(tools, storage)
    assert (result.status, world) == ("success", ["of the good one", "a"])


async def test_a_step_that_is_called_again_keeps_its_key_and_what_it_runs_inside_has_fresh_ones() -> None:
    tools, outer, inner = ToolRegistry(), list[str](), list[str]()

    @tool(registry=tools)
    async def look(idempotency_key: str) -> None:
        inner.append(idempotency_key)

    @tool(registry=tools, side_effects=["trip:write"])
    async def plan_trip(idempotency_key: str) -> None:
        outer.append(idempotency_key)
        executor = current_executor()
        assert executor is not None
        result = await SagaOrchestrator(ExecutionTracer(executor.storage), tools).execute([Step("look")])
        assert result.ok

    storage = await dying(tools, [Step("plan_trip")], "finish", "e1")
    assert (await resumed(tools, storage)).status == "success"
    assert (len(outer), len(set(outer))) == (2, 1)
    assert (len(inner), len(set(inner))) == (2, 2)


async def test_a_result_that_the_journal_holds_only_in_part_is_given_to_no_step(
    tools: ToolRegistry, world: list[str]
) -> None:
    seen: list[Any] = []

    @tool(registry=tools, compensating_tool="unmake")
    async def log_in(name: str) -> dict[str, Any]:
        world.append(name)
        return {"thing": name, "token": SecretStr("secret")}

    @tool(registry=tools)
    async def use(session: dict[str, Any]) -> None:
        seen.append(session)

    steps = [Step("log_in", {"name": "s"}), Step("make", {"name": "a"}), Step("use", {"session": Ref("log_in")})]
    storage = await dying(tools, steps, "begin", "e2")
    result = await resumed(tools, storage)
    assert (result.status, world, seen) == ("rolled_back", [], [])


async def test_a_call_that_did_not_happen_and_was_made_again_is_undone_once(world: list[str]) -> None:
    tools, undone = ToolRegistry(), list[str]()

    def there(name: str) -> Any:
        return {"thing": name} if name in world else False

    @tool(registry=tools, compensating_tool="unbook", side_effects=["x:write"], verify=there)
    async def book(name: str) -> dict[str, str]:
        world.append(name)
        return {"thing": name}

    @tool(registry=tools)
    async def unbook(thing: str) -> None:
        undone.append(thing)

    storage = await dying(tools, [Step("book", {"name": "a"})], "finish", "e1")
    world.clear()  # it never got there
    result = await resumed(tools, storage)
    assert (result.status, world) == ("success", ["a"])
    result = await Orchestrator(tools=tools, storage=storage).undo(result.run_id)
    assert (result.status, undone) == ("rolled_back", ["a"])


async def test_a_recovery_that_is_cancelled_before_the_plan_goes_on_undoes_it(
    tools: ToolRegistry, world: list[str]
) -> None:
    asked = anyio.Event()

    async def ask() -> bool:
        if not asked.is_set():
            asked.set()
            await anyio.sleep_forever()
        return False

    @tool(registry=tools, compensating_tool="unmake", verify=ask)
    async def unsure() -> dict[str, str]:
        return {"thing": "unsure"}

    storage = await dying(tools, [Step("make", {"name": "a"}), Step("unsure")], "finish", "e2")
    assert world == ["a"]
    async with anyio.create_task_group() as group:
        group.start_soon(resumed, tools, storage)
        await asked.wait()
        group.cancel_scope.cancel()
    (info,) = await storage.streams(prefix="run:")
    assert (world, info.state) == ([], "rolled_back")
