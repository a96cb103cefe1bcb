"""Tools of uncommon shapes: what they take and give, and what is refused with a reason."""

from __future__ import annotations

import enum
import functools
import threading
import typing
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Required

import pytest
import typing_extensions
from pydantic import BaseModel, Field, SecretBytes, SecretStr, field_validator
from typing_extensions import TypedDict

from agenthelm.core.event import ExecutionEvent
from agenthelm.core.executor import ToolExecutor, charge
from agenthelm.core.handlers import ApprovalHandler, ApprovalRequest, AutoApprove, Decision
from agenthelm.core.redaction import Redacted
from agenthelm.core.sensitive import carries_secret
from agenthelm.core.storage import EVENTS, InMemoryStorage, SqliteStorage
from agenthelm.core.tool import Tool, ToolContract, ToolRegistry, tool
from agenthelm.core.tracer import ExecutionTracer
from agenthelm.exceptions import (
    ApprovalDeniedError,
    PlanError,
    StorageError,
    ToolContractError,
    ToolInputError,
    ToolOutputError,
    UnknownAgentError,
    UnknownToolError,
)
from agenthelm.orchestration.plan import Plan, Ref, Step
from agenthelm.orchestration.saga import SagaOrchestrator, saga
from agenthelm.testing.storage import FaultyStorage


class Opinionated(BaseModel):
    """A model whose validator fails as none should."""

    name: str

    @field_validator("name")
    @classmethod
    def known(cls, name: str) -> str:
        return {"a": "A"}[name]


@dataclass
class Unfinished:
    """A type that names one which is defined nowhere."""

    x: Missing  # type: ignore[name-defined]  # noqa: F821


@dataclass
class Booking:
    booking: str
    price: float


class Room(BaseModel):
    room: int


@pytest.fixture
def tools() -> ToolRegistry:
    return ToolRegistry()


class TestShapes:
    async def test_a_partial_of_an_async_function_is_an_async_tool(self, tools: ToolRegistry) -> None:
        async def add(x: int, y: int) -> int:
            return x + y

        entry = tools.register(tool(name="add_two", registry=tools)(functools.partial(add, y=2)))
        assert entry.is_async
        assert await ToolExecutor(tools, InMemoryStorage()).call("add_two", {"x": 1}) == 3

    def test_a_bound_method_can_be_a_tool(self, tools: ToolRegistry) -> None:
        class Desk:
            def book(self, city: str) -> str:
                return f"{self.__class__.__name__} in {city}"

        tool(registry=tools)(Desk().book)
        assert tools["book"].binding.invoke({"city": "Lisbon"}) == "Desk in Lisbon"

    def test_registering_a_function_twice_is_registering_it_once(self, tools: ToolRegistry) -> None:
        def local() -> None: ...

        tools.register(local)
        tools.register(local)
        assert (len(tools), repr(tools)) == (1, "ToolRegistry(local)")

    def test_a_copy_of_a_registry_goes_its_own_way(self, tools: ToolRegistry) -> None:
        tools.register(print_it)
        copy = tools.copy()
        copy.register(shout)
        assert (list(tools), list(copy)) == (["print_it"], ["print_it", "shout"])

    def test_a_backoff_of_none_is_the_usual_one(self, tools: ToolRegistry) -> None:
        @tool(registry=tools, retries=1, backoff=None)
        def flaky() -> None: ...

        assert tools["flaky"].contract.backoff == ToolContract().backoff

    def test_a_verify_tool_that_is_not_there_is_named_before_anything_runs(self, tools: ToolRegistry) -> None:
        @tool(registry=tools, side_effects=["mail:send"], verify="lookup_mail")
        def send() -> None: ...

        @tool(registry=tools)
        def look_up_mail() -> bool:
            return True

        with pytest.raises(PlanError, match=r"'send' names 'lookup_mail' as verify, .*'look_up_mail'"):
            tools.check()

    def test_only_a_compensator_that_needs_a_secret_is_refused_at_registration(self, tools: ToolRegistry) -> None:
        @tool(registry=tools, compensating_tool="drop")
        def store_secret(name: str) -> None: ...

        @tool(registry=tools)
        def drop(number: int) -> None: ...

        with pytest.raises(PlanError, match="needs 'number', which is neither an argument of 'store_secret'"):
            tools.check()

    def test_a_single_named_output_is_validated_and_stays_bare(self, tools: ToolRegistry) -> None:
        @tool(registry=tools, outputs={"count": "int"})
        def count() -> Any:
            return "7"

        assert tools["count"].binding.check_result("7") == 7
        with pytest.raises(ToolOutputError, match="at count"):
            tools["count"].binding.check_result("many")

    async def test_the_fields_of_a_dataclass_reach_the_compensator(self, tools: ToolRegistry) -> None:
        undone: list[str] = []

        @tool(registry=tools, compensating_tool="cancel")
        async def book() -> Booking:
            return Booking("#1", 9.5)

        @tool(registry=tools)
        async def cancel(booking: str) -> None:
            undone.append(booking)

        with pytest.raises(ValueError, match="no"):
            async with saga(tools=tools, storage=InMemoryStorage()) as scope:
                await scope.use("book")
                raise ValueError("no")
        assert undone == ["#1"]

    def test_a_result_that_may_be_one_thing_or_another_leaves_the_compensator_open(self, tools: ToolRegistry) -> None:
        @tool(registry=tools, compensating_tool="leave")
        def enter() -> Room | None: ...

        @tool(registry=tools)
        def leave(room: int) -> None: ...

        tools.check()
        assert tools["enter"].binding.declared_fields() is None

    def test_what_a_plan_can_not_hold_is_named(self) -> None:
        with pytest.raises(PlanError, match=r"Steps and lists of Steps, not 'book'"):
            Plan.of([["book"]])  # type: ignore[list-item]


