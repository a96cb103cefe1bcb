"""What metering and budgets add to one LM call: bare and metered calls in turn, in one process, by medians.

Run with ``python tests/benchmarks/bench_lm.py``. The model is an engine that answers at once, so what is measured is ours
and DSPy's alone.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import dspy
from dspy import lm15

from agenthelm._runtime.context import RunContext, entered
from agenthelm.agent.lm import lm_scope
from agenthelm.core.cost import Amount, Budget, Ledger, Price, TokenUsage
from agenthelm.core.executor import ToolExecutor, using
from agenthelm.core.storage.memory_storage import InMemoryStorage
from agenthelm.core.tool import ToolRegistry

ROUNDS = 1500
TARGET_US = 50.0


class Engine:
    """Answers at once."""

    price = Price(input=1e-6, output=2e-6, source="bench")
    nonblocking = True

    def complete(self, request: lm15.Request) -> lm15.Response:
        return lm15.Response(
            id="r", model=request.model, message=lm15.Message.assistant("[[ ## answer ## ]]\nyes"), finish_reason="stop",
            usage=lm15.Usage(input_tokens=300, output_tokens=20, total_tokens=320),
        )  # fmt: skip

    def close(self) -> None:
        """Nothing."""


class AsyncEngine:
    """Its twin."""

    any_backend = True

    async def complete(self, request: lm15.Request) -> lm15.Response:
        return Engine.complete(self, request)  # type: ignore[arg-type]

    async def aclose(self) -> None:
        """Nothing."""


async def compare(bare: Callable[[], Awaitable[Any]], metered: Callable[[], Awaitable[Any]]) -> tuple[float, float]:
    """The medians of both in microseconds, taken in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS + 50):
        for which, call in enumerate((bare, metered)):
            began = time.perf_counter()
            await call()
            if turn >= 50:
                times[which].append((time.perf_counter() - began) * 1e6)
    return statistics.median(times[0]), statistics.median(times[1])


async def main() -> dict[str, dict[str, float]]:
    lm = dspy.LM("bench/model", engine=Engine(), async_engine=AsyncEngine(), cache=False, num_retries=0, max_tokens=50)
    ledger = Ledger("run", Budget(usd=1e6, tokens=10**12, calls=10**9))
    agent = ledger.child("agent:a", Budget(usd=1e6))
    executor = ToolExecutor(ToolRegistry(), InMemoryStorage(), ledger=agent)
    context = RunContext("r", "s", "n", agent="a", stops=(ledger.stop,), loop=anyio.lowlevel.current_token())
    request = lm15.Request(
        model="bench/model",
        system="You fill in fields. " * 60,
        messages=(lm15.Message.user("[[ ## question ## ]]\nWhat is it?"),),
        config=lm15.Config(max_tokens=50),
    )
    program = dspy.Predict("question -> answer")
    results: dict[str, tuple[float, float]] = {}
    with entered(context), using(executor), dspy.context(disable_history=True):
        async with lm_scope(lm):
            run_lm = dspy.settings.lm
            engine, door = AsyncEngine(), run_lm.engine

            def within(chosen: dspy.LM) -> Callable[[], Any]:
                def body() -> Any:
                    with dspy.context(lm=chosen):
                        return program(question="What is it?")

                return body

            results["the engine alone"] = await compare(
                lambda: engine.complete(request), lambda: door.complete_async(request, executor)
            )
            results["await lm.acall(request)"] = await compare(lambda: lm.acall(request), lambda: run_lm.acall(request))
            results["Predict in a worker thread"] = await compare(
                lambda: executor.workers.run(within(lm)), lambda: executor.workers.run(within(run_lm))
            )
    return {
        name: {"bare_us": round(bare, 1), "metered_us": round(ours, 1), "added_us": round(ours - bare, 1)}
        for name, (bare, ours) in results.items()
    }


def books() -> float:
    """One reservation and its settlement under two budgets, in microseconds."""
    agent = Ledger("run", Budget(usd=1e6)).child("agent:a", Budget(tokens=10**12))
    usage = TokenUsage(input_tokens=300, output_tokens=20, model="m")
    began = time.perf_counter()
    for _ in range(20_000):
        agent.reserve(Amount(usd=0.001, tokens=400, calls=1)).settle(
            Amount(usd=0.0005, tokens=320, calls=1), usage=usage, agent="a"
        )
    return (time.perf_counter() - began) / 20_000 * 1e6


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    report = anyio.run(main)
    print(json.dumps({**report, "books": {"reserve_and_settle_us": round(books(), 1)}}, indent=2))
    added = report["the engine alone"]["added_us"]
    print(f"metering and budgets add {added:g} us to an LM call (target {TARGET_US:g})")
