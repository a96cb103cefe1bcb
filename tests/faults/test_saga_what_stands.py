"""Effects that can't be undone, or need not be: each is named with its reason, and the rest is undone."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest
from pydantic import SecretStr

from agenthelm._runtime.retry import SystemClock
from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import Tool, ToolRegistry, tool
from agenthelm.exceptions import LeaseLostError, PlanError, StalePositionError, StorageError
from agenthelm.orchestration import journal as journals
from agenthelm.orchestration.fold import fold
from agenthelm.orchestration.journal import Journal, stream_of
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Ref, Step, saga
from agenthelm.testing.storage import FaultyStorage, SimulatedCrash
from tests.support.saga_leases import Later


class World:
    def __init__(self) -> None:
        self.things: list[str] = []
        self.says: Any = None
        self.tools = ToolRegistry()

        @tool(registry=self.tools, compensating_tool="unmake")
        async def make(name: str) -> dict[str, str]:
            self.things.append(name)
            return {"thing": name}

        @tool(registry=self.tools)
        async def unmake(thing: str) -> None:
            self.things.remove(thing)

        @tool(registry=self.tools)
        async def fail() -> None:
            raise ValueError("no")

    def look(self) -> Any:
        if isinstance(self.says, Exception):
            raise self.says
        return self.says

    async def undone_by(self, tools: ToolRegistry, run_id: str, storage: Any) -> Any:
        return await Orchestrator(tools=tools, storage=storage, clock=Later()).undo(run_id)

    def without(self, *names: str) -> ToolRegistry:
        return ToolRegistry(entry for name, entry in self.tools.items() if name not in names)


@pytest.fixture
def world() -> World:
    return World()


# -- an app that is not the one that ran -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lacks", "named"),
    [
        (["unmake"], "the compensating tool 'unmake' of 'make' is not registered"),
        (["make", "unmake"], "tool 'make' is not registered"),
    ],
)
async def test_an_app_without_the_tools_of_a_run_leaves_it_to_one_that_has_them(
    world: World, lacks: list[str], named: str
) -> None:
    storage = InMemoryStorage()
    dying = FaultyStorage(storage, matching=lambda record: record.data.get("type") == "closed", do="crash")
    with pytest.raises(SimulatedCrash):
        async with saga(tools=world.tools, storage=dying) as scope:
            await scope.use("make", name="a")
    before = await storage.read(stream_of(scope.run_id))
    wrong = Orchestrator(tools=world.without(*lacks), storage=storage, clock=Later())
    for end in (wrong.undo, wrong.recover, wrong.retry):
        with pytest.raises(PlanError, match=named):
            await end(scope.run_id)
    (left,) = await wrong.recover()
    assert (left.status, left.run_id, isinstance(left.exception, PlanError)) == ("failed", scope.run_id, True)
    assert named in str(left.error)
    assert (world.things, await storage.read(stream_of(scope.run_id))) == (["a"], before)
    (result,) = await Orchestrator(tools=world.tools, storage=storage, clock=Later()).recover()
    assert (result.status, world.things) == ("rolled_back", [])


async def test_nothing_of_a_run_is_undone_where_a_part_of_its_tools_is_missing(world: World) -> None:
    @tool(registry=world.tools, compensating_tool="unmake")
    async def make_other(name: str) -> dict[str, str]:
        world.things.append(name)
        return {"thing": name}

    storage = InMemoryStorage()
    async with saga(tools=world.tools, storage=storage) as scope:
        await scope.use("make_other", name="a")
        await scope.use("make", name="b")
    with pytest.raises(PlanError, match="tool 'make_other' is not registered"):
        await world.undone_by(world.without("make_other"), scope.run_id, storage)
    assert world.things == ["a", "b"]


async def test_what_is_stuck_is_tried_again_only_where_its_tools_are(world: World) -> None:
    storage = InMemoryStorage()
    async with saga(tools=world.tools, storage=storage) as scope:
        await scope.use("make", name="a")
    world.things.clear()
    assert (await world.undone_by(world.tools, scope.run_id, storage)).status == "failed"
    world.things.append("a")
    with pytest.raises(PlanError, match="'unmake'"):
        await Orchestrator(tools=world.without("unmake"), storage=storage).retry(scope.run_id)
    result = await Orchestrator(tools=world.tools, storage=storage).retry(scope.run_id)
    assert (result.status, world.things) == ("rolled_back", [])


async def test_what_nothing_undoes_needs_no_tool_to_say_so(world: World) -> None:
    @tool(registry=world.tools, side_effects=["mail:send"])
    async def send() -> None: ...

    storage = InMemoryStorage()
    async with saga(tools=world.tools, storage=storage) as scope:
        await scope.use("make", name="a")
        await scope.use("send")
    result = await world.undone_by(world.without("send"), scope.run_id, storage)
    assert [stuck.reason for stuck in result.stuck] == ["no tool undoes it"]
    assert world.things == []


async def test_a_contract_that_changed_since_the_call_is_not_relied_on(world: World) -> None:
    storage = InMemoryStorage()
    async with saga(tools=world.tools, storage=storage) as scope:
        await scope.use("make", name="a")
    changed = world.without("make")

    @tool(registry=changed, compensating_tool="unmake", idempotent=True)
    async def make(name: str) -> dict[str, str]:
        return {"thing": name}

    result = await world.undone_by(changed, scope.run_id, storage)
    assert (result.status, world.things) == ("failed", ["a"])
    assert "changed its contract" in result.stuck[0].reason
    retried = await Orchestrator(tools=world.tools, storage=storage).retry(scope.run_id)  # the old app can
    assert (retried.status, world.things) == ("rolled_back", [])


@pytest.mark.parametrize("idempotent", [False, True])
async def test_a_call_that_failed_is_not_stuck_because_its_contract_changed_since(
    world: World, idempotent: bool
) -> None:
    """It did nothing. Only where undoing it would be harmless, and so was promised, somebody has to look."""

    @tool(registry=world.tools, idempotent=idempotent)
    async def cancel(name: str) -> None: ...

    @tool(registry=world.tools, compensating_tool="cancel")
    async def reserve(name: str) -> None:
        raise ValueError("fully booked")

    storage = InMemoryStorage()
    async with saga(tools=world.tools, storage=storage) as scope:
        await scope.use("make", name="a")
        with pytest.raises(ValueError, match="fully booked"):
            await scope.use("reserve", name="b")
    changed = world.without("reserve")
    tool(registry=changed, compensating_tool="cancel", idempotent=True, name="reserve")(reserve)
    result = await world.undone_by(changed, scope.run_id, storage)
    assert (result.status, world.things) == ("failed" if idempotent else "rolled_back", [])
    assert [stuck.tool for stuck in result.stuck] == (["reserve"] if idempotent else [])


async def test_a_result_that_could_not_be_stored_undoes_a_live_run_but_not_a_recorded_one(world: World) -> None:
    class Handle:
        def __init__(self, name: str) -> None:
            self.name = name

    @tool(registry=world.tools, compensating_tool="close")
    async def open_(name: str) -> Any:
        world.things.append(name)
        return Handle(name)

    @tool(registry=world.tools)
    async def close(result: Any) -> None:
        world.things.remove(result.name)

    storage = InMemoryStorage()
    with pytest.raises(ValueError, match="no"):
        async with saga(tools=world.tools, storage=storage) as live:
            await live.use("open_", name="live")
            raise ValueError("no")
    assert world.things == []
    async with saga(tools=world.tools, storage=storage) as kept:
        await kept.use("open_", name="kept")
    result = await world.undone_by(world.tools, kept.run_id, storage)
    assert (result.stuck[0].reason, world.things) == ("close needs the result, which is not on record", ["kept"])


async def test_a_secret_that_no_journal_holds_is_named_when_it_is_needed_after_the_fact(world: World) -> None:
    @tool(registry=world.tools, compensating_tool="log_out")
    async def log_in(account: Any) -> None:
        world.things.append("session")

    @tool(registry=world.tools)
    async def log_out(account: Any) -> None:
        world.things.remove("session")

    storage = InMemoryStorage()
    async with saga(tools=world.tools, storage=storage) as scope:
        await scope.use("log_in", account={"password": SecretStr("hunter2")})
    result = await world.undone_by(world.tools, scope.run_id, storage)
    assert result.stuck[0].reason == "log_out needs 'account', which the journal does not hold"
    assert world.things == ["session"]


@pytest.mark.parametrize("hinted", [True, False])
async def test_a_result_that_is_a_secret_or_a_list_of_them_is_in_no_journal(world: World, hinted: bool) -> None:
    @tool(registry=world.tools, compensating_tool="revoke")
    async def issue() -> SecretStr:
        return SecretStr("hunter22")

    @tool(registry=world.tools, compensating_tool="revoke")
    async def issue_some() -> Any:
        return [SecretStr("hunter22")]

    @tool(registry=world.tools)
    async def revoke(idempotency_key: str) -> None:
        world.things.append("revoked")

    storage = InMemoryStorage()
    async with saga(tools=world.tools, storage=storage) as scope:
        await scope.use("issue" if hinted else "issue_some")
    assert "hunter22" not in str(await storage.read(stream_of(scope.run_id)))
    result = await world.undone_by(world.tools, scope.run_id, storage)  # by the key, which is no secret
    assert (result.status, world.things) == ("rolled_back", ["revoked"])


# -- what nothing undoes, but somebody can look at ---------------------------------------------------------------------


@pytest.mark.parametrize(("says", "status"), [(False, "rolled_back"), (True, "failed"), (OSError("down"), "failed")])
async def test_an_irreversible_call_in_doubt_is_stuck_unless_it_is_seen_not_to_have_happened(
    world: World, says: Any, status: str
) -> None:
    @tool(registry=world.tools, side_effects=["mail:send"], verify=world.look)
    async def send() -> None: ...

    storage = InMemoryStorage()
    dying = FaultyStorage(storage, matching=lambda record: record.data.get("type") == "finish", do="crash")
    with pytest.raises(SimulatedCrash):
        async with saga(tools=world.tools, storage=dying) as scope:
            await scope.use("send")
    world.says = says
    (result,) = await Orchestrator(tools=world.tools, storage=storage, clock=Later()).recover()
    assert result.status == status
    assert [stuck.reason for stuck in result.stuck] == ([] if status == "rolled_back" else ["no tool undoes it"])
    state = fold(scope.run_id, await storage.read(stream_of(scope.run_id)))
    assert state.effects["e1"].status == ("undone" if status == "rolled_back" else "stuck")


async def test_an_irreversible_call_in_doubt_names_the_verify_tool_that_is_missing(world: World) -> None:
    @tool(registry=world.tools, side_effects=["mail:send"], verify="look_up")
    async def send() -> None:
        raise TimeoutError

    @tool(registry=world.tools)
    async def look_up() -> bool:
        raise OSError("down")

    storage = InMemoryStorage()
    async with saga(tools=world.tools, storage=storage) as scope:
        with pytest.raises(TimeoutError):
            await scope.use("send")
    with pytest.raises(PlanError, match="the verify tool 'look_up' of 'send' is not registered"):
        await world.undone_by(world.without("look_up"), scope.run_id, storage)


async def test_a_verify_whose_own_storage_fails_does_not_keep_the_rest_from_being_undone(world: World) -> None:
    @tool(registry=world.tools, compensating_tool="unmake", verify=world.look)
    async def unsure(name: str) -> dict[str, str]:
        raise TimeoutError

    world.says = StorageError("the ledger can't be read")
    with pytest.raises(ValueError, match="no"):
        async with saga(tools=world.tools, storage=InMemoryStorage()) as scope:
            await scope.use("make", name="a")
            with pytest.raises(TimeoutError):
                await scope.use("unsure", name="b")
            raise ValueError("no")
    assert world.things == []
    assert scope.result is not None
    assert [stuck.tool for stuck in scope.result.stuck] == ["unsure"]


# -- an undo that was interrupted --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "status", "left"),
    [
        (False, "rolled_back", ["a"]),  # seen to be undone: it is not repeated
        (True, "rolled_back", []),
        ({"thing": "a"}, "rolled_back", []),
        (OSError("down"), "failed", ["a"]),
    ],
)
async def test_an_interrupted_undo_is_repeated_only_if_the_effect_is_seen_to_stand(
    world: World, says: Any, status: str, left: list[str]
) -> None:
    @tool(registry=world.tools, compensating_tool="unmake", verify=world.look)
    async def book(name: str) -> dict[str, str]:
        world.things.append(name)
        return {"thing": name}

    storage = InMemoryStorage()
    async with saga(tools=world.tools, storage=storage) as scope:
        await scope.use("book", name="a")
    dying = FaultyStorage(
        storage, matching=lambda record: record.data.get("type") == "undoing", do="crash", moment="after"
    )
    with pytest.raises(BaseException) as died:
        await Orchestrator(tools=world.tools, storage=dying).undo(scope.run_id)
    assert died.group_contains(SimulatedCrash) or isinstance(died.value, SimulatedCrash)
    state = fold(scope.run_id, await storage.read(stream_of(scope.run_id)))
    assert state.effects["e1"].status == "undoing"
    world.says = says
    (result,) = await Orchestrator(tools=world.tools, storage=storage, clock=Later()).recover()
    assert (result.status, world.things) == (status, left)
    state = fold(scope.run_id, await storage.read(stream_of(scope.run_id)))
    assert state.effects["e1"].status == ("stuck" if result.stuck else "undone")
    if result.stuck:
        assert "interrupted; nobody knows whether it worked" in result.stuck[0].reason


# -- a plan that is to go on -------------------------------------------------------------------------------------------


async def test_a_plan_does_not_go_on_without_a_result_that_is_lost(world: World) -> None:
    """``verify`` only says that it happened; what it returned, later steps would need."""

    @tool(registry=world.tools, compensating_tool="drop", verify=lambda: True)
    async def hire() -> dict[str, str]:
        world.things.append("hired")
        return {"thing": "hired"}

    @tool(registry=world.tools)
    async def drop() -> None:
        world.things.remove("hired")

    storage = InMemoryStorage()
    dying = FaultyStorage(storage, matching=lambda record: record.data.get("type") == "finish", do="crash")
    with pytest.raises(SimulatedCrash):
        await Orchestrator(tools=world.tools, storage=dying).run_saga([Step("hire"), Step("make", {"name": "a"})])
    assert world.things == ["hired"]
    (result,) = await Orchestrator(tools=world.tools, storage=storage, clock=Later()).recover(resume=True)
    assert (result.status, world.things) == ("rolled_back", [])


async def died_in_doubt(world: World, steps: list[Step], *, at: int = 1) -> InMemoryStorage:
    """A plan whose process died before the end of a call was on record."""
    storage = InMemoryStorage()
    dying = FaultyStorage(storage, at=at, matching=lambda record: record.data.get("type") == "finish", do="crash")
    with pytest.raises(SimulatedCrash):
        await Orchestrator(tools=world.tools, storage=dying).run_saga(steps)
    return storage


@pytest.mark.parametrize(
    ("says", "status", "calls", "left"),
    [
        ({"thing": "a"}, "success", ["a"], ["a", "a+"]),  # what it returned is known, and it is not called again
        (False, "success", ["a", "a"], ["a", "a+"]),  # it did not happen, so it is called again
        (OSError("down"), "failed", ["a"], ["a"]),  # nobody knows: neither repeated nor undone
    ],
)
async def test_a_plan_goes_on_from_a_call_in_doubt_by_what_verify_says(
    world: World, says: Any, status: str, calls: list[str], left: list[str]
) -> None:
    called: list[str] = []

    @tool(registry=world.tools, compensating_tool="unmake", verify=world.look)
    async def book(name: str) -> dict[str, str]:
        called.append(name)
        world.things.append(name)
        return {"thing": name}

    @tool(registry=world.tools)
    async def extend(thing: str) -> None:
        world.things.append(f"{thing}+")

    storage = await died_in_doubt(world, [Step("book", {"name": "a"}), Step("extend", {"thing": Ref("book", "thing")})])
    if says is False:
        world.things.clear()  # as verify says
    world.says = says
    (result,) = await Orchestrator(tools=world.tools, storage=storage, clock=Later()).recover(resume=True)
    assert (result.status, called, world.things) == (status, calls, left)


@pytest.mark.parametrize("reachable", [True, False])
async def test_before_a_step_is_called_again_what_its_first_call_did_inside_is_taken_back(
    world: World, reachable: bool
) -> None:
    @tool(registry=world.tools, compensating_tool="unwrap")
    async def wrap(name: str, idempotency_key: str) -> dict[str, str]:
        async with saga("inside") as inside:
            return dict(await inside.use("make", name=name))

    @tool(registry=world.tools)
    async def unwrap(thing: str) -> None:
        world.things.remove(thing)

    storage = await died_in_doubt(world, [Step("wrap", {"name": "a"})], at=2)
    assert world.things == ["a"]
    if not reachable:
        world.things.clear()  # somebody else took it: its undo fails
    (result,) = await Orchestrator(tools=world.tools, storage=storage, clock=Later()).recover(resume=True)
    assert (result.status, world.things) == (("success", ["a"]) if reachable else ("failed", []))


async def test_a_plan_does_not_repeat_a_nested_run_of_a_step_that_is_no_effect_itself(world: World) -> None:
    @tool(registry=world.tools)
    async def outline() -> None:
        async with saga("inside") as inside:
            await inside.use("make", name="a")

    storage = InMemoryStorage()
    dying = FaultyStorage(storage, matching=lambda record: record.data.get("type") == "closed", do="crash")
    with pytest.raises(SimulatedCrash):
        await Orchestrator(tools=world.tools, storage=dying).run_saga([Step("outline")])
    (result,) = await Orchestrator(tools=world.tools, storage=storage, clock=Later()).recover(resume=True)
    assert (result.status, world.things) == ("rolled_back", [])


async def test_a_plan_does_not_go_on_from_a_result_that_could_not_be_stored(world: World) -> None:
    @tool(registry=world.tools, compensating_tool="drop")
    async def hire() -> Any:
        world.things.append("hired")
        return threading.Lock()

    @tool(registry=world.tools)
    async def drop() -> None:
        world.things.remove("hired")

    storage = InMemoryStorage()
    dying = FaultyStorage(storage, at=2, matching=lambda record: record.data.get("type") == "begin", do="crash")
    with pytest.raises(SimulatedCrash):
        await Orchestrator(tools=world.tools, storage=dying).run_saga([Step("hire"), Step("make", {"name": "a"})])
    (result,) = await Orchestrator(tools=world.tools, storage=storage, clock=Later()).recover(resume=True)
    assert (result.status, world.things) == ("rolled_back", [])


async def test_a_plan_does_not_go_on_with_a_tool_whose_contract_has_changed(world: World) -> None:
    storage = InMemoryStorage()
    dying = FaultyStorage(storage, at=2, matching=lambda record: record.data.get("type") == "begin", do="crash")
    steps = [Step("make", {"name": name}, id=name) for name in "ab"]
    with pytest.raises(SimulatedCrash):
        await Orchestrator(tools=world.tools, storage=dying).run_saga(steps)
    changed = world.without("make")

    @tool(registry=changed, compensating_tool="unmake", idempotent=True)
    async def make(name: str) -> dict[str, str]:
        raise AssertionError("never called")

    (result,) = await Orchestrator(tools=changed, storage=storage, clock=Later()).recover(resume=True)
    assert (result.status, world.things) == ("failed", ["a"])
    assert "changed its contract" in result.stuck[0].reason


# -- a run that is not what it seems -----------------------------------------------------------------------------------


async def test_a_nested_saga_that_left_something_standing_fails_the_run_that_went_on(world: World) -> None:
    @tool(registry=world.tools, side_effects=["mail:send"])
    async def send() -> None: ...

    async with saga(tools=world.tools, storage=InMemoryStorage()) as scope:
        await scope.use("make", name="a")
        with pytest.raises(ValueError, match="no"):
            async with saga("inside") as inside:
                await inside.use("send")
                raise ValueError("no")
    assert scope.result is not None
    assert (scope.result.status, [stuck.tool for stuck in scope.result.stuck]) == ("failed", ["send"])
    assert world.things == ["a"]


async def test_a_run_whose_lease_can_not_be_renewed_makes_no_further_call(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "RENEW_SECONDS", 0.05)
    tried = anyio.Event()

    def renewing(record: Any) -> bool:
        if record.data.get("type") == "renewed":
            tried.set()
            return True
        return False

    storage = FaultyStorage(InMemoryStorage(), matching=renewing)
    with anyio.fail_after(60), pytest.raises(StorageError, match="told to fail"):
        async with saga(tools=world.tools, storage=storage) as scope:
            await tried.wait()
            await scope.use("make", name="a")
    assert world.things == []


class Queue(InMemoryStorage):
    """Takes one append after the other, as a disk does; the first of a run is slow, and fails."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = anyio.Lock()
        self.go_on = anyio.Event()
        self.full = True

    async def append(self, records: Any, expected: Any = None) -> dict[str, int]:
        async with self.turn:
            if self.full:
                self.full = False
                await self.go_on.wait()
                raise StorageError("the disk is full")
            return await super().append(records, expected)