class Account:
    def __init__(self, owner: str) -> None:
        self.owner = owner

    def send(self, amount: int) -> str:
        return f"{amount} from {self.owner}"

    @classmethod
    def kind(cls) -> str:
        return cls.__name__

    async def __call__(self, amount: int) -> str:
        return self.send(amount)


class Savings(Account):
    pass


def guarded(function: Any) -> Any:
    @functools.wraps(function)
    async def guard(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("amount", 0) > 10:
            raise PermissionError("too much")
        return await function(*args, **kwargs)

    return guard


class TestWhatIsAsync:
    async def test_a_class_is_called_for_an_instance_and_an_instance_for_what_it_does(self) -> None:
        assert not Tool.from_function(Account).is_async
        assert Tool.from_function(Account("Ann")).is_async
        account = await ExecutionTracer(tools=[Account]).trace_and_execute("Account", owner="Ann")
        assert account.owner == "Ann"


class TestWhichFunctionIsMeant:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (Account("Ann").send, Account("Bob").send),
            (Account.kind, Savings.kind),
            (Account("Ann"), Account("Bob")),
            (functools.partial(divmod, 1), functools.partial(divmod, 2)),
            ([].append, [].append),
        ],
    )
    def test_what_is_bound_to_something_else_is_another_function(self, one: Any, other: Any) -> None:
        tools = ToolRegistry([Tool.from_function(one, name="send")])
        with pytest.raises(ToolContractError, match=r"another function is registered as tool 'send' \("):
            tools.register(Tool.from_function(other, name="send"))

    def test_the_method_of_one_instance_may_be_registered_twice(self, tools: ToolRegistry) -> None:
        ann = Account("Ann")
        tools.register(ann.send)
        tools.register(ann.send)
        assert list(tools) == ["send"]

    async def test_what_wraps_a_tool_is_called_in_its_place_under_its_contract(self) -> None:
        @guarded
        @tool(registry=ToolRegistry(), name="pay", requires_approval=lambda amount: amount > 5)
        async def wire(amount: int) -> str:
            return "sent"

        executor = ToolExecutor(ToolRegistry([wire]), InMemoryStorage(), AutoApprove())
        assert await executor.call("pay", {"amount": "5"}) == "sent"
        with pytest.raises(PermissionError, match="too much"):
            await executor.call("pay", {"amount": 11})
        with pytest.raises(ApprovalDeniedError):
            await ToolExecutor(ToolRegistry([wire]), InMemoryStorage()).call(wire, {"amount": 6})

    async def test_a_function_with_several_contracts_is_none_of_them_by_itself(self) -> None:
        first, second = ToolRegistry(), ToolRegistry()

        def pay(amount: int) -> None: ...

        tool(registry=first, requires_approval=True)(pay)
        tool(registry=second)(pay)
        with pytest.raises(ToolContractError, match=r"pay is a tool with several contracts; .*registry\[name\]"):
            ToolRegistry([pay])
        assert ToolRegistry([first["pay"]])["pay"].contract.requires_approval

    def test_the_same_contract_twice_is_one_and_so_is_one_that_replaced_the_other(self, tools: ToolRegistry) -> None:
        def pay(amount: int) -> None: ...

        tool(registry=tools, retries=1)(pay)
        tool(registry=tools, retries=2)(pay)
        tool(registry=ToolRegistry(), retries=2)(pay)
        assert ToolRegistry([pay])["pay"].contract.retries == 2

    @pytest.mark.parametrize("first", ["self", "cls"])
    def test_a_method_without_its_instance_is_refused(self, tools: ToolRegistry, first: str) -> None:
        source = f"class Desk:\n    @tool(registry=tools)\n    def book({first}, city: str): ..."
        with pytest.raises(ToolContractError, match=rf"'book' is a method of Desk, .*'{first}'.*\(instance.book\)"):
            exec(source, {"tool": tool, "tools": tools})
        assert len(tools) == 0

    def test_a_static_method_has_no_instance_to_miss(self, tools: ToolRegistry) -> None:
        class Desk:
            @staticmethod
            @tool(registry=tools)
            def book(city: str) -> str:
                return city

        assert tools["book"].binding.invoke({"city": "Lisbon"}) == Desk.book("Lisbon")

    def test_what_has_no_signature_is_refused(self, tools: ToolRegistry) -> None:
        with pytest.raises(ToolContractError, match="'c': its parameters can't be read"):
            tool(registry=tools, name="c")(classmethod(lambda cls: None))  # type: ignore[type-var]


