"""A plan goes on only where that is safe: with results that are its steps' own, and with tools that could undo the rest."""

from __future__ import annotations

import time
from typing import Annotated, Any

import anyio
import pytest
from pydantic import BaseModel, Field

from agenthelm.core.cost import Budget
from agenthelm.core.executor import ToolExecutor, current_executor
from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import RunTimeoutError, SagaError, StorageError
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.results import SagaResult
from agenthelm.orchestration.saga import Ref, Step, saga
from agenthelm.testing.storage import FaultyStorage, SimulatedCrash
from tests.support.making import making
from tests.support.saga_leases import Later


class Dying(InMemoryStorage):
    """Takes so many records of a run, and no more until it is revived."""

    def __init__(self, records: int) -> None:
        super().__init__()
        self.left = records

    async def append(self, records: Any, expected: Any = None) -> dict[str, int]:
        if self.left <= 0:
            raise StorageError("dead")
        self.left -= any(record.stream.startswith("run:") for record in records)
        return await super().append(records, expected)


@pytest.fixture
def world() -> list[str]:
    return []


@pytest.fixture
def tools(world: list[str]) -> ToolRegistry:
    registry = ToolRegistry()

    making(registry, world)

    @tool(registry=registry)
    async def unmake_otherwise(thing: str) -> None:
        world.remove(thing)

    @tool(registry=registry)
    async def planned() -> dict[str, str]:
        executor = current_executor()
        assert executor is not None
        await executor.call("make", {"name": "inner"})
        return {"thing": "42"}

    @tool(registry=registry, compensating_tool="unmake")
    async def wrap(name: str) -> dict[str, str]:
        async with saga("inner") as scope:
            await scope.use("make", name="inner")
        with pytest.raises(SagaError):
            await scope.use("make", name="late")  # it is over
        return {"thing": (await registry["make"].function(name))["thing"]}

    return registry


async def resumed(
    tools: ToolRegistry, steps: list[Step], world: list[str], *, after: int, has: list[str]
) -> SagaResult:
    """Run a plan whose process dies after so many records, and go on with it."""
    storage = Dying(after)
    await Orchestrator(tools=tools, storage=storage).run_saga(steps)
    world[:] = has
    storage.left = 1000
    (result,) = await Orchestrator(tools=tools, storage=storage, clock=Later()).recover(resume=True)
    if result.ok:
        assert (await Orchestrator(tools=tools, storage=storage).undo(result.run_id)).status == "rolled_back"
    return result


async def test_what_a_step_did_through_another_tool_is_not_its_result(tools: ToolRegistry, world: list[str]) -> None:
    steps = [Step("planned"), Step("make", {"name": Ref("planned", "thing")})]
    result = await resumed(tools, steps, world, after=3, has=["inner"])
    assert (result.status, result.error, world) == ("rolled_back", "its process died", [])


async def test_a_plan_whose_next_steps_could_not_be_undone_is_undone(tools: ToolRegistry, world: list[str]) -> None:
    steps = [Step("make", {"name": "a"}), Step("make", {"name": "b"}, id="b", compensate_with="unmake_otherwise")]
    storage = Dying(3)
    await Orchestrator(tools=tools, storage=storage).run_saga([*steps, Step("planned")])
    storage.left = 1000
    world[:] = ["a"]
    other = ToolRegistry(entry for name, entry in tools.items() if name != "unmake_otherwise")
    (result,) = await Orchestrator(tools=other, storage=storage, clock=Later()).recover(resume=True)
    assert (result.status, world) == ("rolled_back", [])
    assert "no such tool" in str(result.error) or "no tool named 'unmake_otherwise'" in str(result.error)


Moment = Annotated[float, Field(default_factory=time.monotonic)]  # never the same, and none of anybody's results


