"""Tools: what becomes a contract, what is refused, and what is validated on each call."""

from __future__ import annotations

import enum
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Literal, Optional, TypedDict
from uuid import UUID

import pytest
import typing_extensions
from pydantic import BaseModel, Field, SecretStr

from agenthelm.core.redaction import Redacted
from agenthelm.core.tool import TOOL_REGISTRY, Tool, ToolContract, ToolRegistry, tool
from agenthelm.exceptions import (
    PlanError,
    ToolContractError,
    ToolInputError,
    ToolOutputError,
    UnknownToolError,
)


class Colour(enum.Enum):
    RED = "red"


class Address(BaseModel):
    city: str
    zip: int = 0


@dataclass
class Point:
    x: int
    y: int = 0


class Options(typing_extensions.TypedDict):
    loud: bool


@pytest.fixture
def registry() -> ToolRegistry:
    return ToolRegistry()


class TestDecorator:
    def test_a_bare_decorator_returns_the_function_itself(self, registry: ToolRegistry) -> None:
        with TOOL_REGISTRY.isolated():

            @tool
            def double(x: int) -> int:
                """Twice as much."""
                return x * 2

            assert double(2) == 4
            assert TOOL_REGISTRY["double"].function is double
            assert TOOL_REGISTRY["double"].description == "Twice as much."
        assert "double" not in TOOL_REGISTRY

    def test_the_first_plans_example_registers_as_written(self, tmp_path: Any) -> None:
        with TOOL_REGISTRY.isolated():

            @tool(
                inputs={"file_path": "str"},
                outputs={"content": "str"},
                side_effects=["file:read"],
                max_cost=0.01,
                requires_approval=True,
                retries=3,
                compensating_tool="delete_file",
                timeout=30.0,
                tags=["io", "filesystem"],
            )
            def read_file(file_path: str) -> str:
                return open(file_path).read()  # noqa: PTH123

            entry = TOOL_REGISTRY["read_file"]
            assert entry.contract.retries == 3
            assert entry.contract.side_effects == ("file:read",)
            assert not entry.contract.changes_something
            assert entry.contract.effectful  # somebody declared how to undo it
            assert entry.binding.fields_of("text") == {"content": "text"}

    @pytest.mark.parametrize("annotation", ["-> None", "-> str | None", "-> Optional[int]", ""])
    def test_annotations_that_others_crash_on(self, annotation: str, registry: ToolRegistry) -> None:
        namespace: dict[str, Any] = {"tool": tool, "registry": registry, "Optional": Optional}
        source = f"from __future__ import annotations\n@tool(registry=registry)\ndef f(x: str | None = None) {annotation}: ..."
        exec(source, namespace)
        assert registry["f"].binding.bind({}) == {"x": None}

    def test_string_annotations_may_name_local_types(self, registry: ToolRegistry) -> None:
        class Local(BaseModel):
            a: int

        @tool(registry=registry)
        def f(value: Local) -> Local:
            return value

        assert registry["f"].binding.bind({"value": {"a": "1"}})["value"] == Local(a=1)

    def test_an_unknown_annotation_says_what_to_do(self, registry: ToolRegistry) -> None:
        def f(x: Missing) -> None: ...  # type: ignore[name-defined]  # noqa: F821

        with pytest.raises(ToolContractError, match=r"'f'.*'Missing'.*TYPE_CHECKING"):
            registry.register(f)

    def test_an_unknown_field_names_the_tool_and_the_nearest(self, registry: ToolRegistry) -> None:
        with pytest.raises(ToolContractError, match=r"'f'.*'retrys'.*'retries'"):

            @tool(retrys=1, registry=registry)  # type: ignore[call-overload]
            def f() -> None: ...

    def test_one_string_or_class_is_as_good_as_a_list(self, registry: ToolRegistry) -> None:
        @tool(registry=registry, side_effects="mail:send", tags="mail", retry_on=OSError, unknown_on=KeyError)
        def send() -> None: ...

        contract = registry["send"].contract
        assert (contract.side_effects, contract.tags) == (("mail:send",), ("mail",))
        assert (contract.retry_on, contract.unknown_on) == ((OSError,), (KeyError,))

    def test_a_function_may_name_its_compensator_by_itself(self, registry: ToolRegistry) -> None:
        @tool(registry=registry, name="cancel_it")
        def cancel(idempotency_key: str) -> None: ...

        @tool(registry=registry, compensating_tool=cancel)
        def book(idempotency_key: str) -> None: ...

        assert registry["book"].contract.compensating_tool == "cancel_it"


