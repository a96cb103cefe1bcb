"""A run as small as one can be, around language models: identity, executor, ledger, and the models in force."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import dspy

from agenthelm._runtime.context import RunContext, StopMark, entered
from agenthelm._runtime.progress import Progress
from agenthelm._runtime.retry import Backoff
from agenthelm._runtime.workers import Workers
from agenthelm.agent.home import threaded
from agenthelm.agent.lm import LMPolicy, lm_scope
from agenthelm.core.cost import Budget, Ledger, PriceSource
from agenthelm.core.event import ExecutionEvent
from agenthelm.core.executor import ToolExecutor, using
from agenthelm.core.storage.base import EVENTS
from agenthelm.core.storage.memory_storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry

QUICK = LMPolicy(timeout=10.0, backoff=Backoff(initial=0.001, maximum=0.002))
"""The ordinary policy, without its waits."""


@dataclass
class Run:
    """What a test looks at."""

    ledger: Ledger
    stop: StopMark
    executor: ToolExecutor
    context: RunContext
    progress: list[Progress] = field(default_factory=list)

    async def call(self, program: Any, **inputs: Any) -> Any:
        """Run a DSPy module in a worker thread, as agents do."""
        return await self.executor.workers.run(threaded(program, **inputs))

    async def events(self) -> list[ExecutionEvent]:
        """The LM calls on record."""
        stored = await self.executor.storage.read(EVENTS, where={"kind": "lm"})
        return [ExecutionEvent.model_validate(record.data) for record in stored]


@asynccontextmanager
async def lm_run(
    lm: dspy.BaseLM | None,
    *,
    budget: Budget | None = None,
    lms: Mapping[str, dspy.BaseLM] | None = None,
    policy: LMPolicy = QUICK,
    unpriced: Any = "warn",
    prices: PriceSource | None = None,
    agent: str = "writer",
) -> AsyncIterator[Run]:
    """A run with one model in force."""
    ledger = Ledger("run", budget)
    seen: list[Progress] = []
    context = RunContext(
        run_id="run-1",
        session_id="session-1",
        namespace="default",
        agent=agent,
        stops=(ledger.stop,),
        observer=seen.append,
        loop=anyio.lowlevel.current_token(),
    )
    executor = ToolExecutor(ToolRegistry(), InMemoryStorage(), ledger=ledger, workers=Workers(80))
    with entered(context), using(executor):
        async with lm_scope(lm, lms=lms, policy=policy, unpriced=unpriced, prices=prices):
            yield Run(ledger, ledger.stop, executor, context, seen)
