"""What a saga's step costs: over the bare call, over bare commits in the same folder, and beside DBOS and LangGraph.

Everything is measured in turns, so that the machine's moods fall on all alike. A machine that is shared
changes its speed by the second: *typical* is the median of the turns, *quiet* the tenth of them that were disturbed least.
Where commits are quick, the processor limits how much concurrent sagas gain; ``--slower-disk 1`` tells what they gain on a
disk whose commits take a millisecond longer.
DBOS and LangGraph take part where they can be imported
(``pip install dbos langgraph langgraph-checkpoint-sqlite aiosqlite``).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import logging
import multiprocessing
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import anyio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from agenthelm.core.storage import BaseStorage, InMemoryStorage, SqliteStorage
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step
from tests.benchmarks.slower_disk import rerun_on

TOOLS = ToolRegistry()
STEPS = 5
"""Steps of one saga where sagas are compared."""


async def bare(n: int) -> dict[str, int]:
    return {"n": n}


@tool(compensating_tool="take_back", side_effects=["number:write"], registry=TOOLS)
async def give(n: int) -> dict[str, int]:
    return {"n": n}


@tool(registry=TOOLS)
async def take_back(n: int) -> None: ...


def plan(count: int) -> list[Step]:
    return [Step("give", {"n": n}, id=f"s{n}") for n in range(count)]


async def one_saga(orchestrator: Orchestrator, steps: int) -> None:
    result = await orchestrator.run_saga(plan(steps))
    assert result.status == "success", result


def over(storage: BaseStorage) -> Orchestrator:
    return Orchestrator(storage=storage, tools=TOOLS)


async def at_once(count: int, task: Callable[[int], Awaitable[Any]]) -> None:
    async with anyio.create_task_group() as group:
        for n in range(count):
            group.start_soon(task, n)


# -- what is compared --------------------------------------------------------------------------------------------------


def typical_and_quiet(turns: list[float]) -> tuple[float, float]:
    """Of what each turn took."""
    turns = sorted(turns)
    return statistics.median(turns), turns[len(turns) // 10]


async def in_memory(turns: int, steps: int) -> tuple[float, float]:
    """Seconds of a plan's step over the log in memory, over the bare call: typical and quiet."""
    over_bare = []
    for _ in range(turns):
        start = time.perf_counter()
        for n in range(steps):
            await bare(n)
        between = time.perf_counter()
        await one_saga(over(InMemoryStorage()), steps)
        over_bare.append((time.perf_counter() - between - (between - start)) / steps)
    return typical_and_quiet(over_bare)


def bare_commits(path: Path, count: int) -> float:
    """Seconds per commit of one small row, WAL and ``synchronous=FULL``."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY, text TEXT)")
        times = []
        for _ in range(count):
            start = time.perf_counter()
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO t VALUES (NULL, ?)", ("x" * 300,))
            connection.execute("COMMIT")
            times.append(time.perf_counter() - start)
    return statistics.median(times)


async def durable(folder: Path, turns: int, steps: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Seconds per bare commit, and of a durable step over two of them, in turns in one folder: typical and quiet."""
    commits, over_two = [], []
    async with SqliteStorage(folder / "steps.db") as storage:
        await one_saga(over(storage), 5)
        orchestrator = over(storage)
        for _ in range(turns):
            commits.append(await anyio.to_thread.run_sync(bare_commits, folder / "bare.db", 2 * steps))
            start = time.perf_counter()
            await one_saga(orchestrator, steps)
            over_two.append((time.perf_counter() - start) / steps - 2 * commits[-1])
    return typical_and_quiet(commits), typical_and_quiet(over_two)


