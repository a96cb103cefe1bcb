"""What a tool call costs over the bare call: run it with ``python tests/benchmarks/bench_tool.py``.

Bare and wrapped calls take turns in one process, in short blocks whose medians are compared. A machine that is shared
changes its speed by the second: *typical* is the median of the blocks, *quiet* the tenth of them that were disturbed least.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import platform
import pstats
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import anyio
import anyio.to_thread

from agenthelm._runtime.context import RunContext, StopMark, entered
from agenthelm.core.executor import ToolExecutor, current_executor
from agenthelm.core.storage import BaseStorage, InMemoryStorage, SqliteStorage
from agenthelm.core.tool import Tool, ToolContract, ToolRegistry
from agenthelm.orchestration.saga import saga

REGISTRY = ToolRegistry()
BLOCK = 100
"""Calls of one kind in a row."""


async def nothing(x: int) -> int:
    """Return what came."""
    return x


def nothing_sync(x: int) -> int:
    """Return what came."""
    return x


REGISTRY.register(nothing)
REGISTRY.register(nothing_sync)


def nap(x: float) -> None:
    """Wait as a network would."""
    time.sleep(x)


def compute(x: int) -> int:
    """Hold the GIL."""
    return sum(range(x))


async def timed(call: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Seconds of one call, and how much of that is this thread's processor time."""
    began, used = time.perf_counter(), time.thread_time()
    await call()
    return time.perf_counter() - began, time.thread_time() - used


async def overhead(rounds: int) -> dict[str, list[tuple[float, float, float]]]:
    """By kind and block of calls: seconds of the bare and the wrapped call, and the processor time between them.

    One bare call and one wrapped by turns, as no program calls a tool in a tight loop.
    """
    executor = ToolExecutor(REGISTRY, InMemoryStorage())
    context = RunContext(run_id="bench", session_id="s", namespace="n", stops=(StopMark(),))
    pairs = {
        "async": (lambda: nothing(1), lambda: executor.call("nothing", {"x": 1})),
        "sync": (
            lambda: anyio.to_thread.run_sync(nothing_sync, 1),
            lambda: executor.call("nothing_sync", {"x": 1}),
        ),
    }
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in pairs}
    with entered(context):
        for _ in range(rounds // BLOCK):
            for name, (bare, wrapped) in pairs.items():
                calls: tuple[list[tuple[float, float]], list[tuple[float, float]]] = ([], [])
                for _ in range(BLOCK):
                    calls[0].append(await timed(bare))
                    calls[1].append(await timed(wrapped))
                (before, idle), (after, busy) = (
                    [statistics.median(c) for c in zip(*side, strict=True)] for side in calls
                )
                found[name].append((before, after, busy - idle))
    return found


def told(blocks: list[tuple[float, float, float]]) -> str:
    """What blocks of calls say, typically and where it was quiet."""
    by_cost = sorted(blocks, key=lambda block: block[1] - block[0])
    words = []
    for name, (bare, wrapped, cpu) in (("typical", by_cost[len(by_cost) // 2]), ("quiet", by_cost[len(by_cost) // 10])):
        over = f"{(wrapped - bare) * 1e6:6.1f} us over {bare * 1e6:6.1f} us"
        words.append(f"{name} {over} ({cpu * 1e6:.1f} us of the processor's time)")
    return "   ".join(words)


async def cancel_many(count: int, folder: str | None) -> float:
    """Seconds from cancelling that many effects in flight to the end of all of them, none left begun."""
    flying = 0
    everywhere = anyio.Event()

    async def hang() -> None:
        nonlocal flying
        flying += 1
        if flying == count:
            everywhere.set()
        await anyio.sleep_forever()

    storage: BaseStorage = InMemoryStorage() if folder is None else SqliteStorage(Path(folder) / f"{time.time_ns()}.db")
    registry = ToolRegistry([Tool.from_function(hang, ToolContract(side_effects=("mail:send",)))])
    took = 0.0
    async with storage:
        async with saga("bench", tools=registry, storage=storage):
            executor = current_executor()
            assert executor is not None
            async with anyio.create_task_group() as group:
                for _ in range(count):
                    group.start_soon(executor.call, "hang", {})
                await everywhere.wait()
                began = time.perf_counter()
                group.cancel_scope.cancel()
            took = time.perf_counter() - began
        (stream,) = await storage.streams(prefix="run:")
        kinds = Counter(str(record.data["type"]) for record in await storage.read(stream.name))
        assert kinds["begin"] == kinds["finish"] == len(await storage.read("events")) == count
    return took


async def lag(kind: Literal["sleeping", "computing", "nothing"], seconds: float) -> float:
    """The 99th percentile of how late a 1 ms timer of the event loop is, beside busy tools; in seconds."""
    registry = ToolRegistry(
        [nap, Tool.from_function(compute, ToolContract(runs_in="process", side_effects=("cpu:read",)))]
    )
    executor = ToolExecutor(registry, InMemoryStorage())
    name, argument, count = (
        ("nap", 0.2, 64) if kind == "sleeping" else ("compute", 2_000_000, max(1, (os.cpu_count() or 2) - 1))
    )
    late: list[float] = []
    going = True

    async def work() -> None:
        while going:
            await executor.call(name, {"x": argument})

    async with anyio.create_task_group() as group:
        if kind != "nothing":
            for _ in range(count):
                group.start_soon(work)
            await anyio.sleep(1.0)  # processes start
        end = time.perf_counter() + seconds
        while (before := time.perf_counter()) < end:
            await anyio.sleep(0.001)
            late.append(time.perf_counter() - before - 0.001)
        going = False
    return statistics.quantiles(late, n=100)[98]


def profile(rounds: int) -> None:
    """Where the time of a no-op goes."""

    async def run() -> None:
        executor = ToolExecutor(REGISTRY, InMemoryStorage())
        with entered(RunContext(run_id="bench", session_id="s", namespace="n", stops=(StopMark(),))):
            for _ in range(rounds):
                await executor.call("nothing", {"x": 1})

    profiler = cProfile.Profile()
    profiler.enable()
    anyio.run(run)
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(14)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--profile", action="store_true", help="only say where the time of an async no-op goes")
    options = parser.parse_args()
    if options.profile:
        profile(10_000)
        return
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}"
    )
    for backend in ("asyncio", "trio"):
        for name, blocks in anyio.run(overhead, options.rounds, backend=backend).items():
            print(f"{backend:8} {name:5} {told(blocks)}")
        with tempfile.TemporaryDirectory() as folder:
            for where in (None, folder):
                took = sorted(anyio.run(cancel_many, 1000, where, backend=backend) * 1e3 for _ in range(5))
                print(
                    f"{backend:8} 1,000 effects in flight cancelled {(where and 'durably') or 'in memory'}: "
                    f"typical {took[2]:.0f} ms, quiet {took[0]:.0f} ms"
                )
        for kind, words in {
            "nothing": "beside nothing",
            "sleeping": "beside 64 sleeping sync tools",
            "computing": "beside tools that compute in processes on all other CPUs",
        }.items():
            print(f"{backend:8} loop lag p99 {anyio.run(lag, kind, 2.0, backend=backend) * 1e3:.1f} ms {words}")


if __name__ == "__main__":
    main()
