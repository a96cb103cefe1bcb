"""The built-in model fills whatever a prompt asks for."""

from __future__ import annotations

import enum
import socket
from typing import Any, Literal

import dspy
import pydantic
import pytest

from agenthelm.agent.models import resolve_model
from agenthelm.agent.offline import OfflineEngine
from agenthelm.agent.placeholder import fill_schema


class Address(pydantic.BaseModel):
    street: str
    number: int = pydantic.Field(ge=3)
    tags: list[str] = []
    kind: Literal["home", "work"]


class Tree(pydantic.BaseModel):
    name: str
    children: list[Tree] = []
    parent: Tree | None = None


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Everything(dspy.Signature):
    """Fill in everything."""

    question: str = dspy.InputField()
    text: str = dspy.OutputField(desc="with (parentheses): and a colon")
    number: int = dspy.OutputField()
    share: float = dspy.OutputField()
    flag: bool = dspy.OutputField()
    names: list[str] = dspy.OutputField()
    counts: dict[str, int] = dspy.OutputField()
    choice: Literal["x", "y z", "a; b"] = dspy.OutputField()
    maybe: int | None = dspy.OutputField()
    colour: Colour = dspy.OutputField()
    address: Address = dspy.OutputField()
    addresses: list[Address] = dspy.OutputField()
    either: int | str = dspy.OutputField()
    anything: dict = dspy.OutputField()
    tree: Tree = dspy.OutputField()
    pair: tuple[int, str] = dspy.OutputField()


ADAPTERS = [dspy.ChatAdapter(use_json_adapter_fallback=False), dspy.JSONAdapter(), dspy.XMLAdapter()]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the offline model opened a connection")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
def test_every_kind_of_field_gets_a_valid_value(adapter: Any) -> None:
    with dspy.context(lm=resolve_model("offline"), adapter=adapter):
        filled = dspy.ChainOfThought(Everything)(question="?")
    assert filled.text == "[offline placeholder: text]"
    assert filled.reasoning == "[offline placeholder: reasoning]"
    assert filled.choice == "x"
    assert filled.colour is Colour.RED
    assert filled.address.number >= 3
    assert isinstance(filled.flag, bool)
    assert isinstance(filled.tree, Tree)
    assert filled.maybe is None or isinstance(filled.maybe, int)


@pytest.mark.parametrize("adapter", ADAPTERS[:2], ids=lambda adapter: type(adapter).__name__)
def test_one_call_is_enough(adapter: Any) -> None:
    lm = resolve_model("offline")
    with dspy.context(lm=lm, adapter=adapter):
        dspy.Predict(Everything)(question="?")
    assert len(lm.history) == 1


def test_a_tool_loop_ends_at_once_without_calling_anything() -> None:
    called = []

    def book(city: str) -> str:
        """Book it."""
        called.append(city)
        return "booked"

    with dspy.context(lm=resolve_model("offline")):
        answer = dspy.ReAct("question -> answer", tools=[book])(question="?")
    assert answer.answer == "[offline placeholder: answer]"
    assert answer.trajectory["tool_name_0"] == "finish"
    assert called == []


def test_a_native_tool_loop_ends_too() -> None:
    def book(city: str) -> str:
        """Book it."""
        raise AssertionError("called")

    with dspy.context(lm=resolve_model("offline")):
        answer = dspy.ReActV2("question -> answer", tools=[book])(question="?")
    assert "[offline placeholder" in answer.answer


def test_a_field_for_tool_calls_stays_empty() -> None:
    class Calls(dspy.Signature):
        question: str = dspy.InputField()
        tools: list[dspy.Tool] = dspy.InputField()
        calls: dspy.ToolCalls = dspy.OutputField()

    def book(city: str) -> str:
        """Book it."""
        return city

    with dspy.context(lm=resolve_model("offline")):
        assert dspy.Predict(Calls)(question="?", tools=[dspy.Tool(book)]).calls.tool_calls == []


def test_a_bare_prompt_gets_a_placeholder() -> None:
    assert resolve_model("offline")("hello") == ["[offline placeholder: answer]"]


def test_the_same_request_gets_the_same_answer() -> None:
    with dspy.context(lm=resolve_model("offline")):
        program = dspy.Predict(Everything)
        assert program(question="1").toDict() == program(question="2").toDict()


async def test_it_answers_awaited_and_streamed(anyio_backend_name: str) -> None:
    lm = resolve_model("offline")
    with dspy.context(lm=lm):
        if anyio_backend_name == "asyncio":
            filled = await dspy.Predict("question -> answer: int").acall(question="?")
            assert filled.answer == 1
    request = dspy.lm15.Request(model="offline", messages=(dspy.lm15.Message.user("hello"),))
    events = [event.type for event in OfflineEngine().stream(request)]
    assert (events[0], events[-1]) == ("start", "end")


def test_a_program_that_uses_it_saves_and_loads(tmp_path: Any) -> None:
    program = dspy.Predict("question -> answer")
    program.lm = resolve_model("offline")
    program.save(str(tmp_path / "program.json"))
    loaded = dspy.Predict("question -> answer")
    loaded.load(str(tmp_path / "program.json"), allow_unsafe_lm_state=True)
    assert loaded(question="?").answer == "[offline placeholder: answer]"


SCHEMAS: list[tuple[dict[str, Any], type]] = [
    ({"type": "integer", "minimum": 5, "maximum": 9}, int),
    ({"type": "integer", "exclusiveMinimum": 5, "multipleOf": 4}, int),
    ({"type": "integer", "maximum": -3}, int),
    ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5}, float),
    ({"type": "string", "maxLength": 4}, str),
    ({"type": "string", "minLength": 60}, str),
    ({"type": "array", "items": {"type": "string"}, "minItems": 3, "uniqueItems": True}, list),
    ({"type": ["null", "integer"]}, int),
    ({"const": 7}, int),
    ({"allOf": [{"type": "object"}, {"properties": {"a": {"type": "integer"}}, "required": ["a"]}]}, dict),
]


@pytest.mark.parametrize(("schema", "kind"), SCHEMAS)
def test_values_fit_their_schema(schema: dict[str, Any], kind: type) -> None:
    value = fill_schema(schema)
    assert isinstance(value, kind)
    if isinstance(value, (int, float)):
        assert value >= schema.get("minimum", value)
        assert value <= schema.get("maximum", value)
        assert value > schema.get("exclusiveMinimum", value - 1)
        assert value < schema.get("exclusiveMaximum", value + 1)
        assert value % schema.get("multipleOf", 1) == 0 or isinstance(value, float)
    if isinstance(value, str):
        assert schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 999)
    if isinstance(value, list):
        assert len(set(value)) == schema["minItems"]


@pytest.mark.parametrize("model", [Address, Tree])
def test_models_accept_what_their_schema_is_filled_with(model: type[pydantic.BaseModel]) -> None:
    model.model_validate(fill_schema(model.model_json_schema()))
