"""What a memory holds, and what it refuses."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import math
import uuid
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel

from agenthelm import exceptions
from agenthelm.exceptions import MemoryStoreError, MemoryValueError
from agenthelm.memory import ShortTermMemory
from agenthelm.memory.filters import matches, normalise
from agenthelm.memory.values import check_ttl, decode, encode, same


class Trip(BaseModel):
    city: str
    on: datetime.date


@dataclasses.dataclass
class Seat:
    row: int
    trip: Trip | None = None


class Color(enum.StrEnum):
    RED = "red"


class Pair(NamedTuple):
    a: int
    b: int


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -1, 2**70, 1.5, "", "Zürich \U0001f600 \ud800 \x00", [], {}, {"a": [1, {"b": None}]}, {"": 1}],
)
def test_json_comes_back_as_it_was(value: Any) -> None:
    back = decode(encode(value), key="k")
    assert back == value
    assert type(back) is type(value)


def test_models_and_dataclasses_are_dumped_at_any_depth() -> None:
    trip = Trip(city="Lisbon", on=datetime.date(2026, 5, 1))
    assert decode(encode({"seats": [Seat(3, trip)]}), key="k") == {
        "seats": [{"row": 3, "trip": {"city": "Lisbon", "on": "2026-05-01"}}]
    }
    assert decode(encode([(1, 2), Pair(3, 4), Color.RED]), key="k") == [[1, 2], [3, 4], "red"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, "NaN|nan"),
        ([math.inf], r"\[0\].*inf"),
        ({"a": {"b": {1, 2}}}, r"\['a'\]\['b'\] is a set.*sorted list"),
        ({1: "a"}, r"\[1\] is a key of type int.*JSON keys are strings"),
        (b"x", "bytes.*base64"),
        (datetime.datetime.now(datetime.UTC), "isoformat"),
        (decimal.Decimal("1.5"), "Decimal"),
        (uuid.uuid4(), "UUID"),
        (object(), "object.*pydantic"),
        (Seat, "type"),
        pytest.param(10**5000, "can't be stored", id="huge"),
    ],
)
def test_what_json_cannot_hold_is_named_with_what_to_do(value: Any, said: str) -> None:
    with pytest.raises(MemoryValueError, match=said):
        encode(value, where="the value")


def test_a_cycle_is_refused() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(MemoryValueError, match="contains itself"):
        encode(cycle)


async def test_a_refused_value_writes_nothing() -> None:
    async with ShortTermMemory("memory://") as memory:
        with pytest.raises(MemoryValueError, match="'b'"):
            await memory.write_many({"a": 1, "b": object()})
        assert await memory.list_keys() == []


@pytest.mark.parametrize("ttl", [0, -1, math.nan, math.inf, 1e11, True, "60"])
def test_a_time_to_live_must_make_sense(ttl: Any) -> None:
    with pytest.raises(MemoryValueError, match="ttl"):
        check_ttl(ttl)


async def test_a_key_must_be_text_that_stores_can_hold() -> None:
    async with ShortTermMemory("memory://") as memory:
        for key in ("", None, 3, "\ud800"):
            with pytest.raises(MemoryValueError):
                await memory.write(key, 1)  # type: ignore[arg-type]
            with pytest.raises(MemoryValueError):
                await memory.read(key)  # type: ignore[arg-type]
        with pytest.raises(MemoryValueError, match="prefix"):
            await memory.list_keys("\ud800")


def test_what_somebody_else_wrote_is_an_error_that_names_the_key() -> None:
    with pytest.raises(MemoryStoreError, match="'k' is not JSON"):
        decode("{", key="k")


def test_values_are_compared_as_json() -> None:
    assert same({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert not same(1, 1.0)
    assert not same(1, True)
    assert not same([1, 2], [2, 1])


@pytest.mark.parametrize(
    "where",
    [
        [], {"": 1}, {1: 2}, {"$nor": [{"a": 1}]}, {"a": {}}, {"a": {"$like": "x"}}, {"a": {"$in": []}},
        {"a": {"$in": "abc"}}, {"a": {"$gt": "x"}}, {"a": {"$gt": True}}, {"a": None}, {"a": math.nan}, {"$and": []},
        {"$and": {"a": 1}}, {"$or": [{}]},
    ],
)  # fmt: skip
def test_a_filter_that_means_nothing_is_refused(where: Any) -> None:
    with pytest.raises(MemoryValueError, match="where"):
        normalise(where)


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        ({"a": 1, "b": "x"}, True),
        ({"a": 1, "b": "y"}, False),
        ({"a": {"$gte": 1, "$lt": 2}}, True),
        ({"a": {"$in": [3, 1]}}, True),
        ({"a": {"$nin": [3, 1]}}, False),
        ({"c": {"$nin": [3, 1]}}, True),
        ({"$or": [{"a": 2}, {"$and": [{"a": 1}, {"b": {"$ne": "y"}}]}]}, True),
        ({}, True),
        (None, True),
    ],
)
def test_filters_mean_what_they_say(where: Any, wanted: bool) -> None:
    assert matches(normalise(where), {"a": 1, "b": "x"}) is wanted


def test_every_memory_error_is_one_line() -> None:
    with pytest.raises(MemoryValueError) as caught:
        encode({"a": object()})
    assert "\n" not in str(caught.value)
    assert issubclass(exceptions.MemoryValueError, ValueError)
