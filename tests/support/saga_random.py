"""Random sagas in a random world: what a case is, how it is run, and what must be true of every one of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from agenthelm._runtime.retry import Backoff
from agenthelm.core.cost import Budget
from agenthelm.core.executor import current_executor
from agenthelm.core.handlers import ApprovalHandler, ApprovalRequest, Decision
from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.exceptions import OutcomeUnknown, StorageError
from agenthelm.orchestration.fold import fold
from agenthelm.orchestration.live import LiveRun, ScopeLog
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.results import SagaResult
from agenthelm.orchestration.saga import Step
from agenthelm.orchestration.state import EffectState, RunState
from agenthelm.testing.storage import FaultyStorage, SimulatedCrash
from tests.support.saga_order import wrong_order

KINDS = ("book", "book_sync", "check", "make", "keep", "wrap", "pack", "nest", "burn", "guarded")
ENDS = ("ok", "fail", "doubt", "done, doubt", "hang", "done, hang")
_NO_CALL = 10_000


def limits(examples: int) -> settings:
    """So many examples, without a limit of time: the same ones each time where they are few enough for every change."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples <= 1_000,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )


@dataclass(frozen=True)
class Plot:
    """What one step does: how each attempt ends, how each attempt to undo it ends, and whether ``verify`` knows."""

    kind: str
    after: tuple[int, ...] = ()
    ends: tuple[str, ...] = ()
    undos: tuple[str, ...] = ()
    verifies: bool = True
    denied: bool = False
    yields: int = 0


@dataclass(frozen=True)
class Case:
    """A saga, and what happens to it."""

    steps: tuple[Plot, ...]
    on_error: str = "rollback"
    cancel: tuple[str, tuple[int, ...]] | None = None
    budget: int | None = None
    timeout: float | None = None
    fault: int | None = None
    faults: int | None = 1
    crash: bool = False
    resume: bool = False
    undo_after: bool = False


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Mostly going well, so that much is there when something goes wrong."""
    steps = []
    for index in range(draw(st.integers(1, 6))):
        after = draw(st.sets(st.integers(0, index - 1), max_size=2)) if index else set()
        end = st.sampled_from(ENDS)
        steps.append(
            Plot(
                draw(st.sampled_from(KINDS)),
                tuple(sorted(after)),
                draw(st.one_of(st.just(()), st.just(()), st.lists(end, min_size=1, max_size=2).map(tuple))),
                draw(st.one_of(st.just(()), st.just(()), st.lists(end, min_size=1, max_size=2).map(tuple))),
                draw(st.sampled_from((True, True, True, False))),
                draw(st.sampled_from((False, False, False, True))),
                draw(st.integers(0, 2)),
            )
        )
    ticks = st.lists(st.integers(1, 40), min_size=1, max_size=2).map(lambda t: tuple(sorted(t)))
    how = st.sampled_from(("structured", "native"))
    return Case(
        tuple(steps),
        draw(st.sampled_from(("rollback", "rollback", "rollback", "continue", "stop"))),
        draw(st.one_of(st.none(), st.tuples(how, ticks))),
        draw(st.one_of(st.none(), st.none(), st.integers(0, 6))),
        draw(st.sampled_from((None, None, None, None, 0.003))),
        draw(st.one_of(st.none(), st.none(), st.none(), st.integers(1, 30))),
        draw(st.sampled_from((1, None))),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.booleans()),
    )


class FakeClock:
    """Time that passes when somebody sleeps, at once."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await anyio.lowlevel.checkpoint()


