"""ExecutionTracer: the plan's name for the door to a tool, over the executor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from agenthelm._runtime.context import refuse_reimport
from agenthelm.core.cost import CostTracker
from agenthelm.core.event import ExecutionEvent
from agenthelm.core.executor import ToolExecutor, current_executor
from agenthelm.core.handlers import ApprovalHandler, AutoDeny
from agenthelm.core.storage.base import EVENTS, BaseStorage
from agenthelm.core.storage.memory_storage import InMemoryStorage
from agenthelm.core.tool import TOOL_REGISTRY, Tool, ToolRegistry

__all__ = ["ExecutionTracer"]


class ExecutionTracer:
    """Calls tools under their contracts and keeps an event of each call.

    Inside a run, calls belong to that run: its saga undoes them, its budget pays for them, its storage has their events.
    Outside of one the contract holds just the same, and nothing is undone.

    Args:
        storage: Where the events of calls outside of any run go; in memory by default.
        approval_handler: Who decides; by default nobody, so calls that need approval are denied.
        cost_tracker: Adds up what this tracer's calls cost; model calls of the code around it can be added to it.
        tools: The tools it knows by name.
    """

    def __init__(
        self,
        storage: BaseStorage | None = None,
        approval_handler: ApprovalHandler | None = None,
        cost_tracker: CostTracker | None = None,
        *,
        tools: ToolRegistry | Iterable[Tool | Callable[..., Any]] = TOOL_REGISTRY,
    ) -> None:
        self.storage: BaseStorage = InMemoryStorage() if storage is None else storage
        self.approval_handler: ApprovalHandler = AutoDeny() if approval_handler is None else approval_handler
        self.cost_tracker: CostTracker = CostTracker() if cost_tracker is None else cost_tracker
        self.executor: ToolExecutor = ToolExecutor(ToolRegistry.of(tools), self.storage, self.approval_handler)

    async def trace_and_execute(self, tool: str | Tool | Callable[..., Any], /, **kwargs: Any) -> Any:
        """Call one tool under its whole contract; it raises what `Agent.ause` does."""
        refuse_reimport()
        running = current_executor()
        executor = self.executor
        if running is not None and (running.effects is not None or running.passes_doors):
            executor = replace(running, approval_handler=self.approval_handler, tools=self.executor.tools)
        books = executor.ledger.child("run")
        try:
            return await replace(executor, ledger=books).call(tool, kwargs)
        finally:
            self.cost_tracker.charge(books.priced_usd)

    async def events(self, *, limit: int | None = None) -> list[ExecutionEvent]:
        """The events in this tracer's storage so far, newest first."""
        records = await self.storage.read(EVENTS, limit=limit, newest_first=True)
        return [ExecutionEvent.model_validate(dict(record.data)) for record in records]
