"""What makes no sense is refused where it is given: one line that says what, where, and what to do."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from agenthelm.agent.base import Agent
from agenthelm.core.cost import Budget
from agenthelm.core.handlers import ApprovalHandler, ApprovalRequest, Decision
from agenthelm.core.storage import EVENTS, InMemoryStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.core.tracer import ExecutionTracer
from agenthelm.exceptions import ConfigError, WiringError
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.pipeline import Pipeline
from agenthelm.orchestration.saga import SagaOrchestrator, Step, saga


class Answers(Agent):
    """Answers."""

    async def aforward(self, context: Any, task: str) -> dict[str, str]:
        return {"answer": task}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"on_denial": "Stop"}, "on_denial must be one of observe, stop, not 'Stop'. Did you mean 'stop'?"),
        ({"unpriced": "denny"}, "unpriced must be one of warn, deny, allow, not 'denny'. Did you mean 'deny'?"),
        ({"budget": 5}, "budget must be a Budget, such as Budget(usd=0.50), not 5"),
        ({"budgets": {"q": 5}}, "budgets['q'] must be a Budget, such as Budget(usd=0.50), not 5"),
        ({"budgets": [Budget()]}, "budgets must be a dict from agents' names to their budgets, not [Budget("),
        ({"storage": "x.db"}, "storage must be a storage, such as SqliteStorage('runs.db'), not 'x.db'"),
        ({"lm": 5}, "lm must be a dspy.LM or a model's name, not 5"),
        ({"lms": {"q": 5}}, "lms['q'] must be a dspy.LM or a model's name, not 5"),
        ({"lms": "offline"}, "lms must be a dict from agents' names to their models, not 'offline'"),
        (
            {"memory_hub": "redis://"},
            "memory_hub must be a MemoryHub, such as MemoryHub('redis://localhost'), not 'redis://'",
        ),
        (
            {"approval_handler": "allow"},
            "approval_handler must be an ApprovalHandler, such as AutoApprove(), not 'allow'",
        ),
        (
            {"approval_handler": len},
            "approval_handler must be an ApprovalHandler, such as AutoApprove(), not <built-in",
        ),
        ({"workers": "many"}, "workers must be a whole number of at least 1, not 'many'"),
        ({"workers": 0}, "workers must be a whole number of at least 1, not 0"),
        ({"workers": 1.5}, "workers must be a whole number of at least 1, not 1.5"),
        ({"lm_retries": 1.5}, "lm_retries must be a whole number of at least 0, not 1.5"),
        ({"lm_retries": True}, "lm_retries must be a whole number of at least 0, not True"),
        ({"cache": "yes"}, "cache must be True or False, not 'yes'"),
        ({"observer": 3}, "observer must be a function that takes a Progress, not 3"),
        ({"redact": 1}, "redact must be a function (name, value) -> value, not 1"),
        ({"grace": -1}, "grace must be a number of at least 0, not -1"),
        ({"lm_timeout": "2 s"}, "lm_timeout must be a number above 0, not '2 s'"),
        ({"lm_timeout": 0}, "lm_timeout must be a number above 0, not 0"),
        ({"approval_timeout": float("nan")}, "approval_timeout must be a number of at least 0, not nan"),
        ({"tools": ["book"]}, "tools must be a ToolRegistry or a list of functions; 'book' is neither"),
        ({"tools": 5}, "tools must be a ToolRegistry or a list of functions; 5 is neither"),
        ({"tools": "book"}, "tools must be a ToolRegistry or a list of functions; 'book' is neither"),
    ],
)
def test_an_orchestrator_refuses_options_that_make_no_sense(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Orchestrator(**given)
    assert str(caught.value).startswith(message)
    assert str(caught.value.setting).partition("[")[0] in given


def test_an_agent_refuses_a_model_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"lm must be a dspy\.LM or a model's name, not 5"):
        Agent("a", signature="task -> answer", lm=5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Answers, r"run takes instances: Answers\(\) instead of Answers"),
        ("writer", r"run takes agents, not their names: AGENT_REGISTRY\['writer'\] instead of 'writer'"),
        (None, r"run takes agents, flows and objects with `run\(context, /, \*\*inputs\)`, not None"),
        (len, r"run takes agents, flows and objects with"),
        (
            [Agent("a", signature="task -> text")],
            r"not a list: make a flow of it with Pipeline\(\[\.\.\.\]\) or Parallel",
        ),
    ],
)
async def test_a_run_takes_what_can_be_run(given: Any, message: str) -> None:
    with pytest.raises(WiringError, match=message):
        await Orchestrator().run(given, "go")


async def test_a_single_agent_where_a_list_is_wanted_is_named() -> None:
    message = r"a (Pipeline|Parallel) takes a list of agents: \[answers\] instead of answers"
    for run in (Orchestrator().run_pipeline, Orchestrator().run_parallel):
        with pytest.raises(WiringError, match=message):
            await run(Answers(), "go")  # type: ignore[operator]
    with pytest.raises(WiringError, match=r"a Pipeline takes agents, not their names: AGENT_REGISTRY\['writer'\]"):
        await Orchestrator().run_pipeline(["writer"], "go")  # type: ignore[list-item]


async def test_whatever_runs_refuses_a_budget_that_is_none_before_anything_is_written() -> None:
    storage, tools = InMemoryStorage(), ToolRegistry()

    @tool(registry=tools)
    def look() -> int:
        return 1

    orchestrator = Orchestrator(storage=storage, tools=tools)
    budget: Any = 0.5
    message = r"budget must be a Budget, such as Budget\(usd=0\.50\), not 0\.5"
    with pytest.raises(ConfigError, match=message):
        await orchestrator.run(Answers(), "go", budget=budget)
    with pytest.raises(ConfigError, match=message):
        await orchestrator.run_saga([Step("look")], budget=budget)
    with pytest.raises(ConfigError, match=message):
        await SagaOrchestrator(ExecutionTracer(storage), tools).execute([Step("look")], budget=budget)
    with pytest.raises(ConfigError, match=message):
        saga("s", storage=storage, budget=budget)
    timeout: Any = "1"
    with pytest.raises(ConfigError, match="timeout must be a number, not '1'"):
        await orchestrator.run(Answers(), "go", timeout=timeout)
    assert await storage.streams() == []
    assert (await orchestrator.run(Answers(), "go"))["answer"] == "go"


class Inbox(list[ApprovalRequest], ApprovalHandler):
    """Approves, and keeps what it was asked."""

    async def request_approval(self, request: ApprovalRequest) -> Decision:
        self.append(request)
        return Decision(True)


class Counted(InMemoryStorage):
    """Knows how many streams it holds."""

    def __len__(self) -> int:
        return 0


async def test_what_is_given_is_used_also_while_it_is_empty() -> None:
    @tool(registry=ToolRegistry(), requires_approval=True)
    def look() -> int:
        return 1

    async with saga("s", tools=[look], storage=(first := Counted()), approval_handler=Inbox()) as scope:
        assert await scope.use("look") == 1
    tracer = ExecutionTracer(second := Counted(), Inbox(), tools=[look])
    assert await tracer.trace_and_execute("look") == 1
    async with Orchestrator(tools=[look], storage=(third := Counted()), approval_handler=Inbox()) as orchestrator:
        assert (await orchestrator.run_saga([Step("look")])).status == "success"
    for storage in (first, second, third):
        assert len(await storage.read(EVENTS)) == 1


async def test_a_budget_for_a_misspelt_agent_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    orchestrator = Orchestrator(
        budgets={"anwsers": Budget(calls=1), "writer": Budget(calls=1)}, lms={"answer": "offline"}
    )
    with caplog.at_level(logging.WARNING):
        await orchestrator.run(Pipeline([Answers()]), "go")
        await orchestrator.run(Pipeline([Answers()]), "go")
    assert [record.getMessage() for record in caplog.records] == [
        "lms names 'answer', and no agent of this run is called that. Did you mean 'answers'?",
        "budgets names 'anwsers', and no agent of this run is called that. Did you mean 'answers'?",
    ]


async def test_budgets_of_agents_that_other_flows_run_are_nobodys_mistake(caplog: pytest.LogCaptureFixture) -> None:
    orchestrator = Orchestrator(budgets={"answers": Budget(calls=1), "answers2": Budget(calls=1), "writer": Budget()})
    with caplog.at_level(logging.WARNING):
        await orchestrator.run(Answers(), "go")
    assert caplog.records == []
