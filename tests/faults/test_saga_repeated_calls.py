"""Two calls under one key are one effect only if the tool says so; else the one in doubt is reported."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from agenthelm.agent.base import Agent
from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.orchestration.fold import fold
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step, saga
from agenthelm.testing.storage import FaultyStorage, SimulatedCrash
from tests.support.saga_leases import Later


class Insisting(Agent):
    async def aforward(self, context: Any, task: str) -> dict[str, Any]:
        with pytest.raises(ConnectionError):
            await self.ause("pay", idempotency_key="k")
        await self.ause("pay", idempotency_key="k")
        if task == "fail":
            raise ValueError("later")
        return {}


@pytest.mark.parametrize("idempotent", [False, True])
async def test_what_may_have_happened_twice(idempotent: bool) -> None:
    tools, paid, storage = ToolRegistry(), [], InMemoryStorage()

    @tool(registry=tools, side_effects=["x:write"], compensating_tool="refund", idempotent=idempotent)
    async def pay(idempotency_key: str) -> dict[str, str]:
        paid.append(f"p{len(paid)}")
        if len(paid) == 1:
            raise ConnectionError
        return {"thing": paid[-1]}

    @tool(registry=tools)
    async def refund(thing: str) -> None:
        paid.remove(thing)

    orchestrator = Orchestrator(tools=tools, storage=storage)
    result = await orchestrator.run(Insisting(name="a"), "go")
    assert result.in_doubt == (() if idempotent else ("e1",))
    state = fold("r", await storage.read(f"run:{result.run_id}"))
    assert state.effects["e1"].settled is idempotent
    paid.clear()
    with pytest.raises(ValueError, match="later") as failed:
        await orchestrator.run(Insisting(name="a"), "fail")
    saga = failed.value.saga  # type: ignore[attr-defined]
    assert [stuck.effect_id for stuck in saga.stuck] == ([] if idempotent else ["e1"])


class Till:
    """Payments by key, as a provider keeps them, and how often each was given back."""

    def __init__(self) -> None:
        self.tools = ToolRegistry()
        self.storage = InMemoryStorage()
        self.paid: set[str] = set()
        self.refunds: list[str] = []

        @tool(registry=self.tools, side_effects=["x:write"], compensating_tool="refund")
        async def pay(idempotency_key: str) -> dict[str, str]:
            self.paid.add(idempotency_key)
            return {"payment": idempotency_key}

        @tool(registry=self.tools)
        async def refund(payment: str) -> None:
            self.refunds.append(payment)
            self.paid.discard(payment)

    def saga(self) -> Any:
        return saga(tools=self.tools, storage=self.storage)


@pytest.mark.parametrize("live", [True, False], ids=["live", "later"])
async def test_two_successes_under_one_key_are_one_effect_and_undone_once(live: bool) -> None:
    till = Till()
    with pytest.raises(ValueError, match="later") if live else nullcontext():
        async with till.saga() as scope:
            for key in ("k", "k", "other", "k"):
                await scope.use("pay", idempotency_key=key)
            if live:
                raise ValueError("later")
    if not live:
        await Orchestrator(tools=till.tools, storage=till.storage).undo(scope.run_id)
    assert (till.paid, till.refunds) == (set(), ["k", "other"])


async def test_what_a_failed_nested_run_did_again_stands_with_the_run_that_had_done_it_before() -> None:
    till = Till()
    async with till.saga() as outer:
        await outer.use("pay", idempotency_key="k")
        with pytest.raises(ValueError, match="inner"):
            async with till.saga() as inner:
                await inner.use("pay", idempotency_key="k")
                await inner.use("pay", idempotency_key="own")
                raise ValueError("inner")
        assert (till.paid, till.refunds) == ({"k"}, ["own"])
    await Orchestrator(tools=till.tools, storage=till.storage).undo(outer.run_id)
    assert (till.paid, till.refunds) == (set(), ["own", "k"])


async def dies(storage: InMemoryStorage, kind: str, work: Any) -> None:
    """Let a process die before it writes a record."""
    dying = FaultyStorage(storage, matching=lambda record: record.data.get("type") == kind, do="crash")
    with pytest.RaisesGroup(SimulatedCrash, allow_unwrapped=True, flatten_subgroups=True):
        await work(dying)


async def test_who_goes_on_undoing_two_successes_under_one_key_does_not_undo_the_other_one() -> None:
    till = Till()
    async with till.saga() as scope:
        for key in ("k", "k", "other"):
            await scope.use("pay", idempotency_key=key)
    await dies(till.storage, "closed", lambda s: Orchestrator(tools=till.tools, storage=s).undo(scope.run_id))
    assert till.refunds == ["other", "k"]
    (result,) = await Orchestrator(tools=till.tools, storage=till.storage, clock=Later()).recover()
    assert (result.status, result.stuck, till.refunds) == ("rolled_back", (), ["other", "k"])


async def test_nor_does_it_ask_about_the_call_that_was_made_again() -> None:
    till = Till()
    await dies(till.storage, "finish", lambda s: Orchestrator(tools=till.tools, storage=s).run_saga([Step("pay")]))
    (run,) = await Orchestrator(tools=till.tools, storage=till.storage, clock=Later()).recover(resume=True)
    assert (run.status, run.in_doubt) == ("success", ())
    await dies(till.storage, "closed", lambda s: Orchestrator(tools=till.tools, storage=s).undo(run.run_id))
    (result,) = await Orchestrator(tools=till.tools, storage=till.storage, clock=Later(3)).recover()
    assert (result.status, result.stuck, len(till.refunds)) == ("rolled_back", (), 1)
