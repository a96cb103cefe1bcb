"""Pipelines carry a state, and are checked before they start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from agenthelm._runtime.context import RunContext, StopMark, entered
from agenthelm.agent import Agent
from agenthelm.exceptions import AgentOutputError, WiringError
from agenthelm.orchestration.parallel import Parallel
from agenthelm.orchestration.pipeline import Pipeline

RAN: list[str] = []


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    RAN.clear()


def agent(name: str, signature: str, **gives: Any) -> Agent:
    """An agent that takes and declares what the signature says, and gives that, or what it is told to."""

    class Given(Agent):
        async def aforward(self, context, **inputs):  # type: ignore[no-untyped-def]
            RAN.append(name)
            told = {key: f"{key} by {name}" for key in self.get_signature().outputs}
            return {**told, "seen_by_" + name: inputs, **gives}

    return Given(name, signature=signature)


class Optional(Agent):
    async def aforward(self, context, note: str = "none"):  # type: ignore[no-untyped-def]
        return {"noted": note}


class Undeclared(Agent):
    async def aforward(self, context, task):  # type: ignore[no-untyped-def]
        return {"anything": task}


class Custom:
    """A flow of one's own, without declared outputs."""

    name = "custom"

    async def run(self, context: Any = None, /, **inputs: Any) -> Mapping[str, Any]:
        return {"made": "by custom", "got": dict(inputs)}


class DeclaredCustom:
    inputs = ("topic",)
    outputs = ("report",)

    async def run(self, context: Any = None, /, **inputs: Any) -> Mapping[str, Any]:
        return {"report": f"on {inputs['topic']}"}


async def test_each_agent_gets_the_inputs_it_declares() -> None:
    result = await Pipeline([agent("a", "task -> x, y"), agent("b", "x -> z")]).run(task="t")
    assert result["seen_by_a"] == {"task": "t"}
    assert result["seen_by_b"] == {"x": "x by a"}
    assert result["z"] == "z by b"


async def test_the_result_is_the_final_state_without_the_task() -> None:
    result = await Pipeline([agent("a", "task -> x")]).run(task="t", extra=1)
    assert set(result) == {"x", "seen_by_a", "extra"}


async def test_the_task_fills_the_first_required_string_that_nothing_provides() -> None:
    result = await Pipeline([agent("a", "n: int, topic, style -> x")]).run(task="t", n=1, style="s")
    assert result["seen_by_a"] == {"n": 1, "topic": "t", "style": "s"}


async def test_a_provided_input_is_not_taken_by_the_task() -> None:
    result = await Pipeline([agent("a", "task -> topic"), agent("b", "topic -> x")]).run(task="t")
    assert result["seen_by_b"] == {"topic": "topic by a"}


async def test_an_agent_with_a_task_input_gets_the_task_nowhere_else() -> None:
    with pytest.raises(WiringError, match="agent 'a' needs 'topic'"):
        await Pipeline([agent("a", "task, topic -> x")]).run(task="t")


async def test_nobody_overwrites_the_task_and_later_writers_win_otherwise() -> None:
    flow = Pipeline([agent("a", "task -> x", task="mine"), agent("b", "task -> x")])
    result = await flow.run(task="t")
    assert result["seen_by_b"] == {"task": "t"}
    assert result["x"] == "x by b"
    assert "task" not in result


async def test_extra_keys_fill_only_inputs_with_a_default() -> None:
    flow = Pipeline([agent("a", "task -> x", note="extra"), Optional("o")])
    assert (await flow.run(task="t"))["noted"] == "extra"
    with pytest.raises(
        WiringError, match="agent 'b' needs 'note', which nothing before it provides; available: n, task, x"
    ):
        await Pipeline([agent("a", "task, n: int -> x", note="extra"), agent("b", "task, note -> y")]).run(
            task="t", n=1
        )
    assert RAN == ["a"]


async def test_wiring_is_checked_before_anything_runs() -> None:
    with pytest.raises(WiringError) as caught:
        await Pipeline([agent("a", "task -> findings"), agent("b", "task, finding -> text")]).run(task="t")
    assert RAN == []
    assert (caught.value.agent, caught.value.field, caught.value.available) == ("b", "finding", ("findings", "task"))
    assert str(caught.value) == (
        "agent 'b' needs 'finding', which nothing before it provides; available: findings, task. "
        "Did you mean 'findings'?"
    )


def test_a_pipeline_can_be_checked_without_running() -> None:
    flow = Pipeline([agent("a", "task, n: int -> x")])
    flow.check(["task", "n"])
    with pytest.raises(WiringError, match="'n'"):
        flow.check()


async def test_an_agent_that_declares_no_outputs_ends_the_check_downstream() -> None:
    flow = Pipeline([Undeclared("u"), agent("b", "anything -> x")])
    assert (await flow.run(task="t"))["seen_by_b"] == {"anything": "t"}