class TestPartials:
    async def test_what_is_left_is_validated_and_what_is_bound_is_no_argument(self) -> None:
        def pay(sender: str, amount: int, pin: Annotated[str, Redacted], currency: str = "EUR") -> str:
            """Pay somebody."""
            return f"{sender} {amount + 1} {currency}"

        entry = Tool.from_function(functools.partial(pay, "Ann", currency="USD"), name="pay")
        assert list(entry.json_schema["properties"]) == ["amount", "pin"]
        assert (entry.description, entry.binding.sensitive) == ("Pay somebody.", {"pin"})
        executor = ToolExecutor(ToolRegistry([entry]), InMemoryStorage())
        assert await executor.call("pay", {"amount": "1", "pin": "0000"}) == "Ann 2 USD"
        with pytest.raises(ToolInputError, match="'currency' is no parameter"):
            await executor.call("pay", {"amount": 1, "pin": "0000", "currency": "EUR"})

    async def test_also_those_of_callable_objects(self) -> None:
        entry = Tool.from_function(functools.partial(functools.partial(Account("Ann")), amount=3), name="send")
        assert await ToolExecutor(ToolRegistry([entry]), InMemoryStorage()).call("send", {}) == "3 from Ann"
        entry = Tool.from_function(functools.partial(Account("Ann")), name="send")
        assert (
            await ToolExecutor(ToolRegistry([entry]), InMemoryStorage()).call("send", {"amount": "4"}) == "4 from Ann"
        )


class TestWhatWouldNotRun:
    @pytest.mark.parametrize("kind", ["def", "async def"])
    def test_generators_are_refused(self, tools: ToolRegistry, kind: str) -> None:
        namespace: dict[str, Any] = {}
        exec(f"{kind} send(to: str):\n    yield to", namespace)
        for function in (namespace["send"], functools.partial(namespace["send"])):
            with pytest.raises(ToolContractError, match=r"'send' is a generator, .*return a list"):
                tools.register(Tool.from_function(function, name="send"))

    @pytest.mark.parametrize("kind", ["generator", "async_generator", "coroutine", "Later"])
    async def test_what_was_only_begun_is_no_result(self, tools: ToolRegistry, kind: str) -> None:
        class Later:
            def __await__(self) -> Iterator[None]:
                return iter(())

        async def later() -> None: ...

        async def several() -> AsyncIterator[None]:
            yield

        made = {"generator": lambda: (x for x in "ab"), "async_generator": several, "coroutine": later, "Later": Later}

        @tool(registry=tools)
        def begin() -> Any:
            return made[kind]()

        with pytest.raises(ToolOutputError, match=f"'begin' returned a {kind.replace('_', ' ')} that nobody") as caught:
            await ToolExecutor(tools, InMemoryStorage()).call("begin", {})
        assert not caught.value.ran


