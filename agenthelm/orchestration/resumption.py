"""Going on with a plan of steps whose process died, from where it was."""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType

import anyio

from agenthelm._runtime.context import RunContext
from agenthelm._runtime.groups import shielded
from agenthelm.core.cost import Budget
from agenthelm.core.executor import ToolExecutor
from agenthelm.core.tool import Tool
from agenthelm.exceptions import ToolOutputError
from agenthelm.orchestration.journal import Journal, ResultForm
from agenthelm.orchestration.means import Means
from agenthelm.orchestration.plan import Plan
from agenthelm.orchestration.results import SagaResult
from agenthelm.orchestration.saga import run_plan
from agenthelm.orchestration.scope import Opening, SagaScope
from agenthelm.orchestration.state import EffectState, RunState
from agenthelm.orchestration.unwind import Unwinder
from agenthelm.telling import describe

__all__ = ["Resumption"]


@dataclass(frozen=True, slots=True)
class Resumption:
    """A claimed run of steps that may go on, if what was done can be relied on.

    Attributes:
        executor: Calls the steps that are left.
        grace: Seconds for one compensation, or one answer of ``verify``.
        identity: The run's own.
        budget: What it may spend from now on.
        state: What its journal tells.
        journal: The journal, claimed.
    """

    executor: ToolExecutor
    grace: float
    identity: RunContext
    budget: Budget | None
    state: RunState
    journal: Journal

    async def results(self, plan: Plan) -> dict[str, object] | None:
        """The results of the steps that are done, by step; None when the run can only be undone."""
        results: dict[str, object] = {}
        taken_back: set[str] = set()
        for entry in [s for s in self.state.effects.values() if s.effect.parent is None]:
            if entry.settled:
                if entry.undone and entry.outcome == "ok" and entry.effect.step is not None:
                    taken_back.add(entry.effect.step)
                # Who learnt that it did not happen may have died before what it did inside was taken back.
                if entry.undone and not entry.compensated and not await self._undo_inner(entry):
                    return None
                continue
            step, tool = entry.effect.step, self._tool(plan, entry)
            if step is None or tool is None:
                return None
            if entry.doubtful and not await self._learned(entry, tool):
                return None
            if entry.outcome != "ok" and not await self._undo_inner(entry):
                return None
            if entry.outcome == "ok":
                if not entry.has_result or entry.left_out:
                    return None
                results[step] = entry.value(tool)
        # What a human took back is done again, with another result than the one that later steps have gone by.
        if any(plan.runs_before(gone, step) for gone in taken_back - results.keys() for step in results):
            return None
        return results

    async def go_on(self, plan: Plan, results: dict[str, object]) -> SagaResult:
        """Run the steps that are left, under the same journal."""
        state = self.state
        scope = SagaScope(
            self.executor,
            self.identity,
            Opening(state.name, "steps", state.plan, state.trace_id, state.span_id),
            budget=self.budget,
            rollback=state.rollback,
            grace=self.grace,
            protected=True,
            journal=self.journal,
            states=state.effects,
        )
        return await run_plan(
            plan,
            self.executor,
            self.identity,
            on_error=state.plan["on_error"],
            name=state.name,
            timeout=state.plan.get("timeout"),
            scope=scope,
            results=results,
        )

    def _tool(self, plan: Plan, entry: EffectState) -> Tool | None:
        """The tool of the step that an effect is; None if it is not one of this plan, or its contract has changed."""
        step = plan.steps.get(entry.effect.step or "")
        if entry.scope or step is None:
            return None  # a nested run of a step that is no effect itself: calling it again would repeat this one
        if (entry.effect.tool, entry.effect.key) != (step.tool_name, f"{self.state.run_id}:{entry.effect.step}"):
            return None  # likewise, through a tool; its result is not the step's
        tool: Tool | None = self.executor.tools.get(entry.effect.tool)
        if (
            tool is None
            or entry.contract != tool.fingerprint
            or Means(self.executor.tools, True).is_anothers(entry, tool)
        ):
            return None
        return tool

    async def _learned(self, entry: EffectState, tool: Tool) -> bool:
        """Find out whether a doubtful step happened; whether that, or not knowing it, lets the run go on."""
        verdict = None
        with anyio.move_on_after(self.grace):
            verdict = await self.executor.verify(tool, entry.arguments(tool), entry.effect.key)
        if verdict is None:
            return tool.contract.idempotent
        if not verdict.happened:
            entry.undone = True
            await self.journal.resolved([entry.effect.id], "undone", by="verify")
            return True
        if not verdict.known and tool.binding.result_type is not NoneType:
            return False  # nobody knows what later steps would be given
        value, unfit = verdict.value, None
        try:
            value = tool.binding.check_result(value)
        except ToolOutputError as error:  # it happened all the same, but its result is none to go on with
            unfit = describe(error)
        await self.journal.finish(entry.effect.id, "ok", result=ResultForm.of(value, tool.binding), error=unfit)
        self.state.effects.complete(entry, "ok")
        entry.returned(value)
        return unfit is None

    async def _undo_inner(self, entry: EffectState) -> bool:
        """Before a step is called again: take back what its first call did inside. False if something stays."""
        if inner := self.state.effects.inside(entry):
            await shielded(Unwinder(self.executor, self.journal, self.grace, recorded=True).unwind, inner)
        return not any(other.failed_to_undo for other in inner)
