"""Random sagas that are killed at every moment, and ended by processes that are killed as well: what must be true at each end.

A process is a run, or whatever ends one later: recovery, resumption, undoing, another try. Before and after every record of the
journal, every effect and every undo the whole world is kept as it is then, as the process would leave it behind if it were
killed. From such moments the next processes start, and from theirs the next, with the same world and journal and nothing else.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
import anyio.lowlevel

from agenthelm._runtime.retry import SystemClock
from agenthelm.agent.base import Agent
from agenthelm.core.storage import InMemoryStorage, Record
from agenthelm.core.storage.base import EVENTS
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import OutcomeUnknown
from agenthelm.orchestration.fold import fold
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.parallel import Parallel
from agenthelm.orchestration.pipeline import Pipeline
from agenthelm.orchestration.saga import SagaOrchestrator, Step
from agenthelm.orchestration.state import RunState

GENERATIONS = 4
"""How many processes at most work on a run, one after the other."""

Faults = dict[tuple[str, str], int]
"""How often a call for a name goes wrong: before its effect, after it, or before its undo."""


# -- the world, and the moments at which a process may be killed ---------------------------------------------------------


@dataclass(frozen=True)
class Thing:
    """What stands because a tool was called: under which key, for which name."""

    key: str
    name: str


@dataclass
class World:
    """What stands, what was done so far, and what should never have been."""

    things: dict[str, Thing] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def copy(self) -> World:
        return World(dict(self.things), list(self.log), list(self.wrong))

    def named(self, name: str) -> list[str]:
        return [thing for thing, what in self.things.items() if what.name == name]

    def under(self, key: str) -> list[str]:
        return [thing for thing, what in self.things.items() if what.key == key]

    def inside(self, name: str) -> list[str]:
        return [thing for thing, what in self.things.items() if what.name.startswith(f"{name}.")]


@dataclass(frozen=True)
class Moment:
    """All that a process leaves behind that is killed here.

    Attributes:
        what: What it was about to do, or had just done.
        world: The world.
        commits: The records of the run's streams.
        path: The processes so far, and where each was killed.
    """

    what: str
    world: World
    commits: tuple[list[Record], ...]
    path: tuple[str, ...]


class Journals(InMemoryStorage):
    """Remembers what was committed, so that another process finds it; events are of no use to it."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process
        self.commits: list[list[Record]] = []

    async def replay(self, commits: tuple[list[Record], ...]) -> None:
        for records in commits:
            await super().append(records)
        self.commits += commits

    async def append(self, records: Any, expected: Any = None) -> dict[str, int]:
        kept = [record for record in records if record.stream != EVENTS]
        if kept:
            self.process.moment(f"before {kept[0].data['type']}")
        positions = await super().append(records, expected)
        if kept:
            self.commits.append(kept)
            self.process.moment(f"after {kept[0].data['type']}")
        return positions


class Clock(SystemClock):
    """For which every owner of an earlier generation is long silent, and nothing is waited for."""

    def __init__(self, generation: int) -> None:
        self.generation = generation

    def wall(self) -> float:
        return 1e9 + self.generation * 1_000

    async def sleep(self, seconds: float) -> None:
        await anyio.lowlevel.checkpoint()


class Process:
    """A process that works on what an earlier one has left, or on nothing yet.

    Args:
        start: What that one has left.
        faults: What goes wrong in this one.
        cancelled_at: The moment at which it is cancelled, by number; None for never.
    """

    def __init__(self, start: Moment, faults: Faults, cancelled_at: int | None = None) -> None:
        self.start = start
        self.faults = dict(faults)
        self.cancelled_at = cancelled_at
        self.world = start.world.copy()
        self.moments: list[Moment] = []
        self.path: tuple[str, ...] = ()
        self.journals = Journals(self)
        self.scope = anyio.CancelScope()

    async def does(self, what: str, work: Callable[[Orchestrator], Awaitable[Any]]) -> RunState | None:
        """Let it do something to its end; returns what its run's journal tells then."""
        self.path = (*self.start.path, what if self.cancelled_at is None else f"{what}, cancelled")
        await self.journals.replay(self.start.commits)
        orchestrator = Orchestrator(storage=self.journals, tools=TOOLS, clock=Clock(len(self.path)))
        token = _HERE.set(self)
        try:
            with self.scope:
                await work(orchestrator)
        finally:
            _HERE.reset(token)
        streams = await self.journals.streams(prefix="run:")
        assert len(streams) <= 1, "a nested run has a journal of its own"
        return (
            fold(streams[0].name.removeprefix("run:"), await self.journals.read(streams[0].name)) if streams else None
        )

    def moment(self, what: str) -> None:
        """It might be killed here, and may be cancelled."""
        if self.cancelled_at is not None and len(self.moments) >= self.cancelled_at:
            self.scope.cancel()
        path = (*self.path, f"killed {what}")
        self.moments.append(Moment(what, self.world.copy(), tuple(self.journals.commits), path))

    def ended(self) -> Moment:
        """What it leaves behind at its end."""
        return Moment("at its end", self.world.copy(), tuple(self.journals.commits), self.path)

    def fault(self, name: str, where: str) -> None:
        """Go wrong, if that is due."""
        if self.faults.get((name, where), 0) > 0:
            self.faults[name, where] -= 1
            raise (OutcomeUnknown if where == "after" else RuntimeError)(f"{where} {name}")

    def make(self, name: str, key: str) -> str:
        self.moment(f"before making {name}")
        self.world.log.append(f"make {name}")
        thing = f"{name}#{len(self.world.log)}"
        self.world.things[thing] = Thing(key, name)
        self.moment(f"after making {name}")
        return thing

    def remove(self, thing: str, *, once: bool) -> None:
        """Undo something, which for some tools is wrong if it is not there (any more)."""
        self.moment(f"before undoing {thing}")
        if self.world.things.pop(thing, None) is not None:
            self.world.log.append(f"undo {thing}")
        elif once:
            self.world.wrong.append(f"{thing} was undone, and was not there")
        self.moment(f"after undoing {thing}")


