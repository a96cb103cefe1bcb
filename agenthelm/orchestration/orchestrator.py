"""The main entry point: runs agents, flows and plans, each under one saga, budget and trace."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Literal, Self

import anyio

from agenthelm._runtime.context import RunContext, refuse_reimport
from agenthelm._runtime.frozen import changed
from agenthelm._runtime.groups import shielded
from agenthelm._runtime.progress import Progress
from agenthelm._runtime.retry import Clock, SystemClock
from agenthelm._runtime.workers import DEFAULT_WORKERS, Workers
from agenthelm.agent.lm import LMPolicy, Unpriced, connections, lm_scope
from agenthelm.agent.models import as_model
from agenthelm.agent.signature import Runnable
from agenthelm.core.cost import Budget, Ledger, tightest
from agenthelm.core.executor import ToolExecutor, current_executor
from agenthelm.core.handlers import ApprovalHandler, AutoDeny
from agenthelm.core.storage.base import BaseStorage
from agenthelm.core.storage.memory_storage import InMemoryStorage
from agenthelm.core.tool import TOOL_REGISTRY, Tool, ToolRegistry
from agenthelm.exceptions import nearest
from agenthelm.memory.hub import MemoryHub
from agenthelm.orchestration import options
from agenthelm.orchestration.beginning import in_progress, own_run_id, refuse_run_id
from agenthelm.orchestration.deadline import in_time
from agenthelm.orchestration.inputs import given
from agenthelm.orchestration.parallel import ErrorPolicy, Merge, MergeStrategy, Parallel
from agenthelm.orchestration.pipeline import Pipeline
from agenthelm.orchestration.plan import Plan, Steps
from agenthelm.orchestration.pruning import prune_unreadable
from agenthelm.orchestration.recovery import Recovery
from agenthelm.orchestration.results import RunResult, SagaResult
from agenthelm.orchestration.runs import Runs
from agenthelm.orchestration.saga import OnError, run_plan
from agenthelm.orchestration.scope import Opening, SagaScope, heard
from agenthelm.orchestration.unwind import GRACE_SECONDS
from agenthelm.orchestration.wiring import (
    TASK,
    component,
    component_name,
    component_names,
)
from agenthelm.tracing import spans

__all__ = ["Orchestrator"]

_log = logging.getLogger(__name__)

OnDenial = Literal["observe", "stop"]


class Orchestrator:
    """Runs agents, flows and plans; what a failed run did through tools is undone.

    Holds what runs share (storage, memory, tools, defaults) and nothing of a run itself: many may go on at once, also
    inside one another. A run started by an agent or a tool of another run is a sub-saga of that run.

    Args:
        memory_hub: Where agents remember; in memory by default.
        lm: The language model of all agents: a ``dspy.LM`` or a model's name. None for the one of ``dspy.settings``.
        lms: Models of single agents, by agent name.
        tools: The tools that code in agents may use, and where compensators are looked up.
        storage: Where journal and events go; in memory by default, which survives no crash.
        approval_handler: Who decides on calls that need approval; by default nobody, so they are denied.
        budget: What one run may spend, unless it is given its own.
        budgets: What single agents may spend in one run, by agent name: in all their calls together, also those by tools,
            in nested runs and in branches.
        on_denial: ``"observe"`` leaves a denied call to the agent; ``"stop"`` ends the run.
        approval_timeout: How long an approval may take, in seconds.
        workers: Worker threads per nesting depth.
        unpriced: What to do with models of unknown price: ``"warn"`` and ``"allow"`` count them against tokens and
            calls only, ``"deny"`` refuses them.
        grace: Seconds for one compensation, its retries included.
        cache: Whether DSPy's cache may answer.
        lm_timeout: The deadline of one LM call in seconds, all of it.
        lm_retries: How often a failed LM call is repeated.
        redact: A hook over values before they reach an event: ``(name, value) -> value``.
        observer: Told about progress, for live views; a plain function that must not block.
        clock: Time and back-off; for tests.

    Attributes:
        runs: The runs whose journals the storage holds: to list, to look up, to prune.

    Raises:
        ConfigError: An option makes no sense.
        ModelNotConfiguredError: There is no key for a model that was named.
    """

    def __init__(
        self,
        memory_hub: MemoryHub | None = None,
        *,
        lm: Any = None,
        lms: Mapping[str, Any] | None = None,
        tools: ToolRegistry | Iterable[Tool | Callable[..., Any]] = TOOL_REGISTRY,
        storage: BaseStorage | None = None,
        approval_handler: ApprovalHandler | None = None,
        budget: Budget | None = None,
        budgets: Mapping[str, Budget] | None = None,
        on_denial: OnDenial = "observe",
        approval_timeout: float | None = None,
        workers: int = DEFAULT_WORKERS,
        unpriced: Unpriced = "warn",
        grace: float = GRACE_SECONDS,
        cache: bool = False,
        lm_timeout: float = 120.0,
        lm_retries: int = 2,
        redact: Callable[[str, Any], Any] | None = None,
        observer: Callable[[Progress], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        hub = options.instance(
            "memory_hub", memory_hub, MemoryHub, "a MemoryHub, such as MemoryHub('redis://localhost')"
        )
        log = options.instance("storage", storage, BaseStorage, "a storage, such as SqliteStorage('runs.db')")
        handler = options.instance(
            "approval_handler", approval_handler, ApprovalHandler, "an ApprovalHandler, such as AutoApprove()"
        )
        options.instance("redact", redact, Callable, "a function (name, value) -> value")
        options.instance("observer", observer, Callable, "a function that takes a Progress")
        options.instance("cache", cache, bool, "True or False")
        for name, number in (("approval_timeout", approval_timeout), ("grace", grace)):
            options.check_number(name, number, at_least=0)
        options.check_number("lm_timeout", lm_timeout, above=0)
        options.check_number("workers", workers, at_least=1, whole=True)
        options.check_number("lm_retries", lm_retries, at_least=0, whole=True)
        self._opened = AsyncExitStack()
        self._owns_hub = hub is None
        self._owns_storage = log is None
        self.memory_hub: MemoryHub = MemoryHub() if hub is None else hub
        self.storage: BaseStorage = InMemoryStorage() if log is None else log
        self.tools: ToolRegistry = options.tools_of(tools)
        self.runs: Runs = Runs(self.storage, clock=clock)
        self.budget: Budget | None = options.budget_of(budget)
        self._lm = as_model(lm)
        models = options.instance("lms", lms, Mapping, "a dict from agents' names to their models")
        self._lms = {name: as_model(own, f"lms[{name!r}]") for name, own in (models or {}).items()}
        self._policy = LMPolicy(timeout=lm_timeout, retries=lm_retries, cache=cache)
        self._unpriced: Unpriced = options.choice("unpriced", unpriced, Unpriced)
        self._grace = grace
        self._observer = observer
        self._budgets = options.budgets_of(budgets)
        self._unheard = {*self._budgets, *self._lms}
        self._base = ToolExecutor(
            self.tools,
            self.storage,
            AutoDeny() if handler is None else handler,
            workers=Workers(workers),
            clock=clock or SystemClock(),
            redact=redact,
            on_denial=options.choice("on_denial", on_denial, OnDenial),
            approval_timeout=approval_timeout,
            budgets=self._budgets,
        )

    # -- running ------------------------------------------------------------------------------------------------------

    async def run_pipeline(
        self,
        agents: Sequence[Runnable],
        task: str | None = None,
        *,
        inputs: Mapping[str, Any] | None = None,
        session_id: str | None = None,
        namespace: str = "default",
        budget: Budget | None = None,
        timeout: float | None = None,
        rollback: bool = True,
        run_id: str | None = None,
    ) -> RunResult:
        """Run agents in order over a growing state; see `run` and `Pipeline`."""
        return await self.run(
            Pipeline(agents), task, inputs=inputs, session_id=session_id, namespace=namespace, budget=budget,
            timeout=timeout, rollback=rollback, run_id=run_id,
        )  # fmt: skip

    async def run_parallel(
        self,
        agents: Sequence[Runnable],
        task: str | None = None,
        *,
        merge_strategy: MergeStrategy | Merge = "dict",
        on_error: ErrorPolicy = "cancel",
        max_concurrency: int | None = None,
        inputs: Mapping[str, Any] | None = None,
        session_id: str | None = None,
        namespace: str = "default",
        budget: Budget | None = None,
        timeout: float | None = None,
        rollback: bool = True,
        run_id: str | None = None,
    ) -> RunResult:
        """Run agents at once; see `run` and `Parallel`."""
        flow = Parallel(agents, merge_strategy, on_error=on_error, max_concurrency=max_concurrency)
        return await self.run(
            flow, task, inputs=inputs, session_id=session_id, namespace=namespace, budget=budget, timeout=timeout,
            rollback=rollback, run_id=run_id,
        )  # fmt: skip

    async def run(
        self,
        agent_or_flow: Runnable,
        task: str | None = None,
        *,
        inputs: Mapping[str, Any] | None = None,
        session_id: str | None = None,
        namespace: str = "default",
        budget: Budget | None = None,
        timeout: float | None = None,
        rollback: bool = True,
        run_id: str | None = None,
    ) -> RunResult:
        """Run an agent or a flow.

        Args:
            agent_or_flow: Anything with ``run(context, /, **inputs) -> dict``.
            task: What it is about; goes to ``task``, or to the first required ``str`` input that nothing else provides.
            inputs: Further inputs by name.
            session_id: The conversation to go on with; a new one by default.
            namespace: The tenant.
            budget: What this run may spend, in place of the orchestrator's.
            timeout: The deadline of the run in seconds; undoing is not under it.
            rollback: Whether a failure undoes what tools did.
            run_id: The run's id, such as the id of the message that asks for it, so that it runs once however often it is
                asked for; a new one by default.

        Returns:
            The final state without ``task``.

        Raises:
            WiringError: It is nothing that can be run, or the fields don't fit together; nothing ran.
            AgentInputError: An input is not taken, is of the wrong type, or is the task a second time; nothing ran.
            ConfigError: The budget, the deadline or the run id makes no sense; nothing ran.
            RunExistsError: There is a run of that id in the storage already; nothing ran.
            MemoryValueError: The session or the namespace has a name that no memory can hold; nothing ran.
            PlanError: A tool's compensation could never be called; nothing ran.
            BudgetExceededError: A budget was used up.
            RunTimeoutError: The deadline passed.
            LeaseLostError: Another process claimed the run and ends it, so ``.saga`` is None.
            Exception: The first failure. Whatever leaves carries ``.run_id``, ``.saga``, and ``.usage``: what was spent.
        """
        component("run", agent_or_flow)
        options.budget_of(budget)
        options.check_number("timeout", timeout)
        self.tools.check()
        checked = given(agent_or_flow, task, inputs or {})
        self._warn_of_names(agent_or_flow)
        return await heard(
            lambda begun: self._run(
                agent_or_flow, checked, begun, session_id=session_id, namespace=namespace, budget=budget,
                timeout=timeout, rollback=rollback, run_id=run_id,
            ),
            self._take_back,
        )  # fmt: skip

    async def run_saga(
        self,
        steps: Steps,
        *,
        on_error: OnError = "rollback",
        name: str = "saga",
        session_id: str | None = None,
        namespace: str = "default",
        budget: Budget | None = None,
        timeout: float | None = None,
        run_id: str | None = None,
    ) -> SagaResult:
        """Run a plan of tool calls; see `SagaOrchestrator.execute`.

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
        plan.check_tools(self.tools)
        executor, context = self._begin(session_id, namespace, run_id)

        async def body(begun: list[SagaScope]) -> SagaResult:
            async with self._models(executor, context) as identity:
                return await run_plan(
                    plan, executor, identity or context, on_error=on_error, name=name, budget=budget or self.budget,
                    timeout=timeout, grace=self._grace, begun=begun,
                )  # fmt: skip

        return await heard(body, self._take_back)

    # -- afterwards ---------------------------------------------------------------------------------------------------

    async def undo(self, run_id: str, *, namespace: str | None = None) -> SagaResult:
        """Undo a run on purpose, also one that went well; a run that is rolled back already is left alone.

        Args:
            run_id: The run.
            namespace: The tenant that asks, who has no runs but its own; None for whoever may undo any.

        Raises:
            RunNotFoundError: There is no such run.
            RunBusyError: It is running, or somebody is undoing it.
            PlanError: Tools that undoing takes are not registered here; nothing was undone or written.
            CorruptRecordError: Its journal can't be read.
            LeaseLostError: Another process claimed it meanwhile, and goes on with it.
        """
        async with self._recovery() as recovery:
            return await recovery.undo(run_id, namespace=namespace)

    async def recover(
        self, run_id: str | None = None, resume: bool = False, *, namespace: str | None = None
    ) -> list[SagaResult]:
        """Finish what processes that died left behind. Never happens by itself.

        Args:
            run_id: One run; all that can be claimed by default.
            resume: Whether plans of steps go on from where they were, where that is safe, with the budget and the deadline
                they were begun with, counted anew. Everything else is undone.
            namespace: The tenant whose runs alone are looked at; of all tenants by default.

        Returns:
            How each ended. A run whose journal can't be read, or whose tools are not registered here, is left alone and
            has ``failed``, with the reason.

        Raises:
            RunNotFoundError: There is no such run as the one that was asked for.
            RunBusyError: It is held by a living process.
            PlanError: Tools that undoing it takes are not registered here; nothing was undone or written.
            CorruptRecordError: Its journal can't be read.
            LeaseLostError: Another process claimed it meanwhile, and goes on with it.
        """
        async with self._recovery() as recovery:
            return await recovery.recover(run_id, resume=resume, namespace=namespace)

    async def retry(self, run_id: str, *, namespace: str | None = None) -> SagaResult:
        """Try once more to undo what could not be undone.

        Args:
            run_id: The run.
            namespace: The tenant that asks; see `undo`.

        Raises:
            RunNotFoundError: There is no such run.
            RunBusyError: Somebody else holds it.
            PlanError: Tools that undoing takes are not registered here; nothing was written.
            CorruptRecordError: Its journal can't be read.
            LeaseLostError: Another process claimed it meanwhile, and goes on with it.
        """
        async with self._recovery() as recovery:
            return await recovery.retry(run_id, namespace=namespace)

    async def resolve(
        self, run_id: str, step: str, *, outcome: Literal["done", "undone"], namespace: str | None = None
    ) -> SagaResult:
        """Record a human's word on what became of an effect.

        Args:
            run_id: The run.
            step: The effect's id, its step's name, or its tool's if that has no other effect left.
            outcome: ``"done"``, of what could not be undone or is in doubt: it stands. What was stuck may stand for good
                then; what was in doubt in a run that is not to be undone has happened, and `undo` takes it back with the
                rest. ``"undone"``, of any effect: it does not stand: it never happened, or somebody undid it by hand.
                That may also be said in a run whose process is gone, which stays open for `recover`.
            namespace: The tenant that asks; see `undo`.

        Raises:
            RunNotFoundError: There is no such run.
            PlanError: It has no such effect.
            RunBusyError: It is going on, another process is at it, or it is to be recovered before that can be said.
            CorruptRecordError: Its journal can't be read.
        """
        async with self._recovery() as recovery:
            return await recovery.resolve(run_id, step, outcome=outcome, namespace=namespace)

    async def prune_unreadable(self, run_id: str) -> None:
        """Drop the journal of a run that can't be read: it is given up, and nothing of it can be undone here any more.

        Until then `recover` names the run each time. What it did stays as it is, so undo that by hand before; its events
        tell of it, and stay.

        Raises:
            RunNotFoundError: There is no such run.
            PlanError: Its journal can be read.
            RunBusyError: Somebody wrote to it within the length of a lease, and so may hold the run.
        """
        await prune_unreadable(self.storage, run_id, self._base.clock)

    async def aclose(self) -> None:
        """Close what this orchestrator opened itself; a hub or storage that was passed in stays open."""
        async with AsyncExitStack() as stack:
            if self._owns_storage:
                stack.push_async_callback(self.storage.aclose)
            if self._owns_hub:
                stack.push_async_callback(self.memory_hub.aclose)
            stack.push_async_callback(self._opened.aclose)

    async def __aenter__(self) -> Self:
        # Runs of one orchestrator share their connections to models.
        await self._opened.enter_async_context(connections())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    # -- how ----------------------------------------------------------------------------------------------------------

    async def _run(
        self,
        flow: Runnable,
        inputs: dict[str, Any],
        begun: list[SagaScope],
        *,
        session_id: str | None,
        namespace: str,
        budget: Budget | None,
        timeout: float | None,
        rollback: bool,
        run_id: str | None,
    ) -> RunResult:
        executor, context = self._begin(session_id, namespace, run_id)
        memory = self.memory_hub.create_context(session_id=context.session_id, namespace=context.namespace)
        context = context.evolve(memory=memory)
        name = component_name(flow)
        with spans.workflow(
            name, run_id=context.run_id, session_id=context.session_id, namespace=context.namespace
        ) as span:
            state: Mapping[str, Any] = {}
            # Around the scope, because compensations may ask models as well.
            models = self._models(executor, context)
            async with models as identity:
                scope = SagaScope(
                    executor,
                    identity or context,
                    Opening(name, "agents", None, *span.ids),
                    budget=budget or self.budget,
                    rollback=rollback,
                    grace=self._grace,
                    protected=True,
                )
                begun.append(scope)
                try:
                    async with scope:
                        state = await in_time(timeout, functools.partial(flow.run, memory, **inputs))
                        await models.flush()  # while the run can still be undone
                except Exception as error:
                    with suppress(AttributeError):  # one with slots carries no more than it was made for
                        error.usage = scope.executor.ledger.total()  # type: ignore[attr-defined]
                    raise
                finally:
                    scope.describe(span)
            assert scope.result is not None
            return RunResult(
                {key: value for key, value in state.items() if key != TASK},
                run_id=scope.run_id,
                session_id=context.session_id,
                namespace=context.namespace,
                ledger=scope.executor.ledger,
                saga=scope.result,
                trace_id=span.ids[0],
                durable=executor.storage.durable,
            )

    async def _take_back(self, scope: SagaScope, cancelled: BaseException) -> None:
        """Undo a run whose success was never heard of; compensations may ask models, as they could inside of it."""

        async def undo() -> None:
            async with self._models(scope.executor, scope.context):
                await scope.take_back(cancelled)

        if scope.stands:
            with suppress(anyio.get_cancelled_exc_class()):  # the caller raises the one it has
                await shielded(undo)

    def _warn_of_names(self, flow: Runnable) -> None:
        """Tell once of a budget or a model whose name is nearly, but not quite, that of an agent.

        Only of those: an orchestrator serves many flows, and what agents call inside is not known beforehand.
        """
        if not self._unheard:
            return
        names = set(component_names(flow))
        self._unheard -= names
        for name in sorted(self._unheard):
            if hint := nearest(name, names - self._budgets.keys() - self._lms.keys()):
                self._unheard.discard(name)
                option = "budgets" if name in self._budgets else "lms"
                _log.warning("%s names %r, and no agent of this run is called that.%s", option, name, hint)

    def _begin(self, session_id: str | None, namespace: str, run_id: str | None) -> tuple[ToolExecutor, RunContext]:
        """The executor and identity of a run: of its own, or inside the one in progress."""
        if (outer := in_progress()) is not None:
            running, ambient = outer
            refuse_run_id(run_id, ambient)
            executor = self._executor(
                storage=running.storage,
                ledger=running.ledger,
                effects=running.effects,
                budgets=tightest(running.budgets, self._budgets),
            )
            context = ambient.evolve(session_id=session_id or ambient.session_id)
            if namespace != "default":
                context = context.evolve(namespace=namespace)
            return executor, context
        own_id = own_run_id(run_id)
        context = RunContext(
            run_id=own_id,
            session_id=session_id or own_id,
            namespace=namespace,
            observer=self._observer,
            loop=anyio.lowlevel.current_token(),
        )
        return self._executor(storage=self.storage).inside(current_executor()), context

    def _models(self, executor: ToolExecutor, context: RunContext) -> lm_scope:
        """Puts the run's identity, executor and models in force; gives the identity, which carries the models."""
        return lm_scope(
            self._lm, lms=self._lms, policy=self._policy, unpriced=self._unpriced, context=context, executor=executor
        )

    def _executor(self, **own: Any) -> ToolExecutor:
        return changed(self._base, {"tools": self.tools, "ledger": Ledger("run"), **own})

    @asynccontextmanager
    async def _recovery(self) -> AsyncIterator[Recovery]:
        """Ends runs of the past, where compensations and resumed steps may ask models as well."""
        refuse_reimport()
        context = RunContext(
            run_id="recovery",
            session_id="",
            namespace="default",
            observer=self._observer,
            loop=anyio.lowlevel.current_token(),
        )
        executor = self._executor(storage=self.storage)
        async with self._models(executor, context) as identity:
            yield Recovery(executor, self._grace, identity or context, self.budget)