class Options(TypedDict):
    size: int
    colour: NotRequired[Annotated[str, Field(max_length=5)]]
    pin: Required[Annotated[str, Redacted]]


class TestDefaultsThatAreFields:
    async def test_hold_and_what_they_demand_is_demanded(self, tools: ToolRegistry) -> None:
        @tool(registry=tools)
        async def search(
            text: str = Field(description="What for."),
            most: int = Field(5, le=10),
            tags: list[str] = Field(default_factory=lambda: ["any"]),  # noqa: B008
            /,
        ) -> Any:
            tags.append("seen")
            return text, most, tags

        executor = ToolExecutor(tools, InMemoryStorage())
        for _ in range(2):
            assert await executor.call("search", {"text": "a"}) == ("a", 5, ["any", "seen"])
        assert await executor.call("search", {"text": "a", "most": "7"}) == ("a", 7, ["any", "seen"])
        with pytest.raises(ToolInputError, match="'text' is missing"):
            await executor.call("search", {})
        with pytest.raises(ToolInputError, match="'most': Input should be less than"):
            await executor.call("search", {"text": "a", "most": 11})
        schema = tools["search"].json_schema
        assert (schema["required"], schema["properties"]["text"]) == (
            ["text"], {"description": "What for.", "type": "string"},
        )  # fmt: skip
        assert schema["properties"]["most"] == {"default": 5, "maximum": 10, "type": "integer"}
        assert "default" not in schema["properties"]["tags"]


class TestKeywords:
    async def test_are_validated_where_they_have_a_type(self, tools: ToolRegistry) -> None:
        @tool(registry=tools)
        async def add(base: int, **more: int) -> int:
            return base + sum(more.values())

        executor = ToolExecutor(tools, InMemoryStorage())
        assert await executor.call("add", {"base": 1, "a": "2"}) == 3
        with pytest.raises(ToolInputError, match="'b': Input should be a valid integer"):
            await executor.call("add", {"base": 1, "b": "many"})
        assert tools["add"].json_schema["additionalProperties"] == {"type": "integer"}

    async def test_of_a_model_show_its_schema(self, tools: ToolRegistry) -> None:
        @tool(registry=tools)
        async def furnish(**rooms: Room) -> int:
            return sum(room.room for room in rooms.values())

        assert await ToolExecutor(tools, InMemoryStorage()).call("furnish", {"a": {"room": "2"}}) == 2
        schema = tools["furnish"].json_schema
        assert (schema["additionalProperties"], list(schema["$defs"])) == ({"$ref": "#/$defs/Room"}, ["Room"])

    @pytest.mark.parametrize("unpack", [typing.Unpack, typing_extensions.Unpack])
    async def test_of_a_typed_dict_are_parameters(self, tools: ToolRegistry, unpack: Any) -> None:
        async def paint(**options: Any) -> Any:
            return options

        paint.__annotations__["options"] = unpack[Options]
        entry = tools.register(paint)
        executor = ToolExecutor(tools, InMemoryStorage())
        assert await executor.call("paint", {"size": "2", "pin": "1"}) == {"size": 2, "pin": "1"}
        with pytest.raises(ToolInputError, match=r"'size' is missing; 'colour': .*; 'colr' is no parameter"):
            await executor.call("paint", {"colour": "reddish", "pin": "1", "colr": "red"})
        assert entry.binding.sensitive == {"pin"}
        assert (entry.json_schema["required"], entry.json_schema["properties"]["colour"]) == (
            ["size", "pin"], {"maxLength": 5, "type": "string"},
        )  # fmt: skip

    @pytest.mark.parametrize("kind", [Annotated[str, Redacted], SecretStr])
    async def test_that_are_secret_are_written_nowhere(self, tools: ToolRegistry, kind: Any) -> None:
        async def log_in(user: str, **secrets: Any) -> None:
            raise ValueError("hunter22 is wrong")

        log_in.__annotations__["secrets"] = kind
        tool(registry=tools, side_effects=["account:write"], requires_approval=True)(log_in)
        storage, asked = InMemoryStorage(), []

        class Yes(ApprovalHandler):
            async def request_approval(self, request: ApprovalRequest) -> Decision:
                asked.append(request)
                return Decision(True)

        async with saga(tools=tools, storage=storage, approval_handler=Yes()) as scope:
            with pytest.raises(ValueError, match="wrong"):
                await scope.use("log_in", user="ann", word="hunter22")
            with pytest.raises(ToolInputError):
                await scope.use("log_in", word="hunter22")
        assert dict(asked[0].arguments) == {"user": "ann", "word": "***"}
        for stream in await storage.streams():
            assert "hunter22" not in str([record.data for record in await storage.read(stream.name)])
        assert len(await storage.read(EVENTS)) == 2

    async def test_that_are_secret_keep_a_plan_out_of_the_journal(self, tools: ToolRegistry) -> None:
        @tool(registry=tools)
        async def log_in(**secrets: Annotated[str, Redacted]) -> None: ...

        storage = InMemoryStorage()
        await SagaOrchestrator(ExecutionTracer(storage, tools=tools), tools).execute(
            [Step("log_in", {"word": "hunter22"})]
        )
        for stream in await storage.streams():
            assert "hunter22" not in str([record.data for record in await storage.read(stream.name)])


