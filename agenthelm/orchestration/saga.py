"""Sagas: plans of tool calls that are undone when they fail, and the scope for code of your own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import anyio

from agenthelm._runtime.context import RunContext
from agenthelm.core.cost import Budget
from agenthelm.core.executor import ToolExecutor, current_executor
from agenthelm.core.handlers import ApprovalHandler, AutoDeny
from agenthelm.core.sensitive import carries_secret
from agenthelm.core.storage.base import BaseStorage
from agenthelm.core.storage.memory_storage import InMemoryStorage
from agenthelm.core.tool import TOOL_REGISTRY, Tool, ToolRegistry
from agenthelm.core.tracer import ExecutionTracer
from agenthelm.exceptions import LeaseLostError
from agenthelm.orchestration import options
from agenthelm.orchestration.beginning import in_progress, own_run_id, refuse_run_id
from agenthelm.orchestration.deadline import in_time
from agenthelm.orchestration.plan import Plan, Ref, Step, Steps
from agenthelm.orchestration.progression import OnError, Progression
from agenthelm.orchestration.results import SagaResult, StepRecord, StuckEffect
from agenthelm.orchestration.scope import Opening, SagaScope, heard
from agenthelm.orchestration.unwind import GRACE_SECONDS
from agenthelm.orchestration.values import encode
from agenthelm.tracing import spans

__all__ = [
    "OnError", "Ref", "SagaOrchestrator", "SagaResult", "SagaScope", "Step", "StepRecord", "StuckEffect", "run_plan", "saga",
]  # fmt: skip


def saga(
    name: str = "saga",
    *,
    tools: ToolRegistry | Iterable[Tool | Callable[..., Any]] = TOOL_REGISTRY,
    storage: BaseStorage | None = None,
    approval_handler: ApprovalHandler | None = None,
    budget: Budget | None = None,
    rollback: bool = True,
    grace: float = GRACE_SECONDS,
    session_id: str = "default",
    namespace: str = "default",
    run_id: str | None = None,
) -> SagaScope:
    """A scope that undoes the effects of tools called inside it when it does not complete.

    ::

        async with saga("trip", storage=storage) as scope:
            booking = await scope.use("book_hotel", city="Lisbon", nights=3)

    Inside a run it is a part of that run, with the run's tools, storage and approvals; the arguments here then don't
    count, but for ``name``, ``budget``, ``rollback`` and ``grace``.

    Args:
        name: What the journal calls it.
        tools: The tools that may be called by name.
        storage: Where journal and events go; in memory by default, which survives no crash.
        approval_handler: Who decides on calls that need approval.
        budget: What the scope may spend.
        rollback: Whether a failure undoes anything.
        grace: Seconds for one compensation, its retries included.
        session_id: The conversation it belongs to.
        namespace: The tenant it belongs to.
        run_id: Its id, if it is a run of its own; a new one by default. If there is a run of that id in the storage
            already, entering the block raises `RunExistsError`.

    Raises:
        ConfigError: The budget is none, or the run id is none or can't be had here.
        PlanError: A tool's compensation could never be called.
    """
    options.budget_of(budget)
    if (outer := in_progress()) is not None:
        executor, context = outer
        refuse_run_id(run_id, context)
    else:
        running = current_executor()
        if running is not None and running.passes_doors:  # a compensator has the tools and the storage of its run
            tools, storage = running.tools, running.storage
        registry = ToolRegistry.of(tools)
        registry.check()
        storage = InMemoryStorage() if storage is None else storage
        handler = AutoDeny() if approval_handler is None else approval_handler
        executor = ToolExecutor(registry, storage, handler).inside(running)
        context = RunContext(
            run_id=own_run_id(run_id),
            session_id=session_id,
            namespace=namespace,
            loop=anyio.lowlevel.current_token(),
        )
    return SagaScope(executor, context, Opening(name), budget=budget, rollback=rollback, grace=grace)


class SagaOrchestrator:
    """Runs plans of tool calls, and undoes what they did when they fail.

    Holds no state of a run: one instance may run many plans, also at once and inside one another.

    Args:
        tracer: Its storage and approvals; in memory and denying by default.
        tool_registry: The tools that steps may name; the tracer's by default.
        grace: Seconds for one compensation, its retries included.
    """

    def __init__(
        self,
        tracer: ExecutionTracer | None = None,
        tool_registry: ToolRegistry | Iterable[Tool | Callable[..., Any]] | None = None,
        *,
        grace: float = GRACE_SECONDS,
    ) -> None:
        self.tracer: ExecutionTracer = tracer or ExecutionTracer()
        self.tools: ToolRegistry = (
            self.tracer.executor.tools if tool_registry is None else ToolRegistry.of(tool_registry)
        )
        self.grace = grace

    async def execute(
        self,
        steps: Steps,
        *,
        on_error: OnError = "rollback",
        name: str = "saga",
        budget: Budget | None = None,
        timeout: float | None = None,
        run_id: str | None = None,
    ) -> SagaResult:
        """Run a plan.

        Args:
            steps: A list is sequential, a nested list concurrent; or ``depends_on`` makes a DAG.
            on_error: ``"rollback"`` undoes what was done; ``"stop"`` leaves it; ``"continue"`` goes on with the steps
                that don't depend on what failed, and leaves what was done when a budget or the deadline ends it.
            name: What the journal calls it.
            budget: What the plan may spend.
            timeout: Its deadline in seconds.
            run_id: The run's id, such as the id of the message that asks for it, so that it runs once however often it is
                asked for; a new one by default. The idempotency keys of its steps are made of it.

        Returns:
            How it ended; failures, budget and deadline stops included.

        Raises:
            PlanError: The plan was refused; nothing was called.
            ConfigError: ``on_error``, the budget, the deadline or the run id makes no sense; nothing was called.
            RunExistsError: There is a run of that id in the storage already; nothing was called.
            StorageError: The journal could not be begun; nothing was called.
            LeaseLostError: Another process claimed the run.
        """
        options.budget_of(budget)
        options.check_number("timeout", timeout)
        plan = Plan.of(steps)
        if (outer := in_progress()) is not None:
            executor, context = outer
            refuse_run_id(run_id, context)
        else:
            base = self.tracer.executor
            executor = ToolExecutor(self.tools, base.storage, base.approval_handler, workers=base.workers)
            executor = executor.inside(current_executor())
            context = RunContext(run_id=own_run_id(run_id), session_id="default", namespace="default")
        plan.check_tools(executor.tools)
        return await heard(
            lambda begun: run_plan(
                plan, executor, context, begun=begun,
                on_error=on_error, name=name, budget=budget, timeout=timeout, grace=self.grace,
            )
        )  # fmt: skip


async def run_plan(
    plan: Plan,
    executor: ToolExecutor,
    context: RunContext,
    *,
    on_error: OnError = "rollback",
    name: str = "saga",
    budget: Budget | None = None,
    timeout: float | None = None,
    grace: float = GRACE_SECONDS,
    scope: SagaScope | None = None,
    results: Mapping[str, Any] | None = None,
    begun: list[SagaScope] | None = None,
) -> SagaResult:
    """Run a checked plan in a saga scope; must run in a child task.

    Args:
        plan: The plan.
        executor: Calls the tools.
        context: The identity of the run.
        on_error: See `SagaOrchestrator.execute`.
        name: What the journal calls it.
        budget: What it may spend.
        timeout: Its deadline in seconds.
        grace: Seconds for one compensation.
        scope: The scope of a claimed run, when it is resumed.
        results: The steps that are done already, when it is resumed.
        begun: Gets the scope; see `heard`.

    Raises:
        ConfigError: There is no such ``on_error``.
    """
    options.choice("on_error", on_error, OnError)
    context = context.evolve(loop=anyio.lowlevel.current_token())
    # A claimed run is another process's: its own trace goes on there, and this one links to it.
    links = () if scope is None else ((scope.opening.trace_id, scope.opening.span_id, "continues"),)
    with spans.workflow(
        name, run_id=context.run_id, session_id=context.session_id, namespace=context.namespace, links=links
    ) as span:
        if scope is None:
            opening = Opening(name, "steps", _stored(plan, executor, on_error, budget, timeout), *span.ids)
            scope = SagaScope(
                executor, context, opening, budget=budget, rollback=on_error == "rollback", grace=grace, protected=True
            )
        if begun is not None:
            begun.append(scope)
        try:
            async with scope:
                await in_time(timeout, Progression(plan, scope, on_error, dict(results or {})).run)
        except LeaseLostError:
            raise
        except Exception as error:
            if scope.result is None:
                raise
            span.fail(error)
        assert scope.result is not None
        scope.describe(span)
        return scope.result


def _stored(plan: Plan, executor: ToolExecutor, on_error: OnError, budget: Budget | None, timeout: float | None) -> Any:
    """The plan as the journal holds it, or None when it holds what no journal may: then it can't be resumed."""
    for step in plan.steps.values():
        entry = executor.tools.get(step.tool_name)
        if entry is not None and not entry.binding.guarded_among(step.arguments).isdisjoint(step.arguments):
            return None
        if carries_secret(step.arguments):
            return None
    steps = plan.data()
    for data in steps:
        data["arguments"], possible = encode(data["arguments"])
        if not possible:
            return None
    limits, possible = encode({"budget": budget, "timeout": timeout})
    return {"steps": steps, "on_error": on_error, **limits} if possible else None