@pytest.mark.parametrize("now", [100, 130, -1])
@pytest.mark.parametrize("through", ["quote", "rounded"])
@pytest.mark.parametrize("after", [2, 3, 4, 5])
async def test_what_is_looked_up_again_must_be_what_others_were_called_with(
    world: list[str], after: int, through: str, now: int
) -> None:
    """What a tool returned that changes nothing is on no record; nobody may book for one price and pay another."""
    tools, says = ToolRegistry(), [100]

    @tool(registry=tools)
    async def quote() -> dict[str, int]:
        return {"price": says[0]}

    @tool(registry=tools)
    async def rounded(price: int) -> dict[str, int]:
        return {"price": price}

    def pays(what: str) -> None:
        @tool(registry=tools, name=what, compensating_tool="undo")
        async def _(price: Annotated[int, Field(ge=0)], at: Moment, idempotency_key: str) -> str:
            world.append(f"{what} {price}")
            return what

    for what in ("reserve", "book", "pay"):
        pays(what)

    @tool(registry=tools)
    async def undo(idempotency_key: str) -> None:
        what = idempotency_key.partition(":")[2]
        world[:] = [done for done in world if not done.startswith(what)]

    price = {"price": Ref(through, "price")}
    lookups = [Step("quote"), Step("rounded", {"price": Ref("quote", "price")})]
    storage = Dying(after)
    orchestrator = Orchestrator(tools=tools, storage=storage)
    await orchestrator.run_saga([*lookups, *(Step(what, price) for what in ("reserve", "book", "pay"))])
    says[0], storage.left, world[:] = now, 1000, ["reserve 100", "book 100"][: after // 2]
    (result,) = await Orchestrator(tools=tools, storage=storage, clock=Later()).recover(resume=True)
    if now == 100:
        assert (result.status, set(world)) == ("success", {"reserve 100", "book 100", "pay 100"})
    else:
        says_no = f"PlanError: {through!r} returns something else now than what 'reserve' was called with"
        assert (result.status, result.error, world) == ("rolled_back", says_no, [])


async def test_a_step_waits_for_those_that_come_before_what_is_done(tools: ToolRegistry, world: list[str]) -> None:
    """They are called again if they change nothing, and then they come first again."""

    @tool(registry=tools)
    async def look() -> None:
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        world.append("looked")

    steps = [Step("look"), *(Step("make", {"name": name}, id=name) for name in "abc")]
    result = await resumed(tools, steps, world, after=5, has=["a", "b"])
    assert (result.status, world) == ("success", ["looked"])
    assert [record.step.name for record in result.steps] == ["a", "b", "look", "c"]


@pytest.mark.parametrize("on_error", ["continue", "rollback"])
async def test_and_is_not_run_if_one_of_them_fails(tools: ToolRegistry, world: list[str], on_error: Any) -> None:
    @tool(registry=tools)
    async def look() -> None:
        if storage.left > 100:
            raise ValueError("nothing there any more")

    storage = Dying(3)
    steps = [Step("look"), *(Step("make", {"name": name}, id=name) for name in "ab")]
    await Orchestrator(tools=tools, storage=storage).run_saga(steps, on_error=on_error)
    storage.left = 1000
    world[:] = ["a"]
    (result,) = await Orchestrator(tools=tools, storage=storage, clock=Later()).recover(resume=True)
    if on_error == "continue":
        why = {"look": "ValueError: nothing there any more", "b": "not run, because 'look' failed"}
        assert (result.status, result.errors, world) == ("success", why, ["a"])
    else:
        assert (result.status, world) == ("rolled_back", [])


async def test_no_effect_takes_anothers_place_in_the_journal(tools: ToolRegistry, world: list[str]) -> None:
    steps = [Step("wrap", {"name": "w"}), *(Step("make", {"name": name}, id=name) for name in "bc")]
    result = await resumed(tools, steps, world, after=7, has=["inner", "w", "b"])
    assert result.status == "success"
    assert world == ["inner"]  # which is what undoing `wrap` covers


class Room(BaseModel):
    number: str = Field(alias="roomNumber")


async def test_a_resumed_plan_has_its_arguments_and_results_as_their_types_again(world: list[str]) -> None:
    tools = ToolRegistry()

    @tool(registry=tools, compensating_tool="leave")
    async def take(room: Room) -> Room:
        world.append(room.number)
        return room

    @tool(registry=tools)
    async def leave(room: Room) -> None:
        world.remove(room.number)

    storage = Dying(3)
    steps = [
        Step("take", {"room": Room(roomNumber="1")}, id="a"),
        Step("take", {"room": Room(roomNumber="2")}, id="b"),
        Step("take", {"room": Ref("a")}, id="c"),
    ]
    result = await Orchestrator(tools=tools, storage=storage).run_saga(steps)
    assert result.status == "failed"
    storage.left = 100
    [result] = await Orchestrator(tools=tools, storage=storage, clock=Later()).recover(resume=True)
    assert (result.status, result.error, world) == ("success", None, ["1", "2", "1"])
    assert [record.result for record in result.steps] == [
        Room(roomNumber="1"),
        Room(roomNumber="2"),
        Room(roomNumber="1"),
    ]


@pytest.mark.parametrize(
    ("began_with", "resumed_with", "ends"),
    [
        (Budget(tool_calls=2), None, "rolled_back"),  # its own, counted anew
        (Budget(tool_calls=3), Budget(tool_calls=1), "success"),
        (None, Budget(tool_calls=2), "rolled_back"),
        (None, None, "success"),
    ],
)
async def test_a_resumed_plan_has_a_budget_again(
    tools: ToolRegistry, world: list[str], began_with: Budget | None, resumed_with: Budget | None, ends: str
) -> None:
    storage = Dying(3)
    steps = [Step("make", {"name": name}, id=name) for name in "abcd"]
    await Orchestrator(tools=tools, storage=storage).run_saga(steps, budget=began_with)
    storage.left = 1000
    later = Orchestrator(tools=tools, storage=storage, clock=Later(), budget=resumed_with)
    (result,) = await later.recover(resume=True)
    assert (result.status, world) == (ends, list("abcd") if ends == "success" else [])


async def test_a_resumed_plan_has_a_deadline_again(tools: ToolRegistry, world: list[str]) -> None:
    @tool(registry=tools)
    async def wait() -> None:
        await anyio.sleep_forever()

    storage = Dying(1)  # before the deadline or at it, it does nothing more
    await Orchestrator(tools=tools, storage=storage).run_saga([Step("make", {"name": "a"}), Step("wait")], timeout=0.05)
    storage.left = 1000
    (result,) = await Orchestrator(tools=tools, storage=storage, clock=Later()).recover(resume=True)
    assert (result.status, type(result.exception), world) == ("rolled_back", RunTimeoutError, [])


class Stay(BaseModel):
    booking: str
    nights: int = 3


@pytest.mark.parametrize("says", [{"booking": "a"}, {"booking": ["a"]}])
async def test_what_verify_says_is_held_to_the_declared_result(world: list[str], says: Any) -> None:
    tools = ToolRegistry()

    @tool(registry=tools, compensating_tool="leave", verify=lambda: says)
    async def stay() -> Stay:
        world.append("a")
        return Stay(booking="a")

    @tool(registry=tools)
    async def leave(booking: Any) -> None:
        world.remove("".join(booking))

    @tool(registry=tools, compensating_tool="drop")
    async def pay(nights: int) -> None:
        world.append(f"{nights} nights")

    @tool(registry=tools)
    async def drop(nights: int) -> None: ...

    storage = Dying(2)
    await Orchestrator(tools=tools, storage=storage).run_saga(
        [Step("stay"), Step("pay", {"nights": Ref("stay", "nights")})]
    )
    storage.left = 1000
    (result,) = await Orchestrator(tools=tools, storage=storage, clock=Later()).recover(resume=True)
    if says["booking"] == "a":
        assert (result.status, result.result_of("stay"), world) == ("success", Stay(booking="a"), ["a", "3 nights"])
    else:
        assert (result.status, result.undone, world) == ("rolled_back", ("e1",), [])


async def test_what_verify_said_of_a_step_is_on_record_when_the_plan_goes_on(world: list[str]) -> None:
    """Whoever undoes it later need not ask again, and may get no answer."""
    tools, answers = ToolRegistry(), [{"booking": "a"}]

    def look() -> dict[str, str]:
        return answers.pop()

    @tool(registry=tools, compensating_tool="leave", verify=look)
    async def stay() -> dict[str, str]:
        world.append("a")
        return {"booking": "a"}

    @tool(registry=tools)
    async def leave(booking: str) -> None:
        world.remove(booking)

    storage = Dying(2)
    await Orchestrator(tools=tools, storage=storage).run_saga([Step("stay")])
    storage.left = 1000
    (result,) = await Orchestrator(tools=tools, storage=storage, clock=Later()).recover(resume=True)
    assert (result.status, result.in_doubt, answers, world) == ("success", (), [], ["a"])
    assert (await Orchestrator(tools=tools, storage=storage).undo(result.run_id)).status == "rolled_back"
    assert world == []


async def test_a_step_that_was_called_again_is_undone_once_if_the_plan_fails_later(world: list[str]) -> None:
    """The first call is known not to have happened, whatever ``verify`` would say of the second one."""
    tools, undone = ToolRegistry(), []

    @tool(registry=tools, compensating_tool="leave", verify=lambda: {"booking": "a"} if world else False)
    async def stay() -> dict[str, str]:
        world.append("a")
        return {"booking": "a"}

    @tool(registry=tools)
    async def leave(booking: str) -> None:
        undone.append(booking)
        world.remove(booking)

    @tool(registry=tools)
    async def fail() -> None:
        raise ValueError("no")

    storage = Dying(2)
    await Orchestrator(tools=tools, storage=storage).run_saga([Step("stay"), Step("fail")])
    world.clear()
    storage.left = 1000
    (result,) = await Orchestrator(tools=tools, storage=storage, clock=Later()).recover(resume=True)
    assert (result.status, result.undone, undone, world) == ("rolled_back", ("e2",), ["a"], [])


@pytest.mark.parametrize("returns", ["nothing", "a booking"])
async def test_a_step_that_is_found_done_keeps_its_plan_going_if_it_returns_nothing(
    world: list[str], returns: str
) -> None:
    tools = ToolRegistry()

    async def stay() -> Any:
        world.append("stay")
        return None if returns == "nothing" else {"booking": "a"}

    stay.__annotations__["return"] = None if returns == "nothing" else dict[str, str]
    tool(registry=tools, compensating_tool="leave", verify=lambda: "stay" in world)(stay)

    @tool(registry=tools)
    async def leave() -> None:
        world.remove("stay")

    @tool(registry=tools, compensating_tool="drop")
    async def pay() -> None:
        world.append("pay")

    @tool(registry=tools)
    async def drop() -> None:
        world.remove("pay")

    storage = Dying(2)
    await Orchestrator(tools=tools, storage=storage).run_saga([Step("stay"), Step("pay")])
    assert world == ["stay"]
    storage.left = 1000
    (result,) = await Orchestrator(tools=tools, storage=storage, clock=Later()).recover(resume=True)
    assert (result.status, world) == (("success", ["stay", "pay"]) if returns == "nothing" else ("rolled_back", []))
    if result.ok:
        assert (result.result_of("stay"), result.in_doubt) == (None, ())
        await Orchestrator(tools=tools, storage=storage).undo(result.run_id)
        assert world == []


async def test_what_a_resumed_plan_did_last_is_undone_first(tools: ToolRegistry, world: list[str]) -> None:
    """Also where a step ended twice: in doubt, and then well by what ``verify`` said."""
    known: list[Any] = []

    @tool(registry=tools, compensating_tool="unmake", verify=lambda: known[0])
    async def unsure() -> dict[str, str]:
        world.append("b")
        raise TimeoutError

    @tool(registry=tools)
    async def fail() -> None:
        raise ValueError("no")

    storage = InMemoryStorage()
    dying = FaultyStorage(storage, matching=lambda record: record.data.get("type") == "unwinding", do="crash")
    steps = [
        Step("make", {"name": "a"}, id="a"),
        Step("unsure"),
        Step("make", {"name": Ref("unsure", "thing")}, id="c"),
        Step("fail"),
    ]
    with pytest.raises(SimulatedCrash):
        await Orchestrator(tools=tools, storage=dying).run_saga(steps)
    known.append({"thing": "b"})
    (result,) = await Orchestrator(tools=tools, storage=storage, clock=Later()).recover(resume=True)
    assert (result.status, result.undone, world) == ("rolled_back", ("e3", "e2", "e1"), [])


@pytest.fixture
def nested(tools: ToolRegistry, world: list[str]) -> ToolRegistry:
    """With a tool that did not happen, but has done something inside, until ``outer`` is in the world."""

    @tool(registry=tools, compensating_tool="unmake", verify=lambda: "outer" in world)
    async def build() -> dict[str, str]:
        async with saga("inner") as scope:
            await scope.use("make", name="inner")
        world.append("outer")
        return {"thing": "outer"}

    return tools


async def test_what_a_call_that_did_not_happen_did_inside_is_taken_back_before_it_is_called_again(
    nested: ToolRegistry, world: list[str]
) -> None:
    """Also when whoever was told that it did not happen died right after writing that down."""
    storage = Dying(4)  # it has done what it does inside, and dies with its own work
    await Orchestrator(tools=nested, storage=storage).run_saga([Step("build")])
    world.remove("outer")
    storage.left = 2  # the claim, and what verify said
    with pytest.raises(StorageError):
        await Orchestrator(tools=nested, storage=storage, clock=Later()).recover(resume=True)
    assert world == ["inner"]
    storage.left = 1000

    (result,) = await Orchestrator(tools=nested, storage=storage, clock=Later(31.0)).recover(resume=True)

    assert (result.status, world) == ("success", ["inner", "outer"])
    await Orchestrator(tools=nested, storage=storage).undo(result.run_id)
    assert world == ["inner"]  # which is what undoing `build` covers


async def test_what_it_did_inside_is_taken_back_however_deep(world: list[str]) -> None:
    tools = ToolRegistry()

    @tool(registry=tools, compensating_tool="unmake")
    async def make(name: str) -> dict[str, str]:
        world.append(name)
        return {"thing": name}

    @tool(registry=tools)
    async def unmake(thing: str) -> None:
        world.remove(thing)

    def called() -> ToolExecutor:
        executor = current_executor()
        assert executor is not None
        return executor

    @tool(registry=tools, side_effects=["x:write"], verify=lambda: "between" in world)
    async def between() -> None:
        await called().call("make", {"name": "deep"})
        world.append("between")

    @tool(registry=tools, compensating_tool="unmake", verify=lambda: False)
    async def build() -> dict[str, str]:
        await called().call("between", {})
        return {"thing": "outer"}

    storage = Dying(5)  # opened, and that all three have begun and the deepest has ended
    await Orchestrator(tools=tools, storage=storage).run_saga([Step("build")])
    assert world == ["deep", "between"]
    world.remove("between")
    storage.left = 1000

    (result,) = await Orchestrator(tools=tools, storage=storage, clock=Later()).recover(resume=True)

    assert (result.status, world) == ("success", ["deep", "between"])


async def test_a_failing_run_inside_a_resumed_one_undoes_nothing_of_those_before_it(
    tools: ToolRegistry, world: list[str]
) -> None:
    """Whichever of them did something last before the process died."""
    entered, made = {name: anyio.Event() for name in "ab"}, anyio.Event()

    @tool(registry=tools, side_effects=["x:write"])
    async def nest(name: str) -> dict[str, str]:
        if name == "b":
            await entered["a"].wait()
        async with saga(name) as scope:
            entered[name].set()
            if name == "a":
                await made.wait()
            thing = await scope.use("make", name=name)
            made.set()
        return dict(thing)

    @tool(registry=tools)
    async def attempt() -> str:
        with pytest.raises(ValueError, match="not today"):
            async with saga("attempt") as scope:
                await scope.use("make", name="c")
                raise ValueError("not today")
        return "given up"

    @tool(registry=tools, side_effects=["x:write"])
    async def pause() -> None: ...

    storage = InMemoryStorage()
    dying = FaultyStorage(storage, matching=lambda record: record.data.get("tool") == "pause", do="crash")
    steps = [[Step("nest", {"name": name}, id=name) for name in "ab"], Step("pause"), Step("attempt")]
    with pytest.raises(SimulatedCrash):
        await Orchestrator(tools=tools, storage=dying).run_saga(steps)
    world[:] = ["b", "a"]  # a process that is dead undoes nothing
    (result,) = await Orchestrator(tools=tools, storage=storage, clock=Later()).recover(resume=True)
    assert (result.status, result.result_of("attempt"), world) == ("success", "given up", ["b", "a"])


async def test_what_was_done_inside_by_a_tool_that_has_changed_since_is_left_alone(world: list[str]) -> None:
    """Nobody knows whether what undoes it now undoes what was done then, so the plan does not go on."""
    storage, calls = Dying(4), []

    def version(number: int) -> ToolRegistry:
        tools = ToolRegistry()

        @tool(registry=tools, compensating_tool="unmake", idempotent=number > 1)
        async def make() -> dict[str, str]:
            world.append(f"v{number}")
            return {"thing": f"v{number}"}

        @tool(registry=tools)
        async def unmake(thing: str) -> None:
            calls.append(thing)

        @tool(registry=tools, side_effects=["x:write"], verify=lambda: False)
        async def build() -> None:
            executor = current_executor()
            assert executor is not None
            await executor.call("make", {})

        return tools

    await Orchestrator(tools=version(1), storage=storage).run_saga([Step("build")])
    storage.left = 1000
    (result,) = await Orchestrator(tools=version(2), storage=storage, clock=Later()).recover(resume=True)
    assert (result.status, calls, world) == ("failed", [], ["v1"])
    assert [stuck.tool for stuck in result.stuck] == ["make"]


async def test_an_undo_inside_a_call_that_was_to_be_made_again_is_not_left_half_done(
    nested: ToolRegistry, world: list[str]
) -> None:
    """Also in a run that is left as it is: nobody would ever hear of it."""
    storage = Dying(4)
    await Orchestrator(tools=nested, storage=storage).run_saga([Step("build")], on_error="stop")
    world.remove("outer")
    storage.left = 3  # the claim, what verify said, and that the undo begins
    await Orchestrator(tools=nested, storage=storage, clock=Later()).recover(resume=True)
    assert world[:1] != ["inner"]
    storage.left = 1000

    (result,) = await Orchestrator(tools=nested, storage=storage, clock=Later(31.0)).recover()

    assert result.status == "stopped"
    assert [stuck.reason for stuck in result.stuck] == [
        "an undo of make was interrupted; nobody knows whether it worked"
    ]
