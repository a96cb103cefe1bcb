"""Plans that would go wrong are refused before anything is called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, Field

from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import ConfigError, PlanError
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.plan import Plan
from agenthelm.orchestration.saga import Ref, SagaOrchestrator, Step

called: list[str] = []


class Guest(BaseModel):
    name: str = Field(alias="guestName")


@pytest.fixture
def tools() -> ToolRegistry:
    registry = ToolRegistry()
    called.clear()

    @tool(registry=registry, compensating_tool="cancel", side_effects=["booking:write"])
    async def book(what: str, nights: int = 1, guest: Guest | None = None, idempotency_key: str = "") -> dict[str, str]:
        called.append(what)
        return {"what": what}

    @tool(registry=registry)
    async def cancel(what: str) -> None: ...

    @tool(registry=registry)
    async def add(numbers: list[int]) -> int:
        called.append("add")
        return sum(numbers)

    @tool(registry=registry, side_effects=["mail:send"], verify="nobody")
    async def unsure() -> None:
        called.append("unsure")

    return registry


GOOD = Step("book", {"what": "a"}, id="good")


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([GOOD, Step("unsure")], "tool 'unsure' names 'nobody' as verify, but no such tool is registered"),
        ([GOOD, Step("book", {})], "step 'book': tool 'book': 'what' is missing"),
        ([GOOD, Step("book", {"what": 3})], "step 'book': tool 'book': 'what': Input should be a valid string"),
        ([GOOD, Step("book", {"what": "b", "nights": "many"})], "'nights': Input should be a valid integer"),
        ([GOOD, Step("book", {"what": "b", "guest": {"name": "Ada"}})], "'guest.guestName' is missing"),
        ([GOOD, Step("book", {"what": Ref("good", "what"), "nights": []})], "'nights': Input should be"),
        (
            [GOOD, Step("book", {"what": "b", "idempotency_key": "order-77"})],
            "step 'book': leave out 'idempotency_key'; each step gets its own, the same whenever it is repeated",
        ),
        ([GOOD, Step("book", {"what": "b"}, compensate_with="book")], "'book' can't be undone by itself"),
        ([GOOD, Step("book", None)], "step 'book': arguments are names and values, not None"),  # type: ignore[arg-type]
        ([GOOD, Step(print, {})], "a Step takes the name of a tool, not <built-in function print>"),  # type: ignore[arg-type]
        ([GOOD, Step("book", {"what": "b"}, id=2)], "a Step's id is a name, not 2"),  # type: ignore[arg-type]
        (
            [GOOD, Step("book", {"what": "b"}, compensate_with=print)],
            "compensate_with is a name, not <built-in function",
        ),  # type: ignore[arg-type]
        ([GOOD, Step("book", {"what": Ref("good", 0)})], "step 'book': a Ref takes the name of a step and a path as"),  # type: ignore[arg-type]
        ([GOOD, Step("book", {"what": Ref(2)})], "step 'book' uses the result of 2, which is not in the plan"),  # type: ignore[arg-type]
        ([GOOD, Step("book", depends_on=(2,))], "step 'book' depends on 2, which is not in the plan"),  # type: ignore[arg-type]
        ([print], "a plan is a list of Steps and lists of Steps, not <built-in function print>"),
        (GOOD, "a plan is a list of Steps and lists of Steps, not Step("),
        (["book"], "a plan is a list of Steps and lists of Steps, not 'book'"),
        ([{"tool": "book"}], "a plan is a list of Steps and lists of Steps, not {'tool': 'book'}"),
        (None, "a plan is a list of Steps and lists of Steps, not None"),
    ],
)
async def test_what_is_wrong_with_a_plan_is_said_in_one_line(tools: ToolRegistry, steps: Any, says: str) -> None:
    for run in (Orchestrator(tools=tools).run_saga, SagaOrchestrator(tool_registry=tools).execute):
        with pytest.raises(PlanError) as refused:
            await run(steps)
        assert says in str(refused.value)
        assert "\n" not in str(refused.value)
    assert called == []


async def test_what_is_known_only_later_is_not_refused(tools: ToolRegistry) -> None:
    def numbers() -> Iterator[int]:
        yield from (1, 2)

    plan = [
        GOOD,
        Step("book", {"what": Ref("good", "what"), "guest": {"guestName": Ref("good", "what")}}, id="referring"),
        Step("add", {"numbers": numbers()}),
        Step("book", {"what": "b", "nights": "2", "guest": Guest(guestName="Ada")}, id="coerced"),
    ]
    result = await Orchestrator(tools=tools).run_saga(plan)
    assert (result.status, result.error, called) == ("success", None, ["a", "a", "add", "b"])
    assert result.result_of("add") == 3


async def test_an_unknown_way_to_treat_errors_is_refused(tools: ToolRegistry) -> None:
    for run in (Orchestrator(tools=tools).run_saga, SagaOrchestrator(tool_registry=tools).execute):
        with pytest.raises(ConfigError, match=r"on_error must be one of .* not 'rolback'\. Did you mean 'rollback'?"):
            await run([GOOD], on_error="rolback")  # type: ignore[arg-type]
    assert called == []


def test_steps_that_may_run_together_keep_the_order_they_were_given_in() -> None:
    assert Plan.of([[Step("b"), Step("a")], [Step("d"), Step("c")]]).order() == [["b", "a"], ["d", "c"]]


@pytest.mark.parametrize(
    "value", [Ref("later"), [Ref("later")], (1, Ref("later")), {"a": [{"b": Ref("later")}]}, [[Ref("later")]]]
)
def test_a_ref_to_what_has_not_run_is_refused_wherever_it_stands(value: Any) -> None:
    with pytest.raises(PlanError, match="'later', which need not have run before it"):
        Plan.of([Step("make", {"what": value}), Step("later")])
    with pytest.raises(PlanError, match="'later', which is not in the plan"):
        Plan.of([Step("make", {"what": value})])
