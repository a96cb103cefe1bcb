"""Agents run: sync and async, with and without a context, and hand over what they declare."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, TypedDict

import anyio
import anyio.lowlevel
import dspy
import pytest
from pydantic import BaseModel

from agenthelm._runtime.context import RunContext, StopMark, current_run, entered
from agenthelm._runtime.progress import Progress
from agenthelm.agent import Agent
from agenthelm.core.executor import ToolExecutor, detached, using
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import (
    AgentError,
    AgentInputError,
    AgentOutputError,
    ApprovalDeniedError,
    BudgetExceededError,
    ModelCallError,
    UnknownToolError,
)
from agenthelm.memory.context import MemoryContext
from agenthelm.memory.hub import MemoryHub
from agenthelm.memory.sync_context import SyncMemoryContext
from agenthelm.testing.lm import ScriptedLM

TOOLS = ToolRegistry()


@tool(registry=TOOLS)
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@tool(registry=TOOLS, requires_approval=True)
def launch() -> None:
    """Launch."""


def stop() -> BudgetExceededError:
    return BudgetExceededError(scope="run", resource="calls", limit=1, spent=1, requested=1)


def running(**changes: Any) -> RunContext:
    return RunContext(run_id="r", session_id="s", namespace="n").evolve(**changes)


@pytest.fixture
def executor() -> ToolExecutor:
    return detached(TOOLS)


class Sync(Agent):
    """Counts what it was told."""

    class Signature(dspy.Signature):
        topic: str = dspy.InputField(desc="what about")
        length: int = dspy.OutputField()

    def forward(self, context: SyncMemoryContext, topic: str) -> dict[str, Any]:
        context.write("topic", topic)
        return {
            "length": len(context.read("topic")),
            "thread": threading.get_ident(),
            "kind": type(context).__name__,
            "agent": getattr(current_run(), "agent", None),
        }


class Async(Agent):
    class Signature(dspy.Signature):
        topic: str = dspy.InputField()
        length: int = dspy.OutputField()

    async def aforward(self, context: MemoryContext, topic: str, loud: bool = False) -> dict[str, Any]:
        await context.write("topic", topic)
        return {"length": len(await context.read("topic")), "kind": type(context).__name__, "loud": loud}


async def test_a_sync_forward_runs_in_a_worker_thread_with_a_sync_memory() -> None:
    async with MemoryHub() as hub:
        context = hub.create_context("conversation")
        result = await Sync().run(context, topic="abc")
        assert result["length"] == 3
        assert result["thread"] != threading.get_ident()
        assert result["kind"] == "SyncMemoryContext"
        assert result["agent"] == "sync"
        assert await context.read("topic") == "abc"


async def test_an_async_forward_is_awaited_with_the_async_memory() -> None:
    async with MemoryHub() as hub:
        context = hub.create_context("conversation")
        assert await Async().run(context, topic="abcd") == {"length": 4, "kind": "MemoryContext", "loud": False}
        assert await context.read("topic") == "abcd"


@pytest.mark.parametrize("kind", [Sync, Async])
async def test_without_a_context_the_running_one_is_used(kind: type[Agent]) -> None:
    async with MemoryHub() as hub:
        context = hub.create_context("conversation")
        with entered(running(memory=context)):
            await kind().run(topic="from the run")
        assert await context.read("topic") == "from the run"


@pytest.mark.parametrize("kind", [Sync, Async])
async def test_outside_of_a_run_a_scratch_pad_stands_in_for_the_memory(kind: type[Agent]) -> None:
    assert (await kind().run(topic="ab"))["length"] == 2


async def test_an_async_def_forward_is_taken_for_aforward() -> None:
    class Mistaken(Agent):
        async def forward(self, context, word):  # type: ignore[no-untyped-def]
            await anyio.lowlevel.checkpoint()
            return {"word": word}

    assert await Mistaken().run(word="ok") == {"word": "ok"}
    assert list(Mistaken().get_signature().inputs) == ["word"]


async def test_the_most_derived_of_forward_and_aforward_decides() -> None:
    class BackToSync(Async):
        def forward(self, context, topic):  # type: ignore[no-untyped-def]
            return {"length": 0, "thread": threading.get_ident()}

    class BackToAsync(Sync):
        async def aforward(self, context, topic):  # type: ignore[no-untyped-def]
            return {"length": 1, "thread": threading.get_ident()}

    assert (await BackToSync().run(topic="x"))["thread"] != threading.get_ident()
    assert (await BackToAsync().run(topic="x"))["thread"] == threading.get_ident()


async def test_of_two_in_one_class_run_takes_aforward() -> None:
    class Both(Agent):
        def forward(self, context):  # type: ignore[no-untyped-def]
            return {"by": "forward"}

        async def aforward(self, context):  # type: ignore[no-untyped-def]
            return {"by": "aforward"}

    assert await Both().run() == {"by": "aforward"}


class Mistaken(Agent):
    async def forward(self, context, word):  # type: ignore[no-untyped-def]
        return {"word": word}


class Answers:
    async def aforward(self, context, question):  # type: ignore[no-untyped-def]
        return {"answer": "from a mixin"}


class MistakenAnswers:
    async def forward(self, context, question):  # type: ignore[no-untyped-def]
        return {"answer": "from a mixin"}


class SyncAnswers:
    def forward(self, context, question):  # type: ignore[no-untyped-def]
        return {"answer": "from a mixin"}


@pytest.mark.parametrize("mixin", [Answers, MistakenAnswers, SyncAnswers])
async def test_a_mixin_may_bring_the_method(mixin: type) -> None:
    made: Any = type("Answerer", (mixin, Agent), {})
    for agent in (made(), made(signature="question, unused: str -> answer")):
        assert list(agent.get_signature().inputs) == ["question"]
        assert await agent.run(question="?") == {"answer": "from a mixin"}
    derived: Any = type("Derived", (mixin, Mistaken), {})
    assert await derived().run(question="?") == {"answer": "from a mixin"}
    kept: Any = type("Kept", (Mistaken, mixin), {})
    assert list(kept().get_signature().inputs) == ["word"]


class Wrapping(Agent):
    async def aforward(self, context, question):  # type: ignore[no-untyped-def]
        return {**await super().aforward(context, question=question), "by": "super"}


class SyncWrapping(Agent):
    def forward(self, context, question):  # type: ignore[no-untyped-def]
        return {**super().forward(context, question=question), "by": "super"}


@pytest.mark.parametrize("kind", [Wrapping, SyncWrapping])
async def test_super_is_the_prediction_where_there_is_one(kind: type[Agent]) -> None:
    agent = kind("wrapping", signature="question -> answer", lm=ScriptedLM([{"answer": "yes"}]))
    with pytest.raises(AgentError, match=r"self\.predict = dspy\.Predict"):
        await agent.run(question="?")
    agent.predict = dspy.Predict("question -> answer")
    assert await agent.run(question="?") == {"answer": "yes", "by": "super"}


def test_an_async_forward_beside_an_aforward_is_refused() -> None:
    with pytest.raises(AgentError, match="keep the one called aforward"):

        class Twice(Agent):
            async def forward(self, context):  # type: ignore[no-untyped-def]
                return {}

            async def aforward(self, context):  # type: ignore[no-untyped-def]
                return {}


def test_a_forward_without_a_context_is_refused_when_its_class_is_made() -> None:
    with pytest.raises(AgentError, match=r"Plain\.forward must take the context first"):

        class Plain(Agent):
            def forward(self, question):  # type: ignore[no-untyped-def]
                return {}


def test_a_forward_with_positional_inputs_is_refused() -> None:
    with pytest.raises(AgentError, match="inputs are given by name"):

        class Positional(Agent):
            def forward(self, context, *words):  # type: ignore[no-untyped-def]
                return {}


def test_an_agent_with_nothing_to_do_is_refused() -> None:
    with pytest.raises(AgentError, match="has nothing to do"):
        Agent("idle")


async def test_an_agent_whose_init_forgets_the_one_above_is_told_so() -> None:
    class Forgetful(Agent):
        def __init__(self) -> None:
            self.style = "terse"

        def forward(self, context: Any, task: str) -> dict[str, str]:
            return {"text": task}

    with pytest.raises(AgentError, match=r"^Forgetful.__init__ does not call super\(\).__init__\(\)"):
        await Forgetful().run(task="x")


async def test_a_model_may_be_set_by_its_name_after_the_agent_was_made() -> None:
    class Late(Agent):
        def __init__(self) -> None:
            super().__init__()
            self.lm = "offline"
            self.predict = dspy.Predict("task -> text")

        async def aforward(self, context: Any, task: str) -> dict[str, str]:
            return {"text": (await self.ask(self.predict, task=task)).text}

    assert (await Late().run(task="x"))["text"] == "[offline placeholder: text]"


def test_name_and_description_come_from_the_class() -> None:
    class HTTPFetcherAgent(Agent):
        """Fetches pages.

        And more.
        """

        def forward(self, context):  # type: ignore[no-untyped-def]
            return {}

    agent = HTTPFetcherAgent()
    assert (agent.name, agent.description) == ("http_fetcher", "Fetches pages.")
    assert Async().description == ""
    assert HTTPFetcherAgent("other", "Else.").name == "other"


async def test_without_a_forward_the_signature_is_predicted() -> None:
    agent = Agent("qa", signature="question -> answer", lm=ScriptedLM([{"answer": "42"}]))
    assert await agent.run(question="the question") == {"answer": "42"}


async def test_a_missing_input_is_refused_before_anything_runs() -> None:
    with pytest.raises(AgentInputError, match="agent 'sync' needs 'topic'; it was given nothing"):
        await Sync().run()


async def test_an_undeclared_input_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(AgentInputError, match=r"has no input 'topik'\. Did you mean 'topic'\? It takes: topic\."):
        await Sync().run(topik="x")


async def test_an_agent_with_kwargs_and_no_signature_takes_anything() -> None:
    class Open(Agent):
        async def aforward(self, context, **inputs):  # type: ignore[no-untyped-def]
            return inputs

    assert await Open().run(a=1, module="m") == {"a": 1, "module": "m"}


async def test_a_missing_output_is_an_error_that_names_it() -> None:
    class Forgetful(Sync):
        def forward(self, context, topic):  # type: ignore[no-untyped-def]
            return {"lenght": 1}

    with pytest.raises(AgentOutputError, match=r"declares the output 'length' .* Did you mean 'lenght'\?"):
        await Forgetful().run(topic="x")


async def test_a_forgotten_await_is_an_error_and_no_output() -> None:
    class Hasty(Agent):
        async def aforward(self, context):  # type: ignore[no-untyped-def]
            return {"booking": self.ause("book")}

    class Sync(Agent):
        def forward(self, context):  # type: ignore[no-untyped-def]
            return {"booking": self.ause("book")}

    for agent in (Hasty(), Sync()):
        with pytest.raises(
            AgentOutputError, match=r"a coroutine as 'booking': nobody awaited Agent\.ause; write 'await'"
        ):
            await agent.run()


async def test_something_that_is_no_mapping_is_refused() -> None:
    class Stringy(Agent):
        async def aforward(self, context):  # type: ignore[no-untyped-def]
            return "text"

    with pytest.raises(AgentOutputError, match="returned a str; return a dict"):
        await Stringy().run()


class Model(BaseModel):
    text: str
    nested: list[int]


class Typed(TypedDict):
    text: str
    nested: list[int]


@dataclass
class Data:
    text: str
    nested: list[int]


@pytest.mark.parametrize(
    "value", [dspy.Prediction(text="t", nested=[1]), Model(text="t", nested=[1]), Data("t", [1])], ids=type
)
async def test_predictions_models_and_dataclasses_become_dicts(value: Any) -> None:
    class Returning(Agent):
        async def aforward(self, context):  # type: ignore[no-untyped-def]
            return value

    assert await Returning().run() == {"text": "t", "nested": [1]}


async def test_an_agent_that_declares_no_outputs_may_return_nothing() -> None:
    class Doer(Agent):
        def forward(self, context) -> None:  # type: ignore[no-untyped-def]
            return None

    assert await Doer().run() == {}


async def test_use_and_ause_call_tools_of_the_executor(executor: ToolExecutor) -> None:
    class SyncUser(Agent):
        def forward(self, context, a: int):  # type: ignore[no-untyped-def]
            return {"sum": self.use("add", a=a, b=2)}

    class AsyncUser(Agent):
        async def aforward(self, context, a: int):  # type: ignore[no-untyped-def]
            return {"sum": await self.ause("add", a=a, b=2)}

    with using(executor):
        assert await SyncUser().run(a=1) == await AsyncUser().run(a=1) == {"sum": 3}
    events = await executor.storage.read("events")
    assert [record.data["agent_name"] for record in events] == ["sync_user", "async_user"]


async def test_outside_of_a_run_contracts_hold_and_approvals_are_denied() -> None:
    class Launcher(Agent):
        async def aforward(self, context):  # type: ignore[no-untyped-def]
            return {"value": await self.ause("launch")}

    with using(detached(TOOLS)), pytest.raises(ApprovalDeniedError, match="outside of a run"):
        await Launcher().run()
    with pytest.raises(UnknownToolError):
        await Launcher().run()


async def test_use_on_the_event_loop_says_what_to_await() -> None:
    class Blocker(Agent):
        async def aforward(self, context):  # type: ignore[no-untyped-def]
            return {"sum": self.use("add", a=1, b=1)}

    with pytest.raises(RuntimeError, match="await the async method"):
        await Blocker().run()


async def test_a_tool_error_leaves_use_as_the_tool_raised_it(executor: ToolExecutor) -> None:
    registry = ToolRegistry()

    @tool(registry=registry)
    def broken() -> None:
        raise KeyError("inside")

    class Careful(Agent):
        def forward(self, context):  # type: ignore[no-untyped-def]
            try:
                self.use("broken")
            except KeyError as error:
                return {"caught": str(error)}

    with using(detached(registry)):
        assert await Careful().run() == {"caught": "'inside'"}


async def test_ask_runs_any_module_on_any_backend() -> None:
    class Asking(Agent):
        def __init__(self) -> None:
            super().__init__(lm=ScriptedLM([{"answer": "1"}, {"reasoning": "r", "answer": "2"}, {"answer": "3"}]))
            self.cot = dspy.ChainOfThought("question -> answer")

        async def aforward(self, context, question):  # type: ignore[no-untyped-def]
            first = await self.ask("question -> answer", question=question)
            second = await self.ask(self.cot, question=question)

            class Third(dspy.Signature):
                question: str = dspy.InputField()
                answer: int = dspy.OutputField()

            third = await self.ask(Third, question=question)
            return {"answers": [first.answer, second.answer, third.answer]}

    assert await Asking().run(question="?") == {"answers": ["1", "2", 3]}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"question": "?", "contxt": []}, "input 'contxt', which its signature does not declare.* 'context'"),
        ({"question": "?"}, "did not give ChainOfThought the inputs 'context'"),
    ],
)
async def test_ask_refuses_what_dspy_only_warns_about(inputs: dict[str, Any], message: str) -> None:
    class Asking(Agent):
        async def aforward(self, context):  # type: ignore[no-untyped-def]
            return await self.ask(dspy.ChainOfThought("question, context: list[str] -> answer"), **inputs)

    with pytest.raises(AgentInputError, match=message):
        await Asking(lm=ScriptedLM([])).run()


async def test_ask_reads_the_inputs_of_a_module_of_ones_own_from_its_forward() -> None:
    class Own(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = dspy.Predict("hidden -> answer")

        def forward(self, question, style="short"):  # type: ignore[no-untyped-def]
            return self.step(hidden=f"{question} {style}")

    class Asking(Agent):
        async def aforward(self, context, **inputs):  # type: ignore[no-untyped-def]
            return await self.ask(Own(), **inputs)

    agent = Asking(lm=ScriptedLM([{"answer": "a"}]))
    assert await agent.run(question="q") == {"answer": "a"}
    with pytest.raises(AgentInputError, match="'hidden'"):
        await agent.run(hidden="q")


class Passage(dspy.Module):
    """Gives its predictor more than it is given itself, under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.signature = dspy.Signature("passage, question -> answer")
        self.step = dspy.Predict(self.signature)

    def forward(self, topic):  # type: ignore[no-untyped-def]
        return self.step(passage="of a book", question=topic)


