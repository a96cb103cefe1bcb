"""What a tool call costs over the bare call: run it with ``python tests/benchmarks/bench_tool.py``.

Bare and wrapped calls are interleaved in one process and medians compared, because the machine drifts between runs.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import anyio
import anyio.to_thread

from agenthelm._runtime.context import RunContext, StopMark, entered
from agenthelm.core.executor import ToolExecutor
from agenthelm.core.storage.memory_storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry

REGISTRY = ToolRegistry()


async def nothing(x: int) -> int:
    """Return what came."""
    return x


def nothing_sync(x: int) -> int:
    """Return what came."""
    return x


REGISTRY.register(nothing)
REGISTRY.register(nothing_sync)


async def timed(call: Callable[[], Awaitable[object]], rounds: int) -> float:
    """Seconds per call, over some rounds."""
    began = time.perf_counter()
    for _ in range(rounds):
        await call()
    return (time.perf_counter() - began) / rounds


async def overhead(rounds: int, samples: int) -> dict[str, tuple[float, float]]:
    """Bare and wrapped seconds per call, by kind."""
    executor = ToolExecutor(REGISTRY, InMemoryStorage())
    context = RunContext(run_id="bench", session_id="s", namespace="n", stops=(StopMark(),))
    pairs = {
        "async": (lambda: nothing(1), lambda: executor.call("nothing", {"x": 1})),
        "sync": (
            lambda: anyio.to_thread.run_sync(nothing_sync, 1),
            lambda: executor.call("nothing_sync", {"x": 1}),
        ),
    }
    found = {}
    with entered(context):
        for name, (bare, wrapped) in pairs.items():
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(samples):
                times[0].append(await timed(bare, rounds))
                times[1].append(await timed(wrapped, rounds))
            found[name] = (statistics.median(times[0]), statistics.median(times[1]))
    return found


async def cancel_many(count: int) -> float:
    """Seconds from cancelling that many tools in flight to the end of all of them."""

    async def hang() -> None:
        await anyio.sleep_forever()

    registry = ToolRegistry([hang])
    storage = InMemoryStorage()
    executor = ToolExecutor(registry, storage)
    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(executor.call, "hang", {})
        await anyio.wait_all_tasks_blocked()
        began = time.perf_counter()
        group.cancel_scope.cancel()
    took = time.perf_counter() - began
    events = await storage.read("events")
    assert len(events) == count
    return took


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--samples", type=int, default=25)
    options = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, {platform.system()}")
    for backend in ("asyncio", "trio"):
        for name, (bare, wrapped) in anyio.run(overhead, options.rounds, options.samples, backend=backend).items():
            print(
                f"{backend:8} {name:5} bare {bare * 1e6:7.1f} us   contract {wrapped * 1e6:7.1f} us   "
                f"over {(wrapped - bare) * 1e6:6.1f} us"
            )
        took = anyio.run(cancel_many, 1000, backend=backend)
        print(f"{backend:8} 1,000 tools in flight cancelled in {took * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