async def asks_later(x: int) -> bool:
    return False


class AsksLater:
    async def __call__(self, x: int) -> bool:
        return False


def looks_anywhere(*where: int) -> bool:
    return True


def looks_on(x: int) -> Iterator[bool]:
    yield True


def looks_for_what_is_not_there(x: Nothing) -> bool:  # type: ignore[name-defined]  # noqa: F821
    return True


class TestContradictions:
    @pytest.mark.parametrize("name", [5, "t\ud800", b"t"])
    def test_a_name_is_a_text(self, name: Any, registry: ToolRegistry) -> None:
        with pytest.raises(ToolContractError, match="a tool's name is a text, not"):
            tool(registry=registry, name=name)(lambda: None)

    @pytest.mark.parametrize("kind", [Final[int], ClassVar[int], "Final[int]", "ClassVar[int]"])
    @pytest.mark.parametrize("default", [(), (1,)])
    def test_annotations_of_variables_are_none_of_parameters(
        self, kind: Any, default: Any, registry: ToolRegistry
    ) -> None:
        def f(x: Any) -> None: ...

        f.__annotations__["x"], f.__defaults__ = kind, default
        with pytest.raises(ToolContractError, match="'f': an annotation can't be that of a parameter"):
            registry.register(f)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"retries": -1}, "retries"),
            ({"timeout": 0}, "timeout"),
            ({"max_cost": -0.1}, "max_cost"),
            ({"compensating_tool": "f"}, "its own"),
            ({"abandonable": True, "side_effects": ["a:write"]}, "abandonable"),
            ({"abandonable": True, "compensating_tool": "g"}, "abandonable"),
            ({"runs_in": "moon"}, "runs_in"),
            ({"side_effects": [""]}, "side_effects"),
            ({"retry_on": [42]}, "retry_on"),
            ({"inputs": {"y": "int"}}, "'y'"),
            ({"inputs": {"x": "nonsense"}}, "nonsense"),
            ({"requires_approval": lambda amount: True}, "amount"),
            ({"verify": lambda other: True}, "other"),
            ({"timeout": math.nan}, "timeout"),
            ({"timeout": math.inf}, "timeout.*None for no limit"),
            ({"timeout": 10**400}, "timeout.*None for no limit"),
            ({"max_cost": 1e300}, "max_cost.*None for no limit"),
            ({"timeout": "5"}, "timeout"),
            ({"timeout": True}, "timeout"),
            ({"max_cost": math.nan}, "max_cost"),
            ({"max_cost": "0.1"}, "max_cost"),
            ({"retries": 1.5}, "retries"),
            ({"retries": None}, "retries"),
            ({"backoff": 2.0}, "Backoff"),
            ({"retry_on": None}, "retry_on"),
            ({"unknown_on": ValueError()}, "unknown_on"),
            ({"tags": None}, "tags"),
            ({"tags": [None]}, "tags"),
            ({"side_effects": 5}, "side_effects"),
            ({"inputs": ["x"]}, "inputs"),
            ({"outputs": ["a"]}, "outputs"),
            ({"compensating_tool": 5}, "compensating_tool"),
            ({"compensating_tool": functools.partial(print)}, "compensating_tool"),
            ({"compensating_tool": ""}, "compensating_tool"),
            ({"verify": 5}, "verify"),
            ({"requires_approval": "no"}, "requires_approval"),
            ({"requires_approval": asks_later}, "requires_approval.*at once"),
            ({"requires_approval": AsksLater()}, "requires_approval.*at once"),
            ({"requires_approval": bool}, "requires_approval can't be read"),
            ({"verify": bool}, "verify can't be read"),
            ({"verify": looks_anywhere}, r"verify could never be asked.*\*where"),
            ({"verify": looks_on}, "verify could never be asked.*generator"),
            ({"verify": looks_for_what_is_not_there}, "verify could never be asked.*'Nothing'"),
            ({"idempotent": "no"}, "idempotent"),
            ({"abandonable": "no"}, "abandonable"),
            ({"timout": 3}, "timout.*'timeout'"),
        ],
    )
    def test_are_refused_by_name(self, fields: dict[str, Any], message: str, registry: ToolRegistry) -> None:
        def f(x: int = 0) -> None: ...

        with pytest.raises(ToolContractError, match=f"(?s)'f'.*{message}"):
            tool(registry=registry, **fields)(f)
        assert "f" not in registry

    @pytest.mark.parametrize("fields", [{"abandonable": True}, {"runs_in": "process"}])
    def test_async_tools_need_no_thread(self, fields: dict[str, Any], registry: ToolRegistry) -> None:
        async def f() -> None: ...

        with pytest.raises(ToolContractError, match=r"async"):
            tool(registry=registry, **fields)(f)

    def test_a_function_that_no_other_process_can_import_runs_in_none(self, registry: ToolRegistry) -> None:
        class Counter:
            def __call__(self, x: int) -> int:
                return x

        def f(x: int) -> int:
            return x

        for function in (f, lambda x: x, functools.partial(f, 1), Counter(), Counter().__call__):
            with pytest.raises(ToolContractError, match=r"'f': runs_in='process' .* at the top level of a module"):
                tool(registry=registry, runs_in="process", name="f")(function)
        tool(registry=registry, runs_in="process", name="f")(functools.partial(math.pow, 2))

    def test_nameless_arguments_can_not_be_validated(self, registry: ToolRegistry) -> None:
        def f(*values: int) -> None: ...

        with pytest.raises(ToolContractError, match=r"\*values"):
            registry.register(f)

    def test_another_function_under_a_taken_name(self, registry: ToolRegistry) -> None:
        def make(value: int) -> Any:
            def f() -> int:
                return value

            return f

        registry.register(make(1))
        with pytest.raises(ToolContractError, match=r"another function"):
            registry.register(make(2))
        registry.register(make(3), replace=True)
        assert registry["f"].function() == 3


