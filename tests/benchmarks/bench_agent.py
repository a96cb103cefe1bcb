"""What an agent step costs over a bare coroutine: ``python tests/benchmarks/bench_agent.py [--steps 10000]``.

One run walks that many steps of an agent that does nothing, async and sync, in memory. Bare and wrapped steps are
interleaved in blocks and the medians of the blocks compared, because the machine drifts.
"""

from __future__ import annotations

import argparse
import functools
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import anyio
import anyio.to_thread

from agenthelm.agent.base import Agent
from agenthelm.orchestration.orchestrator import Orchestrator

BLOCKS = 20


class Nothing(Agent):
    """Does nothing, awaited."""

    async def aforward(self, context: Any, task: str) -> dict[str, str]:
        return {"text": task}


class NothingInThread(Agent):
    """Does nothing, in a worker thread."""

    def forward(self, context: Any, task: str) -> dict[str, str]:
        return {"text": task}


async def bare(task: str) -> dict[str, str]:
    """What the async step is compared with."""
    return {"text": task}


def bare_in_thread(task: str) -> dict[str, str]:
    """What the sync step is compared with."""
    return {"text": task}


async def block(call: Callable[[], Awaitable[object]], steps: int) -> float:
    """Seconds per step."""
    began = time.perf_counter()
    for _ in range(steps):
        await call()
    return (time.perf_counter() - began) / steps


class Walk:
    """A flow that takes many steps of one agent, and as many bare ones."""

    name = "walk"

    def __init__(self, agent: Agent, other: Callable[[], Awaitable[object]], steps: int) -> None:
        self._agent, self._other, self._steps = agent, other, steps
        self.times: list[tuple[float, float]] = []

    async def run(self, context: Any, /, task: str) -> dict[str, Any]:
        """Time both, in turn."""
        step = functools.partial(self._agent.run, context, task=task)
        for _ in range(BLOCKS):
            size = self._steps // BLOCKS
            self.times.append((await block(self._other, size), await block(step, size)))
        return {}


async def measure(steps: int) -> None:
    """Print one line for each kind of agent."""
    cases: list[tuple[str, Agent, Callable[[], Awaitable[object]]]] = [
        ("async", Nothing(), functools.partial(bare, "x")),
        ("sync", NothingInThread(), functools.partial(anyio.to_thread.run_sync, bare_in_thread, "x")),
    ]
    for name, agent, other in cases:
        walk = Walk(agent, other, steps)
        async with Orchestrator() as orchestrator:
            began = time.perf_counter()
            await orchestrator.run(walk, "x")
            took = time.perf_counter() - began
        plain, wrapped = (statistics.median(column) for column in zip(*walk.times, strict=True))
        print(
            f"  {name:5} bare {plain * 1e6:6.1f} us   step {wrapped * 1e6:6.1f} us   over {(wrapped - plain) * 1e6:6.1f} us"
            f"   ({steps} of each in {took:.2f} s)"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=10_000)
    options = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, {platform.system()}")
    for backend in ("asyncio", "trio"):
        print(backend)
        anyio.run(measure, options.steps, backend=backend)


if __name__ == "__main__":
    main()
