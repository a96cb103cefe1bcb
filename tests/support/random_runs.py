"""Random runs of agents: what they do, the server that bills their model calls, and what must be true of every one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import anyio
import anyio.lowlevel
import dspy
from hypothesis import strategies as st

from agenthelm._runtime.wake import wake
from agenthelm._runtime.workers import on_trio
from agenthelm.agent.base import Agent
from agenthelm.agent.models import resolve_model
from agenthelm.core.cost import Budget, Ledger
from agenthelm.core.executor import charge, current_executor
from agenthelm.core.storage.base import EVENTS
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.parallel import Parallel
from agenthelm.orchestration.pipeline import Pipeline
from tests.support.openai_server import Behaviour, Mode, OpenAIServer, Seen
from tests.support.saga_random import FakeClock

_PROGRAM = dspy.Predict("question -> answer, count: int")
_PROGRAMS: dict[str, dspy.Module] = {
    "predict": _PROGRAM,
    "chain": dspy.ChainOfThought("question -> answer"),
    "best of": dspy.BestOfN(_PROGRAM, N=2, reward_fn=lambda inputs, result: 0.0, threshold=1.0),
}

_LOST: tuple[Mode, ...] = ("drop", "cut", "no_usage", "prose")
"""Answers that never come, are worth nothing, or don't say what they took."""

_UNDOING = "how did it come to"
"""What a model is asked by what undoes."""


# -- what a run does ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ask:
    """A program that asks the model."""

    program: str
    streamed: bool


@dataclass(frozen=True)
class Use:
    """A tool, and how many of its attempts fail."""

    tool: str
    failures: int


@dataclass(frozen=True)
class Work:
    """An agent: what it does (a number is money that it spends), and whether errors stop it, and whether it is async."""

    acts: tuple[Ask | Use | float, ...]
    swallows: bool
    is_async: bool


@dataclass(frozen=True)
class Flow:
    """Parts one by one or at once; or one by one in a run of their own, inside this one, which may have a budget."""

    how: str
    parts: tuple[Work | Flow, ...]
    budget: Budget | None = None


Part: TypeAlias = Work | Flow


@dataclass(frozen=True)
class Case:
    """A run, how its model calls are answered, and at which of them it is cancelled."""

    part: Part
    answers: tuple[Behaviour, ...]
    budget: Budget | None
    cancelled_at: int | None
    natively: bool


def cases() -> st.SearchStrategy[Case]:
    """Mostly going well, so that much is there when something goes wrong."""
    often_none = st.none() | st.none()
    budgets = st.one_of(
        st.builds(Budget, calls=st.integers(0, 6)),
        st.builds(Budget, usd=st.sampled_from((0.0, 0.0002, 0.0005, 0.002))),
        st.builds(Budget, tokens=st.sampled_from((800, 3000))),
        st.builds(Budget, tool_calls=st.integers(0, 3)),
    )
    answers = st.builds(Behaviour, input_tokens=st.integers(1, 200), output_tokens=st.integers(0, 60))
    lost = [Behaviour(mode, input_tokens=50, output_tokens=9) for mode in _LOST]
    failures = st.sampled_from([*(Behaviour("status", status=status) for status in (400, 429, 500)), *lost])
    asks = st.builds(Ask, st.sampled_from(tuple(_PROGRAMS)), st.booleans())
    uses = st.builds(
        Use, st.sampled_from(("book", "pay", "look", "consult", "consult_sync")), st.sampled_from((0, 0, 1, 3))
    )
    acts = st.lists(asks | uses | st.just(0.0001), min_size=1, max_size=3).map(tuple)
    part: st.SearchStrategy[Part] = st.recursive(
        st.builds(Work, acts, st.booleans(), st.booleans()),
        lambda inner: st.builds(
            Flow,
            st.sampled_from(("one by one", "cancel", "collect", "nested")),
            st.lists(inner, min_size=1, max_size=3).map(tuple),
            often_none | budgets,
        ),
        max_leaves=5,
    )
    return st.builds(
        Case,
        part,
        st.lists(answers | answers | failures, max_size=12).map(tuple),
        often_none | budgets,
        often_none | st.integers(1, 3),
        st.booleans(),
    )


# -- the world it happens in -------------------------------------------------------------------------------------------


