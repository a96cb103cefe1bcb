"""Kills a process before and after every record, effect and undo of a run, recovers, and compares with the world.

A program of its own (``python -m tests.support.saga_crash``): one process that never starts an event loop or a thread
forks a child for each try, so that a try costs a few hundredths of a second.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import importlib
import json
import logging
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio

from agenthelm.agent.base import Agent
from agenthelm.core.storage import SqliteStorage
from agenthelm.core.storage.base import StoredRecord
from agenthelm.orchestration.fold import fold
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.parallel import Parallel
from agenthelm.orchestration.pipeline import Pipeline
from agenthelm.orchestration.results import SagaResult
from agenthelm.orchestration.saga import Ref, Step
from agenthelm.orchestration.state import EffectState, RunState
from tests.support.saga_order import wrong_order
from tests.support.saga_world import Points, PointStorage, World, tools_of

Body = Callable[[Orchestrator], Awaitable[Any]]

WORLD = World()
TOOLS = tools_of(WORLD)


# -- what runs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """A run, and the things that are there when it went well."""

    body: Body
    end: tuple[str, ...]
    fails: bool = False
    resumable: bool = True


def step(tool: str, name: str, *after: str, **more: Any) -> Step:
    return Step(tool, {"name": name, **more}, id=name, depends_on=after)


def _plan(steps: list[Any], *, fails: bool, dag: bool = False) -> Body:
    flat = [s for entry in steps for s in (entry if isinstance(entry, list) else [entry])]
    last = step("fail", "Z", *(s.name for s in flat)) if dag else step("fail", "Z")

    async def body(orchestrator: Orchestrator) -> SagaResult:
        return await orchestrator.run_saga([*steps, last] if fails else steps)

    return body


SEQUENCE = [step("book", "A"), step("check", "B"), step("make", "C"), step("book_sync", "D"), step("wrap", "E")]
GROUPS = [
    step("book", "A"),
    [step("check", "B"), step("make", "C"), step("book_sync", "D")],
    [step("book", "E"), step("check", "F")],
]
DAG = [
    step("make", "A"),
    step("book", "B", "A"),
    Step("check", {"name": Ref("B", "thing")}, id="C", depends_on=("B",)),
    step("pack", "D", "A"),
    step("book_sync", "E", "C", "D"),
    step("book", "F", "A"),
]
_WRAPPED = ("E", "E.left", "E.right")


class First(Agent):
    """Books, and has a nested run book more."""

    def __init__(self, orchestrator: Orchestrator, *, nested_fails: bool) -> None:
        super().__init__(name="first")
        self._nested = (orchestrator, nested_fails)

    async def aforward(self, context: Any, task: str) -> dict[str, Any]:
        orchestrator, nested_fails = self._nested
        await self.ause("book", name="A")
        steps = [step("check", "N"), step("book", "M")]
        await orchestrator.run_saga([*steps, step("fail", "Z")] if nested_fails else steps)
        return {"first": "done"}

    def __deepcopy__(self, memo: Any) -> First:
        return self


class Left(Agent):
    """A sync agent."""

    def forward(self, context: Any, task: str) -> dict[str, Any]:
        self.use("book_sync", name="L")
        self.use("check", name="K")
        return {"left": "done"}


class Right(Agent):
    """Uses a tool that uses tools."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__(name="right")
        self._fails = fails

    async def aforward(self, context: Any, task: str) -> dict[str, Any]:
        await self.ause("wrap", name="R")
        if self._fails:
            await self.ause("fail", name="Z")
        return {"right": "done"}