class Passages(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step = dspy.Predict("passage, question -> answer")

    def forward(self, topics, **inputs):  # type: ignore[no-untyped-def]
        return self.step(passage="of a book", question=f"{topics[0]} {inputs['style']}")


class Taught(Agent):
    def __init__(self) -> None:
        super().__init__()
        self.step = dspy.Predict("passage, question -> answer")

    async def aforward(self, context, topic):  # type: ignore[no-untyped-def]
        return await self.ask(self.step, passage="of a book", question=topic)


def best(module: dspy.Module) -> dspy.Module:
    return dspy.BestOfN(module=module, N=1, reward_fn=lambda inputs, answer: 1.0, threshold=1.0)


def refined(module: dspy.Module) -> dspy.Module:
    return dspy.Refine(module=module, N=1, reward_fn=lambda inputs, answer: 1.0, threshold=1.0)


@pytest.mark.parametrize("module", [Passage(), best(Passage()), refined(Passage()), best(Taught())])
async def test_ask_takes_what_a_module_takes_and_not_what_is_inside_it(module: dspy.Module) -> None:
    class Asking(Agent):
        async def aforward(self, context, **inputs):  # type: ignore[no-untyped-def]
            return await self.ask(module, **inputs)

    agent = Asking(lm=ScriptedLM([{"answer": "a"}]))
    assert await agent.run(topic="tides") == {"answer": "a"}
    with pytest.raises(AgentInputError, match=r"'topik'.* 'topic'"):
        await agent.run(topik="tides")


async def test_ask_runs_a_module_that_takes_anything() -> None:
    class Asking(Agent):
        async def aforward(self, context):  # type: ignore[no-untyped-def]
            return await self.ask(Passages(), topics=["tides"], style="short")

    lm = ScriptedLM([{"answer": "a"}])
    assert await Asking(lm=lm).run() == {"answer": "a"}
    assert "tides short" in lm.prompts[0]


async def test_ask_awaits_a_module_that_can_only_be_awaited(anyio_backend_name: str) -> None:
    class Awaited(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = dspy.Predict("question -> answer")

        async def aforward(self, topic):  # type: ignore[no-untyped-def]
            return await self.step.acall(question=topic)

    class Asking(Agent):
        async def aforward(self, context, **inputs):  # type: ignore[no-untyped-def]
            return await self.ask(Awaited(), **inputs)

    agent = Asking(lm=ScriptedLM([{"answer": "a"}]))
    with pytest.raises(AgentInputError, match="'topik'"):
        await agent.run(topik="tides")
    if anyio_backend_name == "asyncio":
        assert await agent.run(topic="tides") == {"answer": "a"}
    else:
        with pytest.raises(TypeError, match="Awaited has an aforward only"):
            await agent.run(topic="tides")


async def test_ask_runs_another_agent_as_that_agent() -> None:
    class Inner(Agent):
        async def aforward(self, context):  # type: ignore[no-untyped-def]
            return {"who": current_run().agent}  # type: ignore[union-attr]

    class Outer(Agent):
        async def aforward(self, context):  # type: ignore[no-untyped-def]
            inner = await self.ask(Inner())
            return {"inner": inner.who, "outer": current_run().agent}  # type: ignore[union-attr]

    assert await Outer().run() == {"inner": "inner", "outer": "outer"}


@pytest.mark.parametrize("module", [dspy.ChainOfThought, 42])
async def test_ask_refuses_what_is_no_module(module: Any) -> None:
    class Asking(Agent):
        async def aforward(self, context):  # type: ignore[no-untyped-def]
            return await self.ask(module)

    with pytest.raises(TypeError, match="ask needs"):
        await Asking().run()


async def test_a_stop_ends_an_agent_that_swallowed_it() -> None:
    mark = StopMark()

    class Swallowing(Agent):
        async def aforward(self, context):  # type: ignore[no-untyped-def]
            try:
                mark.set(stop())
                await self.ask("question -> answer", question="?")
            except BudgetExceededError:
                pass
            return {"text": "nothing happened"}

    with entered(running(stops=(mark,))), pytest.raises(BudgetExceededError) as caught:
        await Swallowing().run()
    assert caught.value is mark.error


async def test_a_stop_replaces_the_error_that_was_made_of_it() -> None:
    mark = StopMark()

    class Wrapping(Agent):
        def forward(self, context):  # type: ignore[no-untyped-def]
            mark.set(stop())
            raise ValueError("something about a budget")

    with entered(running(stops=(mark,))), pytest.raises(BudgetExceededError) as caught:
        await Wrapping().run()
    assert caught.value is mark.error


async def test_a_stopped_run_starts_no_agent() -> None:
    mark = StopMark()
    mark.set(stop())
    with entered(running(stops=(mark,))), pytest.raises(BudgetExceededError):
        await Sync().run(topic="x")


async def test_an_error_that_the_agent_makes_of_another_stays_as_it_is() -> None:
    class Translating(Agent):
        async def aforward(self, context):  # type: ignore[no-untyped-def]
            try:
                await self.ause("no_such_tool")
            except UnknownToolError:
                raise RuntimeError("my own words")  # noqa: B904 - as people write it

    with pytest.raises(RuntimeError, match="my own words"):
        await Translating().run()


async def test_an_answer_that_cant_be_read_is_one_clear_error() -> None:
    agent = Agent("qa", signature="question -> answer: int", lm=ScriptedLM([{"answer": "many"}] * 4))
    with pytest.raises(ModelCallError, match="can't be read as answer"):
        await agent.run(question="?")


async def test_progress_tells_how_agents_begin_and_end() -> None:
    seen: list[Progress] = []

    class Failing(Agent):
        async def aforward(self, context):  # type: ignore[no-untyped-def]
            raise ValueError("no\nluck")

    with entered(running(observer=seen.append)):
        await Sync().run(topic="x")
        with pytest.raises(ValueError, match="no"):
            await Failing().run()
    assert [(entry.kind, entry.name, entry.error) for entry in seen] == [
        ("agent_started", "sync", None),
        ("agent_finished", "sync", None),
        ("agent_started", "failing", None),
        ("agent_failed", "failing", "ValueError: no luck"),
    ]


async def test_a_cancelled_agent_is_reported_and_its_cancellation_passes() -> None:
    seen: list[Progress] = []

    class Waiting(Agent):
        async def aforward(self, context):  # type: ignore[no-untyped-def]
            await anyio.sleep_forever()

    with entered(running(observer=seen.append)):
        async with anyio.create_task_group() as group:
            group.start_soon(Waiting().run)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
    assert [(entry.kind, entry.error) for entry in seen] == [("agent_started", None), ("agent_failed", "cancelled")]


async def test_one_instance_serves_many_runs_at_once() -> None:
    agent = Sync()
    lengths: dict[int, int] = {}

    async def one(number: int) -> None:
        lengths[number] = (await agent.run(topic="x" * number))["length"]

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(one, number)
    assert lengths == {number: number for number in range(20)}


async def test_a_sync_agent_calls_an_async_one_from_its_thread() -> None:
    class Outer(Agent):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Async()

        def forward(self, context, topic):  # type: ignore[no-untyped-def]
            inner = self.inner(context, topic=topic)
            return {"inner": inner.kind, "seen": context.read("topic")}

    async with MemoryHub() as hub:
        result = await Outer().run(hub.create_context("conversation"), topic="t")
    assert result == {"inner": "MemoryContext", "seen": "t"}


def test_an_async_agent_runs_without_any_event_loop_as_optimizers_do() -> None:
    prediction = Async()(topic="abc")
    assert isinstance(prediction, dspy.Prediction)
    assert prediction.length == 3


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("kind", [Sync, Async])
async def test_acall_gives_predictions(kind: type[Agent]) -> None:
    prediction = await kind().acall(topic="abc")
    assert prediction.length == 3


async def test_a_sync_call_on_the_event_loop_of_an_async_agent_is_refused() -> None:
    with pytest.raises(RuntimeError, match="would block the event loop"):
        Async()(topic="abc")


def test_a_direct_call_checks_its_inputs_too() -> None:
    with pytest.raises(AgentInputError):
        Sync()(topik="x")
    with pytest.raises(TypeError, match="one positional argument"):
        Sync()(None, "x")
    assert Sync()(context=None, topic="ab").length == 2


async def test_a_models_name_is_enough_for_an_agents_lm() -> None:
    agent = Agent("qa", signature="question -> answer", lm="offline")
    assert "offline" in (await agent.run(question="?"))["answer"].lower()