@dataclass
class Stage:
    """The world of the case that runs just now."""

    plots: dict[str, Plot] = field(default_factory=dict)
    things: dict[str, str] = field(default_factory=dict)
    log: list[tuple[str, str, str, bool]] = field(default_factory=list)
    tried: Counter[str] = field(default_factory=Counter)
    ticks: int = 0
    at_tick: dict[int, Callable[[], None]] = field(default_factory=dict)
    live: LiveRun | None = None
    orchestrator: Orchestrator | None = None
    storage: TickingStorage | None = None
    made: int = 0
    twice: list[str] = field(default_factory=list)
    closing: bool = False
    late: bool = False

    @property
    def dead(self) -> bool:
        """Whether the process that acts has died: then it does nothing any more."""
        return self.storage is not None and self.storage.crashed

    def tick(self) -> None:
        self.ticks += 1
        if (act := self.at_tick.pop(self.ticks, None)) is not None:
            act()

    def enter(self) -> None:
        executor = current_executor()
        if executor is not None and isinstance(executor.effects, ScopeLog):
            self.live = executor.effects.run
        self.tick()
        if self.dead:
            raise SimulatedCrash

    def end(self, name: str, *, undo: bool) -> str:
        plot = self.plots.get(name, Plot("book"))
        ends = plot.undos if undo else plot.ends
        key = f"{'undo ' if undo else ''}{name}"
        self.tried[key] += 1
        return ends[self.tried[key] - 1] if self.tried[key] <= len(ends) else "ok"

    def make(self, tool_name: str, name: str, thing: str | None, *, once: bool) -> str:
        if self.dead:
            raise SimulatedCrash
        self.made += 1
        thing = thing or f"{tool_name}-{self.made}"
        changed = thing not in self.things
        if not once and name in self.things.values():
            self.twice.append(name)
        self.things[thing] = name
        self.log.append(("do", thing, tool_name, changed))
        return thing

    def remove(self, tool_name: str, thing: str) -> None:
        if self.dead:
            raise SimulatedCrash
        self.log.append(("undo", thing, tool_name, self.things.pop(thing, None) is not None))


STAGE = Stage()
TOOLS = ToolRegistry()


async def _act(name: str, do: Callable[[], Any], *, undo: bool = False) -> Any:
    """One attempt of an async tool, ended as its plot says."""
    STAGE.enter()
    end = STAGE.end(name, undo=undo)
    for _ in range(STAGE.plots.get(name, Plot("book")).yields):
        await anyio.lowlevel.checkpoint()
    value = None
    if end in ("ok", "done, doubt", "done, hang"):
        value = do()
        STAGE.tick()
    if end.endswith("hang"):
        await anyio.sleep_forever()
    _raise(end)
    return value


def _raise(end: str) -> None:
    if end.endswith("doubt"):
        raise OutcomeUnknown("the line went dead")
    if end == "fail":
        raise RuntimeError("no")


def _tool(**contract: Any) -> Callable[[Any], Any]:
    return tool(registry=TOOLS, timeout=0.004, backoff=Backoff(initial=1.0), side_effects=["thing:write"], **contract)


def _undo(**contract: Any) -> Callable[[Any], Any]:
    return tool(registry=TOOLS, retries=1, backoff=Backoff(initial=1.0), **contract)


@_tool(compensating_tool="cancel", retries=1)
async def book(name: str, idempotency_key: str) -> dict[str, str]:
    return {"thing": await _act(name, lambda: STAGE.make("book", name, idempotency_key, once=True))}


@_tool(compensating_tool="cancel", requires_approval=True)
async def guarded(name: str, idempotency_key: str) -> dict[str, str]:
    return {"thing": await _act(name, lambda: STAGE.make("guarded", name, idempotency_key, once=True))}


@_undo(idempotent=True)
async def cancel(name: str, idempotency_key: str) -> None:
    await _act(name, lambda: STAGE.remove("cancel", idempotency_key), undo=True)


@tool(registry=TOOLS, side_effects=["thing:write"], compensating_tool="cancel_sync")
def book_sync(name: str, idempotency_key: str) -> dict[str, str]:
    STAGE.enter()
    end = STAGE.end(name, undo=False).replace("done, hang", "ok").replace("hang", "ok")
    if end in ("ok", "done, doubt"):
        STAGE.make("book_sync", name, idempotency_key, once=True)
        STAGE.tick()
    _raise(end)
    return {"thing": idempotency_key}


@_undo(idempotent=True)
def cancel_sync(name: str, idempotency_key: str) -> None:
    STAGE.enter()
    end = STAGE.end(name, undo=True).replace("done, hang", "ok").replace("hang", "ok")
    if end in ("ok", "done, doubt"):
        STAGE.remove("cancel_sync", idempotency_key)
    _raise(end)


def _found(tool_name: str, name: str) -> str | None:
    return next((t for t, n in STAGE.things.items() if n == name and t.startswith(f"{tool_name}-")), None)


def _checked(name: str) -> Any:
    if not STAGE.plots[name].verifies:
        raise RuntimeError("nobody knows")
    thing = _found("check", name)
    return {"thing": thing} if thing else False


