"""Tools of uncommon shapes: what they take and give, and what is refused with a reason."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, SecretBytes, field_validator
from typing_extensions import TypedDict

from agenthelm.core.event import ExecutionEvent
from agenthelm.core.executor import ToolExecutor, charge
from agenthelm.core.handlers import AutoApprove
from agenthelm.core.sensitive import carries_secret
from agenthelm.core.storage import EVENTS, InMemoryStorage
from agenthelm.core.tool import ToolContract, ToolRegistry, tool
from agenthelm.core.tracer import ExecutionTracer
from agenthelm.exceptions import (
    ApprovalDeniedError,
    PlanError,
    StorageError,
    ToolContractError,
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


class TestRecords:
    async def test_a_call_outside_of_any_run_that_can_not_be_recorded_says_so(self, tools: ToolRegistry) -> None:
        @tool(registry=tools)
        async def f() -> None: ...

        with pytest.raises(StorageError, match="told to fail"):
            await ToolExecutor(tools, FaultyStorage(InMemoryStorage())).call("f", {})

    def test_spending_outside_of_any_call_is_nobodys(self) -> None:
        charge(1.0)

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

    @pytest.mark.parametrize(
        ("result", "path", "value"),
        [
            ({"rooms": [{"id": 7}]}, "rooms.0.id", 7),
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