class Basket(TypedDict):
    items: Iterable[int]


class Frozen(BaseModel):
    items: Iterable[int]


class TestWhatCanBeReadOnlyOnce:
    async def test_an_iterable_argument_is_a_list_for_everybody_who_looks(self, tools: ToolRegistry) -> None:
        seen: list[Any] = []

        @tool(registry=tools, side_effects=["pay:write"], requires_approval=lambda amounts: sum(amounts) > 100)
        async def pay(amounts: Iterable[int], more: dict[str, Iterable[int]] | None = None) -> int:
            seen.append((amounts, more))
            return sum(amounts)

        storage = InMemoryStorage()
        async with saga(tools=tools, storage=storage) as scope:
            assert await scope.use("pay", amounts=iter([1, 2]), more={"a": (3, "4")}) == 3
            with pytest.raises(ApprovalDeniedError):
                await scope.use("pay", amounts=[101])
        assert seen == [([1, 2], {"a": [3, 4]})]
        (run,) = await storage.streams(prefix="run:")
        (begun,) = [r.data["arguments"] for r in await storage.read(run.name) if r.data["type"] == "begin"]
        assert begun == {"amounts": [1, 2], "more": {"a": [3, 4]}}

    async def test_also_within_a_typed_dict(self, tools: ToolRegistry) -> None:
        @tool(registry=tools)
        async def add(basket: Basket) -> int:
            return sum(basket["items"]) + sum(basket["items"])

        assert await ToolExecutor(tools, InMemoryStorage()).call("add", {"basket": {"items": [1, 2]}}) == 6

    @pytest.mark.parametrize("kind", [Iterable[int], Iterator[int], dict[str, Iterable[int]], Basket])
    async def test_an_iterable_result_can_be_read_twice(self, tools: ToolRegistry, kind: Any) -> None:
        async def produce() -> Any:
            return map(int, "12") if kind in {Iterable[int], Iterator[int]} else {"items": map(int, "12")}

        produce.__annotations__["return"] = kind
        value = await ToolExecutor(ToolRegistry([produce]), InMemoryStorage()).call("produce", {})
        assert (value["items"] if isinstance(value, dict) else value) == [1, 2]

    @pytest.mark.parametrize("kind", [Iterator[int], Generator[int, None, None], list[Iterator[int]], Iterator])
    def test_an_iterator_is_no_argument(self, tools: ToolRegistry, kind: Any) -> None:
        def add(items: Any) -> None: ...

        add.__annotations__["items"] = kind
        with pytest.raises(ToolContractError, match=r"'add': 'items' takes an iterator.* take a list"):
            tools.register(add)

    def test_neither_is_a_model_that_holds_one(self, tools: ToolRegistry) -> None:
        def add(frozen: Frozen | None) -> None: ...

        with pytest.raises(
            ToolContractError, match=r"'add': a parameter has .*: Frozen has an Iterable field.* a list"
        ):
            tools.register(add)

    async def test_a_model_that_holds_one_can_be_a_result(self, tools: ToolRegistry) -> None:
        @tool(registry=tools)
        async def make() -> Frozen:
            return Frozen(items=[1, 2])

        assert list((await ToolExecutor(tools, InMemoryStorage()).call("make", {})).items) == [1, 2]

    async def test_a_function_that_takes_an_iterator_may_be_an_argument(self, tools: ToolRegistry) -> None:
        @tool(registry=tools)
        async def apply(function: Callable[[Iterator[int]], int]) -> int:
            return function(iter([1, 2]))

        assert await ToolExecutor(tools, InMemoryStorage()).call("apply", {"function": sum}) == 3