@dataclass
class World:
    """What the tools of one run have done, and who runs it."""

    things: set[str] = field(default_factory=set)
    failed: dict[str, int] = field(default_factory=dict)
    charged_by_agents: float = 0.0
    charged: float = 0.0
    tools: ToolRegistry = field(default_factory=ToolRegistry)
    ledgers: list[Ledger] = field(default_factory=list)
    count: int = 0
    orchestrator: Orchestrator | None = None

    def name(self, what: str) -> str:
        self.count += 1
        return f"{what}{self.count}"

    def flow(self, part: Part) -> Any:
        """What the orchestrator can run."""
        if isinstance(part, Work):
            return (_Awaiting if part.is_async else _Blocking)(self, part)
        parts = [self.flow(inner) for inner in part.parts]
        if part.how == "one by one":
            return Pipeline(parts, name=self.name("pipe"))
        if part.how == "nested":
            return _Nested(self, Pipeline(parts, name=self.name("inner")), part.budget)
        return Parallel(parts, on_error=part.how, name=self.name("fan"))  # type: ignore[arg-type]

    def enter(self) -> None:
        """Note whose books an agent works on."""
        executor = current_executor()
        ledger = None if executor is None else executor.ledger
        while ledger is not None:
            self.ledgers.append(ledger)
            ledger = ledger.parent

    def spend(self, usd: float, *, tool: bool) -> None:
        self.charged += usd
        self.charged_by_agents += 0.0 if tool else usd
        charge(usd)

    def may_fail(self, name: str, failures: int) -> None:
        self.failed[name] = self.failed.get(name, 0) + 1
        if self.failed[name] <= failures:
            raise LookupError(name)


class _Agent(Agent):
    """Does its work."""

    def __init__(self, world: World, work: Work) -> None:
        super().__init__(world.name("agent"))
        self.world, self.work = world, work


class _Awaiting(_Agent):
    async def aforward(self, context: Any, task: str = "") -> dict[str, Any]:
        self.world.enter()
        for act in self.work.acts:
            try:
                await self.one(act)
            except Exception:
                if not self.work.swallows:
                    raise
        return {}

    async def one(self, act: Ask | Use | float) -> None:
        if isinstance(act, float):
            self.world.spend(act, tool=False)
        elif isinstance(act, Use):
            await self.ause(act.tool, name=self.world.name("thing"), failures=act.failures)
        else:
            send, receive = anyio.create_memory_object_stream[Any](10_000)
            with send, receive, dspy.context(send_stream=send if act.streamed else None):
                await self.ask(_PROGRAMS[act.program], question=self.name)


class _Blocking(_Agent):
    def forward(self, context: Any, task: str = "") -> dict[str, Any]:
        self.world.enter()
        for act in self.work.acts:
            try:
                self.one(act)
            except Exception:
                if not self.work.swallows:
                    raise
        return {}

    def one(self, act: Ask | Use | float) -> None:
        if isinstance(act, float):
            self.world.spend(act, tool=False)
        elif isinstance(act, Use):
            self.use(act.tool, name=self.world.name("thing"), failures=act.failures)
        else:
            _PROGRAMS[act.program](question=self.name)


class _Nested(Agent):
    """Has the orchestrator run something inside the run."""

    def __init__(self, world: World, flow: Any, budget: Budget | None) -> None:
        super().__init__(world.name("nested"))
        self.world, self.flow, self.budget = world, flow, budget

    async def aforward(self, context: Any, task: str = "") -> dict[str, Any]:
        assert self.world.orchestrator is not None
        await self.world.orchestrator.run(self.flow, "go", budget=self.budget)
        return {}


def add_tools(world: World) -> None:
    """Tools that do something, spend something, ask the model; and what undoes them, which does so as well."""
    asker = Agent("asker", signature="question -> answer")
    quick: Any = {"registry": world.tools}
    effect: Any = {**quick, "side_effects": ["thing:write"], "retries": 1}

    def make(name: str, failures: int) -> str:
        world.may_fail(name, failures)
        world.things.add(name)
        return name

    @tool(**quick, idempotent=True)
    def remove(name: str) -> None:
        world.things.discard(name)

    @tool(**quick, idempotent=True)
    async def remove_dearly(name: str) -> None:
        world.things.discard(name)
        world.spend(0.0003, tool=True)
        await asker.ask(_PROGRAM, question=f"{_UNDOING} {name}")

    @tool(**effect, compensating_tool="remove")
    async def book(name: str, failures: int) -> str:
        return make(name, failures)

    @tool(**effect, compensating_tool="remove_dearly", max_cost=0.0003)
    def pay(name: str, failures: int) -> str:
        world.spend(0.0002, tool=True)
        return make(name, failures)

    @tool(**quick)
    async def look(name: str, failures: int) -> None:
        world.may_fail(name, failures)

    @tool(**effect, compensating_tool="remove", max_cost=0.0005)
    async def consult(name: str, failures: int) -> str:
        await asker.ask(_PROGRAM, question=name)
        return make(name, failures)

    @tool(**effect, compensating_tool="remove")
    def consult_sync(name: str, failures: int) -> str:
        _PROGRAM(question=name)
        return make(name, failures)


# -- running one -------------------------------------------------------------------------------------------------------