@_tool(compensating_tool="uncheck", verify=_checked)
async def check(name: str) -> dict[str, str]:
    return {"thing": await _act(name, lambda: STAGE.make("check", name, None, once=False))}


@_undo()
async def uncheck(name: str, thing: str) -> None:
    await _act(name, lambda: STAGE.remove("uncheck", thing), undo=True)


@_tool(compensating_tool="unmake", retries=1)
async def make(name: str) -> dict[str, str]:
    return {"thing": await _act(name, lambda: STAGE.make("make", name, None, once=False))}


@_undo()
async def unmake(name: str, thing: str) -> None:
    await _act(name, lambda: STAGE.remove("unmake", thing), undo=True)


@_tool(compensating_tool="unkeep")
async def keep(name: str) -> str:
    return str(await _act(name, lambda: STAGE.make("keep", name, f"keep-{name}", once=False)))


@_undo()
async def unkeep(name: str) -> None:
    await _act(name, lambda: STAGE.remove("unkeep", f"keep-{name}"), undo=True)


@_tool(compensating_tool="unwrap")
async def wrap(name: str, idempotency_key: str) -> dict[str, str]:
    executor = current_executor()
    assert executor is not None
    for part in ("left", "right"):
        await executor.call("book", {"name": f"{name}.{part}", "idempotency_key": f"{idempotency_key}/{part}"})
    return {"thing": await _act(name, lambda: STAGE.make("wrap", name, idempotency_key, once=True))}


def _packed(name: str) -> Any:
    if not STAGE.plots[name].verifies:
        raise RuntimeError("nobody knows")
    return next(({"thing": t} for t, n in STAGE.things.items() if n == name), False)


@_tool(compensating_tool="unwrap", verify=_packed)
async def pack(name: str, idempotency_key: str) -> dict[str, str]:
    executor = current_executor()
    assert executor is not None
    for part in ("left", "right"):
        await executor.call("book", {"name": f"{name}.{part}", "idempotency_key": f"{idempotency_key}/{part}"})
    return {"thing": await _act(name, lambda: STAGE.make("pack", name, idempotency_key, once=True))}


@_undo(idempotent=True)
async def unwrap(name: str, idempotency_key: str) -> None:
    def remove() -> None:
        for part in ("", "/right", "/left"):
            STAGE.remove("unwrap", f"{idempotency_key}{part}")

    await _act(name, remove, undo=True)


@tool(registry=TOOLS)
async def nest(name: str) -> str:
    """A nested run; its steps have the same names each time."""
    STAGE.enter()
    assert STAGE.orchestrator is not None
    inner = [Step("book", {"name": f"{name}.one"}, id="one"), Step("keep", {"name": f"{name}.two"}, id="two")]
    result = await STAGE.orchestrator.run_saga(inner)
    if not result.ok:
        raise RuntimeError(f"the nested run {result.status}")
    _raise(STAGE.end(name, undo=False).replace("hang", "ok"))
    return result.status


@_tool()
async def burn(name: str) -> str:
    return str(await _act(name, lambda: STAGE.make("burn", name, None, once=False)))


class Denier(ApprovalHandler):
    """Denies what the case says."""

    async def request_approval(self, request: ApprovalRequest) -> Decision:
        await anyio.lowlevel.checkpoint()
        return Decision(not STAGE.plots[request.arguments["name"]].denied, reason="as the case says")


class TickingStorage(FaultyStorage):
    """A storage whose appends are moments at which a case may be cancelled."""

    async def append(self, records: Any, expected: Any = None) -> dict[str, int]:
        STAGE.closing = STAGE.closing or any(record.data.get("type") == "closed" for record in records)
        STAGE.tick()
        positions = await super().append(records, expected)
        await anyio.lowlevel.cancel_shielded_checkpoint()
        return positions


# -- running one -------------------------------------------------------------------------------------------------------