_HERE: ContextVar[Process] = ContextVar("process")
_NOTHING = Moment("", World(), (), ())


# -- tools of all kinds ------------------------------------------------------------------------------------------------

TOOLS = ToolRegistry()


def _tool(undo: str, **options: Any) -> Any:
    return tool(registry=TOOLS, compensating_tool=undo, side_effects=["thing:write"], **options)


async def _make(name: str, key: str, *, once: bool = False) -> dict[str, str]:
    """Make something, or find what was made under the key before, if the tool is told by its key."""
    here = _HERE.get()
    here.fault(name, "before")
    there = [] if once else here.world.under(key)
    thing = there[0] if there else here.make(name, key)
    await anyio.lowlevel.checkpoint()
    here.fault(name, "after")
    return {"thing": thing}


async def _unmake(thing: str, *, once: bool = True) -> None:
    here = _HERE.get()
    here.fault(thing.partition("#")[0], "undo")
    here.remove(thing, once=once)
    await anyio.lowlevel.checkpoint()


async def _which(name: str, idempotency_key: str) -> dict[str, str] | None:
    things = _HERE.get().world
    return next(({"thing": t} for t in things.under(idempotency_key) if things.things[t].name == name), None)


async def _whether(idempotency_key: str) -> bool:
    return bool(_HERE.get().world.under(idempotency_key))


async def _inside(name: str, kinds: list[str]) -> bool:
    steps = [Step(kind, {"name": f"{name}.{n}"}, id=f"s{n}") for n, kind in enumerate(kinds)]
    return (await SagaOrchestrator(tool_registry=TOOLS).execute(steps)).ok


@_tool("cancel")
async def book(name: str, idempotency_key: str) -> dict[str, str]:
    """Told by its key, and so is its undo."""
    return await _make(name, idempotency_key)


@tool(registry=TOOLS, idempotent=True)
async def cancel(idempotency_key: str) -> None:
    for thing in _HERE.get().world.under(idempotency_key) or ["nothing"]:
        _HERE.get().remove(thing, once=False)


@_tool("unmake", verify=_which, idempotent=False)
async def check(name: str, idempotency_key: str) -> dict[str, str]:
    """Done twice if called twice; its verify finds what it made."""
    return await _make(name, idempotency_key, once=True)


@tool(registry=TOOLS)
async def unmake(thing: str) -> None:
    """Wrong if there is nothing to undo."""
    await _unmake(thing)


@_tool("unkeep", verify=_whether, idempotent=False)
async def keep(name: str, idempotency_key: str) -> None:
    """Its verify only knows whether."""
    await _make(name, idempotency_key, once=True)


@_tool("unkeep", idempotent=False)
async def blind(name: str, idempotency_key: str) -> None:
    """Nobody knows whether it happened."""
    await _make(name, idempotency_key, once=True)


@tool(registry=TOOLS, idempotent=False)
async def unkeep(name: str, idempotency_key: str) -> None:
    """Wrong if there is nothing to undo; told by the key, not by the result."""
    await _unmake(next(iter(_HERE.get().world.under(idempotency_key)), f"{name}#?"))


@_tool("return_order")
async def order(name: str, idempotency_key: str) -> dict[str, str]:
    """Told by its key; its undo needs the result, and may be repeated."""
    return await _make(name, idempotency_key)


@tool(registry=TOOLS, idempotent=True)
async def return_order(thing: str) -> None:
    await _unmake(thing, once=False)


