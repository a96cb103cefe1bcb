"""The promises of a storage as tests; `agenthelm.testing.storage.storage_contract` makes a class of them."""


# ruff: noqa: ASYNC240 - an empty folder may be listed on the spot

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio

from agenthelm.core.storage.base import EVENTS, BaseStorage, Between, Record, StoredRecord, Where
from agenthelm.exceptions import StalePositionError, StorageClosedError, StorageError
from agenthelm.testing._raising import raises

__all__ = ["StorageTests"]


def _data(records: Sequence[StoredRecord]) -> list[Any]:
    return [record.data["n"] for record in records]


class StorageTests:
    """One test per promise; each opens what it needs in pytest's ``tmp_path``."""

    factory: Callable[[Path], BaseStorage]

    async def test_returns_the_position_of_each_stream_it_touched(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as storage:
            assert await storage.append([Record("a", {"n": 0}), Record("b", {"n": 1}), Record("a", {"n": 2})]) == {
                "a": 2,
                "b": 1,
            }
            assert await storage.append([Record("b", {"n": 3})]) == {"b": 2}
            assert await storage.append([]) == {}

    async def test_reads_what_was_appended_in_order(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as storage:
            data = {
                "n": 1,
                "text": "Zürich \u2028 \U0001f600 \ud800 \x00 \n",
                "list": [1, 2.5, None, True],
                "nested": {"a": {}},
            }
            await storage.append([Record("a", data), Record("b", {"n": 2})])
            assert await storage.read("a") == [StoredRecord("a", 0, data)]
            assert await storage.read("b") == [StoredRecord("b", 0, {"n": 2})]

    async def test_a_stream_that_was_never_written_is_empty(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as storage:
            assert await storage.read("a") == []
            assert await storage.streams() == []
            await storage.drop("a")

    async def test_hands_out_copies_as_json_would_carry_them(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as storage:
            await storage.append([Record("a", {"n": {"pair": (1, 2)}})])
            (first,) = await storage.read("a")
            assert first.data == {"n": {"pair": [1, 2]}}
            first.data["n"]["pair"].append(3)
            assert (await storage.read("a"))[0].data == {"n": {"pair": [1, 2]}}

    async def test_a_stale_position_appends_nothing_to_any_stream(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as storage:
            assert await storage.append([Record("a", {"n": 0})], {"a": 0}) == {"a": 1}
            records = [Record("b", {"n": 1}), Record("a", {"n": 1}, state="late")]
            error = await raises(StalePositionError, storage.append, records, {"a": 0})
            assert (error.stream, error.expected, error.actual) == ("a", 0, 1)
            assert await storage.read("b") == []
            assert _data(await storage.read("a")) == [0]
            assert [info.state for info in await storage.streams()] == [None]

    async def test_an_expected_position_counts_for_streams_that_are_only_watched(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as storage:
            await storage.append([Record("a", {"n": 0})])
            assert await storage.append([Record("b", {"n": 0})], {"a": 1, "c": 0}) == {"b": 1}
            await raises(StalePositionError, storage.append, [Record("b", {"n": 1})], {"c": 1})

    async def test_of_concurrent_appends_that_expect_one_position_exactly_one_wins(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as storage:
            outcomes: list[object] = []

            async def claim(n: int) -> None:
                try:
                    outcomes.append(await storage.append([Record("a", {"n": n}), Record(f"b{n}", {"n": n})], {"a": 0}))
                except StalePositionError as exc:
                    outcomes.append(exc)

            async with anyio.create_task_group() as group:
                for n in range(50):
                    group.start_soon(claim, n)
            assert sum(isinstance(outcome, dict) for outcome in outcomes) == 1
            assert len(outcomes) == 50
            assert len(await storage.streams(prefix="b")) == 1

    async def test_concurrent_appends_lose_nothing_and_keep_each_tasks_order(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as storage:

            async def write(name: str) -> None:
                for n in range(20):
                    assert await storage.append([Record(name, {"n": n}), Record("all", {"n": n})]) is not None

            async with anyio.create_task_group() as group:
                for task in range(10):
                    group.start_soon(write, f"t{task}")
            for task in range(10):
                assert _data(await storage.read(f"t{task}")) == list(range(20))
            assert [record.position for record in await storage.read("all")] == list(range(200))

    async def test_appends_are_applied_in_the_order_of_submission(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as storage:
            submitted: list[int] = []

            async def write(n: int) -> None:
                submitted.append(n)
                await storage.append([Record("a", {"n": n})])

            async with anyio.create_task_group() as group:
                for n in range(100):
                    group.start_soon(write, n)
            assert _data(await storage.read("a")) == submitted

    async def test_a_submitted_append_is_finished_when_its_task_is_cancelled(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as storage:
            known: list[dict[str, int]] = []
            with anyio.CancelScope() as scope:
                scope.cancel()
                known.append(await storage.append([Record("a", {"n": 1})]))
            assert _data(await storage.read("a")) == [1]
            assert await storage.append([Record("a", {"n": 2})], {"a": 1}) == {"a": 2}

    async def test_pages_by_position_in_both_directions(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as storage:
            for stream in ("a", EVENTS):
                await storage.append([Record(stream, {"n": n}) for n in range(7)])
                assert _data(await storage.read(stream, limit=3)) == [0, 1, 2]
                assert _data(await storage.read(stream, limit=3, after=2)) == [3, 4, 5]
                assert _data(await storage.read(stream, limit=3, newest_first=True)) == [6, 5, 4]
                assert _data(await storage.read(stream, limit=3, newest_first=True, after=4)) == [3, 2, 1]
                assert _data(await storage.read(stream, newest_first=True, after=0)) == []
                assert _data(await storage.read(stream, after=6)) == []
                assert _data(await storage.read(stream, limit=0)) == []

    async def test_filters_by_value_range_and_absence(self, tmp_path: Path) -> None:
        rows: list[dict[str, Any]] = [
            {"n": 0, "tool_name": "a", "execution_time": 1, "extra": "x", "timestamp": "2026-01-01T00:00:00+00:00"},
            {"n": 1, "tool_name": "b", "execution_time": 2.5, "extra": 7, "timestamp": "2026-01-02T00:00:00+00:00"},
            {"n": 2, "tool_name": "a", "execution_time": "3", "extra": None, "timestamp": "2026-01-03T00:00:00+00:00"},
            {"n": 3, "tool_name": None, "extra": float("nan")},
            {"n": 4, "tool_name": "A", "execution_time": -1, "extra": True},
        ]
        questions: list[tuple[Where, list[int]]] = [
            ({"tool_name": "a"}, [0, 2]),
            ({"tool_name": "a%"}, []),
            ({"tool_name": None}, [3]),
            ({"execution_time": None}, [3]),
            ({"execution_time": 1}, [0]),
            ({"execution_time": Between(1, 2.5)}, [0, 1]),
            ({"execution_time": Between(low=1.5)}, [1]),
            ({"execution_time": Between(high=1.5)}, [0, 4]),
            ({"execution_time": Between(low="0")}, [2]),
            ({"timestamp": Between("2026-01-02", "2026-01-03")}, [1]),
            ({"timestamp": Between(high="2026-01-02")}, [0]),
            ({"tool_name": "a", "timestamp": Between(low="2026-01-02")}, [2]),
            ({"tool_name": "b", "execution_time": Between(low=3)}, []),
            ({"extra": "x"}, [0]),
            ({"extra": 7}, [1]),
            ({"extra": None}, [2]),
            ({"extra": Between(2, 9)}, [1]),
            ({"extra": True, "tool_name": "A"}, [4]),
            ({"nothing": 1}, []),
            ({"nothing": None}, [0, 1, 2, 3, 4]),
        ]
        async with self.factory(tmp_path) as storage:
            for stream in (EVENTS, "a"):
                await storage.append([Record(stream, row) for row in rows])
                for where, wanted in questions:
                    assert _data(await storage.read(stream, where=where)) == wanted, (stream, where)
                    newest = await storage.read(stream, where=where, newest_first=True, limit=2, after=5)
                    assert _data(newest) == wanted[::-1][:2], (stream, where)

    async def test_lists_streams_by_state_prefix_and_creation(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as storage:
            await storage.append([Record("run:1", {}, "open"), Record(EVENTS, {})])
            await storage.append([Record("run:2", {}, "open")])
            await storage.append([Record("run_3", {}, "open"), Record("Run:4", {}, "open")])
            await storage.append([Record("run:1", {}, "closed"), Record("run:1", {})])

            async def names(**options: Any) -> list[str]:
                return [info.name for info in await storage.streams(**options)]

            assert await names(newest_first=False) == ["run:1", EVENTS, "run:2", "run_3", "Run:4"]
            assert await names(where={"state": "open"}) == ["Run:4", "run_3", "run:2"]
            assert await names(where={"state": "closed"}) == ["run:1"]
            assert await names(prefix="run:") == ["run:2", "run:1"]
            assert await names(prefix="run_") == ["run_3"]
            assert await names(limit=2) == ["Run:4", "run_3"]
            assert await names(where={"state": "nothing"}) == []
            (info,) = await storage.streams(where={"state": "closed"})
            assert (info.position, info.state) == (3, "closed")
            assert 0 < info.created_at <= info.updated_at
            await raises(ValueError, storage.streams, where={"owner": "me"})

    async def test_forgets_a_dropped_stream_and_no_other(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as storage:
            for stream in ("user_1", "userX1", "USER_1", "user_12", EVENTS):
                await storage.append([Record(stream, {"n": 1}, "open")])
            await storage.drop("user_1")
            assert await storage.read("user_1") == []
            left = await storage.streams(where={"state": "open"}, newest_first=False)
            assert [info.name for info in left] == ["userX1", "USER_1", "user_12", EVENTS]
            assert await storage.append([Record("user_1", {"n": 2})], {"user_1": 0}) == {"user_1": 1}
            assert _data(await storage.read("user_1")) == [2]
            await storage.drop(EVENTS)
            assert await storage.read(EVENTS) == []
            assert await storage.append([Record(EVENTS, {"n": 3})]) == {EVENTS: 1}
            assert _data(await storage.read(EVENTS, where={"run_id": None})) == [3]

    async def test_refuses_use_after_closing_which_may_happen_twice(self, tmp_path: Path) -> None:
        storage = self.factory(tmp_path)
        await storage.append([Record("a", {"n": 1})])
        await storage.aclose()
        await storage.aclose()
        await raises(StorageClosedError, storage.append, [Record("a", {"n": 2})])
        await raises(StorageClosedError, storage.read, "a")
        await raises(StorageClosedError, storage.streams)
        await raises(StorageClosedError, storage.drop, "a")

    async def test_can_be_closed_unused(self, tmp_path: Path) -> None:
        await self.factory(tmp_path).aclose()
        assert list(tmp_path.iterdir()) == [], "an unused storage leaves nothing on the disk"

    async def test_what_is_durable_is_there_when_opened_again(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as storage:
            await storage.append([Record("a", {"n": 1}, "open"), Record(EVENTS, {"n": 2, "run_id": "r"})])
            durable = storage.durable
        if not durable:
            return
        async with self.factory(tmp_path) as storage, self.factory(tmp_path) as other:
            assert _data(await storage.read("a")) == [1]
            assert await other.append([Record("a", {"n": 3})], {"a": 1}) == {"a": 2}
            assert _data(await storage.read("a")) == [1, 3]
            assert _data(await storage.read(EVENTS, where={"run_id": "r"})) == [2]
            await raises(StalePositionError, storage.append, [Record("a", {"n": 4})], {"a": 1})
            assert [info.name for info in await storage.streams(where={"state": "open"})] == ["a"]

    async def test_a_value_json_cannot_hold_fails_its_own_append_only(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as storage:
            if not storage.durable:
                return
            await raises(StorageError, storage.append, [Record("a", {"n": 1}), Record("a", {"n": object()})])
            assert await storage.read("a") == []
            assert await storage.append([Record("a", {"n": 2})]) == {"a": 1}
