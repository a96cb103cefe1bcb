"""No journal holds a secret, and nobody is ever given the mask in its place."""

from __future__ import annotations

import json
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Secret, SecretBytes, SecretStr
from typing_extensions import TypedDict

from agenthelm.core.redaction import Redacted
from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import PlanError, ToolContractError
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.results import SagaResult
from agenthelm.orchestration.saga import Step
from agenthelm.testing.storage import FaultyStorage, SimulatedCrash
from tests.support.saga_leases import Later

SECRET = "hunter22-abc"
MASK = str(SecretStr(SECRET))


class Card(BaseModel):
    number: SecretStr
    holder: str = "ada"


class Booking(BaseModel):
    id: str
    pin: Annotated[str, Redacted]
    token: SecretStr


@pytest.fixture
def tools() -> ToolRegistry:
    registry = ToolRegistry()

    @tool(registry=registry)
    async def fail() -> None:
        raise ValueError("no")

    return registry


async def run(tools: ToolRegistry, *steps: Step) -> tuple[SagaResult, SagaResult, str]:
    """How it ended, how it was undone from its journal, and the journal."""
    storage = InMemoryStorage()
    orchestrator = Orchestrator(tools=tools, storage=storage)
    result = await orchestrator.run_saga(steps)
    undone = await orchestrator.undo(result.run_id)
    return result, undone, json.dumps([record.data for record in await storage.read(f"run:{result.run_id}")])


async def test_secret_fields_of_a_result_are_left_out_and_the_others_undo(tools: ToolRegistry) -> None:
    cancelled: list[str] = []

    @tool(registry=tools, compensating_tool="cancel")
    async def book() -> Booking:
        return Booking(id="b1", pin=SECRET, token=SecretStr(SECRET))

    @tool(registry=tools)
    async def cancel(id: str) -> None:  # noqa: A002 - the name of the field of the result
        cancelled.append(id)

    _, undone, journal = await run(tools, Step("book"))
    assert (undone.status, cancelled) == ("rolled_back", ["b1"])
    assert SECRET not in journal


class Login(BaseModel, extra="allow"):
    user: str
    token: SecretStr


async def test_beside_a_secret_what_a_result_does_not_declare_is_left_out_as_well(tools: ToolRegistry) -> None:
    ended: list[str] = []

    @tool(registry=tools, compensating_tool="log_out")
    async def log_in() -> Login:
        return Login(user="ada", token=SecretStr(SECRET), header=f"Bearer {SECRET}")  # type: ignore[call-arg]

    @tool(registry=tools)
    async def log_out(user: str) -> None:
        ended.append(user)

    _, undone, journal = await run(tools, Step("log_in"))
    assert (undone.status, ended) == ("rolled_back", ["ada"])
    assert SECRET not in journal


async def test_of_secrets_in_no_fields_the_journal_holds_nothing_and_nothing_is_given_in_their_place(
    tools: ToolRegistry,
) -> None:
    @tool(registry=tools, compensating_tool="revoke")
    async def issue() -> Any:
        return [SecretStr(SECRET)]

    @tool(registry=tools)
    async def revoke(result: Any) -> None:
        raise AssertionError(result)

    _, undone, journal = await run(tools, Step("issue"))
    assert [stuck.reason for stuck in undone.stuck] == ["revoke needs the result, which is not on record"]
    assert SECRET not in journal


async def test_beside_a_secret_that_is_left_out_bytes_are_what_they_were(tools: ToolRegistry) -> None:
    cancelled: list[Any] = []

    @tool(registry=tools, compensating_tool="cancel")
    async def book() -> dict[str, Any]:
        return {"proof": b"\xff", "token": SecretStr(SECRET)}

    @tool(registry=tools)
    async def cancel(proof: Any) -> None:
        cancelled.append(proof)

    _, undone, _ = await run(tools, Step("book"))
    assert (undone.status, cancelled) == ("rolled_back", [b"\xff"])


