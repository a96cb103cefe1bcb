"""What the run's own registry could not undo is refused before it happens, also in nested runs with tools of their own."""

from __future__ import annotations

from typing import Any

import pytest

from agenthelm.agent.base import Agent
from agenthelm.core.executor import current_executor
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import PlanError
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import SagaOrchestrator, Step

World = list[str]


def maker(world: World, *, name: str = "make", mark: str = "") -> ToolRegistry:
    registry = ToolRegistry()

    @tool(name=name, registry=registry, compensating_tool=f"un{name}", side_effects=["x:write"])
    async def make(what: str) -> dict[str, str]:
        world.append(mark + what)
        return {"thing": mark + what}

    @tool(name=f"un{name}", registry=registry)
    async def unmake(thing: str) -> None:
        if not thing.startswith(mark):
            raise AssertionError("not mine")
        world.remove(thing)

    return registry


class Nesting(Agent):
    def __init__(self, work: Any) -> None:
        super().__init__(name="nesting")
        self.work = work

    async def aforward(self, context: Any, task: str) -> dict[str, Any]:
        await self.work()
        raise ValueError("later")

    def __deepcopy__(self, memo: Any) -> Nesting:
        return self


@pytest.mark.parametrize("name", ["build", "make"])
async def test_a_nested_run_with_tools_of_its_own(name: str) -> None:
    world: World = []
    inner = Orchestrator(tools=maker(world, name=name, mark="inner "))
    results = []

    async def work() -> None:
        results.append(await inner.run_saga([Step(name, {"what": "n"})]))

    with pytest.raises(ValueError, match="later") as failed:
        await Orchestrator(tools=maker(world)).run(Nesting(work), "go")
    assert world == []
    assert failed.value.saga.status == "rolled_back"  # type: ignore[attr-defined]
    assert "Orchestrator(tools=" in results[0].error


@pytest.mark.parametrize("known", [False, True])
async def test_a_nested_step_that_is_undone_by_a_tool_of_its_own(known: bool) -> None:
    world: World = []
    outer, ran = maker(world), []
    inner = ToolRegistry(outer.values())

    @tool(registry=inner)
    async def unmake_otherwise(thing: str) -> None:
        world.remove(thing)

    if known:
        outer.register(inner["unmake_otherwise"])

    async def work() -> None:
        steps = [Step("make", {"what": "n"}, compensate_with="unmake_otherwise")]
        ran.append(await Orchestrator(tools=inner).run_saga(steps))

    with pytest.raises(ValueError, match="later") as failed:
        await Orchestrator(tools=outer).run(Nesting(work), "go")
    assert (world, ran[0].ok) == ([], known)
    assert failed.value.saga.status == "rolled_back"  # type: ignore[attr-defined]
    assert known or "'unmake_otherwise' is not the one" in ran[0].error


async def test_a_function_that_is_in_no_registry_of_the_run() -> None:
    world: World = []
    build = maker(world, name="build")["build"]

    async def work() -> None:
        executor = current_executor()
        assert executor is not None
        await executor.call(build, {"what": "n"})

    with pytest.raises(PlanError, match="'build'"):
        await Orchestrator(tools=maker(world)).run(Nesting(work), "go")
    assert world == []


async def test_a_nested_plan_is_checked_against_the_tools_it_will_get() -> None:
    world: World = []
    both = ToolRegistry([*maker(world).values(), *maker(world, name="build").values()])

    async def work() -> None:
        await SagaOrchestrator(tool_registry=both).execute([Step("make", {"what": "a"}), Step("build", {"what": "b"})])

    with pytest.raises(PlanError, match="'build'") as refused:
        await Orchestrator(tools=maker(world)).run(Nesting(work), "go")
    assert refused.value.saga.undone == ()  # type: ignore[attr-defined]