async def test_a_record_behind_one_that_failed_tells_of_that_and_not_of_another_process() -> None:
    storage = Queue()
    journal = Journal(storage, "r", SystemClock())
    told: list[str] = []

    async def append() -> None:
        try:
            await journal.append("renewed")
        except StorageError as error:
            told.append(str(error))

    async with anyio.create_task_group() as group:
        group.start_soon(append)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(append)
        await anyio.wait_all_tasks_blocked()
        storage.go_on.set()
    assert told == ["the disk is full"] * 2
    assert journal.lost is None


async def test_a_journal_that_was_lost_is_never_written_again() -> None:
    storage = InMemoryStorage()
    ours, theirs = (Journal(storage, "r", SystemClock(), epoch=epoch) for epoch in (0, 1))
    await theirs.append("renewed")
    for _ in range(2):  # the second position would fit
        with pytest.raises(LeaseLostError, match="'r' was claimed"):
            await ours.append("renewed")
    assert [record.data["epoch"] for record in await storage.read(stream_of("r"))] == [1]


@pytest.mark.parametrize("harmless", [True, False])
async def test_who_loses_a_run_just_before_an_undo_does_not_begin_it(world: World, harmless: bool) -> None:
    """Also one that may be repeated: whoever claimed the run may be at it."""
    unmake = world.tools["unmake"]
    world.tools.register(Tool.from_function(unmake.function, unmake.contract, idempotent=harmless), replace=True)
    storage = InMemoryStorage()
    async with saga(tools=world.tools, storage=storage) as scope:
        await scope.use("make", name="a")
    stale = StalePositionError(stream_of(scope.run_id), expected=5, actual=6)
    losing = FaultyStorage(storage, matching=lambda record: record.data.get("type") == "undoing", error=stale)
    with pytest.raises(LeaseLostError):
        await Orchestrator(tools=world.tools, storage=losing).undo(scope.run_id)
    assert world.things == ["a"]
    (result,) = await Orchestrator(tools=world.tools, storage=storage, clock=Later()).recover()
    assert (result.status, world.things) == ("rolled_back", [])


async def test_an_error_that_has_a_run_id_of_its_own_keeps_it_and_still_brings_the_saga(world: World) -> None:
    class TheirError(Exception):
        @property
        def run_id(self) -> str:
            return "theirs"

    with pytest.raises(TheirError) as caught:
        async with saga(tools=world.tools, storage=InMemoryStorage()) as scope:
            await scope.use("make", name="a")
            raise TheirError
    assert caught.value.run_id == "theirs"
    assert caught.value.saga is scope.result  # type: ignore[attr-defined]