async def play(case: Case) -> list[str]:
    """Run a case, and say what is wrong."""
    world = World()
    add_tools(world)
    token = anyio.lowlevel.current_token()
    scope = anyio.CancelScope()
    cancel = scope.cancel
    outcome: list[Any] = [None, None]

    def answer(number: int, body: dict[str, Any]) -> Behaviour:
        if number == case.cancelled_at:
            wake(token, cancel)
        return case.answers[number - 1] if number <= len(case.answers) else Behaviour(input_tokens=9, output_tokens=9)

    with OpenAIServer(answer) as server:
        lm = resolve_model("openai/gpt-4o-mini", api_base=server.base_url, max_tokens=60)
        async with Orchestrator(lm=lm, tools=world.tools, clock=FakeClock()) as orchestrator:
            world.orchestrator = orchestrator

            async def body() -> None:
                try:
                    outcome[0] = await orchestrator.run(world.flow(case.part), "go", budget=case.budget)
                except Exception as error:
                    outcome[1] = error

            if case.natively and not on_trio():
                task = asyncio.ensure_future(body())
                cancel = task.cancel  # type: ignore[assignment]
                await asyncio.wait([task])
            else:
                with scope:
                    await body()
            left = [task.name for task in anyio.get_running_tasks() if task.id != anyio.get_current_task().id]
            events = [record.data for record in await orchestrator.storage.read(EVENTS)]
        wrong = [f"a task was left: {name}" for name in left if name and not name.startswith("<")]
        return [
            *wrong,
            *_outcome(case, world, *outcome),
            *_books(world, server.seen, events, *outcome),
            *_overspent(case.budget or Budget(), server.seen, events),
        ]


# -- what must be true -------------------------------------------------------------------------------------------------


def _outcome(case: Case, world: World, result: Any, error: Any) -> Iterator[str]:
    if error is not None and not (error.run_id and error.saga is not None and error.usage.calls >= 0):
        yield f"{error!r} does not say which run it ended"
    if result is None and world.things:
        yield f"it ended with {error!r}, and there are {world.things}"
    if result is None and error is None and case.cancelled_at is None:
        yield "it was cancelled, and nobody cancelled it"
    for ledger in world.ledgers:
        left, spent, limits = ledger.remaining(), ledger.spent(), ledger.budget
        for name in ("usd", "tokens", "calls", "tool_calls"):
            limit = getattr(limits, name)
            if limit is not None and abs(getattr(left, name) - max(0, limit - getattr(spent, name))) > 1e-12:
                yield f"of {limit} {name} {spent} is spent and {left} left: the rest is still held"


def _books(world: World, seen: Sequence[Seen], events: Sequence[Any], result: Any, error: Any) -> Iterator[str]:
    if not world.ledgers:
        return
    total = world.ledgers[0].root.total()
    if any(ended is not None and ended.usage != total for ended in (result, error)):
        yield f"it ended with other figures than {total}"
    models = [event for event in events if event["kind"] == "lm"]
    cut_short = any(event["outcome"] == "cancelled" for event in models)
    answered = [one for one in seen if one.answered and one.counted]
    lost = [one for one in seen if one.status in (None, 200) and one not in answered]
    if total.calls < len(seen) or (total.calls > len(seen) and not cut_short):
        yield f"the server was asked {len(seen)} times, the books say {total.calls}"
    if total.estimated_calls < len(lost) or (total.estimated_calls > len(lost) and not cut_short):
        yield f"{len(lost)} answers were lost, the books say {total.estimated_calls}"
    bill = sum(one.input_tokens * 150_000 + one.output_tokens * 600_000 for one in seen) / 10**12 + world.charged
    if total.priced_usd < bill - 1e-12 or (total.priced_usd > bill + 1e-12 and not total.estimated_calls):
        yield f"the bill is {bill}, the books say {total.priced_usd}"
    if sum(event["calls"] for event in models) != total.calls:
        yield f"the events know of other calls than {total.calls}"
    told = sum(event.get("estimated_cost_usd", 0.0) for event in events) + world.charged_by_agents
    if abs(told - total.priced_usd) > 1e-9:
        yield f"the events add up to {told}, the run to {total.priced_usd}"


def _overspent(budget: Budget, seen: Sequence[Seen], events: Sequence[Any]) -> Iterator[str]:
    """Only what undoes, and what tools have spent when they say so, may pass a budget."""
    asked = [one for one in seen if _UNDOING not in one.prompt]
    usd = sum(one.input_tokens * 150_000 + one.output_tokens * 600_000 for one in asked) / 10**12
    used = sum(
        event["kind"] == "tool" and "compensates" not in event and event["outcome"] != "over_budget" for event in events
    )
    spent = {
        "calls": len(asked), "tool_calls": used, "usd": usd,
        "tokens": sum(one.input_tokens + one.output_tokens for one in asked),
    }  # fmt: skip
    for name, amount in spent.items():
        limit = getattr(budget, name)
        if limit is not None and amount > limit + 1e-12:
            yield f"of {limit} {name} it took {amount}"