async def concurrency(folder: Path, turns: int) -> dict[int, list[float]]:
    """Durable steps per second by how many sagas run at once, in turns."""
    rate, close = await agenthelm_rate(folder)
    await rate(200)
    gc.collect()
    gc.freeze()
    found: dict[int, list[float]] = {count: [] for count in CONCURRENCY}
    for _ in range(turns):
        for count in CONCURRENCY:
            times = max(1, 20 // count)
            start = time.perf_counter()
            for _ in range(times):
                await rate(count)
            found[count].append(times * count * STEPS / (time.perf_counter() - start))
    await close()
    gc.unfreeze()
    return found


async def finished(folder: Path, count: int) -> tuple[float, float, float]:
    """Seconds per saga in a new file, in one that holds many finished ones, and to find that nothing is to recover."""

    async def few(orchestrator: Orchestrator) -> float:
        times = []
        for _ in range(30):
            start = time.perf_counter()
            await one_saga(orchestrator, 3)
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    async with SqliteStorage(folder / "finished.db") as storage:
        orchestrator = over(storage)
        fresh = await few(orchestrator)
        for _ in range(count // 200):
            await at_once(200, lambda _: one_saga(orchestrator, 3))
        later = await few(orchestrator)
        start = time.perf_counter()
        assert await orchestrator.recover() == []
        return fresh, later, time.perf_counter() - start


# -- the others --------------------------------------------------------------------------------------------------------

Rate = Callable[[int], Awaitable[None]]
"""Runs that many sagas of `STEPS` steps at once."""


async def agenthelm_rate(folder: Path) -> tuple[Rate, Callable[[], Awaitable[None]]]:
    storage = SqliteStorage(folder / "agenthelm.db")
    orchestrator = over(storage)
    return lambda count: at_once(count, lambda _: one_saga(orchestrator, STEPS)), storage.aclose


async def dbos_rate(folder: Path) -> tuple[Rate, Callable[[], Awaitable[None]]]:
    from dbos import DBOS

    DBOS(
        config={
            "name": "bench",
            "system_database_url": f"sqlite:///{folder / 'dbos.db'}",
            "run_admin_server": False,
            "log_level": "ERROR",
        }
    )

    @DBOS.step()
    async def give_step(n: int) -> dict[str, int]:
        return {"n": n}

    @DBOS.workflow()
    async def workflow(steps: int) -> None:
        for n in range(steps):
            await give_step(n)

    DBOS.launch()

    async def close() -> None:
        await asyncio.to_thread(DBOS.destroy)

    return lambda count: at_once(count, lambda _: workflow(STEPS)), close


def _graph() -> Any:
    from langgraph.graph import END, START, StateGraph

    builder = StateGraph(dict)
    names = [f"s{n}" for n in range(STEPS)]
    for n, name in enumerate(names):
        builder.add_node(name, _node(n))
    for before, after in zip([START, *names], [*names, END], strict=True):
        builder.add_edge(before, after)
    return builder


def _node(n: int) -> Callable[[dict[str, Any]], dict[str, int]]:
    return lambda state: {"n": n}


async def langgraph_rate(folder: Path) -> tuple[Rate, Callable[[], Awaitable[None]]]:
    from langgraph.checkpoint.sqlite import SqliteSaver

    connection = sqlite3.connect(folder / "langgraph.db", check_same_thread=False)
    graph = _graph().compile(checkpointer=SqliteSaver(connection))
    threads = ThreadPoolExecutor(16)
    numbers = iter(range(10**9))

    def one(thread: int) -> None:
        graph.invoke({"n": 0}, {"configurable": {"thread_id": str(thread)}}, durability="sync")

    async def rate(count: int) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(threads, one, next(numbers)) for _ in range(count)))

    async def close() -> None:
        threads.shutdown()
        connection.close()

    return rate, close


async def langgraph_async_rate(folder: Path) -> tuple[Rate, Callable[[], Awaitable[None]]]:
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    manager = AsyncSqliteSaver.from_conn_string(str(folder / "langgraph_async.db"))
    graph = _graph().compile(checkpointer=await manager.__aenter__())
    numbers = iter(range(10**9))

    async def one(_: int) -> None:
        config = {"configurable": {"thread_id": str(next(numbers))}}
        await graph.ainvoke({"n": 0}, config, durability="sync")

    async def close() -> None:
        await manager.__aexit__(None, None, None)

    return lambda count: at_once(count, one), close


ENGINES = {
    "AgentHelm (SqliteStorage)": ("agenthelm", agenthelm_rate),
    "DBOS (SQLite)": ("dbos", dbos_rate),
    "LangGraph (SqliteSaver)": ("langgraph.checkpoint.sqlite", langgraph_rate),
    "LangGraph (AsyncSqliteSaver)": ("langgraph.checkpoint.sqlite", langgraph_async_rate),
}
CONCURRENCY = (1, 10, 200)


