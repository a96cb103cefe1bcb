"""What storages share: JSON, and the meaning of a filter."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from agenthelm.core import storage
from agenthelm.core.storage import EVENTS, BaseStorage, Between, InMemoryStorage, JsonStorage, Record, SqliteStorage
from agenthelm.core.storage.codec import decode, encode
from agenthelm.exceptions import StorageError


@pytest.fixture(params=["memory", "sqlite", "json"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> BaseStorage:
    kinds: dict[str, Any] = {
        "memory": InMemoryStorage,
        "sqlite": lambda: SqliteStorage(tmp_path / "log.db"),
        "json": lambda: JsonStorage(tmp_path / "log.jsonl"),
    }
    made: BaseStorage = kinds[request.param]()
    return made


def test_frozen_mappings_are_json_too() -> None:
    assert encode(Record("a", MappingProxyType({"n": MappingProxyType({})}))) == '{"n":{}}'


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", {("a", "b"): 1}, [10**5_000]])
def test_what_json_cannot_hold_is_named_with_its_stream(value: object) -> None:
    with pytest.raises(StorageError, match="a record for stream 'run:1' can't be stored as JSON"):
        encode(Record("run:1", {"value": value}))


def _nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        10**30,
        1e22,
        -0.0,
        float("inf"),
        "Zoë\u2028",
        "a\udcff",
        '\0\n"',
        {"a": [{"": [1.5, False]}]},
        _nested(400),
    ],
)
def test_what_is_known_to_be_plain_is_the_same_in_the_end(value: object) -> None:
    text = encode(Record("a", {"value": value}, None, True))
    assert "\n" not in text
    assert repr(decode(text)) == repr(decode(encode(Record("a", {"value": value})))) == repr({"value": value})


def test_a_record_is_an_object() -> None:
    with pytest.raises(ValueError, match="not a JSON object"):
        decode("[1]")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'MongoStorage'"):
        storage.MongoStorage  # noqa: B018


async def test_a_range_open_on_both_sides_asks_for_any_value(log: BaseStorage) -> None:
    async with log:
        rows: list[dict[str, Any]] = [{"run_id": "a", "x": 1}, {"run_id": None}, {"run_id": 3, "x": "y"}, {}]
        await log.append([Record(EVENTS, row) for row in rows])
        assert [event.position for event in await log.read(EVENTS, where={"run_id": Between()})] == [0, 2]
        assert [event.position for event in await log.read(EVENTS, where={"x": Between()})] == [0, 2]


async def test_a_value_that_is_no_plain_value_equals_none_of_them(log: BaseStorage) -> None:
    async with log:
        await log.append([Record(EVENTS, {"run_id": "a", "note": float("inf"), "list": [1]}) for _ in range(3)])
        assert await log.read(EVENTS, where={"note": Between(high=5)}) == []
        assert len(await log.read(EVENTS, where={"note": float("inf"), "run_id": "a"})) == 3


async def test_a_stream_says_when_it_began_and_when_it_last_moved(
    log: BaseStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1_000.5]
    monkeypatch.setattr("time.time", lambda: clock[0])
    async with log:
        await log.append([Record("run:1", {}, "open"), Record("run:2", {})])
        clock[0] = 3_000.5
        await log.append([Record("run:1", {}, "open"), Record("run:2", {})])
        clock[0] = 4_000.5
        await log.append([Record("run:2", {})])
        times = [(info.created_at, info.updated_at) for info in await log.streams(newest_first=False)]
        assert times == [(1_000.5, 3_000.5), (1_000.5, 4_000.5)]


async def test_an_indexed_field_may_hold_what_no_index_can(log: BaseStorage) -> None:
    async with log:
        event = {"run_id": "a", "agent_name": ["b"], "tool_name": {"c": 1}}
        await log.append([Record(EVENTS, event)])
        assert [found.data for found in await log.read(EVENTS, where={"run_id": "a"})] == [event]
        assert await log.read(EVENTS, where={"agent_name": "b"}) == []


async def test_an_integer_of_any_size_may_be_asked_for(log: BaseStorage) -> None:
    async with log:
        for stream in (EVENTS, "run:a"):
            await log.append([Record(stream, {"n": n, "execution_time": 1.5}) for n in (1, 10**30, -(10**30))])
            wheres: list[dict[str, Any]] = [
                {"n": 10**30},
                {"n": Between(low=2**63)},
                {"n": Between(high=-(2**63) - 1)},
                {"n": Between(low=-(10**400), high=10**29)},
                {"execution_time": Between(high=10**400)},
                {"execution_time": 10**30},
            ]
            found = [[record.position for record in await log.read(stream, where=where)] for where in wheres]
            assert found == [[1], [1], [2], [0, 2], [0, 1, 2], []]


async def test_records_longer_than_a_block_come_back_whole(log: BaseStorage) -> None:
    async with log:
        data = {"text": "x" * 300_000}
        await log.append([Record("a", data), Record("b", {}), Record("a", data)])
        assert [record.data for record in await log.read("a")] == [data, data]
        assert len(await log.read("b")) == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_an_equality_beside_a_range_that_nothing_reaches_finds_nothing(log: BaseStorage) -> None:
    async with log:
        await log.append([Record(EVENTS, {"tool_name": "t", "execution_time": 1.0}) for _ in range(10_001)])
        where = {"tool_name": "t", "execution_time": Between(low=0.5)}
        assert len(await log.read(EVENTS, where=where, limit=3, newest_first=True)) == 3
        where = {"tool_name": "t", "execution_time": Between(low=0.5), "estimated_cost_usd": Between(low=1)}
        assert await log.read(EVENTS, where=where, limit=3) == []