async def play(case: Case) -> list[str]:
    """Run a case, recover what a broken journal left, and say what is wrong."""
    global STAGE
    STAGE = stage = Stage({f"s{n}": plot for n, plot in enumerate(case.steps)})
    inner = InMemoryStorage()
    clock = FakeClock()
    storage = TickingStorage(inner, at=case.fault or _NO_CALL, times=case.faults, do="crash" if case.crash else "fail")
    stage.storage = storage
    options: Any = {"tools": TOOLS, "clock": clock, "approval_handler": Denier(), "grace": 0.02}
    stage.orchestrator = Orchestrator(storage=storage, **options)
    result, error, asked, told = await _run(case, stage.orchestrator)
    stage.at_tick.clear()
    wrong: list[str] = []
    if error is not None and not isinstance(error, StorageError):
        wrong.append(f"it raised {error!r}")
    if told and not asked:
        wrong.append("it was cancelled, and nobody cancelled it")
    run = await _journal(inner)
    if run is None:
        return wrong if not stage.things else [*wrong, f"no journal, and there are {stage.things}"]
    at_once = not (_on_asyncio() and case.cancel and case.cancel[0] == "native")  # that comes a turn of the loop later
    broken = storage.count >= (case.fault or _NO_CALL)
    if told and at_once and run.status == "success" and stage.things and not stage.late and not broken:
        wrong.append("it was cancelled, and what it did stands")
    if not broken:
        wrong += _against_memory(run, stage.live)
        wrong += _against_result(run, result)
    wrong += await _ended(run, stage, inner, case, clock, broken=broken)
    if case.undo_after and run.status in ("success", "stopped", None):
        stage.orchestrator = fresh = Orchestrator(storage=inner, **options)
        stage.storage = None
        undone = await fresh.undo(run.run_id)
        run = await _journal(inner)
        assert run is not None
        wrong += [f"undone on purpose: {w}" for w in _truth(run, stage, broken=broken)]
        if undone.status not in ("rolled_back", "failed"):
            wrong.append(f"undone on purpose, it is {undone.status}")
    return wrong


async def _run(case: Case, orchestrator: Orchestrator) -> tuple[SagaResult | None, Exception | None, bool, bool]:
    steps = [
        Step(plot.kind, {"name": f"s{n}"}, id=f"s{n}", depends_on=tuple(f"s{a}" for a in plot.after))
        for n, plot in enumerate(case.steps)
    ]
    as_dag = any(plot.after for plot in case.steps)
    budget = None if case.budget is None else Budget(tool_calls=case.budget)
    outcome: list[Any] = [None, None]
    asked = False

    async def host() -> None:
        try:
            outcome[0] = await orchestrator.run_saga(
                steps if as_dag else [steps],
                on_error=case.on_error,
                budget=budget,
                timeout=case.timeout,  # type: ignore[arg-type]
            )
        except Exception as error:
            outcome[1] = error
        except BaseException as error:
            if not STAGE.dead or isinstance(error, anyio.get_cancelled_exc_class()):
                raise

    def armed(cancel: Callable[[], Any]) -> None:
        def act() -> None:
            nonlocal asked
            STAGE.late = STAGE.late or (STAGE.closing and not asked)
            asked = True
            cancel()

        assert case.cancel is not None
        STAGE.at_tick.update(dict.fromkeys(case.cancel[1], act))

    told = False
    if case.cancel is not None and case.cancel[0] == "native" and _on_asyncio():
        task = asyncio.ensure_future(host())
        loop = asyncio.get_running_loop()
        armed(lambda: loop.call_soon_threadsafe(task.cancel))
        await asyncio.wait([task])
        told = task.cancelled()
        if not told:
            await task
    else:
        token = anyio.lowlevel.current_token()
        with anyio.CancelScope() as scope:
            if case.cancel is not None:
                armed(lambda: _soon(token, scope.cancel))
            await host()
        told = scope.cancelled_caught
    return outcome[0], outcome[1], asked, told


def _on_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _soon(token: Any, function: Callable[[], None]) -> None:
    native = token.native_token
    getattr(native, "call_soon_threadsafe", getattr(native, "run_sync_soon", None))(function)


async def _journal(storage: InMemoryStorage) -> RunState | None:
    streams = await storage.streams(prefix="run:")
    assert len(streams) <= 1, "a nested run has a journal of its own"
    return fold(streams[0].name.removeprefix("run:"), await storage.read(streams[0].name)) if streams else None


# -- what must be true -------------------------------------------------------------------------------------------------


def _against_memory(run: RunState, live: LiveRun | None) -> Iterator[str]:
    if live is None:
        return
    for name, state in live.states.items():
        told = run.effects.get(name)
        if told is None:
            yield f"{name} is not in the journal"
            continue
        for fact in ("outcome", "completed", "undone", "accepted", "compensated", "undoing", "reason"):
            here, there = getattr(state, fact), getattr(told, fact)
            if here != there:
                yield f"{name}.{fact} is {here!r} in memory and {there!r} in the journal"