def rates(folder: Path, rounds: int) -> dict[str, dict[int, float]]:
    """Durable steps per second by engine and by how many sagas run at once.

    The engines take turns. Each has a process of its own, as in a service: threads and modules of another one would
    cost it time.
    """
    start = multiprocessing.get_context("spawn")
    running: dict[str, Connection] = {}
    processes = []
    for name, (module, _) in ENGINES.items():
        if not _importable(module):
            print(f"{name}: not installed, left out")
            continue
        running[name], there = start.Pipe()
        processes.append(start.Process(target=_serve, args=(name, folder, there)))
        processes[-1].start()
        there.close()
        running[name].recv()
    found: dict[str, dict[int, list[float]]] = {name: {count: [] for count in CONCURRENCY} for name in running}
    for _ in range(rounds):
        for count in CONCURRENCY:
            for _ in range(max(1, 20 // count)):
                for name, engine in running.items():
                    engine.send(count)
                    found[name][count].append(count * STEPS / engine.recv())
    for engine in running.values():
        engine.send(0)
    for process in processes:
        process.join()
    return {n: {count: statistics.median(v) for count, v in by.items()} for n, by in found.items()}


def _serve(name: str, folder: Path, orders: Connection) -> None:
    """Run one engine: as many sagas at once as is asked for, and say how many seconds that took, until 0 are."""
    logging.disable()

    async def serve() -> None:
        rate, close = await ENGINES[name][1](folder)
        await rate(2)  # warm
        gc.collect()
        gc.freeze()
        orders.send(None)
        while count := orders.recv():
            start = time.perf_counter()
            await rate(count)
            orders.send(time.perf_counter() - start)
        await close()

    anyio.run(serve)


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


# -- the report --------------------------------------------------------------------------------------------------------


def machine(folder: Path) -> str:
    """The computer and the file system that the numbers belong to."""
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "?")
    mounts = [line.split()[1:3] for line in _lines("/proc/mounts")]
    inside = [(point, kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    kind = max(inside, key=lambda mount: len(mount[0]), default=("", "an unknown file system"))[1]
    return (
        f"{cpu}, {os.cpu_count()} cores; {platform.system()}, {kind}; Python {platform.python_version()} "
        f"({platform.python_build()[1]}), SQLite {sqlite3.sqlite_version}"
    )


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--finished", type=int, default=10_000, help="how many finished sagas the file holds")
    parser.add_argument("--folder", type=Path, help="where the files go; it decides which disk is measured")
    parser.add_argument("--slower-disk", type=float, metavar="MS", help="milliseconds that each commit takes longer")
    options = parser.parse_args()
    logging.disable()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.slower_disk:
            rerun_on(folder, milliseconds=options.slower_disk)
        print(machine(folder))
        for backend in ("asyncio", "trio"):
            typical, quiet = anyio.run(in_memory, 6 * options.rounds, 500, backend=backend)
            print(
                f"in memory, {backend:8} a step costs over the bare call: typical {typical * 1e6:6.1f} us, "
                f"quiet {quiet * 1e6:6.1f} us (goal: 100)"
            )
        commit, step = anyio.run(durable, folder, 3 * options.rounds, 100)
        print(f"one bare commit: typical {commit[0] * 1e3:.3f} ms, quiet {commit[1] * 1e3:.3f} ms")
        print(
            f"a durable step over two bare commits: typical {step[0] * 1e3:.3f} ms, quiet {step[1] * 1e3:.3f} ms (goal: 0.7)"
        )
        turns = anyio.run(concurrency, folder, 3 * options.rounds)
        for words, rate in {
            "typical": statistics.median,
            "quiet": lambda rates: sorted(rates, reverse=True)[len(rates) // 10],
        }.items():
            one, ten, many = (rate(turns[count]) for count in CONCURRENCY)
            print(
                f"durable steps per second, {words:7} one saga {one:.0f}; 10 at once {ten:.0f}, {ten / one:.1f} times "
                f"(goal: 3.5); 200 at once {many:.0f}, {many / one:.1f} times (goal: 5)"
            )
        found = rates(folder, max(3, options.rounds // 2))
        print(f"\n{'durable steps per second, sagas at once':42}" + "".join(f"{count:>10}" for count in CONCURRENCY))
        ours = next(iter(found.values()))
        for engine, by in found.items():
            print(f"{engine:42}" + "".join(f"{by[count]:>10.0f}" for count in CONCURRENCY))
            if by is not ours:
                print(f"{'  AgentHelm is faster by':42}" + "".join(f"{ours[c] / by[c]:>9.1f}x" for c in CONCURRENCY))
        if options.finished:
            fresh, later, recover = anyio.run(finished, folder, options.finished)
            print(
                f"\na saga of 3 steps: {fresh * 1e3:.2f} ms in a new file, {later * 1e3:.2f} ms beside {options.finished} "
                f"finished ones; to find nothing to recover there: {recover * 1e3:.2f} ms"
            )


if __name__ == "__main__":
    main()