class Last(Agent):
    """Makes one thing, and may fail after it."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__(name="last")
        self._fails = fails

    async def aforward(self, context: Any, task: str) -> dict[str, Any]:
        await self.ause("make", name="X")
        if self._fails:
            raise RuntimeError("the last agent has changed its mind")
        return {"last": "done"}


def _agents(*, fails: bool, branch_fails: bool = False) -> Body:
    async def body(orchestrator: Orchestrator) -> Any:
        both = Parallel([Left(), Right(fails=branch_fails)], on_error="collect" if branch_fails else "cancel")
        flow = Pipeline([First(orchestrator, nested_fails=branch_fails), both, Last(fails=fails)])
        try:
            return await orchestrator.run(flow, "go")
        except RuntimeError:
            if not fails:
                raise
            return None

    return body


_AGENTS_END = ("A", "N", "M", "L", "K", "R", "R.left", "R.right", "X")

SCENARIOS: dict[str, Scenario] = {
    "sequence": Scenario(_plan(SEQUENCE, fails=False), ("A", "B", "C", "D", *_WRAPPED)),
    "sequence, fails": Scenario(_plan(SEQUENCE, fails=True), ("A", "B", "C", "D", *_WRAPPED), fails=True),
    "groups": Scenario(_plan(GROUPS, fails=False), ("A", "B", "C", "D", "E", "F")),
    "groups, fail": Scenario(_plan(GROUPS, fails=True), ("A", "B", "C", "D", "E", "F"), fails=True),
    "DAG": Scenario(_plan(DAG, fails=False, dag=True), ("A", "B", "C", "D", "D.left", "D.right", "E", "F")),
    "DAG, fails": Scenario(_plan(DAG, fails=True, dag=True), (), fails=True),
    "agents": Scenario(_agents(fails=False), _AGENTS_END, resumable=False),
    "agents, fail": Scenario(_agents(fails=True), _AGENTS_END, fails=True, resumable=False),
    "agents, a branch fails": Scenario(
        _agents(fails=False, branch_fails=True), ("A", "L", "K", "X"), resumable=False
    ),
}  # fmt: skip


FAILS = (", fails", ", fail")


# -- one try -----------------------------------------------------------------------------------------------------------


@dataclass
class Ended:
    """How a child process ended, and what it had to say."""

    killed: bool
    seen: list[str]
    error: str | None
    results: list[dict[str, Any]]


def in_fork(folder: Path, kill_at: str | None, act: Callable[[Orchestrator], Awaitable[Any]], backend: str) -> Ended:
    """Do something with an orchestrator over a folder, in a process of its own that may be killed on the way."""
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        code = 1
        logging.disable()
        faulthandler.dump_traceback_later(120, exit=True)  # a try that hangs is a wrong one
        try:
            points = WORLD.points = Points(kill_at)
            WORLD.open(folder / "world.db")
            said: dict[str, Any] = {"error": None, "results": []}

            async def main() -> None:
                async with SqliteStorage(folder / "journal.db") as inner:
                    orchestrator = Orchestrator(storage=PointStorage(inner, points), tools=TOOLS)
                    results = await act(orchestrator)
                    if isinstance(results, SagaResult):
                        results = [results]
                    for result in results if isinstance(results, list) else []:
                        said["results"].append(
                            {
                                "run": result.run_id,
                                "status": result.status,
                                "stuck": [s.effect_id for s in result.stuck],
                            }
                        )

            try:
                anyio.run(main, backend=backend)
            except Exception:
                said["error"] = traceback.format_exc()
            answer.write_text(json.dumps({**said, "seen": points.seen}))
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return Ended(True, [], None, [])
    if not answer.exists():
        return Ended(False, [], f"the child ended with {status}", [])
    said = json.loads(answer.read_text())
    return Ended(False, said["seen"], said["error"], said["results"])


def in_memory() -> Path | None:
    """A folder on a file system in memory, where there is one: what dies here is a process, not the machine."""
    folder = Path("/dev/shm")
    return folder if os.access(folder, os.W_OK) else None


def copied(folder: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in folder.iterdir():
        if not file.name.endswith("-shm"):
            shutil.copyfile(file, target / file.name)
    return target


# -- what must be true afterwards --------------------------------------------------------------------------------------


def journals(folder: Path) -> dict[str, list[StoredRecord]]:
    """Every run's journal, read without the storage under test."""
    path = folder / "journal.db"
    found: dict[str, list[StoredRecord]] = {}
    if not path.exists():
        return found
    with closing(sqlite3.connect(path)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'records'").fetchone():
            return found
        for stream, position, data in connection.execute(
            "SELECT * FROM records WHERE stream LIKE 'run:%' ORDER BY stream, position"
        ):
            found.setdefault(stream, []).append(StoredRecord(stream, position, json.loads(data)))
    return found


def problems_of(folder: Path, scenario: Scenario, *, ended: Ended, resumed: bool) -> tuple[str, list[str]]:
    """What a folder looks like after recovery: a word for it, and everything that is wrong with it."""
    wrong: list[str] = []
    if ended.error is not None:
        wrong.append(f"recovery raised: {ended.error.strip().splitlines()[-1]}")
    world = World(folder / "world.db")
    names = world.names()
    runs = {stream: fold(stream, records) for stream, records in journals(folder).items()}
    if len(runs) > 1:
        wrong.append(f"{len(runs)} runs where there was one")
    wrong += _wrong_undos(world)
    for records in journals(folder).values():
        wrong += list(wrong_order(records))
    if not runs:
        return ("restored", wrong) if not names else ("wrong", [*wrong, f"no journal, and {names} are there"])
    (run,) = runs.values()
    for result in ended.results:
        stuck = sorted(s.effect.id for s in run.effects.values() if s.reason is not None and not s.settled)
        if result["status"] != run.status or sorted(result["stuck"]) != stuck:
            wrong.append(f"the result says {result}, the journal {run.status} {stuck}")
    outcome = _verdict(run, scenario, world, wrong, resumed=resumed)
    return ("wrong" if wrong else outcome), wrong


def _verdict(run: RunState, scenario: Scenario, world: World, wrong: list[str], *, resumed: bool) -> str:
    names = world.names()
    if run.status is None:
        wrong.append("the journal is still open")
    elif run.status == "success":
        if scenario.fails and scenario.end != ():
            wrong.append("it says success, and can't have succeeded")
        if len(names) != len(scenario.end) or (scenario.resumable is False and sorted(scenario.end) != names):
            wrong.append(f"it says success, and there are {names}")
        return "completed"
    elif run.status == "rolled_back":
        if names:
            wrong.append(f"it says rolled back, and {names} are there")
        return "restored"
    elif run.status == "failed":
        stuck = [s for s in run.effects.values() if s.reason is not None and not s.settled]
        if not stuck:
            wrong.append("it says failed, and nothing is stuck")
        for entry in stuck:
            if entry.effect.tool != "make" or not (entry.doubtful or entry.undoing):
                wrong.append(f"{entry.effect.tool} {entry.effect.id} is stuck without need: {entry.reason}")
        if unreported := [name for name in names if not any(_accounts_for(s, name) for s in stuck)]:
            wrong.append(f"{unreported} are there, and nobody says so")
        return "in doubt and reported"
    else:
        wrong.append(f"its status is {run.status}")
    return "wrong"


def _accounts_for(stuck: EffectState, name: str) -> bool:
    return bool(stuck.effect.arguments["name"] == name)


def _wrong_undos(world: World) -> Iterator[str]:
    for (thing, tool), count in Counter((d.id, d.tool) for d in world.log() if d.verb == "undo").items():
        if count > 1 and tool in ("uncheck", "unmake"):
            yield f"{tool} was called {count} times for {thing}"
    for doing in world.log():
        if doing.verb == "undo" and not doing.changed and doing.tool in ("uncheck", "unmake"):
            yield f"{doing.tool} undid what was not there: {doing.id}"
    done = Counter(d.id for d in world.log() if d.verb == "do" and d.changed)
    for thing, count in done.items():
        if count > 1 and not any(d.verb == "undo" and d.id == thing for d in world.log()):
            yield f"{thing} was made {count} times"


# -- the matrix --------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One line of the matrix."""

    name: str
    tried: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def count(self, where: str, outcome: str, wrong: list[str]) -> None:
        self.tried += 1
        self.outcomes[outcome] += 1
        self.wrong += [f"{self.name}: {where}: {problem}" for problem in wrong]


class Matrix:
    """Goes through the points of a scenario.

    Args:
        folder: Where worlds and journals are made.
        backend: The event loop of the children.
        every: Of the points at which a recovery is killed, try each ``every``-th; all are tried in turn over the
            points at which the run was killed.
        twice: Whether to try the points of a run that fails also where its twin that goes well has passed them.
    """

    def __init__(self, folder: Path, *, backend: str = "asyncio", every: int = 1, twice: bool = True) -> None:
        self.folder = folder
        self.backend = backend
        self.every = every
        self.twice = twice
        self.passed: dict[str, list[str]] = {}
        self.rows: list[Row] = []
        self._turn = 0

    def scenario(self, name: str) -> None:
        scenario = SCENARIOS[name]
        row, resumed, again = Row(name), Row(f"{name}; resumed"), Row(f"{name}; recovery killed")
        whole = self._fresh()
        dry = in_fork(whole, None, scenario.body, self.backend)
        row.count("nowhere", *problems_of(whole, scenario, ended=dry, resumed=False))
        self.passed[name] = dry.seen
        known = [] if self.twice else self.passed.get(name.partition(",")[0], [])
        for point in dry.seen:
            if name.endswith(FAILS) and point in known:
                continue
            crashed = self._fresh()
            first = in_fork(crashed, point, scenario.body, self.backend)
            if not first.killed:
                if first.error:
                    row.wrong.append(f"{name}: {point}: {first.error}")
                continue  # concurrent steps took another order, and this point was not passed
            seen = self._recovered(row, scenario, crashed, point)
            self._recovery_killed(again, scenario, crashed, point, seen, resume=False)
            if scenario.resumable:
                seen = self._resumed(resumed, scenario, crashed, point)
                self._recovery_killed(again, scenario, crashed, point, seen, resume=True)
            shutil.rmtree(crashed)
        self.rows += [row, *([resumed] if scenario.resumable else []), again]

    def _recovered(self, row: Row, scenario: Scenario, crashed: Path, point: str) -> list[str]:
        folder = copied(crashed, self.folder / "recovered")
        ended = in_fork(folder, None, lambda o: o.recover(), self.backend)
        row.count(point, *problems_of(folder, scenario, ended=ended, resumed=False))
        return ended.seen

    def _resumed(self, row: Row, scenario: Scenario, crashed: Path, point: str) -> list[str]:
        folder = copied(crashed, self.folder / "resumed")
        ended = in_fork(folder, None, lambda o: o.recover(resume=True), self.backend)
        outcome, wrong = problems_of(folder, scenario, ended=ended, resumed=True)
        row.count(point, outcome, wrong)
        for stream, records in journals(folder).items():
            state = fold(stream, records)
            if state.status == "success":
                if any(s.doubtful and not s.settled for s in state.effects.values()):
                    row.wrong.append(f"{row.name}: {point}: something is in doubt after success")
                undone = in_fork(
                    folder, None, lambda o, run=state.run_id: o.undo(run.removeprefix("run:")), self.backend
                )
                _, wrong = problems_of(folder, scenario, ended=undone, resumed=True)
                if World(folder / "world.db").names():
                    wrong.append("undone on purpose, and there are things")
                row.wrong += [f"{row.name}, undone after it: {point}: {problem}" for problem in wrong]
        return ended.seen

    def _recovery_killed(
        self, row: Row, scenario: Scenario, crashed: Path, point: str, seen: list[str], *, resume: bool
    ) -> None:
        for other in seen:
            self._turn += 1
            if self._turn % self.every:
                continue
            folder = copied(crashed, self.folder / "killed")
            second = in_fork(folder, other, lambda o: o.recover(resume=resume), self.backend)
            if not second.killed:
                if second.error or not resume:  # what is resumed may be concurrent, and pass other points each time
                    row.wrong.append(f"{row.name}: {point}: {other} was not passed: {second.error}")
                continue
            go_on = resume and self._turn % (2 * self.every) == 0
            third = in_fork(folder, None, lambda o, go_on=go_on: o.recover(resume=go_on), self.backend)
            row.count(f"{point}; {other}", *problems_of(folder, scenario, ended=third, resumed=go_on))

    def _fresh(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder))

    def __str__(self) -> str:
        words = ("completed", "restored", "in doubt and reported", "wrong")
        lines = [f"{'':36}{'tried':>7}" + "".join(f"{word:>24}" for word in words)]
        for row in self.rows:
            lines.append(f"{row.name:36}{row.tried:>7}" + "".join(f"{row.outcomes[word]:>24}" for word in words))
        total: Counter[str] = sum((row.outcomes for row in self.rows), Counter())
        lines.append(f"{'all':36}{sum(r.tried for r in self.rows):>7}" + "".join(f"{total[w]:>24}" for w in words))
        return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*", default=list(SCENARIOS))
    parser.add_argument("--backend", default="asyncio")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--once", action="store_true", help="try no point in a run that fails that its twin has passed")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    began = time.monotonic()
    for module in (f"anyio._backends._{options.backend}", "agenthelm.memory.backends.in_memory"):
        importlib.import_module(module)  # what every child would import for itself
    gc.freeze()  # or every child would copy the pages that its collections touch
    with tempfile.TemporaryDirectory(dir=options.folder or in_memory()) as folder:
        matrix = Matrix(Path(folder), backend=options.backend, every=options.every, twice=not options.once)
        for name in options.scenarios or SCENARIOS:
            matrix.scenario(name)
    print(matrix)
    print(f"{options.backend}, {time.monotonic() - began:.1f} s")
    wrong = [problem for row in matrix.rows for problem in row.wrong]
    for problem in wrong[:40]:
        print(f"WRONG {problem}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