@_tool("unmake")
async def ship(name: str, idempotency_key: str) -> dict[str, str]:
    """Told by its key; its undo needs the result, and may not be repeated."""
    return await _make(name, idempotency_key)


@tool(registry=TOOLS)
async def look(name: str) -> str:
    """Changes nothing."""
    _HERE.get().fault(name, "before")
    return name


@tool(registry=TOOLS)
async def nest(name: str, kinds: list[str]) -> str:
    """A run inside a tool that is no effect itself."""
    if not await _inside(name, kinds):
        raise RuntimeError("what is inside failed")
    _HERE.get().fault(name, "after")
    return name


@_tool("unpack", verify=_which, idempotent=False)
async def pack(name: str, kinds: list[str], idempotency_key: str) -> dict[str, str]:
    """A run inside a tool whose undo needs its result and takes back what is inside as well."""
    if not await _inside(name, kinds):
        raise RuntimeError("what is inside failed")
    return await _make(name, idempotency_key, once=True)


@tool(registry=TOOLS)
async def unpack(thing: str) -> None:
    here = _HERE.get()
    for part in here.world.inside(thing.partition("#")[0]):
        here.remove(part, once=False)
    await _unmake(thing)


@_tool("unwrap")
async def wrap(name: str, kinds: list[str], idempotency_key: str) -> dict[str, str]:
    """A run inside a tool that is told by its key, puts up with its failure, and whose undo takes back all of it."""
    await _inside(name, kinds)
    return await _make(name, idempotency_key)


@tool(registry=TOOLS, idempotent=True)
async def unwrap(name: str, idempotency_key: str) -> None:
    here = _HERE.get()
    for thing in [*here.world.inside(name), *here.world.under(idempotency_key)]:
        here.remove(thing, once=False)


SIMPLE = ("book", "check", "keep", "blind", "order", "ship", "look")
NESTING = ("nest", "pack", "wrap")


class Caller(Agent):
    """Calls tools one after the other, and handles what some of them raise."""

    def __init__(self, name: str, steps: list[Step], handled: set[str]) -> None:
        super().__init__(name=name, description="Calls tools.")
        self.steps, self.handled = steps, handled

    async def aforward(self, context: Any, task: str) -> dict[str, Any]:
        for step in self.steps:
            try:
                await self.ause(step.tool_name, **step.arguments)
            except Exception:
                if step.name not in self.handled:
                    raise
        return {self.name: True}


# -- one case ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A run and what goes wrong in it; of agents if there is a ``flow``, else of the steps."""

    steps: list[Step]
    faults: Faults
    on_error: str
    flow: Any = None

    async def run(self, orchestrator: Orchestrator) -> None:
        if self.flow is None:
            await orchestrator.run_saga(self.steps, on_error=self.on_error)  # type: ignore[arg-type]
            return
        try:
            await orchestrator.run(self.flow, "go", rollback=self.on_error != "stop")
        except Exception as error:
            assert hasattr(error, "saga"), error  # noqa: PT017 - anything else did not come from the run

    @property
    def lasting(self) -> list[str]:
        """The names of which each stands exactly once if the run went well, as far as that can be said."""
        if self.flow is not None or self.on_error == "continue" or any(s.tool_name == "wrap" for s in self.steps):
            return []
        return [step.name for step in self.steps if step.tool_name not in ("look", "nest")]


def a_case(chance: random.Random) -> Case:
    """A random plan of up to five steps, or agents that make the same calls in two branches and after them."""
    faults: Faults = {}
    steps = []
    as_dag = chance.random() < 0.5
    for number in range(chance.randint(1, 5)):
        name, kind = f"n{number}", chance.choice([*SIMPLE, *NESTING])
        arguments: dict[str, Any] = {"name": name}
        if kind in NESTING:
            arguments["kinds"] = [chance.choice(SIMPLE) for _ in range(chance.randint(1, 2))]
            if chance.random() < 0.3:
                faults[f"{name}.{len(arguments['kinds']) - 1}", "before"] = 1
        earlier = [f"n{other}" for other in range(number)]
        after = [other for other in earlier if chance.random() < 0.4] if as_dag else earlier[-1:]
        if chance.random() < 0.12:
            faults[name, chance.choice(["before", "after"])] = chance.choice([1, 9])
        if chance.random() < 0.1:
            faults[name, "undo"] = chance.choice([1, 9])
        steps.append(Step(kind, arguments, id=name, depends_on=tuple(after)))
    case = Case(steps, faults, chance.choice(["rollback", "rollback", "stop", "continue"]))
    return _by_agents(case, chance) if chance.random() < 0.3 else case


