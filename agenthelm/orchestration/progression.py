"""One walk through a plan of steps, from its beginning or from where an earlier process has left it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from contextlib import nullcontext
from typing import Any, Literal

import anyio

from agenthelm._runtime.context import current_run, entered
from agenthelm._runtime.groups import named
from agenthelm.core.binding import KEY_PARAMETER
from agenthelm.core.effects import Effect
from agenthelm.exceptions import PlanError, ToolInputError
from agenthelm.orchestration.plan import Plan, Step, refs_in, resolved
from agenthelm.orchestration.results import StepRecord
from agenthelm.orchestration.scope import SagaScope
from agenthelm.orchestration.values import encode
from agenthelm.telling import describe

__all__ = ["OnError", "Progression"]

OnError = Literal["rollback", "stop", "continue"]


class Progression:
    """Starts each step as soon as what it depends on has succeeded.

    Args:
        plan: The plan.
        scope: The scope in which its tools are called.
        on_error: What is to be done when a step fails.
        results: What steps have returned that are done already, by step.
    """

    def __init__(self, plan: Plan, scope: SagaScope, on_error: OnError, results: dict[str, Any]) -> None:
        self._plan = plan
        self._scope = scope
        self._on_error = on_error
        self._results = results
        self._ended: dict[str, anyio.Event] = {}
        self._waits: Mapping[str, Collection[str]] = {name: step.depends_on for name, step in plan.steps.items()}
        if results:
            self._waits = _nearest(plan, plan.steps.keys() - results.keys())
        self._called: dict[str, Effect] = {}
        """The calls, by step, that were made before the plan was resumed and happened, or may have."""
        for state in scope.states.values():
            step = state.effect.step or ""
            if step in plan.steps and state.effect.parent is None and not (state.settled or state.outcome == "failed"):
                self._called[step] = state.effect

    async def run(self) -> None:
        """Run all steps.

        Raises:
            Exception: The first failure, unless steps go on after one.
        """
        todo = {name: step for name, step in self._plan.steps.items() if name not in self._results}
        for name in self._results:
            self._scope.steps.append(StepRecord(self._plan.steps[name], self._results[name]))
        if all(before in self._waits[name] for before, name in itertools.pairwise(todo)):  # no tasks are needed
            for step in todo.values():
                await self._step(step)
            return
        self._ended = {name: anyio.Event() for name in todo}
        await named({name: functools.partial(self._step, step) for name, step in todo.items()})

    async def _step(self, step: Step) -> None:
        waits = self._waits[step.name]
        for needed in waits:
            if needed in self._ended:
                await self._ended[needed].wait()
        try:
            failed = [needed for needed in waits if needed not in self._results]
            if failed:
                self._scope.errors[step.name] = f"not run, because {failed[0]!r} failed"
                return
            value = await self._call(step)
            if self._called:
                self._refuse_another(step, value)
            self._results[step.name] = value
        except Exception as error:
            if self._on_error != "continue" or _is_stop(error, self._scope):
                raise
            self._scope.errors[step.name] = describe(error)
        finally:
            if step.name in self._ended:
                self._ended[step.name].set()

    async def _call(self, step: Step) -> Any:
        scope = self._scope
        running = current_run()
        arguments = resolved(step.arguments, self._results)
        with entered(running.evolve(step=step.name)) if running is not None else nullcontext():
            value = await scope.executor.call(
                step.tool_name,
                arguments,
                key=f"{scope.key}:{step.name}",
                compensating_tool=step.compensate_with,
            )
        scope.steps.append(StepRecord(step, value))
        return value

    def _refuse_another(self, step: Step, value: Any) -> None:
        """Refuse what a step of a resumed plan returns now if others were called with something else of it before.

        What changes nothing is on no record, so it is called again.

        Raises:
            PlanError: They were.
        """
        results = {**self._results, step.name: value}
        for name, effect in self._called.items():
            built = self._plan.steps[name]
            needed = {ref.step for ref in refs_in(built.arguments)}
            if step.name not in needed or not needed <= results.keys():
                continue
            if not self._was_called_so(built, effect, results):
                raise PlanError(f"{step.name!r} returns something else now than what {name!r} was called with")

    def _was_called_so(self, step: Step, effect: Effect, results: Mapping[str, Any]) -> bool:
        """Whether what a step gets of these results is what it was called with; other arguments need not be the same."""
        binding = self._scope.executor.tools[step.tool_name].binding
        key = {KEY_PARAMETER: effect.key} if binding.takes_key else {}
        try:
            bound = binding.bind({**resolved(step.arguments, results), **key})
        except (PlanError, ToolInputError):
            return False
        forms = {name: encode(bound.get(name)) for name, given in step.arguments.items() if refs_in(given)}
        return all(form == (effect.arguments.get(name), True) for name, form in forms.items())


def _nearest(plan: Plan, todo: AbstractSet[str]) -> dict[str, dict[str, None]]:
    """By step, which of those to do have to come first: the nearest, through what is done."""
    nearest_of: dict[str, dict[str, None]] = {}
    for name in itertools.chain.from_iterable(plan.order()):
        nearest_of[name] = {
            earlier: None
            for needed in plan.steps[name].depends_on
            for earlier in ([needed] if needed in todo else nearest_of[needed])
        }
    return nearest_of


def _is_stop(error: Exception, scope: SagaScope) -> bool:
    return any(mark.error is error for mark in scope.context.stops)