class TestArguments:
    def test_every_kind_of_annotation_is_validated_and_coerced(self, registry: ToolRegistry) -> None:
        @tool(registry=registry)
        def f(
            address: Address,
            point: Point,
            options: Options,
            colour: Colour,
            size: Literal["s", "m"],
            count: Annotated[int, Field(ge=1)],
            note: str | None = None,
            *,
            tags: list[str] | None = None,
        ) -> None: ...

        given = {
            "address": {"city": "Lisbon", "zip": "1000"},
            "point": {"x": "1"},
            "options": {"loud": "yes"},
            "colour": "red",
            "size": "m",
            "count": "3",
        }
        assert registry["f"].binding.bind(given) == {
            "address": Address(city="Lisbon", zip=1000),
            "point": Point(1),
            "options": {"loud": True},
            "colour": Colour.RED,
            "size": "m",
            "count": 3,
            "note": None,
            "tags": None,
        }

    def test_a_message_names_each_argument_that_does_not_fit(self, registry: ToolRegistry) -> None:
        @tool(registry=registry)
        def pay(amount: int, to: str) -> None: ...

        with pytest.raises(ToolInputError) as caught:
            registry["pay"].binding.bind({"amount": "lots", "too": "me"})
        text = str(caught.value)
        for part in (
            "'pay'",
            "'amount'",
            "'to' is missing",
            "'too' is no parameter",
            "Did you mean 'to'",
            "it takes amount, to",
        ):
            assert part in text
        assert "\n" not in text

    def test_positional_only_parameters_are_called_rightly(self, registry: ToolRegistry) -> None:
        @tool(registry=registry)
        def f(a: int, /, b: int, *, c: int = 3) -> tuple[int, int, int]:
            return a, b, c

        binding = registry["f"].binding
        assert binding.invoke(binding.bind({"a": 1, "b": 2})) == (1, 2, 3)

    def test_open_ended_tools_take_what_comes(self, registry: ToolRegistry) -> None:
        @tool(registry=registry)
        def f(a: int, **rest: Any) -> dict[str, Any]:
            return rest

        binding = registry["f"].binding
        assert binding.invoke(binding.bind({"a": 1, "z": 26})) == {"z": 26}

    def test_a_result_is_validated_and_coerced(self, registry: ToolRegistry) -> None:
        @tool(registry=registry)
        def f() -> Address: ...  # type: ignore[empty-body]

        binding = registry["f"].binding
        assert binding.check_result({"city": "Porto"}) == Address(city="Porto")
        with pytest.raises(ToolOutputError, match=r"'f'.*city"):
            binding.check_result({})

    def test_declared_outputs_stand_over_the_hint(self, registry: ToolRegistry) -> None:
        @tool(registry=registry, outputs={"id": "int", "name": str})
        def f() -> dict[str, Any]: ...  # type: ignore[empty-body]

        binding = registry["f"].binding
        assert binding.check_result({"id": "7", "name": "x", "more": 1}) == {"id": 7, "name": "x", "more": 1}
        assert binding.declared_fields() == {"id", "name"}
        with pytest.raises(ToolOutputError):
            binding.check_result({"id": 7})

    def test_none_is_a_result(self, registry: ToolRegistry) -> None:
        @tool(registry=registry)
        def f() -> None: ...

        assert registry["f"].binding.check_result(None) is None
        with pytest.raises(ToolOutputError):
            registry["f"].binding.check_result(1)

    def test_a_parameter_with_an_alias_goes_by_its_own_name_as_well(self) -> None:
        def cancel(booking_id: Annotated[int, Field(alias="bookingId")]) -> None: ...

        binding = Tool.from_function(cancel).binding
        assert binding.bind({"booking_id": "7"}) == binding.bind({"bookingId": "7"}) == {"booking_id": 7}
        assert binding.unfit({"booking_id": "x"}).keys() == binding.unfit({"bookingId": "x"}).keys() == {"booking_id"}
        with pytest.raises(ToolInputError, match=r"'booking_id' is missing \(it takes booking_id\)"):
            binding.bind({})


