"""Runs have ids, of the caller's own if wanted, under which they run once; and are listed, looked up and dropped."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from agenthelm import (
    Agent,
    InMemoryStorage,
    Orchestrator,
    Runs,
    SagaOrchestrator,
    SqliteStorage,
    Step,
    ToolRegistry,
    saga,
    tool,
)
from agenthelm._runtime.retry import SystemClock
from agenthelm.core.storage import BaseStorage, Record
from agenthelm.core.tracer import ExecutionTracer
from agenthelm.exceptions import ConfigError, CorruptRecordError, RunExistsError, RunNotFoundError
from agenthelm.orchestration.journal import Journal, stream_of
from tests.support.saga_leases import Later


class Shop:
    """Something to order from, and what sends it; there is no sending nothing."""

    def __init__(self, storage: BaseStorage | None = None) -> None:
        self.storage = storage or InMemoryStorage()
        self.ordered: list[str] = []
        self.keys: list[str] = []
        self.tools = ToolRegistry()

        @tool(registry=self.tools, compensating_tool="cancel")
        async def order(what: str, idempotency_key: str) -> str:
            self.ordered.append(what)
            self.keys.append(idempotency_key)
            return what

        @tool(registry=self.tools)
        async def cancel(what: str) -> None:
            self.ordered.remove(what)

        @tool(registry=self.tools)
        async def send(what: str) -> None:
            if not what:
                raise LookupError("nothing to send")

        self.orchestrator = Orchestrator(tools=self.tools, storage=self.storage)

    def plan(self, what: str) -> list[Step]:
        return [Step("order", {"what": what}), Step("send", {"what": what})]

    async def sent(self, what: str, run_id: str | None = None, namespace: str = "default") -> Any:
        return await self.orchestrator.run_saga(self.plan(what), name="sale", run_id=run_id, namespace=namespace)


class Clerk(Agent):
    """Orders something."""

    async def aforward(self, context, what: str):  # type: ignore[no-untyped-def]
        return {"ordered": await self.ause("order", what=what)}


clerk = Clerk("clerk", signature="what -> ordered")


async def left_open(storage: BaseStorage, run_id: str) -> None:
    """What a run leaves in which nothing was done when its process stopped."""
    journal = Journal(storage, run_id, SystemClock())
    await journal.opened(name="sale", kind="agents", rollback=True, session_id="s", namespace="acme")


class TestIds:
    async def test_a_message_that_is_delivered_twice_is_worked_on_once(self) -> None:
        shop = Shop()
        result = await shop.orchestrator.run(clerk, inputs={"what": "tea"}, run_id="order-7")
        assert (result.run_id, shop.ordered) == ("order-7", ["tea"])
        with pytest.raises(RunExistsError, match=r"a run 'order-7' already \(success\)") as refused:
            await shop.orchestrator.run(clerk, inputs={"what": "tea"}, run_id="order-7")
        assert (refused.value.run_id, refused.value.status) == ("order-7", "success")
        assert shop.ordered == ["tea"]
        await shop.orchestrator.undo("order-7")
        with pytest.raises(RunExistsError, match="rolled_back"):
            await shop.orchestrator.run_pipeline([clerk], inputs={"what": "tea"}, run_id="order-7")
        with pytest.raises(RunExistsError):
            await shop.orchestrator.run_parallel([clerk], inputs={"what": "tea"}, run_id="order-7")
        with pytest.raises(RunExistsError):
            await shop.sent("tea", "order-7")
        assert shop.ordered == []

    async def test_of_several_at_once_one_runs(self, tmp_path: Path) -> None:
        refused: list[str] = []
        async with SqliteStorage(tmp_path / "a.db") as one, SqliteStorage(tmp_path / "a.db") as other:
            shops = [Shop(one), Shop(other)]

            async def deliver(shop: Shop) -> None:
                try:
                    await shop.orchestrator.run(clerk, inputs={"what": "tea"}, run_id="order-7")
                except RunExistsError as error:
                    refused.append(error.run_id)

            async with anyio.create_task_group() as group:
                for shop in shops * 3:
                    group.start_soon(deliver, shop)
            assert [what for shop in shops for what in shop.ordered] == ["tea"]
            assert refused == ["order-7"] * 5

    async def test_one_whose_process_died_is_recovered_under_its_id(self) -> None:
        shop = Shop()
        await left_open(shop.storage, "order-7")
        with pytest.raises(RunExistsError) as refused:
            await shop.orchestrator.run(clerk, inputs={"what": "tea"}, run_id="order-7")
        assert refused.value.status == "open"
        later = Orchestrator(tools=shop.tools, storage=shop.storage, clock=Later())
        assert [result.status for result in await later.recover("order-7")] == ["rolled_back"]

    async def test_plans_and_blocks_take_one_too(self) -> None:
        shop = Shop()
        runner = SagaOrchestrator(ExecutionTracer(shop.storage), shop.tools)
        assert (await runner.execute(shop.plan("tea"), run_id="order-7")).run_id == "order-7"
        assert shop.keys == ["order-7:order"]  # whoever sells knows it again by that, also when the journal was lost
        with pytest.raises(RunExistsError):
            await runner.execute(shop.plan("tea"), run_id="order-7")
        async with saga(tools=shop.tools, storage=shop.storage, run_id="order-8") as scope:
            assert scope.run_id == "order-8"
        with pytest.raises(RunExistsError):
            async with saga(tools=shop.tools, storage=shop.storage, run_id="order-8"):
                pytest.fail("the block was entered")

    @pytest.mark.parametrize("odd", ["", "-n", "a b", "a/b", "é", "x" * 129, 7, "a\n"])
    async def test_what_is_no_id_is_refused(self, odd: Any) -> None:
        shop = Shop()
        with pytest.raises(ConfigError, match="run_id must be a text of at most 128 letters"):
            await shop.orchestrator.run(clerk, inputs={"what": "tea"}, run_id=odd)
        with pytest.raises(ConfigError, match="run_id must be"):
            saga(run_id=odd)
        assert await shop.orchestrator.runs.latest() == []

    def test_the_name_of_the_latest_run_is_not_the_id_of_one(self) -> None:
        with pytest.raises(ConfigError, match=r"^run_id can't be 'last', by which commands mean the latest run$"):
            saga(run_id="last")

    async def test_a_run_inside_a_run_has_none_of_its_own(self) -> None:
        shop = Shop()
        async with saga(tools=shop.tools, storage=shop.storage, run_id="order-7"):
            for inner in (
                shop.orchestrator.run(clerk, inputs={"what": "tea"}, run_id="order-8"),
                shop.sent("tea", "order-8"),
                SagaOrchestrator().execute(shop.plan("tea"), run_id="order-8"),
            ):
                with pytest.raises(ConfigError, match="begins inside of run 'order-7'"):
                    await inner
            with pytest.raises(ConfigError, match="begins inside of run 'order-7'"):
                saga(run_id="order-8")
        assert shop.ordered == []


class TestRuns:
    async def test_the_latest_come_first_and_tell_how_they_ended(self) -> None:
        shop = Shop()
        before = datetime.now(UTC)
        await shop.sent("tea", "good")
        await shop.sent("", "bad")
        await left_open(shop.storage, "going")
        runs = await shop.orchestrator.runs.latest()
        assert [(run.run_id, run.saga.status) for run in runs] == [
            ("going", "open"), ("bad", "rolled_back"), ("good", "success"),
        ]  # fmt: skip
        going, bad, good = runs
        assert (going.name, going.kind, going.namespace, going.running, going.ended) == (
            "sale", "agents", "acme", True, None,
        )  # fmt: skip
        assert (bad.name, bad.kind, bad.running) == ("sale", "steps", False)
        assert bad.saga.error == "LookupError: nothing to send"
        assert len(bad.saga.undone) == 1
        assert good.ended is not None
        assert before <= good.began <= good.ended <= datetime.now(UTC)
        assert [run.run_id for run in await shop.orchestrator.runs.latest(2)] == ["going", "bad"]
        assert await shop.orchestrator.runs.latest(status="open") == [going]
        [dead] = await Runs(shop.storage, clock=Later()).latest(1)
        assert (dead.running, dead.saga.status) == (False, "open")

    async def test_one_is_found_by_its_id(self) -> None:
        shop = Shop()
        await shop.sent("tea", "good")
        await shop.orchestrator.undo("good")
        found = await Runs(shop.storage).find("good")
        assert (found.saga.status, found.saga.error) == ("rolled_back", "undone on purpose")
        for unknown in ("goo", "good:", ""):
            with pytest.raises(RunNotFoundError):
                await Runs(shop.storage).find(unknown)

    async def test_one_whose_journal_cannot_be_read_is_listed_with_the_reason(self) -> None:
        shop = Shop()
        await shop.storage.append([Record(stream_of("torn"), {"type": "closed", "at": 0.0}, "open")])
        [torn] = await shop.orchestrator.runs.latest()
        assert (torn.saga.status, torn.running) == ("failed", False)
        assert torn.saga.error is not None
        assert "can't be read" in torn.saga.error
        with pytest.raises(CorruptRecordError):
            await shop.orchestrator.runs.find("torn")

    async def test_those_that_ended_long_ago_are_dropped(self) -> None:
        shop = Shop()
        await shop.sent("tea", "good")
        await left_open(shop.storage, "going")
        assert await shop.orchestrator.runs.prune(timedelta(seconds=25)) == []
        assert await Runs(shop.storage, clock=Later()).prune(timedelta(seconds=25)) == ["good"]
        assert [run.run_id for run in await shop.orchestrator.runs.latest()] == ["going"]
        with pytest.raises(RunNotFoundError):
            await shop.orchestrator.undo("good")

    async def test_what_makes_no_sense_is_refused(self) -> None:
        runs = Runs(InMemoryStorage())
        odd: Any
        for odd in (0, -1, 1.5, "10"):
            with pytest.raises(ConfigError, match="limit must be a whole number of at least 1"):
                await runs.latest(odd)
        with pytest.raises(ConfigError, match="Did you mean 'open'"):
            await runs.latest(status="opn")  # type: ignore[arg-type]
        for odd in (30, "30d", timedelta(days=-1), None):
            with pytest.raises(ConfigError, match=r"older_than must be a length of time, such as timedelta\(days=30\)"):
                await runs.prune(odd)


class TestTenants:
    """Who asks in the name of a tenant has no runs but that tenant's, whatever ids it names."""

    async def test_none_undoes_what_another_did(self) -> None:
        shop = Shop()
        await shop.sent("tea", "acme-1", "acme")
        orchestrator = shop.orchestrator
        with pytest.raises(RunNotFoundError, match="acme-1"):
            await orchestrator.undo("acme-1", namespace="globex")
        assert shop.ordered == ["tea"]
        undone = await orchestrator.undo("acme-1", namespace="acme")
        assert (undone.status, shop.ordered) == ("rolled_back", [])

    async def test_none_tries_again_or_settles_what_got_stuck_with_another(self) -> None:
        shop = Shop()
        await shop.sent("tea", "acme-1", "acme")
        shop.ordered.clear()  # so that it can't be cancelled
        orchestrator = shop.orchestrator
        assert (await orchestrator.undo("acme-1")).status == "failed"
        with pytest.raises(RunNotFoundError, match="acme-1"):
            await orchestrator.retry("acme-1", namespace="globex")
        with pytest.raises(RunNotFoundError, match="acme-1"):
            await orchestrator.resolve("acme-1", "order", outcome="undone", namespace="globex")
        assert (await orchestrator.retry("acme-1", namespace="acme")).status == "failed"
        settled = await orchestrator.resolve("acme-1", "order", outcome="undone", namespace="acme")
        assert settled.status == "rolled_back"

    async def test_none_recovers_the_runs_of_another(self) -> None:
        shop = Shop()
        await left_open(shop.storage, "acme-1")
        await shop.storage.append([Record(stream_of("torn"), {"type": "closed", "at": 0.0}, "open")])
        later = Orchestrator(tools=shop.tools, storage=shop.storage, clock=Later())
        assert await later.recover(namespace="globex") == []
        with pytest.raises(RunNotFoundError, match="acme-1"):
            await later.recover("acme-1", namespace="globex")
        assert [result.run_id for result in await later.recover(namespace="acme")] == ["acme-1"]

    async def test_none_sees_the_runs_of_another(self) -> None:
        shop = Shop()
        for number in range(3):
            await shop.sent("tea", f"acme-{number}", "acme")
            await shop.sent("", f"globex-{number}", "globex")
        await shop.storage.append([Record(stream_of("torn"), {"type": "closed", "at": 0.0}, "open")])
        runs = shop.orchestrator.runs
        assert [run.run_id for run in await runs.latest(2, namespace="acme")] == ["acme-2", "acme-1"]
        assert [run.run_id for run in await runs.latest(namespace="globex")] == ["globex-2", "globex-1", "globex-0"]
        assert await runs.latest(namespace="globex", status="success") == []
        assert (await runs.find("acme-1", namespace="acme")).namespace == "acme"
        with pytest.raises(RunNotFoundError, match="acme-1"):
            await runs.find("acme-1", namespace="globex")
