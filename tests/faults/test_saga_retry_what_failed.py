"""A branch that could not be undone in a run that went well: retry and resolve are about that branch, not about the run."""

from __future__ import annotations

from typing import Any

import pytest

from agenthelm.agent.base import Agent
from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import OutcomeUnknown, StorageError
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.parallel import Parallel
from agenthelm.orchestration.results import RunResult
from agenthelm.orchestration.saga import Step, saga
from tests.support.saga_leases import Later


class Branch(Agent):
    async def aforward(self, context: Any, task: str) -> dict[str, Any]:
        await self.ause("make", name=self.name)
        if self.name == "bad":
            raise ValueError("bad luck")
        return {}


class Desk:
    """A world in memory; what undoes is broken until it is mended."""

    def __init__(self) -> None:
        self.world: list[str] = []
        self.broken = True
        self.tools = ToolRegistry()
        self.storage = Dying()

        @tool(registry=self.tools, compensating_tool="unmake")
        async def make(name: str) -> dict[str, str]:
            self.world.append(name)
            return {"thing": name}

        @tool(registry=self.tools)
        async def unmake(thing: str) -> None:
            if self.broken:
                raise ValueError("broken")
            self.world.remove(thing)

        @tool(registry=self.tools, compensating_tool="unmake")
        async def fails_at_first(name: str) -> dict[str, str]:
            self.world.append("called")
            raise ValueError("not now")

    def orchestrator(self, **options: Any) -> Orchestrator:
        return Orchestrator(tools=self.tools, storage=self.storage, **options)

    async def run(self, **options: Any) -> RunResult:
        both = Parallel([Branch(name="good"), Branch(name="bad")], on_error="collect")
        result = await self.orchestrator().run(both, "go", **options)
        assert [stuck.reason for stuck in result.saga.stuck] == ["unmake failed: ValueError: broken"]
        self.broken = False
        return result


class Dying(InMemoryStorage):
    """Takes no more records after one of a kind."""

    last = ""
    dead = False

    async def append(self, records: Any, expected: Any = None) -> dict[str, int]:
        if self.dead:
            raise StorageError("dead")
        positions = await super().append(records, expected)
        self.dead = any(record.data.get("type") == self.last for record in records)
        return positions


@pytest.mark.parametrize(("rollback", "ended"), [(True, "success"), (False, "stopped")])
async def test_retry_undoes_the_branch_and_lets_the_rest_stand(rollback: bool, ended: str) -> None:
    desk = Desk()
    run = await desk.run(rollback=rollback)
    again = await desk.orchestrator().retry(run.run_id)
    assert desk.world == ["good"]
    assert (again.status, again.stuck) == ("success", ())
    await desk.orchestrator().undo(run.run_id)
    assert desk.world == []


@pytest.mark.parametrize("outcome", ["done", "undone"])
async def test_resolve_ends_as_the_run_went_and_it_can_be_taken_back(outcome: Any) -> None:
    desk = Desk()
    run = await desk.run()
    settled = await desk.orchestrator().resolve(run.run_id, run.saga.stuck[0].effect_id, outcome=outcome)
    assert settled.status == "success"
    assert (await desk.orchestrator().undo(run.run_id)).status == "rolled_back"
    assert "good" not in desk.world


@pytest.mark.parametrize("last", ["claimed", "undoing"])
async def test_a_retry_that_dies_is_finished_and_no_more_is_undone(last: str) -> None:
    desk = Desk()
    run = await desk.run()
    desk.storage.last = last
    desk.broken = last == "undoing"
    try:
        await desk.orchestrator().retry(run.run_id)
    except StorageError:
        pass
    desk.storage.last, desk.storage.dead, desk.broken = "", False, False
    (result,) = await desk.orchestrator(clock=Later()).recover()
    assert "good" in desk.world
    assert result.status == ("success" if last == "claimed" else "failed")  # of an interrupted undo nobody knows


@pytest.mark.parametrize("resume", [False, True])
async def test_an_undo_that_dies_before_it_decided_is_finished_and_nothing_is_called_again(resume: bool) -> None:
    desk = Desk()
    desk.broken = False
    steps = [Step("make", {"name": "a"}, id="a"), Step("fails_at_first", {"name": "b"}, id="b")]
    result = await desk.orchestrator().run_saga(steps, on_error="continue")
    assert (result.status, desk.world) == ("success", ["a", "called"])
    desk.storage.last = "claimed"
    with pytest.raises(StorageError):
        await desk.orchestrator().undo(result.run_id)
    desk.storage.last, desk.storage.dead = "", False
    (recovered,) = await desk.orchestrator(clock=Later()).recover(resume=resume)
    assert (recovered.status, desk.world) == ("rolled_back", ["called"])


@pytest.mark.parametrize("idempotent", [False, True])
async def test_a_retry_of_what_a_call_did_that_was_undone_since_is_finished_when_it_dies(idempotent: bool) -> None:
    desk = Desk()

    @tool(registry=desk.tools, compensating_tool="drop")
    async def put(name: str, idempotency_key: str) -> None:
        desk.world.append(idempotency_key)

    @tool(registry=desk.tools, idempotent=idempotent)
    async def drop(idempotency_key: str) -> None:
        if desk.broken:
            raise ValueError("broken")
        desk.world.remove(idempotency_key)

    @tool(registry=desk.tools, compensating_tool="unwrap")
    async def wrap(idempotency_key: str) -> None:
        async with saga("inner") as inner:
            await inner.use("put", name="a")
            raise OutcomeUnknown("who knows")

    @tool(registry=desk.tools)
    async def unwrap(idempotency_key: str) -> None: ...

    run = await desk.orchestrator().run_saga([Step("wrap")])
    assert (run.status, [stuck.tool for stuck in run.stuck], len(desk.world)) == ("failed", ["put"], 1)
    desk.storage.last = "undoing"
    with pytest.raises(StorageError):
        await desk.orchestrator().retry(run.run_id)
    desk.storage.last, desk.storage.dead, desk.broken = "", False, False
    (result,) = await desk.orchestrator(clock=Later()).recover()
    if idempotent:
        assert (result.status, desk.world) == ("rolled_back", [])
    else:
        assert (result.status, len(desk.world)) == ("failed", 1)
        assert ["was interrupted" in stuck.reason for stuck in result.stuck] == [True]