class TestValidation:
    def test_a_type_that_can_not_be_validated_is_refused_at_once(self, tools: ToolRegistry) -> None:
        def f(x: Annotated[int | str, Field(discriminator="kind")]) -> None: ...

        with pytest.raises(ToolContractError, match="'f': a parameter has a type that can't be validated"):
            tools.register(f)

    async def test_a_type_inside_a_type_that_stays_undefined_is_refused_when_it_is_needed(
        self, tools: ToolRegistry
    ) -> None:
        @tool(registry=tools)
        async def f(x: Unfinished) -> None:
            raise AssertionError("never called")

        with pytest.raises(ToolContractError, match="'f': a parameter has a type that can't be validated"):
            await ToolExecutor(tools, InMemoryStorage()).call("f", {"x": {"x": 1}})

    @pytest.mark.parametrize("kind", [Opinionated, Unfinished])
    async def test_a_result_that_breaks_its_own_validation_is_undone_with_the_run(
        self, tools: ToolRegistry, kind: Any
    ) -> None:
        world: list[str] = []

        async def make(name: str) -> Any:
            world.append(name)
            return {"name": name}

        make.__annotations__["return"] = kind
        tool(registry=tools, compensating_tool="unmake")(make)

        @tool(registry=tools)
        async def unmake(name: str) -> None:
            world.remove(name)

        with pytest.raises(ToolOutputError, match="'make' returned something that can't be validated") as caught:
            async with saga(tools=tools, storage=InMemoryStorage()) as scope:
                await scope.use("make", name="b")
        assert caught.value.ran
        assert (world, scope.result and scope.result.status) == ([], "rolled_back")

    async def test_an_argument_that_can_not_be_copied_is_shared(self, tools: ToolRegistry) -> None:
        lock = threading.Lock()

        @tool(registry=tools)
        async def hold(lock: Any) -> bool:
            return bool(lock.acquire(blocking=False))

        assert await ToolExecutor(tools, InMemoryStorage()).call("hold", {"lock": lock})
        assert lock.locked()

    async def test_a_rule_for_approval_changes_no_arguments(self, tools: ToolRegistry) -> None:
        @tool(registry=tools, requires_approval=lambda usd: usd.pop() > 100)
        async def pay(usd: list[int]) -> int:
            return sum(usd)

        assert await ToolExecutor(tools, InMemoryStorage()).call("pay", {"usd": [10, 20]}) == 30

    async def test_a_hook_changes_neither_what_runs_nor_what_comes_of_it(self, tools: ToolRegistry) -> None:
        @tool(registry=tools, requires_approval=True)
        async def pay(cards: list[str]) -> dict[str, list[str]]:
            return {"paid": cards}

        storage = InMemoryStorage()
        executor = ToolExecutor(tools, storage, AutoApprove(), redact=lambda name, value: value.clear())
        assert await executor.call("pay", {"cards": ["4111"]}) == {"paid": ["4111"]}
        assert "4111" not in str(await storage.read(EVENTS))

    async def test_what_a_tool_of_any_name_takes_is_told(self, tools: ToolRegistry) -> None:
        @tool(registry=tools)
        async def add(first: int, **further: int) -> int: ...

        @tool(registry=tools)
        async def count(**them: int) -> int: ...

        executor = ToolExecutor(tools, InMemoryStorage())
        with pytest.raises(ToolInputError, match=r"\(it takes first, any other name\)"):
            await executor.call("add", {"further": 1})
        with pytest.raises(ToolInputError, match=r"\(it takes any name\)"):
            await executor.call("count", {"one": "x"})

    async def test_a_rule_for_approval_may_take_all_arguments_at_once(self, tools: ToolRegistry) -> None:
        @tool(registry=tools, requires_approval=lambda **given: given["usd"] > 10)
        async def pay(usd: float, to: str) -> str:
            return to

        executor = ToolExecutor(tools, InMemoryStorage())
        assert await executor.call("pay", {"usd": 10, "to": "a"}) == "a"
        with pytest.raises(ApprovalDeniedError):
            await executor.call("pay", {"usd": 11, "to": "a"})

    async def test_secret_bytes_that_a_tool_complains_about_stay_out_of_its_record(self, tools: ToolRegistry) -> None:
        @tool(registry=tools)
        async def log_in(password: SecretBytes) -> None:
            raise ValueError(f"wrong: {password.get_secret_value().decode()}")

        storage = InMemoryStorage()
        with pytest.raises(ValueError, match="wrong"):
            await ToolExecutor(tools, storage).call("log_in", {"password": b"hunter22"})
        (record,) = await storage.read(EVENTS)
        assert "hunter22" not in str(record.data)
        assert "wrong: " in ExecutionEvent.model_validate(dict(record.data)).error_state  # type: ignore[operator]

    def test_a_value_of_an_unknown_kind_carries_no_secret(self) -> None:
        assert not carries_secret(object())