def _by_agents(case: Case, chance: random.Random) -> Case:
    half = len(case.steps) // 2
    handled = {step.name for step in case.steps if chance.random() < 0.4}
    branches = [Caller("left", case.steps[:half], handled), Caller("right", case.steps[half:], handled)]
    last = [Step("book", {"name": "last"}), Step("check", {"name": "very last"}, id="very last")]
    faults = {**case.faults, **{("very last", where): 1 for where in ("before", "after") if chance.random() < 0.4}}
    both = Parallel(branches, "flat", on_error=chance.choice(["collect", "cancel"]))
    return replace(case, faults=faults, flow=Pipeline([both, Caller("last", last, {"book"})]))


async def play(seed: int, processes: int) -> list[str]:
    """Play a case: its run, and then so many processes that start where earlier ones were killed. Says what is wrong."""
    chance = random.Random(seed)
    case = a_case(chance)
    first = Process(_NOTHING, case.faults, _cancelled_at(chance))
    run = await first.does("run", case.run)
    if run is None:  # cancelled before it had begun
        return []
    wrong = _told(first, run, case)
    left = list(first.moments)
    if run.status in ("success", "stopped"):
        left += await _afterwards(first, run, case, chance, wrong)
    for _ in range(processes):
        if not left or wrong:
            break
        start = left.pop(chance.randrange(len(left)))
        if not _is_open(start):
            continue
        resume = chance.random() < 0.67
        process = Process(start, case.faults if chance.random() < 0.3 else {}, _cancelled_at(chance))
        ended = await process.does("resume" if resume else "recover", lambda o: o.recover(resume=resume))  # noqa: B023
        assert ended is not None
        wrong += _told(process, ended, case)
        left += _some(process.moments, 3, chance)
        if ended.status != "rolled_back" and chance.random() < 0.35:
            left += _some(await _afterwards(process, ended, case, chance, wrong), 4, chance)
    return [f"seed {seed}, {case}: {what}" for what in wrong]


async def _afterwards(
    process: Process, run: RunState, case: Case, chance: random.Random, wrong: list[str]
) -> list[Moment]:
    """Undo on purpose what has ended, or try again what got stuck; returns the moments of that."""
    later = Process(process.ended(), case.faults if chance.random() < 0.3 else {}, _cancelled_at(chance))
    if run.status == "failed":
        ended = await later.does("retry", lambda orchestrator: orchestrator.retry(run.run_id))
    else:
        ended = await later.does("undo", lambda orchestrator: orchestrator.undo(run.run_id))
    assert ended is not None
    wrong += _told(later, ended, case)
    return later.moments


def _cancelled_at(chance: random.Random) -> int | None:
    return chance.randrange(1, 40) if chance.random() < 0.35 else None


def _some(moments: list[Moment], count: int, chance: random.Random) -> list[Moment]:
    young = [moment for moment in moments if len(moment.path) < 2 * GENERATIONS]
    return chance.sample(young, min(count, len(young)))


def _is_open(moment: Moment) -> bool:
    kinds = [record.data["type"] for records in moment.commits for record in records if record.stream[:4] == "run:"]
    ends = [place for place, kind in enumerate(kinds) if kind in ("opened", "claimed", "closed")]
    return bool(ends) and kinds[ends[-1]] != "closed"


# -- what must be true -------------------------------------------------------------------------------------------------


def _told(process: Process, run: RunState, case: Case) -> list[str]:
    """What is wrong, with how it came to that."""
    how = f"after {' → '.join(process.path)} it is {run.status}; {process.world.log}"
    return [f"{what}; {how}" for what in _wrong(process.world, run, case)]


def _wrong(world: World, run: RunState, case: Case) -> Iterator[str]:
    """The journal's end against the world."""
    yield from world.wrong
    if run.status is None:
        yield "nobody ended it"
    if run.status == "rolled_back" and world.things:
        yield f"there are {sorted(world.things)}"
    if run.status == "failed" and not any(state.failed_to_undo for state in run.effects.values()):
        yield "nothing is stuck"
    if run.status == "failed" and run.decided:  # else it went well, but for a nested run that could not be undone
        named = {s.effect.arguments["name"] for s in run.effects.values() if s.status in ("stuck", "in doubt", "begun")}
        for thing in world.things.values():
            if not any(thing.name == name or thing.name.startswith(f"{name}.") for name in named):
                yield f"{thing.name} stands, and nobody says so"
    if run.status == "success":
        counts = Counter(thing.name for thing in world.things.values())
        yield from (f"{name} stands {counts[name]} times" for name in counts if counts[name] > 1)
        yield from (f"{name} does not stand" for name in case.lasting if not counts[name])
    for state in run.effects.values():
        if run.status in ("success", "stopped", "rolled_back") and (
            state.status == "undoing" or (state.status == "stuck" and run.status != "stopped")
        ):
            yield f"{state.effect.id} is {state.status}"