async def test_a_secret_in_a_result_of_no_declared_type_is_never_handed_on_masked(tools: ToolRegistry) -> None:
    given: list[Any] = []

    @tool(registry=tools, compensating_tool="cancel")
    async def book() -> dict[str, Any]:
        return {"id": "b1", "token": SecretStr(SECRET)}

    @tool(registry=tools)
    async def cancel(token: Any) -> None:
        given.append(token.get_secret_value())

    _, undone, journal = await run(tools, Step("book"))
    assert (undone.status, given) == ("failed", [])
    assert "needs 'token', which the journal does not hold" in undone.stuck[0].reason
    assert MASK not in journal
    live = await Orchestrator(tools=tools).run_saga([Step("book"), Step("fail")])
    assert (live.status, given) == ("rolled_back", [SECRET])


@pytest.mark.parametrize("needed", ["pin", "token", "card"])
async def test_a_compensator_that_needs_one_is_refused(tools: ToolRegistry, needed: str) -> None:
    kinds: dict[str, Any] = {"pin": str, "token": SecretStr, "card": Card}

    async def cancel(**_: Any) -> None: ...

    namespace: dict[str, Any] = {"kind": kinds[needed]}
    exec(f"async def cancel({needed}: kind) -> None: ...", namespace)

    @tool(registry=tools, compensating_tool="cancel")
    async def book(card: Card) -> Booking:
        raise NotImplementedError

    with pytest.raises((ToolContractError, PlanError), match=f"needs '{needed}', a secret"):
        tools.register(namespace["cancel"])


@pytest.mark.parametrize("kind", [SecretStr, SecretBytes, Secret[int], list[Secret[int]]])
async def test_a_secret_of_whatever_type_is_one(tools: ToolRegistry, kind: Any) -> None:
    async def book(pin: Any) -> None: ...

    async def cancel(pin: Any) -> None: ...

    book.__annotations__["pin"] = cancel.__annotations__["pin"] = kind
    tool(registry=tools, compensating_tool="cancel")(book)
    with pytest.raises(ToolContractError, match="needs 'pin', a secret"):
        tool(registry=tools)(cancel)


@pytest.mark.parametrize("card", [{"number": SECRET}, Card(number=SecretStr(SECRET))], ids=["dict", "model"])
async def test_secrets_inside_of_arguments_are_neither_in_the_plan_nor_in_the_effect(
    tools: ToolRegistry, card: Any
) -> None:
    @tool(registry=tools, compensating_tool="cancel")
    async def pay(card: Card, idempotency_key: str) -> None:
        assert card.number.get_secret_value() == SECRET

    @tool(registry=tools)
    async def cancel(idempotency_key: str) -> None: ...

    result, undone, journal = await run(tools, Step("pay", {"card": card}))
    assert (result.status, undone.status) == ("success", "rolled_back")
    assert SECRET not in journal
    assert MASK not in journal


@pytest.mark.parametrize("effect", [True, False])
async def test_what_a_tool_says_of_its_secret_when_it_fails(tools: ToolRegistry, effect: bool) -> None:
    @tool(registry=tools, side_effects=["x:write"] if effect else [])
    async def pay(token: SecretStr) -> None:
        raise ValueError(f"bad token {token.get_secret_value()}")

    @tool(registry=tools, compensating_tool="cancel")
    async def book(token: SecretStr) -> None: ...

    @tool(registry=tools)
    async def cancel(token: SecretStr = SecretStr("")) -> None:  # noqa: B008
        raise ValueError(f"bad token {token.get_secret_value()}")

    storage = InMemoryStorage()
    steps = [Step("book", {"token": SECRET}), Step("pay", {"token": SECRET})]
    result = await Orchestrator(tools=tools, storage=storage).run_saga(steps)
    journal = json.dumps([record.data for record in await storage.read(f"run:{result.run_id}")])
    assert SECRET not in journal
    assert SECRET not in str(result.stuck) + str(result.error)
    assert "ValueError: bad token" in journal