class Unprintable:
    def __repr__(self) -> str:
        raise OSError("no words")


class TestRecords:
    async def test_arguments_that_can_not_be_printed_are_called_with_and_recorded(
        self, tools: ToolRegistry, tmp_path: Path
    ) -> None:
        @tool(registry=tools)
        async def measure(n: int, it: Any) -> int:
            return n.bit_length()

        storage = SqliteStorage(tmp_path / "log.db")
        assert await ToolExecutor(tools, storage).call("measure", {"n": 10**5000, "it": Unprintable()}) == 16610
        (record,) = await storage.read(EVENTS)
        assert record.data["inputs"] == {"n": "<integer of 16610 bits>", "it": "<Unprintable: unreadable>"}
        await storage.aclose()

    async def test_a_call_outside_of_any_run_that_can_not_be_recorded_says_so(self, tools: ToolRegistry) -> None:
        @tool(registry=tools)
        async def f() -> None: ...

        with pytest.raises(StorageError, match="told to fail"):
            await ToolExecutor(tools, FaultyStorage(InMemoryStorage())).call("f", {})

    def test_spending_outside_of_any_call_is_nobodys(self, caplog: pytest.LogCaptureFixture) -> None:
        charge(1.0)
        assert caplog.records == []  # where a tool's function is merely called, as in its own unit test

    async def test_what_a_tracer_calls_inside_a_run_is_undone_with_the_run(self, tools: ToolRegistry) -> None:
        world: list[str] = []

        @tool(registry=tools, compensating_tool="unmake", requires_approval=True)
        async def make(name: str) -> None:
            world.append(name)

        @tool(registry=tools)
        async def unmake(name: str) -> None:
            world.remove(name)

        tracer = ExecutionTracer(InMemoryStorage(), AutoApprove(), tools=tools)
        with pytest.raises(ValueError, match="no"):
            async with saga(tools=tools, storage=InMemoryStorage()):
                await tracer.trace_and_execute(make, name="a")
                assert world == ["a"]
                raise ValueError("no")
        assert world == []

    @pytest.mark.parametrize("kind", [UnknownToolError, UnknownAgentError])
    def test_a_name_without_end_is_cut_in_the_message(self, kind: type[Exception]) -> None:
        error = kind("x" * 100_000, ["known"])  # type: ignore[call-arg]
        assert len(str(error)) < 400
        assert f"named '{'x' * 200}'… <200 of 100000 characters>" in str(error)
        assert f"named '{'x' * 200}'" in str(kind("x" * 200, []))  # type: ignore[call-arg]

    async def test_what_a_tracer_calls_inside_a_run_is_in_the_log_of_the_run(self, tools: ToolRegistry) -> None:
        own, log = InMemoryStorage(), InMemoryStorage()
        tracer = ExecutionTracer(own, tools=tools)

        @tool(registry=tools, compensating_tool="unmake")
        async def make() -> None: ...

        @tool(registry=tools)
        async def look() -> None: ...

        @tool(registry=tools)
        async def unmake() -> None:
            await tracer.trace_and_execute("look")

        with pytest.raises(ValueError, match="no"):
            async with saga(tools=tools, storage=log):
                await tracer.trace_and_execute("make")
                await tracer.trace_and_execute("look")
                raise ValueError("no")
        assert [record.data["tool_name"] for record in await log.read("events")] == ["make", "look", "look", "unmake"]
        assert await tracer.events() == []
        await tracer.trace_and_execute("look")
        assert [event.tool_name for event in await tracer.events()] == ["look"]

    async def test_doubt_that_verify_settles_for_a_tool_without_a_result_is_a_success(
        self, tools: ToolRegistry
    ) -> None:
        @tool(registry=tools, side_effects=["mail:send"], verify=lambda: True)
        async def send() -> None:
            raise TimeoutError

        async with saga(tools=tools, storage=InMemoryStorage()) as scope:
            assert await scope.use("send") is None
        assert scope.result is not None
        assert (scope.result.status, scope.result.in_doubt) == ("success", ())

    async def test_a_verify_whose_own_storage_fails_leaves_the_doubt_and_the_error_of_the_call(
        self, tools: ToolRegistry
    ) -> None:
        def broken() -> bool:
            raise StorageError("the ledger can't be read")

        @tool(registry=tools, side_effects=["mail:send"], verify=broken)
        async def send() -> None:
            raise TimeoutError

        async with saga(tools=tools, storage=InMemoryStorage()) as scope:
            with pytest.raises(TimeoutError):
                await scope.use("send")
        assert scope.result is not None
        assert (scope.result.status, scope.result.in_doubt) == ("success", ("e1",))