def _against_result(run: RunState, result: SagaResult | None) -> Iterator[str]:
    if result is None:
        return
    if result.status != run.status:
        yield f"the result says {result.status}, the journal {run.status}"
    stuck = sorted(s.effect.id for s in run.effects.values() if s.reason is not None and not s.settled)
    if sorted(s.effect_id for s in result.stuck) != stuck:
        yield f"the result is stuck at {result.stuck}, the journal at {stuck}"


async def _ended(
    run: RunState, stage: Stage, storage: InMemoryStorage, case: Case, clock: FakeClock, *, broken: bool
) -> list[str]:
    if run.status is None:
        if not broken:
            return ["the journal is still open"]
        clock.now += 31.0
        fresh = Orchestrator(storage=storage, tools=TOOLS, approval_handler=Denier(), clock=clock, grace=0.02)
        stage.orchestrator = fresh
        stage.storage = None
        await fresh.recover(resume=case.resume)
        recovered = await _journal(storage)
        assert recovered is not None
        run = recovered
        if run.status is None:
            return ["recovery left the journal open"]
    wrong = [*_truth(run, stage, broken=broken, unrecorded=broken and not case.crash and case.on_error != "rollback")]
    records = await storage.read(f"run:{run.run_id}")
    return wrong + list(wrong_order(records))


def _truth(run: RunState, stage: Stage, *, broken: bool, unrecorded: bool = False) -> Iterator[str]:
    """The status against the world, and every undo against its rule.

    Args:
        run: What the journal says.
        stage: What is there.
        broken: Whether the journal could not be written for a while, so that undos may be left to do.
        unrecorded: Whether nested runs may have been undone without a record of it.
    """
    stuck = [s for s in run.effects.values() if s.reason is not None and not s.settled]
    there = stage.things.values()
    if run.status == "rolled_back" and stage.things:
        yield f"it says rolled back, and there are {stage.things}"
    if run.status == "failed" and not stuck:
        yield "it says failed, and nothing is stuck"
    if run.status in ("rolled_back", "failed"):
        for name in there:
            if not any(
                name == s.effect.arguments["name"] or name.startswith(f"{s.effect.arguments['name']}.") for s in stuck
            ):
                yield f"{name} is there, and nobody says so"
    if run.status in ("success", "stopped"):
        for state in run.effects.values():
            name = state.effect.arguments["name"]
            stands = state.outcome == "ok" and not state.settled and state.reason is None  # what is stuck may be gone
            if stands and name not in there and not unrecorded:
                yield f"{name} is said to be there, and is not"
        known = {s.effect.arguments["name"] for s in run.effects.values() if s.outcome != "failed" and not s.undone}
        for name in there:
            if name not in known:
                yield f"{name} is there, and nobody says so"
    for state in stuck:
        if not broken and not _justified(state, stage):
            yield f"{state.effect.tool} {state.effect.id} is stuck without need: {state.reason}"
    yield from _undos(stage)


def _justified(state: EffectState, stage: Stage) -> bool:
    # On a busy machine anything may pass the short grace time.
    plot = stage.plots.get(state.effect.arguments["name"], Plot("book"))
    slow = any(words in (state.reason or "") for words in ("did not finish within", "did not answer within"))
    if slow or state.effect.tool == "burn" or any(end != "ok" for end in plot.undos):
        return True
    if state.effect.tool in ("make", "keep"):
        return state.doubtful
    return state.effect.tool == "check" and state.doubtful and not plot.verifies


def _undos(stage: Stage) -> Iterator[str]:
    for name in stage.twice:
        yield f"{name} was made again while it was there"
    for verb, thing, tool_name, changed in stage.log:
        if verb == "undo" and not changed and tool_name in ("uncheck", "unmake", "unkeep"):
            yield f"{tool_name} undid what was not there: {thing}"
    removed = Counter(thing for verb, thing, _, changed in stage.log if verb == "undo" and changed)
    made = Counter(thing for verb, thing, _, changed in stage.log if verb == "do" and changed)
    for thing, count in removed.items():
        if count > made[thing]:
            yield f"{thing} was undone {count} times"
    for thing, count in made.items():
        if count > removed[thing] + 1:
            yield f"{thing} was made {count} times"