class TestSchema:
    def test_a_model_sees_what_it_has_to_give(self, registry: ToolRegistry) -> None:
        @tool(registry=registry)
        def book(
            city: str, nights: Annotated[int, Field(ge=1, description="how long")] = 2, *, idempotency_key: str
        ) -> None: ...

        assert registry["book"].json_schema == {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "nights": {"type": "integer", "minimum": 1, "description": "how long", "default": 2},
            },
            "required": ["city"],
            "additionalProperties": False,
        }

    def test_what_has_no_schema_still_works_for_code(self, registry: ToolRegistry) -> None:
        class Handle:
            pass

        @tool(registry=registry)
        def use(handle: Handle) -> None: ...

        handle = Handle()
        assert registry["use"].binding.bind({"handle": handle})["handle"] is handle
        with pytest.raises(ToolContractError, match=r"no LM can call it"):
            _ = registry["use"].json_schema


class TestSecrets:
    def test_are_found_by_type_and_by_mark(self, registry: ToolRegistry) -> None:
        @tool(registry=registry)
        def f(a: SecretStr, b: Annotated[str, Redacted], c: SecretStr | None = None, d: str = "") -> None: ...

        assert registry["f"].binding.sensitive == {"a", "b", "c"}

    def test_a_compensator_that_would_need_one_is_refused_when_registered(self, registry: ToolRegistry) -> None:
        @tool(registry=registry)
        def undo(token: str) -> None: ...

        with pytest.raises(ToolContractError, match=r"'do'.*'undo'.*'token', a secret"):

            @tool(registry=registry, compensating_tool="undo")
            def do(token: SecretStr) -> None: ...


