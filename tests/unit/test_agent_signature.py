"""What agents take and give, read from Signatures, parameters and annotations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import dspy
from pydantic import BaseModel, Field

from agenthelm.agent import Agent, FieldSpec

if TYPE_CHECKING:
    from agenthelm.memory.nowhere import Missing  # type: ignore[import-not-found]

    from agenthelm.memory.context import MemoryContext


class Findings(dspy.Signature):
    """Find out."""

    topic: str = dspy.InputField(desc="what about")
    limit: int = dspy.InputField(default=3)
    findings: str = dspy.OutputField(desc="what is known")
    sources: list[str] = dspy.OutputField()


def test_without_a_forward_the_signature_says_it_all() -> None:
    signature = Agent("a", "b", signature=Findings).get_signature()
    assert (signature.name, signature.description) == ("a", "b")
    assert signature.inputs == {
        "topic": FieldSpec("topic", str, desc="what about"),
        "limit": FieldSpec("limit", int, required=False, default=3),
    }
    assert signature.outputs == {
        "findings": FieldSpec("findings", str, desc="what is known"),
        "sources": FieldSpec("sources", list[str]),
    }
    assert not signature.open_inputs
    assert not signature.open_outputs


def test_a_string_is_a_signature_too() -> None:
    signature = Agent("a", signature="topic: str, n: int -> score: float").get_signature()
    assert [spec.type for spec in signature.inputs.values()] == [str, int]
    assert signature.outputs["score"].type is float


class WithForward(Agent):
    Signature = Findings

    def forward(self, context: MemoryContext, topic, depth: int = 2, *, style: str):  # type: ignore[no-untyped-def]
        return {}


def test_parameters_are_the_inputs_of_an_agent_with_a_forward() -> None:
    inputs = WithForward().get_signature().inputs
    assert inputs == {
        "topic": FieldSpec("topic", str, desc="what about"),
        "depth": FieldSpec("depth", int, required=False, default=2),
        "style": FieldSpec("style", str),
    }
    assert list(WithForward().get_signature().outputs) == ["findings", "sources"]


def test_kwargs_take_the_signatures_inputs() -> None:
    class Kwargs(Agent):
        Signature = Findings

        async def aforward(self, context, extra=None, **inputs):  # type: ignore[no-untyped-def]
            return {}

    signature = Kwargs().get_signature()
    assert list(signature.inputs) == ["extra", "topic", "limit"]
    assert not signature.open_inputs


def test_annotations_that_exist_for_type_checkers_only_do_no_harm() -> None:
    class Checked(Agent):
        async def aforward(self, context: MemoryContext, n: int, other: Missing) -> dict[str, Any]:
            return {}

    inputs = Checked().get_signature().inputs
    assert inputs["n"].type is int
    assert inputs["other"].type is Any


class Report(TypedDict):
    text: str
    pages: int


class ReportModel(BaseModel):
    text: str = Field(description="all of it")


@dataclass
class ReportData:
    text: str


def test_a_return_annotation_declares_outputs_where_there_is_no_signature() -> None:
    class Typed(Agent):
        async def aforward(self, context, n: int) -> Report:  # type: ignore[no-untyped-def]
            raise NotImplementedError

    class Modelled(Agent):
        async def aforward(self, context, n: int) -> ReportModel:  # type: ignore[no-untyped-def]
            raise NotImplementedError

    class Dataclassed(Agent):
        async def aforward(self, context, n: int) -> ReportData:  # type: ignore[no-untyped-def]
            raise NotImplementedError

    class Silent(Agent):
        def forward(self, context) -> None:  # type: ignore[no-untyped-def]
            return None

    class Vague(Agent):
        def forward(self, context) -> dict[str, Any]:  # type: ignore[no-untyped-def]
            return {}

    assert {name: spec.type for name, spec in Typed().get_signature().outputs.items()} == {"text": str, "pages": int}
    assert Modelled().get_signature().outputs == {"text": FieldSpec("text", str, desc="all of it")}
    assert list(Dataclassed().get_signature().outputs) == ["text"]
    assert not Silent().get_signature().open_outputs
    assert Vague().get_signature().open_outputs


def test_signatures_are_plain_data_for_other_programs() -> None:
    assert Agent("a", "b", signature=Findings).get_signature().as_dict() == {
        "name": "a",
        "description": "b",
        "inputs": {
            "topic": {"type": "str", "required": True, "desc": "what about"},
            "limit": {"type": "int", "required": False, "default": 3},
        },
        "outputs": {"findings": {"type": "str", "desc": "what is known"}, "sources": {"type": "list[str]"}},
    }


def test_a_signature_prints_as_one_line() -> None:
    assert str(Agent("a", signature=Findings).get_signature()) == "a: topic, limit? -> findings, sources"