@pytest.mark.parametrize(
    ("kind", "value", "wanted", "default"),
    [
        (SecretStr, SECRET, str, ""),
        (list[SecretStr], [SECRET], list[str], []),
        (Card, Card(number=SecretStr(SECRET)), dict[str, str], {}),
    ],
    ids=["text", "list", "model"],
)
async def test_what_takes_no_secret_is_called_without_it(
    tools: ToolRegistry, kind: Any, value: Any, wanted: Any, default: Any
) -> None:
    given: list[Any] = []

    async def login(user: str, password: Any) -> None: ...

    async def logout(user: str, password: Any = default) -> None:
        given.append((user, password))

    login.__annotations__["password"], logout.__annotations__["password"] = kind, wanted
    tool(registry=tools, compensating_tool="logout")(login)
    tool(registry=tools)(logout)
    step = Step("login", {"user": "ann", "password": value})
    _, undone, _ = await run(tools, step)
    live = await Orchestrator(tools=tools).run_saga([step, Step("fail")])
    assert (live.status, undone.status, given) == ("rolled_back", "rolled_back", [("ann", default)] * 2)


class Marked(TypedDict):
    id: str
    pin: Annotated[str, Redacted]


@pytest.mark.parametrize("kind", [Marked, Annotated[dict[str, str], Redacted]], ids=["field", "whole"])
async def test_what_verify_says_when_a_plan_goes_on_is_recorded_without_them(tools: ToolRegistry, kind: Any) -> None:
    async def book() -> Any: ...

    book.__annotations__["return"] = kind
    tool(registry=tools, compensating_tool="cancel", verify=lambda: {"id": "b1", "pin": SECRET})(book)

    @tool(registry=tools)
    async def cancel(idempotency_key: str) -> None: ...

    storage = InMemoryStorage()
    dying = FaultyStorage(storage, matching=lambda record: record.data.get("type") == "finish", do="crash")
    with pytest.raises(SimulatedCrash):
        await Orchestrator(tools=tools, storage=dying).run_saga([Step("book")])
    (result,) = await Orchestrator(tools=tools, storage=storage, clock=Later()).recover(resume=True)
    assert (result.status, result.result_of("book")["pin"]) == ("success", SECRET)
    assert SECRET not in json.dumps([record.data for record in await storage.read(f"run:{result.run_id}")])


class Grant(BaseModel):
    grant_id: str
    token: SecretStr


@pytest.mark.parametrize("name", ["token", "result"])
async def test_an_argument_is_given_also_where_a_field_of_that_name_is_a_secret(tools: ToolRegistry, name: str) -> None:
    given: list[str] = []
    namespace: dict[str, Any] = {"given": given}
    exec(f"async def revoke({name}: str) -> None: given.append({name})", namespace)
    exec(f"async def issue({name}: str): return dict(grant_id='g1', token='{SECRET}')", namespace)
    namespace["issue"].__annotations__["return"] = Grant
    tool(registry=tools, compensating_tool="revoke", side_effects=["iam:write"])(namespace["issue"])
    tool(registry=tools)(namespace["revoke"])
    step = Step("issue", {name: "as it was"})
    _, undone, _ = await run(tools, step)
    live = await Orchestrator(tools=tools).run_saga([step, Step("fail")])
    assert (live.status, undone.status, given) == ("rolled_back", "rolled_back", ["as it was"] * 2)


async def test_a_result_without_its_secrets_is_not_given_for_the_whole(tools: ToolRegistry) -> None:
    given: list[Any] = []

    @tool(registry=tools, compensating_tool="revoke", side_effects=["iam:write"])
    async def issue() -> Grant:
        return Grant(grant_id="g1", token=SecretStr(SECRET))

    @tool(registry=tools)
    async def revoke(grant_id: str, result: Grant | None = None) -> None:
        given.append((grant_id, result))

    _, undone, _ = await run(tools, Step("issue"))
    assert (undone.status, given) == ("rolled_back", [("g1", None)])