class TestRefs:
    @dataclass
    class Trip:
        days: int

        def length(self) -> int:
            return self.days

    @pytest.mark.parametrize(
        ("result", "path", "value"),
        [
            ({"rooms": [{"id": 7}]}, "rooms.0.id", 7),
            ({"_id": 8}, "_id", 8),
            (Trip(3), "days", 3),
            ([1, 2], "-1", 2),
            ("text", "", "text"),
        ],
    )
    def test_reach_into_mappings_lists_and_objects(self, result: Any, path: str, value: Any) -> None:
        assert Ref("book", path).of(result) == value

    @pytest.mark.parametrize(
        ("result", "path", "part"),
        [
            ({"rooms": []}, "rooms.0", "0"),
            ({"rooms": []}, "rooms.first", "first"),
            ({"a": 1}, "b", "b"),
            ("text", "0", "0"),
            (Trip(3), "length.__globals__.pytest", "__globals__"),
            (Trip(3), "__class__.__name__", "__class__"),
        ],
    )
    def test_to_nowhere_say_where_they_end(self, result: Any, path: str, part: str) -> None:
        with pytest.raises(PlanError, match=f"the result of step 'book' has no '{path}' .at '{part}'"):
            Ref("book", path).of(result)

    async def test_a_result_is_asked_for_by_its_step(self, tools: ToolRegistry) -> None:
        tools.register(shout)
        result = await SagaOrchestrator(None, tools).execute(
            [Step("shout", {"text": "a"}, id="one"), Step("shout", {"text": Ref("one")}, id="two")]
        )
        assert result.result_of("two") == "A!!"
        with pytest.raises(KeyError, match="three"):
            result.result_of("three")


def print_it(text: str) -> str:
    return text


def shout(text: str) -> str:
    return f"{text.upper()}!"


async def test_a_method_of_a_built_in_type_is_a_tool() -> None:
    entry = Tool.from_function(str.upper)
    assert entry.origin == ""
    assert await ToolExecutor(ToolRegistry([entry]), InMemoryStorage()).call("upper", {"self": "abc"}) == "ABC"


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Holiday(enum.Enum):
    LABOUR_DAY = date(2026, 5, 1)


async def test_members_of_enums_are_given_by_the_values_that_the_schema_names() -> None:
    async def paint(ground: Literal[Colour.RED], lines: list[Literal["none", Colour.BLUE]], day: Holiday) -> list[Any]:
        return [ground, *lines, day]

    made = Tool.from_function(paint)
    executor = ToolExecutor(ToolRegistry([made]), InMemoryStorage())
    schema = made.json_schema["properties"]
    assert (schema["ground"]["const"], schema["lines"]["items"]["enum"]) == ("red", ["none", "blue"])
    by_value = {"ground": "red", "lines": ["blue", "none"], "day": "2026-05-01"}
    members = {"ground": Colour.RED, "lines": [Colour.BLUE, "none"], "day": Holiday.LABOUR_DAY}
    for arguments in (by_value, members):
        assert await executor.call("paint", arguments) == [Colour.RED, Colour.BLUE, "none", Holiday.LABOUR_DAY]
    with pytest.raises(ToolInputError, match="Input should be <Colour"):
        await executor.call("paint", {**by_value, "ground": "blue"})
