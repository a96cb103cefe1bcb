"""What durability costs, and how long a million events take to answer.

Run it anywhere: ``python tests/benchmarks/bench_storage.py [--folder DIR] [--events N] [--backend asyncio|trio]``. Bare
SQLite commits and ours alternate in one run, so read the ratios; times move with the machine.
"""

from __future__ import annotations

import argparse
import os
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio

from agenthelm.core.storage import EVENTS, BaseStorage, Between, InMemoryStorage, JsonStorage, Record, SqliteStorage


def file_system(folder: Path) -> str:
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "unknown"
    found = [line.split()[1:3] for line in mounts.read_text().splitlines()]
    inside = [(mount, kind) for mount, kind in found if folder.is_relative_to(mount)]
    return max(inside, key=lambda pair: len(pair[0]))[1]


def event(n: int, source: random.Random) -> dict[str, Any]:
    """An event as the executor writes it: fields in the proportions of a busy service."""
    stamp = time.gmtime(1_700_000_000 + n)
    return {
        "id": f"e-{n:x}",
        "kind": "lm" if source.random() < 0.3 else "tool",
        "timestamp": f"{time.strftime('%Y-%m-%dT%H:%M:%S', stamp)}.{n % 10**6:06}+00:00",
        "tool_name": f"tool_{source.randrange(20)}",
        "inputs": {"query": "x" * 120},
        "outputs": {"result": "y" * 120},
        "execution_time": source.expovariate(2),
        "outcome": "failed" if source.random() < 0.05 else "denied" if source.random() < 1e-4 else "success",
        "estimated_cost_usd": source.random() / 100 if source.random() < 0.3 else 0.0,
        "agent_name": f"agent_{source.randrange(50)}",
        "session_id": f"session-{n // 100}",
        "namespace": "default" if source.random() < 0.9 else f"tenant-{source.randrange(100)}",
        "run_id": f"run-{n // 10}",
    }


def median_ms(times: list[float]) -> float:
    return statistics.median(times) * 1e3


async def timed(function: Callable[[], Awaitable[Any]]) -> float:
    start = time.perf_counter()
    await function()
    return time.perf_counter() - start


