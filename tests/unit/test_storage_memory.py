"""What the in-memory storage does beyond the contract, and the storage that fails on purpose."""

from __future__ import annotations

import anyio
import pytest

from agenthelm.core.storage import EVENTS, InMemoryStorage, Record
from agenthelm.exceptions import CorruptRecordError, StorageError
from agenthelm.testing.storage import FaultyStorage, SimulatedCrash


def test_an_append_never_suspends() -> None:
    storage = InMemoryStorage()
    with pytest.raises(StopIteration) as caught:
        storage.append([Record("a", {"n": 1})]).send(None)  # type: ignore[attr-defined]
    assert caught.value.value == {"a": 1}


async def test_a_value_json_cannot_hold_is_a_skipped_event_or_an_unreadable_journal() -> None:
    storage = InMemoryStorage()
    for stream in (EVENTS, "run:1"):
        await storage.append([Record(stream, {"n": 1}), Record(stream, {"n": object()})])
    assert [event.data for event in await storage.read(EVENTS)] == [{"n": 1}]
    assert storage.skipped == 1
    with pytest.raises(CorruptRecordError, match="record 1 of stream 'run:1'"):
        await storage.read("run:1")


async def test_says_that_it_is_not_durable() -> None:
    assert InMemoryStorage().durable is False


async def test_fails_at_the_chosen_append_only() -> None:
    inner = InMemoryStorage()
    storage = FaultyStorage(inner, at=2)
    await storage.append([Record("a", {"n": 1})])
    with pytest.raises(StorageError, match="told to fail"):
        await storage.append([Record("a", {"n": 2})])
    await storage.append([Record("a", {"n": 3})])
    assert [record.data["n"] for record in await storage.read("a")] == [1, 3]


async def test_fails_after_a_matching_record_was_written_and_for_as_long_as_wanted() -> None:
    inner = InMemoryStorage()
    storage = FaultyStorage(
        inner, matching=lambda record: record.data["n"] > 1, moment="after", times=None, error=OSError("gone")
    )
    await storage.append([Record("a", {"n": 1})])
    for n in (2, 3):
        with pytest.raises(OSError, match="gone"):
            await storage.append([Record("a", {"n": n})])
    assert len(await inner.read("a")) == 3


async def test_hangs_through_cancellation_until_it_is_released() -> None:
    storage = FaultyStorage(InMemoryStorage(), do="hang")
    async with anyio.create_task_group() as group:
        group.start_soon(storage.append, [Record("a", {"n": 1})])
        await storage.hanging.wait()
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.wait_all_tasks_blocked()
            assert await storage.inner.read("a") == []
            storage.release()
    assert len(await storage.read("a")) == 1


async def test_after_a_simulated_crash_nothing_reaches_the_inner_storage() -> None:
    inner = InMemoryStorage()
    storage = FaultyStorage(inner, at=2, do="crash", moment="after")
    await storage.append([Record("a", {"n": 1})])
    with pytest.raises(SimulatedCrash):
        await storage.append([Record("a", {"n": 2})])
    for use in (storage.append([Record("a", {"n": 3})]), storage.read("a"), storage.streams(), storage.drop("a")):
        with pytest.raises(SimulatedCrash):
            await use
    await storage.aclose()
    assert [record.data["n"] for record in await inner.read("a")] == [1, 2]


class TestBounds:
    async def test_the_oldest_events_are_forgotten_and_positions_go_on(self) -> None:
        storage = InMemoryStorage(max_events=100)
        for number in range(1000):
            await storage.append([Record(EVENTS, {"n": number})])
        kept = [(r.position, r.data["n"]) for r in await storage.read(EVENTS)]
        assert kept == [(n, n) for n in range(1000 - len(kept), 1000)]
        assert 100 <= len(kept) <= 111
        newest = await storage.read(EVENTS, newest_first=True, limit=2)
        assert [r.position for r in newest] == [999, 998]
        assert [r.position for r in await storage.read(EVENTS, newest_first=True, after=998, limit=1)] == [997]
        assert await storage.append([Record(EVENTS, {"n": 1000})], {EVENTS: 1000}) == {EVENTS: 1001}

    async def test_the_runs_that_ended_first_are_forgotten_and_open_ones_never(self) -> None:
        storage = InMemoryStorage(max_runs=2)
        await storage.append([Record("run:open", {"type": "opened"}, "open")])
        for name in ("a", "b", "c"):
            await storage.append([Record(f"run:{name}", {"type": "opened"}, "open")])
            await storage.append([Record(f"run:{name}", {"type": "closed"}, "success")])
        assert [info.name for info in await storage.streams(newest_first=False)] == ["run:open", "run:b", "run:c"]
        await storage.append([Record("run:b", {"type": "claimed"}, "open")])
        await storage.append([Record("run:d", {"type": "closed"}, "success")])
        assert {info.name for info in await storage.streams()} == {"run:open", "run:b", "run:c", "run:d"}

    def test_a_bound_must_leave_something(self) -> None:
        with pytest.raises(ValueError, match="at least 1"):
            InMemoryStorage(max_events=0)
        with pytest.raises(ValueError, match="at least 1"):
            InMemoryStorage(max_runs=0)

    async def test_one_of_each_is_enough(self) -> None:
        storage = InMemoryStorage(max_events=1, max_runs=1)
        for n in range(3):
            await storage.append([Record(EVENTS, {"n": n}), Record(f"run:{n}", {}, "success")])
        assert [event.data["n"] for event in await storage.read(EVENTS)] == [2]
        assert [info.name for info in await storage.streams(prefix="run:")] == ["run:2"]