async def test_a_field_that_turns_out_to_be_missing_downstream_is_named() -> None:
    with pytest.raises(WiringError, match=r"agent 'b' needs 'n', .*available: anything, task"):
        await Pipeline([Undeclared("u"), agent("b", "n: int -> x")]).run(task="t")


async def test_a_field_that_was_returned_without_being_declared_is_said_to_be_so() -> None:
    with pytest.raises(WiringError, match="'note' was returned without being declared as an output, so it fills only"):
        await Pipeline([Undeclared("u"), agent("a", "task -> x", note=3), agent("b", "note: int -> y")]).run(task="t")


async def test_a_custom_flow_takes_an_agents_place() -> None:
    result = await Pipeline([agent("a", "task -> x"), Custom(), agent("b", "made -> y")]).run(task="t")
    assert result["got"]["task"] == "t"
    assert result["got"]["x"] == "x by a"
    assert result["seen_by_b"] == {"made": "by custom"}


async def test_a_custom_flow_may_declare_its_inputs_and_outputs() -> None:
    flow = Pipeline([agent("a", "task -> topic"), DeclaredCustom(), agent("b", "report -> y")])
    assert (await flow.run(task="t"))["report"] == "on topic by a"
    with pytest.raises(WiringError, match="agent 'b' needs 'paper'"):
        Pipeline([DeclaredCustom(), agent("b", "task, paper -> y")]).check(["task", "topic"])


async def test_pipelines_nest_and_their_agents_get_the_task() -> None:
    inner = Pipeline([agent("b", "x -> y"), agent("c", "subject -> z")], name="inner")
    result = await Pipeline([agent("a", "task -> x"), inner, agent("d", "z -> end")]).run(task="t")
    assert result["seen_by_b"] == {"x": "x by a"}
    assert result["seen_by_c"] == {"subject": "t"}
    assert result["end"] == "end by d"


def test_a_nested_flaw_is_found_from_outside() -> None:
    inner = Pipeline([agent("b", "task, gap -> y")], name="inner")
    with pytest.raises(WiringError, match="agent 'b' needs 'gap'"):
        Pipeline([agent("a", "task -> x"), Parallel([inner])]).check()


def test_a_pipelines_signature_is_what_it_needs_and_declares() -> None:
    signature = Pipeline([agent("a", "topic, n: int -> x, y"), agent("b", "x, m: int -> z")], name="p").get_signature()
    assert signature.name == "p"
    assert {name: spec.required for name, spec in signature.inputs.items()} == {"topic": True, "n": True, "m": True}
    assert list(signature.outputs) == ["x", "y", "z"]
    assert Pipeline([Undeclared("u"), agent("b", "k -> z")]).get_signature().open_outputs


@pytest.mark.parametrize(
    ("agents", "message"),
    [
        ([], "needs at least one agent"),
        ([agent("a", "x -> y"), agent("a", "y -> z")], "two agents named 'a'"),
        ([Optional], "takes instances: Optional() instead of Optional"),
        ([42], "not 42"),
        ("researcher", "takes a list of agents"),
    ],
)
def test_malformed_pipelines_are_refused_when_they_are_made(agents: Any, message: str) -> None:
    with pytest.raises(WiringError, match=message.replace("(", r"\(").replace(")", r"\)")):
        Pipeline(agents)


async def test_a_component_that_returns_no_mapping_is_named() -> None:
    class Odd:
        name = "odd"

        async def run(self, context: Any = None, /, **inputs: Any) -> Any:
            return "text"

    with pytest.raises(AgentOutputError, match="'odd' returned a str"):
        await Pipeline([Odd()]).run(task="t")


async def test_a_failure_ends_the_pipeline() -> None:
    class Failing(Agent):
        async def aforward(self, context):  # type: ignore[no-untyped-def]
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await Pipeline([agent("a", "task -> x"), Failing(), agent("b", "x -> y")]).run(task="t")
    assert RAN == ["a"]


async def test_a_stopped_run_goes_no_further() -> None:
    mark = StopMark()

    class Stopping:
        name, outputs = "stopping", ("x",)

        async def run(self, context: Any = None, /, **inputs: Any) -> Mapping[str, Any]:
            mark.set(PermissionError("final"))
            return {"x": 1}

    with entered(RunContext("r", "s", "n", stops=(mark,))), pytest.raises(PermissionError, match="final"):
        await Pipeline([Stopping(), agent("b", "x -> y")]).run(task="t")
    assert RAN == []


async def test_the_parameters_of_a_custom_run_are_its_inputs() -> None:
    class Named:
        """Has named parameters."""

        outputs: ClassVar[dict[str, type]] = {"report": str}

        async def run(self, context: Any = None, /, *, topic: str, depth: int = 1) -> Mapping[str, Any]:
            return {"report": f"{topic} at {depth}"}

    assert (await Pipeline([Named()]).run(task="t", depth=2))["report"] == "t at 2"
    with pytest.raises(WiringError, match="agent 'Named' needs 'topic'"):
        await Pipeline([Named()]).run(depth=2)
