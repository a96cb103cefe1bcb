"""What a compensator gets is what the call took and returned, live and read back from the journal alike."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal, NamedTuple

import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    SecretStr,
    computed_field,
    field_serializer,
    model_serializer,
)

from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import Tool, ToolRegistry, tool
from agenthelm.orchestration.journal import ResultForm, stream_of
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step, saga
from agenthelm.orchestration.values import decode, encode


class Aliased(BaseModel):
    booking_id: str = Field(alias="bookingId")


class ShownAliased(BaseModel):
    booking_id: str = Field(serialization_alias="bookingId")


class Excluded(BaseModel):
    booking_id: str = Field(exclude=True)


class Masked(BaseModel):
    booking_id: str

    @field_serializer("booking_id")
    def short(self, value: str) -> str:
        return value[:2] + "***"


class Told(BaseModel):
    booking_id: str

    @model_serializer
    def words(self) -> str:
        return f"booking {self.booking_id}"


class Broken(BaseModel):
    booking_id: str

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> int:
        raise RuntimeError("no price")


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    booking_id: str
    day: date = date(2026, 1, 2)


@dataclass
class Data:
    booking_id: str
    seats: tuple[Aliased, ...] = ()


class Pair(NamedTuple):
    booking_id: str
    seat: Aliased | None = None


class Holder(BaseModel):
    inner: list[Aliased]
    booking_id: str = "id1"


class Done(BaseModel):
    pass


class Plain:
    booking_id: str

    def __init__(self) -> None:
        self.booking_id = "id1"


MADE: list[Any] = [
    Aliased(bookingId="id1"),
    ShownAliased(booking_id="id1"),
    Excluded(booking_id="id1"),
    Masked(booking_id="id1"),
    Told(booking_id="id1"),
    Broken(booking_id="id1"),
    Strict.model_validate({"booking_id": "id1", "more": 1}),
    Data("id1", (Aliased(bookingId="a"),)),
    Pair("id1", Aliased(bookingId="a")),
    Holder(inner=[Aliased(bookingId="a")]),
]
kinds = pytest.mark.parametrize("value", MADE, ids=lambda value: type(value).__name__)
live_or_later = pytest.mark.parametrize("live", [True, False], ids=["live", "later"])


async def undone(tools: ToolRegistry, live: bool, arguments: Mapping[str, Any] | None = None) -> Any:
    """How a booking is undone: because the run fails, or on purpose afterwards."""

    @tool(registry=tools)
    async def fail() -> None:
        raise ValueError("no car left")

    steps = [Step("book", arguments or {})]
    async with Orchestrator(tools=tools) as orchestrator:
        result = await orchestrator.run_saga([*steps, Step("fail")] if live else steps)
        return result if live else await orchestrator.undo(result.run_id)


@kinds
@live_or_later
async def test_a_result_is_given_to_the_compensator_by_its_own_fields_and_whole(value: Any, live: bool) -> None:
    tools, seen = ToolRegistry(), []

    async def book() -> Any:
        return value

    book.__annotations__["return"] = type(value)
    tool(registry=tools, compensating_tool="cancel", side_effects=["booking:write"])(book)

    @tool(registry=tools)
    async def cancel(booking_id: str, result) -> None:  # type: ignore[no-untyped-def]
        seen.append((booking_id, result))

    result = await undone(tools, live)
    assert (result.status, seen) == ("rolled_back", [("id1", value)])
    assert type(seen[0][1]) is type(value)


@kinds
@live_or_later
async def test_an_argument_is_given_to_the_compensator_as_it_was(value: Any, live: bool) -> None:
    tools, seen = ToolRegistry(), []

    async def book(what: Any) -> None:
        pass

    async def cancel(what: Any) -> None:
        seen.append(what)

    book.__annotations__["what"] = cancel.__annotations__["what"] = type(value)
    tool(registry=tools, compensating_tool="cancel", side_effects=["booking:write"])(book)
    tool(registry=tools)(cancel)
    result = await undone(tools, live, {"what": value})
    assert (result.status, seen) == ("rolled_back", [value])


@live_or_later
async def test_a_compensator_that_wants_a_dict_or_a_text_gets_the_model_or_the_date_as_one(live: bool) -> None:
    tools, seen = ToolRegistry(), []

    class Booking(BaseModel):
        booking_id: str
        at: datetime
        seat: Aliased

    @tool(registry=tools, compensating_tool="cancel", side_effects=["booking:write"])
    async def book() -> Booking:
        return Booking(booking_id="id1", at=datetime(2026, 1, 2, tzinfo=UTC), seat=Aliased(bookingId="a"))

    @tool(registry=tools)
    async def cancel(result: dict[str, Any], at: str, seat: Aliased) -> None:
        seen.append((result, at, seat))

    assert (await undone(tools, live)).status == "rolled_back"
    form = {"booking_id": "id1", "at": "2026-01-02T00:00:00Z", "seat": {"booking_id": "a"}}
    assert seen == [(form, "2026-01-02T00:00:00Z", Aliased(bookingId="a"))]


@live_or_later
async def test_a_result_of_more_fields_than_declared_loses_none(live: bool) -> None:
    tools, seen = ToolRegistry(), []

    class Base(BaseModel):
        kind: str

    class Full(Base):
        booking_id: str

    @tool(registry=tools, compensating_tool="cancel", side_effects=["booking:write"])
    async def book() -> Base:
        return Full(kind="hotel", booking_id="id1")

    @tool(registry=tools)
    async def cancel(kind: str, booking_id: str = "lost") -> None:
        seen.append((kind, booking_id))

    assert (await undone(tools, live)).status == "rolled_back"
    assert seen == [("hotel", "id1")]


@live_or_later
async def test_declared_outputs_come_back_as_their_types(live: bool) -> None:
    tools, seen = ToolRegistry(), []

    @tool(registry=tools, compensating_tool="cancel", side_effects=["b:write"], outputs={"seat": Aliased, "day": date})
    async def book():  # type: ignore[no-untyped-def]
        return {"seat": Aliased(bookingId="a"), "day": date(2026, 1, 2)}

    @tool(registry=tools)
    async def cancel(seat, day) -> None:  # type: ignore[no-untyped-def]
        seen.append((seat, day))

    assert (await undone(tools, live)).status == "rolled_back"
    assert seen == [(Aliased(bookingId="a"), date(2026, 1, 2))]


def test_a_model_without_fields_has_none() -> None:
    async def book() -> Done:
        return Done()

    binding = Tool.from_function(book).binding
    assert (binding.declared_fields(), binding.fields_of(Done())) == (frozenset(), {})


async def test_a_class_that_annotates_its_fields_feeds_a_live_compensator() -> None:
    tools, seen = ToolRegistry(), []

    @tool(registry=tools, compensating_tool="cancel", side_effects=["booking:write"])
    async def book() -> Plain:
        return Plain()

    @tool(registry=tools)
    async def cancel(booking_id: str) -> None:
        seen.append(booking_id)

    assert (await undone(tools, live=True)).status == "rolled_back"
    assert seen == ["id1"]


async def test_a_result_whose_own_code_raises_is_on_record_with_its_event() -> None:
    tools, storage = ToolRegistry(), InMemoryStorage()

    class Weird:
        def __iter__(self) -> Iterator[int]:
            raise RuntimeError("no")

        def __repr__(self) -> str:
            raise RuntimeError("no")

    @tool(registry=tools, compensating_tool="cancel", side_effects=["booking:write"])
    async def book(kind: str) -> object:
        return {"broken": Broken(booking_id="id1"), "weird": Weird(), "huge": {"n": 1 << 20_000}}[kind]

    @tool(registry=tools)
    async def cancel(kind: str) -> None:
        pass

    async with saga(tools=tools, storage=storage) as scope:
        for kind in ("broken", "weird", "huge"):
            await scope.use("book", kind=kind)
    finishes = [r.data for r in await storage.read(stream_of(scope.run_id)) if r.data["type"] == "finish"]
    assert [(data["outcome"], data["opaque"]) for data in finishes] == [("ok", False), ("ok", True), ("ok", True)]
    assert [event.data["outcome"] for event in await storage.read("events")] == ["success"] * 3


async def test_what_the_caller_does_to_a_result_does_not_change_what_is_undone() -> None:
    tools, cancelled = ToolRegistry(), []

    @tool(registry=tools, compensating_tool="cancel", side_effects=["booking:write"])
    async def book() -> dict[str, Any]:
        return {"booking_id": "id1", "seats": [Aliased(bookingId="a")]}

    @tool(registry=tools)
    async def cancel(booking_id: str, seats: list[Any]) -> None:
        cancelled.append((booking_id, [encode(seat)[0] for seat in seats]))

    with pytest.raises(ValueError, match="no car"):
        async with saga(tools=tools) as scope:
            for change in ("id", "seat", "nothing"):
                booking = await scope.use("book")
                if change == "id":
                    booking["booking_id"] = "somebody-elses"
                elif change == "seat":
                    booking["seats"][0].booking_id = "b"
            raise ValueError("no car left")
    assert cancelled == [("id1", [{"booking_id": "a"}])] * 3


async def test_what_no_journal_can_hold_is_given_to_a_live_compensator_as_it_was() -> None:
    tools, released = ToolRegistry(), []

    class Handle:
        name = "a"

    @tool(registry=tools, compensating_tool="release", side_effects=["lock:write"])
    async def acquire() -> object:
        return Handle()

    @tool(registry=tools)
    async def release(result: Any) -> None:
        released.append(result.name)

    with pytest.raises(ValueError, match="no"):
        async with saga(tools=tools) as scope:
            (await scope.use("acquire")).name = "b"
            raise ValueError("no")
    assert released == ["a"]


class Colour(enum.Enum):
    RED = "red"


class Planet(enum.Enum):
    EARTH = (5.97, 6.37)
    MARS = (0.64, 3.39)


class Holiday(enum.Enum):
    LABOUR_DAY = date(2026, 5, 1)


class Packet(BaseModel):
    data: bytes
    at: date


class Numbers(RootModel[list[int]]):
    pass


@pytest.mark.parametrize(
    ("kind", "value", "form"),
    [
        (Numbers, Numbers([1, 2]), [1, 2]),
        (dict[Colour, set[int]], {Colour.RED: {1}}, {"red": [1]}),
        (dict[int, Pair], {1: Pair("x")}, {"1": {"booking_id": "x", "seat": None}}),
        (float, float("inf"), float("inf")),
        (bytes, b"abc", "abc"),
        (bytes, b"\xff\x00", {"$bytes": "/wA="}),
        (bytearray, bytearray(b"q"), {"$bytearray": "cQ=="}),
        (Packet, Packet(data=b"\xff", at=date(2026, 1, 2)), {"data": {"$bytes": "/w=="}, "at": "2026-01-02"}),
        (Planet, Planet.MARS, {"$tuple": [0.64, 3.39]}),
        (list[Planet], [Planet.MARS], [{"$tuple": [0.64, 3.39]}]),
        (Literal[Planet.MARS, "none"], Planet.MARS, {"$tuple": [0.64, 3.39]}),
        (Literal[Planet.MARS, "none"], "none", "none"),
        (list[Literal[Colour.RED]] | None, [Colour.RED], ["red"]),
        (dict[str, Holiday], {"d": Holiday.LABOUR_DAY}, {"d": "2026-05-01"}),
        (dict[tuple[int, int], date], {(1, 2): date(2026, 1, 2)}, {"$entries": [[{"$tuple": [1, 2]}, "2026-01-02"]]}),
        (dict[str, str], {"$bytes": "/wA="}, {"$entries": [["$bytes", "/wA="]]}),
        (Any, {"a": [b"\xff"]}, {"a": [{"$bytes": "/w=="}]}),
    ],
)
def test_values_come_back_from_their_form(kind: Any, value: Any, form: Any) -> None:
    assert encode(value) == (form, True)
    assert decode(kind, json.loads(json.dumps(form))) == value
    assert type(decode(kind, form)) is type(value)


def test_what_can_not_be_carried_has_no_form() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    for value in (cycle, object(), iter([1]), {1: "a", "1": "b"}, {"n": [1 << 20_000]}, Colour):
        assert encode(value) == (None, False)


def test_what_would_say_something_else_as_its_type_stays_as_it_is() -> None:
    class Upper(BaseModel):
        name: str

        def model_post_init(self, context: Any, /) -> None:
            self.name += "!"

    assert decode(Upper, {"name": "a"}) == {"name": "a"}
    assert decode(int, "no number") == "no number"


@pytest.mark.parametrize(
    "form", [{"$bytes": 7}, {"$bytes": "a"}, {"$tuple": 7}, {"$entries": [1]}, {"$entries": [[[], 1]]}]
)
def test_marks_that_say_nothing_are_left_as_they_are(form: dict[str, Any]) -> None:
    assert decode(bytes, form) == form


@pytest.mark.parametrize("key", [("a", 1), "$bytes"], ids=["tuple", "marked"])
def test_what_is_nested_by_such_keys_is_encoded_once_at_each_level(key: Any) -> None:
    value: Any = 1
    for _ in range(40):  # twice at each would take hours
        value = {key: value}
    form, possible = encode(value)
    assert (possible, decode(Any, form)) == (True, value)


class Going(Mapping[str, Any]):
    """It can be read so many times, as a row can whose connection is closed meanwhile."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.row = {"booking_id": "b-1", "key": SecretStr("s3cret")}

    def __getitem__(self, name: str) -> Any:
        self.times -= 1
        if self.times < 0:
            raise RuntimeError("the connection is closed")
        return self.row[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.row)

    def __len__(self) -> int:
        return len(self.row)


@pytest.mark.parametrize("times", range(12))
async def test_what_fails_while_it_is_written_down_ends_its_call_and_is_undone_all_the_same(times: int) -> None:
    tools, log, storage = ToolRegistry(), [], InMemoryStorage()
    form = ResultForm.of(Going(times), Tool.from_function(lambda: None, name="f").binding)
    assert "s3cret" not in repr(form)  # nor does it raise: a call would be under way for ever then

    @tool(registry=tools, compensating_tool="cancel")
    async def book(row: Any) -> Any:
        log.append("book")
        return Going(times)

    @tool(registry=tools)
    async def cancel() -> None:
        log.append("cancel")

    with pytest.raises(LookupError):
        async with saga(tools=tools, storage=storage) as scope:
            await scope.use("book", row=Going(times))
            raise LookupError
    assert (scope.result.status, scope.result.stuck, log) == ("rolled_back", (), ["book", "cancel"])
    assert "s3cret" not in repr(await storage.read(stream_of(scope.run_id)))
