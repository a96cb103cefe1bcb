"""What a type says is secret stays out of every event and journal, however the type says it and wherever it stands."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Generic, NamedTuple, NewType, TypeVar

import pytest
import typing_extensions
from pydantic import AfterValidator, BaseModel, Secret, SecretStr, field_serializer

from agenthelm import InMemoryStorage, Redacted, ToolRegistry, saga
from agenthelm.core.executor import ToolExecutor
from agenthelm.core.handlers import ApprovalHandler, ApprovalRequest, Decision
from agenthelm.core.redaction import MASK
from agenthelm.core.sensitive import carries_secret, holds_secrets, secret_fields, secret_texts, without_marked
from agenthelm.core.storage.base import EVENTS
from agenthelm.core.tool import Tool, ToolContract
from agenthelm.exceptions import OutcomeUnknown, ToolInputError, UnknownToolError
from agenthelm.telling import message_of, notes_of

SECRET = "blaue Katze 4711"
"""Of no known shape: only a type says that it is one."""

T = TypeVar("T")
Alias = typing_extensions.TypeAliasType("Alias", Annotated[str, Redacted])
Nested = typing_extensions.TypeAliasType("Nested", "dict[str, Nested] | Annotated[str, Redacted]")
Pin = NewType("Pin", Annotated[str, Redacted])  # type: ignore[valid-newtype]


@dataclass
class Box(Generic[T]):
    pin: Annotated[str, Redacted]
    other: T


@dataclass
class Holder(Generic[T]):
    held: T


class Entry(typing_extensions.TypedDict, Generic[T]):
    pin: Annotated[str, Redacted]
    other: T


class Plain(typing_extensions.TypedDict):
    pin: Annotated[str, Redacted]
    user: str


PlainAlias = typing_extensions.TypeAliasType("PlainAlias", Plain)
PlainNew = NewType("PlainNew", Plain)  # type: ignore[valid-newtype]


class Row(NamedTuple):
    pin: Annotated[str, Redacted]
    user: str


@dataclass
class Account:
    pin: Annotated[str, Redacted]
    user: str


class Coded(BaseModel):
    code: SecretStr


class Perhaps(BaseModel):
    user: str
    pin: Annotated[str, Redacted] | None = None


class Several(BaseModel):
    user: str
    pins: list[Annotated[str, Redacted]]


class Deep(BaseModel):
    entries: list[Plain]
    alias: Alias


BOX = {"pin": SECRET, "other": 1}

PARAMETERS: dict[str, tuple[Any, Any]] = {
    "alias": (Alias, SECRET),
    "recursive alias": (Nested, {"a": {"b": SECRET}}),
    "new type": (Pin, SECRET),
    "secret of any type": (Secret[str], SECRET),
    "secret of a list": (list[Secret[list[str]]], [[SECRET]]),
    "list of aliases": (list[Alias], [SECRET]),
    "generic dataclass": (Box[int], BOX),
    "generic of a secret": (Holder[Annotated[str, Redacted]], {"held": SECRET}),
    "generic TypedDict": (Entry[int], BOX),
    "dictionary keys": (dict[Annotated[str, Redacted], int], {SECRET: 1}),
    "model with aliases": (Deep, {"entries": [{"pin": SECRET, "user": "ann"}], "alias": SECRET}),
}

RESULTS: dict[str, tuple[Any, Any, Any]] = {
    "annotated": (Annotated[str, Redacted], SECRET, MASK),
    "alias": (Alias, SECRET, MASK),
    "new type": (Pin, SECRET, MASK),
    "optional": (Annotated[str, Redacted] | None, SECRET, MASK),
    "optional, none": (Annotated[str, Redacted] | None, None, None),
    "TypedDict": (Plain, {"pin": SECRET, "user": "ann"}, {"pin": MASK, "user": "ann"}),
    "alias of a TypedDict": (PlainAlias, {"pin": SECRET, "user": "ann"}, {"pin": MASK, "user": "ann"}),
    "new type of a TypedDict": (PlainNew, {"pin": SECRET, "user": "ann"}, {"pin": MASK, "user": "ann"}),
    "annotated TypedDict": (Annotated[Plain, "a"], {"pin": SECRET, "user": "ann"}, {"pin": MASK, "user": "ann"}),
    "generic TypedDict": (Entry[int], BOX, {"pin": MASK, "other": 1}),
    "list of TypedDicts": (list[Plain], [{"pin": SECRET, "user": "ann"}], MASK),
    "named tuple": (Row, Row(SECRET, "ann"), MASK),
    "dataclass": (Account, Account(SECRET, "ann"), {"pin": MASK, "user": "ann"}),
    "list of dataclasses": (list[Account], [Account(SECRET, "ann")], [{"pin": MASK, "user": "ann"}]),
    "generic of a secret": (Holder[Annotated[str, Redacted]], Holder(SECRET), MASK),
    "optional field": (Perhaps, Perhaps(user="ann", pin=SECRET), {"user": "ann", "pin": MASK}),
    "list in a field": (Several, Several(user="ann", pins=[SECRET]), {"user": "ann", "pins": MASK}),
    "a dataclass of no declared type": (Any, Account(SECRET, "ann"), {"pin": MASK, "user": "ann"}),
    "a named tuple of no declared type": (Any, Row(SECRET, "ann"), {"pin": MASK, "user": "ann"}),
    "named tuples of no declared type": (Any, [Row(SECRET, "ann")], [{"pin": MASK, "user": "ann"}]),
    "a mapping": (Annotated[dict[str, Any], Redacted], {"pin": SECRET, "tries": 3}, MASK),
    "a list": (Annotated[list[int], Redacted], [4, 7], MASK),
    "a number": (Annotated[int, Redacted], 4, MASK),
    "a model of no declared type": (Any, Perhaps(user="ann", pin=SECRET), {"user": "ann", "pin": MASK}),
}


async def _record_of(entry: Tool, **arguments: Any) -> tuple[dict[str, Any], str, Exception | None]:
    """The event of a call, all that was written of it, and what it raised."""
    storage, raised = InMemoryStorage(), None
    try:
        async with saga(storage=storage, tools=ToolRegistry([entry])) as scope:
            await scope.use(entry.name, **arguments)
    except Exception as error:
        raised = error
    (event,) = await storage.read(EVENTS)
    streams = await storage.streams()
    written = [record.data for stream in streams for record in await storage.read(stream.name)]
    return dict(event.data), repr(written), raised


@pytest.mark.parametrize("case", PARAMETERS)
@pytest.mark.parametrize("fails", [False, True])
async def test_a_secret_parameter_is_written_nowhere(case: str, fails: bool) -> None:
    kind, value = PARAMETERS[case]

    def enter(secret: Any) -> str:
        if fails:
            raise ValueError(f"no {SECRET}")
        return "entered"

    enter.__annotations__ = {"secret": kind, "return": str}
    event, written, _ = await _record_of(
        Tool.from_function(enter, ToolContract(side_effects=("a:write",))), secret=value
    )
    assert event["inputs"] == {"secret": MASK}
    assert event.get("error_state") == ("ValueError: no ***" if fails else None)
    assert SECRET not in written


@pytest.mark.parametrize("case", RESULTS)
async def test_a_secret_result_is_written_nowhere_and_the_rest_of_it_is(case: str) -> None:
    kind, value, shown = RESULTS[case]

    def give() -> Any:
        return value

    give.__annotations__ = {"return": kind}
    event, written, _ = await _record_of(Tool.from_function(give, ToolContract(side_effects=("a:write",))))
    assert event["outputs"] == {"result": shown}
    assert SECRET not in written


@pytest.mark.parametrize("alone", [False, True])
async def test_a_secret_field_that_a_contract_declares_is_written_nowhere(alone: bool) -> None:
    def give() -> Any:
        return SECRET if alone else {"pin": SECRET, "user": "ann"}

    contract = ToolContract(side_effects=("a:write",), outputs={"pin": Annotated[str, Redacted]})
    event, written, _ = await _record_of(Tool.from_function(give, contract))
    assert event["outputs"] == {"result": MASK if alone else {"pin": MASK, "user": "ann"}}
    assert SECRET not in written


@pytest.mark.parametrize(
    ("kind", "value", "told"),
    [
        (int, 90817263544, "90817263544"),
        (float, 4711.25, "4711.25"),
        (Decimal, Decimal("4711.50"), "4711.50"),
        (date, date(1969, 7, 20), "1969-07-20"),
        (str, 'it\'s "so"\nsecret', 'it\'s "so"\nsecret'),
        (bytes, b"some bytes", "some bytes"),
    ],
)
async def test_secrets_of_any_kind_are_taken_out_of_what_a_tool_says(kind: Any, value: Any, told: str) -> None:
    def enter(secret: Any, fails: bool) -> dict[str, Any]:
        if fails:
            raise ValueError(f"{secret} is wrong, {secret!r}")
        return {"echo": secret, "said": [f"it is {told}"], "number": 12}

    enter.__annotations__ = {"secret": Annotated[kind, Redacted], "fails": bool, "return": Any}
    entry = Tool.from_function(enter)
    event, written, _ = await _record_of(entry, secret=value, fails=False)
    assert event["outputs"]["result"] == {
        "echo": event["outputs"]["result"]["echo"],
        "said": ["it is ***"],
        "number": 12,
    }
    assert told not in written
    if kind is not bytes:
        event, written, _ = await _record_of(entry, secret=value, fails=True)
        assert event["error_state"].startswith("ValueError: *** is wrong")
        assert told not in written
        assert repr(told)[1:-1] not in event["error_state"]


def test_a_number_too_long_to_print_is_no_trouble() -> None:
    assert secret_texts([10**5000, True, None, "abc"], whole=True) == set()


@pytest.mark.parametrize(
    "secret",
    [
        "Q" + "0123456789" * 1000,
        "my token: abc xyz qqq rrr",
        '{"private_key": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", "client_email": "bot@x.iam"}',
        "one  \n two",
    ],
    ids=["longer than what is kept", "looks like another", "partly of a known shape", "in several lines"],
)
async def test_of_a_secret_that_is_cut_or_looks_like_others_no_part_is_left(secret: str) -> None:
    def enter(key: SecretStr, note: str, fails: bool) -> str:
        told = key.get_secret_value()
        if fails:
            error = ValueError(f"refused {told}")
            error.add_note(f"sent {told}")
            raise error
        return f"value is {told}."

    entry = Tool.from_function(enter, ToolContract())
    note = "x" * 8180 + secret
    event, _, _ = await _record_of(entry, key=secret, note=note, fails=False)
    assert event["outputs"] == {"result": f"value is {MASK}."}
    assert event["inputs"] == {"key": MASK, "note": "x" * 8180 + MASK, "fails": False}
    event, _, raised = await _record_of(entry, key=secret, note="", fails=True)
    assert raised is not None
    assert (message_of(raised), notes_of(raised)) == (f"refused {MASK}", [f"sent {MASK}"])
    assert event["error_state"] == f"ValueError: refused {MASK}"


async def test_of_a_secret_that_contains_another_no_part_is_left() -> None:
    def enter(pin: SecretStr, account: Coded) -> str:
        return f"{pin.get_secret_value()} opens {account.code.get_secret_value()}"

    event, _, _ = await _record_of(Tool.from_function(enter), pin="4711", account={"code": "4711-0815"})
    assert event["outputs"] == {"result": "*** opens ***"}


async def test_a_secret_that_is_part_of_a_name_does_not_take_from_it_what_it_says() -> None:
    def enter(pin: SecretStr) -> dict[str, Any]:
        return {"secret_key": SECRET, "secret_life": "none", "is_secret": True, "size": 10**5000}

    event, _, _ = await _record_of(Tool.from_function(enter), pin="secret")
    shown = {"***_key": MASK, "***_life": MASK, "is_***": True, "size": "<integer of 16610 bits>"}
    assert event["outputs"] == {"result": shown}


async def test_what_a_caller_hides_stays_hidden_where_there_is_no_such_tool() -> None:
    storage = InMemoryStorage()
    executor = ToolExecutor(ToolRegistry(), storage)
    with pytest.raises(UnknownToolError):
        await executor.call("leave", {"pin": SECRET}, hidden=frozenset({"pin"}))
    (record,) = await storage.read(EVENTS)
    assert record.data["inputs"] == {"pin": MASK}


async def test_what_a_caller_hides_and_what_the_tool_hides_stay_hidden_where_the_call_does_not_fit() -> None:
    def leave(pin: str, code: SecretStr) -> None: ...

    storage = InMemoryStorage()
    executor = ToolExecutor(ToolRegistry([Tool.from_function(leave)]), storage)
    with pytest.raises(ToolInputError):
        await executor.call("leave", {"pin": SECRET, "code": [SECRET], "no": 1}, hidden=frozenset({"pin"}))
    (record,) = await storage.read(EVENTS)
    assert record.data["inputs"] == {"pin": MASK, "code": MASK, "no": MASK}


@pytest.mark.parametrize("fails", [False, True])
async def test_neither_do_its_verify_and_its_compensator_tell_it_that_take_it_unmarked(fails: bool) -> None:
    storage, given = InMemoryStorage(), []

    def find(pin):  # type: ignore[no-untyped-def]
        given.append(pin)
        if fails:
            raise ValueError(f"nothing under {pin}")
        return {"found": "f1"}

    def enter(pin: Annotated[str, Redacted]) -> dict[str, str]:
        raise OutcomeUnknown

    def leave(idempotency_key: str, pin: str = "", found: str = "") -> str:
        given.append(pin)
        if fails:
            raise ValueError(f"no entry of {pin}")
        return f"{pin} has left"

    tools = ToolRegistry(
        [Tool.from_function(enter, ToolContract(compensating_tool="leave", verify=find)), Tool.from_function(leave)]
    )
    with pytest.raises((OutcomeUnknown, ZeroDivisionError)):
        async with saga(storage=storage, tools=tools) as scope:
            await scope.use("enter", pin=SECRET)
            raise ZeroDivisionError
    assert set(given) == {SECRET}
    events = {record.data["tool_name"]: record.data for record in await storage.read(EVENTS)}
    assert events["enter.verify"]["inputs"] == {"pin": MASK}
    assert events["leave"]["inputs"]["pin"] == MASK
    written = [record.data for stream in await storage.streams() for record in await storage.read(stream.name)]
    assert SECRET not in repr(written)
    assert events["leave"].get("error_state") == ("ValueError: no entry of ***" if fails else None)
    assert events["leave"]["outputs"] == ({} if fails else {"result": "*** has left"})


async def test_a_compensator_does_not_tell_the_secret_field_of_a_result_that_it_takes_unmarked() -> None:
    def enter() -> Plain:
        return {"pin": SECRET, "user": "ada"}

    def leave(user: str, pin: str = "", result: Any = None) -> list[Any]:
        return [pin, result]

    tools = ToolRegistry(
        [Tool.from_function(enter, ToolContract(compensating_tool="leave")), Tool.from_function(leave)]
    )
    storage = InMemoryStorage()
    with pytest.raises(ZeroDivisionError):
        async with saga(storage=storage, tools=tools) as scope:
            await scope.use("enter")
            raise ZeroDivisionError
    assert scope.result.status == "rolled_back"
    written = [record.data for stream in await storage.streams() for record in await storage.read(stream.name)]
    assert SECRET not in repr(written)


async def test_the_notes_of_an_error_are_told_without_the_secret() -> None:
    error = ValueError("denied")

    def enter(pin: SecretStr) -> None:
        error.add_note(f"sent {pin.get_secret_value()}")
        raise error

    await _record_of(Tool.from_function(enter), pin=SECRET)
    error.add_note("a later\nnote")
    assert (message_of(error), notes_of(error)) == ("denied", ["sent ***", "a later note"])


@pytest.mark.parametrize("value", [7, "7", [1, 2.5], {"number": 7, "code": True}, True, b"7"])
@pytest.mark.parametrize("rest", [False, True])
async def test_an_approver_is_shown_nothing_of_a_secret_however_short_or_nested(value: Any, rest: bool) -> None:
    asked: list[dict[str, Any]] = []

    class Ask(ApprovalHandler):
        async def request_approval(self, request: ApprovalRequest) -> Decision:
            asked.append(dict(request.arguments))
            return Decision(True)

    def enter(user: str, secret: Annotated[Any, Redacted]) -> None: ...

    def enter_any(user: str, **rest: Annotated[Any, Redacted]) -> None: ...

    entry = Tool.from_function(enter_any if rest else enter, ToolContract(requires_approval=True))
    executor = ToolExecutor(ToolRegistry([entry]), InMemoryStorage(), Ask())
    await executor.call(entry.name, {"user": "ann", "secret": value})
    assert asked == [{"user": "ann", "secret": MASK}]


async def test_an_approver_is_shown_no_secret_that_another_argument_repeats() -> None:
    asked: list[ApprovalRequest] = []

    class Person(ApprovalHandler):
        async def request_approval(self, request: ApprovalRequest) -> Decision:
            asked.append(request)
            return Decision(True, digest=request.digest)

    def enter(pin: SecretStr, note: str) -> str:
        return "entered"

    entry = Tool.from_function(enter, ToolContract(requires_approval=True))
    executor = ToolExecutor(ToolRegistry([entry]), InMemoryStorage(), Person())
    assert await executor.call("enter", {"pin": SECRET, "note": f"the pin is {SECRET}"}) == "entered"
    assert dict(asked[0].arguments) == {"pin": MASK, "note": "the pin is ***"}


class WithDefault(BaseModel):
    user: str = "ann"
    pin: Annotated[str, Redacted] = SECRET
    perhaps: Annotated[str, Redacted] | None = SECRET
    code: SecretStr = SecretStr(SECRET)
    inner: Account = Account(SECRET, "bob")


def test_the_schema_for_an_lm_holds_no_secret_default() -> None:
    def enter(
        login: WithDefault,
        pin: Annotated[str, Redacted] = SECRET,
        pins: list[Alias] = [SECRET],  # noqa: B006
        api_key: str = SECRET,
        user: str = "ann",
    ) -> None: ...

    schema = Tool.from_function(enter, localns={"WithDefault": WithDefault}).json_schema
    assert SECRET not in str(schema)
    assert schema["properties"]["user"]["default"] == "ann"
    fields = schema["$defs"]["WithDefault"]["properties"]
    assert fields["user"]["default"] == "ann"
    assert fields["inner"]["default"] == {"pin": MASK, "user": "bob"}


def test_what_an_undefined_alias_stands_for_is_not_looked_for() -> None:
    alias = typing_extensions.TypeAliasType("alias", "Nowhere | None")  # noqa: F821
    assert not holds_secrets(alias)
    assert secret_fields(alias) == frozenset()


class Odd(BaseModel):
    """Is written as something else than its fields."""

    account: Account

    @field_serializer("account")
    def _write(self, account: Account) -> str:
        return f"{account.user}/{account.pin}"


def test_of_what_is_written_in_another_shape_nothing_of_a_secret_is_shown() -> None:
    odd = Odd(account=Account(SECRET, "ann"))
    assert without_marked(odd, odd.model_dump(mode="json")) == {"account": MASK}
    assert without_marked([odd], ["one", "two"]) == MASK
    assert without_marked({"a": 1}, {"a": 1}) == {"a": 1}
    assert without_marked([Row(SECRET, "ann")], [[SECRET, "ann"]]) == [[MASK, "ann"]]
    assert carries_secret([odd])


def _validated(value: str) -> str:
    raise ValueError(f"{value} is too weak")


async def test_a_validator_that_quotes_a_secret_is_told_without_it() -> None:
    def enter(pin: Annotated[str, Redacted, AfterValidator(_validated)]) -> None: ...

    _, written, raised = await _record_of(Tool.from_function(enter), pin=SECRET)
    assert raised is not None
    assert SECRET not in written
    assert "*** is too weak" in str(message_of(raised))
