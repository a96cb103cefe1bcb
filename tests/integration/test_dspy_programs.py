"""Agents stay DSPy programs: they are evaluated, compiled, copied, saved and loaded."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest

from agenthelm.agent import Agent, ResearcherAgent, ToolAgent
from agenthelm.agent.offline import request_text
from agenthelm.core.executor import current_executor, detached, using
from agenthelm.core.tool import TOOL_REGISTRY, ToolRegistry, tool
from agenthelm.testing.lm import ScriptedLM


class Capital(dspy.Signature):
    """Name the capital."""

    country: str = dspy.InputField()
    answer: str = dspy.OutputField()


class SyncCapital(Agent):
    def __init__(self, name: str = "capital", **options: Any) -> None:
        super().__init__(name, "Knows capitals", signature=Capital, **options)
        self.know = dspy.ChainOfThought(Capital)

    def forward(self, context: Any, country: str) -> Any:
        context.write("country", country)
        assert context.recall(country) == []
        return self.know(country=country)


class AsyncCapital(Agent):
    def __init__(self, name: str = "capital", **options: Any) -> None:
        super().__init__(name, "Knows capitals", signature=Capital, **options)
        self.know = dspy.ChainOfThought(Capital)

    async def aforward(self, context: Any, country: str) -> dict[str, Any]:
        await context.write("country", country)
        result = await self.ask(self.know, country=country)
        return {"answer": result.answer}


KINDS = pytest.mark.parametrize("kind", [SyncCapital, AsyncCapital])
CAPITALS = {"Portugal": "Lisbon", "Spain": "Madrid", "France": "Paris"}
EXAMPLES = [dspy.Example(country=k, answer=v).with_inputs("country") for k, v in CAPITALS.items()]


def model() -> ScriptedLM:
    """Knows the capital of whichever country is asked for last."""

    def reply(request: Any) -> dict[str, Any]:
        last = request.messages[-1].text or ""
        country = max(CAPITALS, key=last.rfind)
        return {"reasoning": "geography", "answer": CAPITALS[country]}

    return ScriptedLM(reply)


def metric(example: Any, prediction: Any, trace: Any = None) -> bool:
    return bool(example.answer == prediction.answer)


@KINDS
def test_evaluate_runs_an_agent_in_its_own_threads(kind: type[Agent]) -> None:
    with dspy.context(lm=model()):
        evaluate = dspy.Evaluate(devset=EXAMPLES, metric=metric, num_threads=2, display_progress=False)
        assert evaluate(kind()).score == 100.0


@KINDS
def test_an_optimizer_compiles_an_agent(kind: type[Agent], caplog: pytest.LogCaptureFixture) -> None:
    with dspy.context(lm=model()), caplog.at_level(logging.WARNING):
        optimizer = dspy.BootstrapFewShot(metric=metric, max_bootstrapped_demos=2, max_labeled_demos=0)
        compiled = optimizer.compile(kind(), trainset=EXAMPLES)
        assert compiled is not None
        assert isinstance(compiled, kind)
        demos = compiled.predictors()[0].demos
        assert {demo.answer for demo in demos} <= set(CAPITALS.values())
        assert len(demos) == 2
    assert "deep copy" not in caplog.text


@KINDS
async def test_a_compiled_agent_runs_like_any_other(kind: type[Agent]) -> None:
    lm = model()
    with dspy.context(lm=lm):
        agent = kind()
        agent.predictors()[0].demos = [dspy.Example(country="Italy", reasoning="known", answer="Rome")]
        assert (await agent.run(country="Spain"))["answer"] == "Madrid"
    assert "Rome" in request_text(lm.requests[0])


@KINDS
def test_copies_are_independent_and_whole(kind: type[Agent], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        agent = kind(lm=model())
        agent.get_signature()
        agent.predictors()[0].demos = [dspy.Example(country="a", answer="b")]
        copy, reset = agent.deepcopy(), agent.reset_copy()
        copy.predictors()[0].demos.append(dspy.Example(country="c", answer="d"))
    assert (len(agent.predictors()[0].demos), len(copy.predictors()[0].demos)) == (1, 2)
    assert reset.predictors()[0].demos == []
    assert copy.name == reset.name == "capital"
    assert copy(country="France").answer == "Paris"
    assert caplog.text == ""


def test_an_agent_with_tools_copies_without_copying_its_tools(caplog: pytest.LogCaptureFixture) -> None:
    with TOOL_REGISTRY.isolated(), caplog.at_level(logging.WARNING):

        @tool(requires_approval=True)
        def atlas(country: str) -> str:
            """Look a country up."""
            return CAPITALS[country]

        agent = ToolAgent("capital", signature=Capital, tools=[atlas])
        copy = agent.deepcopy()
    assert copy.tools is agent.tools
    assert [name for name, _ in copy.named_predictors()] == ["predict.choose", "predict.answer.predict"]
    assert caplog.text == ""


@KINDS
def test_state_is_saved_and_loaded_as_json(kind: type[Agent], tmp_path: Path) -> None:
    path = tmp_path / "agent.json"
    agent = kind()
    agent.predictors()[0].demos = [dspy.Example(country="Italy", answer="Rome")]
    agent.save(str(path))
    assert "Rome" in path.read_text()
    assert "api_key" not in json.dumps(json.loads(path.read_text()))
    fresh = kind()
    fresh.load(str(path))
    assert fresh.predictors()[0].demos[0]["answer"] == "Rome"


def test_a_tool_agents_state_is_saved_and_loaded(tmp_path: Path) -> None:
    def atlas(country: str) -> str:
        """Look a country up."""
        return CAPITALS[country]

    path = str(tmp_path / "agent.json")
    agent = ToolAgent("capital", signature=Capital, tools=[atlas])
    agent.predict.choose.demos = [dspy.Example(country="Italy", next_tool_name="atlas")]
    agent.save(path)
    fresh = ToolAgent("capital", signature=Capital, tools=[atlas])
    fresh.load(path)
    assert fresh.predict.choose.demos[0]["country"] == "Italy"


def test_tools_work_where_only_an_optimizer_runs_the_agent() -> None:
    registry = ToolRegistry()

    @tool(registry=registry)
    async def atlas(country: str) -> str:
        return CAPITALS[country]

    class Looking(Agent):
        def forward(self, context: Any, country: str) -> Any:
            assert current_executor() is not None
            return {"answer": self.use("atlas", country=country)}

    with TOOL_REGISTRY.isolated():
        TOOL_REGISTRY.register(atlas)
        evaluate = dspy.Evaluate(devset=EXAMPLES, metric=metric, num_threads=2, display_progress=False)
        assert evaluate(Looking()).score == 100.0


@KINDS
async def test_modules_of_agents_are_seen_by_callbacks(kind: type[Agent]) -> None:
    seen: list[str] = []

    class Watcher(dspy.utils.callback.BaseCallback):  # type: ignore[misc]
        def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            seen.append(type(instance).__name__)

    with dspy.context(lm=model(), callbacks=[Watcher()]):
        await kind().run(country="Spain")
    assert seen == [kind.__name__, "ChainOfThought", "Predict"]


async def test_usage_tracking_of_dspy_goes_on_working() -> None:
    with dspy.context(lm=model()), dspy.track_usage() as usage:
        await SyncCapital().run(country="Spain")
        await AsyncCapital().run(country="Spain")
    assert usage.get_total_tokens()["scripted"]["total_tokens"] == 300


async def test_calls_leave_no_trace_of_settings_behind() -> None:
    before = dict(dspy.settings.config)
    with using(detached()):
        await ResearcherAgent(lm=model()).run(task="Spain")
    assert dict(dspy.settings.config) == before


def test_the_package_never_configures_dspy_globally() -> None:
    package = Path(sys.modules["agenthelm"].__file__ or "").parent
    sources = {path: path.read_text("utf-8") for path in package.rglob("*.py")}
    assert [
        path for path, text in sources.items() if re.search(r"^\s*(dspy|settings)\S*\.configure\(", text, re.MULTILINE)
    ] == []