class TestRegistry:
    def test_filters_by_tags_and_side_effects(self, registry: ToolRegistry) -> None:
        @tool(registry=registry, tags=["io", "net"], side_effects=["mail:send"])
        def send() -> None: ...

        @tool(registry=registry, tags=["io"])
        def look() -> None: ...

        assert [t.name for t in registry.filter(tags=["io"])] == ["send", "look"]
        assert [t.name for t in registry.filter(tags=["io"], side_effects=["mail:send"])] == ["send"]
        assert [t.name for t in registry.filter(tags="io", side_effects="mail:send")] == ["send"]

    def test_an_unknown_tool_comes_with_the_nearest_names(self, registry: ToolRegistry) -> None:
        @tool(registry=registry)
        def book_hotel() -> None: ...

        with pytest.raises(UnknownToolError, match=r"'book_hotle'.*'book_hotel'"):
            registry["book_hotle"]
        assert registry.get("book_hotle") is None
        assert "book_hotel" in registry

    def test_takes_plain_functions(self) -> None:
        def f() -> None: ...

        assert list(ToolRegistry.of([f])) == ["f"]

    @pytest.mark.parametrize(
        ("undo", "problem"),
        [
            (lambda: lambda booking_id: None, None),
            (lambda: lambda city: None, None),
            (lambda: lambda result: None, None),
            (lambda: lambda idempotency_key: None, None),
            (lambda: lambda other="x": None, None),
            (lambda: lambda other: None, "'other'"),
        ],
    )
    def test_checks_what_a_compensator_can_be_given(
        self, undo: Any, problem: str | None, registry: ToolRegistry
    ) -> None:
        class Booking(TypedDict):
            booking_id: int

        function = undo()
        function.__name__ = "undo"
        registry.register(function)
        registry.register(
            Tool.from_function(book, ToolContract(compensating_tool="undo", outputs={"booking_id": "int"}), name="book")
        )
        if problem is None:
            registry.check()
        else:
            with pytest.raises(PlanError, match=problem):
                registry.check()

    def test_a_compensator_whose_key_is_of_another_kind_than_keys_are_is_refused(self, registry: ToolRegistry) -> None:
        @tool(registry=registry, idempotent=True)
        def cancel(idempotency_key: UUID | None = None) -> None: ...

        @tool(registry=registry, compensating_tool="cancel")
        def hotel(city: str) -> None: ...

        with pytest.raises(PlanError, match=r"'hotel' is undone by 'cancel', which can't be given the key of a call"):
            registry.check()

    def test_but_not_if_the_tool_itself_takes_such_keys_only(self, registry: ToolRegistry) -> None:
        @tool(registry=registry, idempotent=True)
        def cancel(idempotency_key: UUID) -> None: ...

        @tool(registry=registry, compensating_tool="cancel")
        def hotel(city: str, idempotency_key: UUID) -> None: ...

        registry.check()

    def test_an_unknown_compensator_is_an_error_before_anything_runs(self, registry: ToolRegistry) -> None:
        @tool(registry=registry)
        def cancel_hotel() -> None: ...

        @tool(registry=registry, compensating_tool="cancel_hotle")
        def hotel() -> None: ...

        with pytest.raises(PlanError, match=r"'hotel'.*'cancel_hotle'.*'cancel_hotel'"):
            registry.check()


def book(city: str) -> dict[str, int]:
    """Book."""
    return {"booking_id": 1}


class TestIdempotence:
    def test_a_tool_with_a_key_is_idempotent_unless_it_says_otherwise(self, registry: ToolRegistry) -> None:
        @tool(registry=registry)
        def with_key(idempotency_key: str) -> None: ...

        @tool(registry=registry, idempotent=False)
        def honest(idempotency_key: str) -> None: ...

        @tool(registry=registry)
        def without() -> None: ...

        assert [registry[n].contract.idempotent for n in ("with_key", "honest", "without")] == [True, False, False]

    @pytest.mark.parametrize(
        ("effects", "changes"),
        [([], False), (["file:read"], False), (["a:b:read"], False), (["file:write"], True), (["mail"], True)],
    )
    def test_only_the_verb_read_changes_nothing(self, effects: list[str], changes: bool) -> None:
        contract = ToolContract(side_effects=tuple(effects))
        assert (contract.changes_something, contract.effectful, contract.irreversible) == (changes,) * 3