class BareCommits:
    """The least that a durable write can cost: one row, one ``synchronous=FULL`` commit in WAL."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("CREATE TABLE rows (data)")

    async def commit(self) -> None:
        self._connection.execute("INSERT INTO rows VALUES (?)", ("x" * 300,))


async def one_at_a_time(folder: Path, source: random.Random) -> None:
    bare = BareCommits(folder / "bare.db")
    storages: dict[str, BaseStorage] = {
        "memory": InMemoryStorage(),
        "sqlite": SqliteStorage(folder / "single.db"),
        "json": JsonStorage(folder / "single.jsonl"),
    }
    times: dict[str, list[float]] = {name: [] for name in ("bare", *storages)}
    for n in range(600):
        times["bare"].append(await timed(bare.commit))
        records = [Record("run:1", {"type": "finish", "n": n, "value": "x" * 200}), Record(EVENTS, event(n, source))]
        for name, storage in storages.items():
            times[name].append(await timed(lambda s=storage, r=records: s.append(r)))  # type: ignore[misc]
    for storage in storages.values():
        await storage.aclose()
    commit = median_ms(times["bare"])
    print(f"bare FULL commit in {file_system(folder)}: {commit:.3f} ms (two: {2 * commit:.3f})\n")
    print("one append at a time: a journal record and its event")
    for name in storages:
        cost = median_ms(times[name])
        print(f"  {name:8} {cost:8.4f} ms   {cost / commit:6.2f} of a bare commit   {cost / 2 / commit:6.2f} of two")


async def concurrent(folder: Path, source: random.Random) -> None:
    print("\nappends per second, by concurrent tasks (each waits for its append before the next)")
    for kind in (SqliteStorage, JsonStorage):
        rates: list[float] = []
        for tasks in (1, 10, 200):
            async with kind(folder / f"{kind.__name__}-{tasks}") as storage:

                async def work(task: int, storage: BaseStorage = storage, each: int = max(2_000 // tasks, 20)) -> None:
                    for n in range(each):
                        await storage.append([Record(f"run:{task}", {"n": n}), Record(EVENTS, event(n, source))])

                await storage.append([Record("warm", {})])
                start = time.perf_counter()
                async with anyio.create_task_group() as group:
                    for task in range(tasks):
                        group.start_soon(work, task)
                rates.append(tasks * max(2_000 // tasks, 20) / (time.perf_counter() - start))
        shown = "   ".join(
            f"{tasks} tasks {rate:7.0f}/s (x{rate / rates[0]:.1f})"
            for tasks, rate in zip((1, 10, 200), rates, strict=True)
        )
        print(f"  {kind.__name__:14} {shown}")


QUESTIONS: list[dict[str, Any]] = [
    {},
    {"run_id": "run-5"},
    {"run_id": "nobody"},
    {"agent_name": "agent_3"},
    {"tool_name": "tool_3"},
    {"outcome": "success"},
    {"outcome": "failed"},
    {"outcome": "denied"},
    {"kind": "lm"},
    {"session_id": "session-50"},
    {"namespace": "default"},
    {"namespace": "tenant-3"},
    {"timestamp": Between(low="2023-11-15")},
    {"timestamp": Between("2023-11-15", "2023-11-16")},
    {"timestamp": Between(high="2023-11-15")},
    {"timestamp": Between("2023-11-15T00:00:00", "2023-11-15T00:00:10")},
    {"timestamp": Between(low="2030")},
    {"execution_time": Between(low=0.1)},
    {"execution_time": Between(low=2.2)},
    {"execution_time": Between(low=2.4)},
    {"execution_time": Between(low=6)},
    {"execution_time": Between(low=1000)},
    {"estimated_cost_usd": Between(low=0.0001)},
    {"estimated_cost_usd": Between(low=0.00997)},
    {"estimated_cost_usd": Between(low=0.5)},
    {"tool_name": "tool_4", "timestamp": Between("2023-11-15", "2023-11-16")},
    {"agent_name": "agent_3", "execution_time": Between(low=3)},
    {"agent_name": "agent_3", "tool_name": "tool_4", "outcome": "failed"},
]


async def a_million(folder: Path, source: random.Random, events: int) -> None:
    path = folder / "million.db"
    async with SqliteStorage(path) as storage:
        start = time.perf_counter()
        for first in range(0, events, 5_000):
            await storage.append([Record(EVENTS, event(n, source)) for n in range(first, min(first + 5_000, events))])
        each = (time.perf_counter() - start) / events
        print(f"\n{events:,} events written in batches: {each * 1e6:.0f} us each, {path.stat().st_size / 1e6:.0f} MB")
    async with SqliteStorage(path) as storage:
        print(
            f"{'first':>9} {'median':>9} {'rows':>5}   50 events, newest first (and oldest first where that is dearer)"
        )
        for where in QUESTIONS:
            worst: tuple[float, float, int] = (0.0, 0.0, 0)
            for newest_first in (True, False):
                times: list[float] = []
                rows = 0
                for _ in range(5):
                    start = time.perf_counter()
                    rows = len(await storage.read(EVENTS, where=where, limit=50, newest_first=newest_first))
                    times.append(time.perf_counter() - start)
                worst = max(worst, (median_ms(times), times[0] * 1e3, rows))
            shown = ", ".join(f"{field}={wanted}" for field, wanted in where.items()) or "everything"
            print(f"{worst[1]:7.2f}ms {worst[0]:7.2f}ms {worst[2]:5}   {shown}")
        await open_runs(storage)


async def open_runs(storage: BaseStorage) -> None:
    await storage.append([Record(f"run:{n}", {}, "closed") for n in range(10_000)])
    await storage.append([Record("run:open", {}, "open")])
    times = [await timed(lambda: storage.streams(where={"state": "open"}, prefix="run:")) for _ in range(20)]
    print(f"\nopen runs among 10,000 finished ones: {median_ms(times):.2f} ms")


async def main(folder: Path, events: int) -> None:
    source = random.Random(1)
    print(f"SQLite {sqlite3.sqlite_version}, {os.cpu_count()} CPUs")
    await one_at_a_time(folder, source)
    await concurrent(folder, source)
    if events:
        await a_million(folder, source, events)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to write; the file system decides (default: temporary)")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--backend", default="asyncio")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        anyio.run(main, Path(name), options.events, backend=options.backend)
