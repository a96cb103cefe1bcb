"""What a span site costs without an SDK, and what batch export adds to a run of tool calls.

Run it: ``python -m tests.benchmarks.bench_tracing``. Alternatives are interleaved in one process and medians compared;
numbers are ratios of that run, nothing is asserted.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable

import anyio
from opentelemetry import metrics, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from agenthelm.tracing import names, spans
from agenthelm.tracing.providers import use_providers

ROUNDS = 41
SITES = 5_000
CALLS = 1_000
TOOL_SECONDS = 0.001

assert metrics is not None  # both APIs imported, as in a process where a dependency has done so


def bare() -> None:
    """A no-op span of the API."""
    with _TRACER.start_as_current_span("execute_tool book_hotel"):
        pass


def site() -> None:
    """A span site of the library."""
    with spans.tool("book_hotel", call_id="c-1") as span:
        span.set(names.RETRY_COUNT, 1)


_TRACER = trace.get_tracer("bench")


def _microseconds(function: Callable[[], None]) -> float:
    began = time.perf_counter()
    for _ in range(SITES):
        function()
    return (time.perf_counter() - began) / SITES * 1e6


class _Nowhere(SpanExporter):
    """Takes spans as a quick collector would."""

    def export(self, spans: object) -> SpanExportResult:
        return SpanExportResult.SUCCESS


async def _calls() -> float:
    began = time.perf_counter()
    with spans.workflow("bench", run_id="run-1", session_id="s"):
        for number in range(CALLS):
            with spans.tool("book_hotel", call_id=f"c-{number}") as span:
                await anyio.sleep(TOOL_SECONDS)
                span.set(names.RETRY_COUNT, 0)
                span.set(names.OUTCOME, "success")
    return time.perf_counter() - began


async def _with_and_without(rounds: int) -> tuple[float, float]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_Nowhere()))
    without, with_sdk = [], []
    for _ in range(rounds):
        use_providers()
        without.append(await _calls())
        use_providers(provider)
        with_sdk.append(await _calls())
    use_providers()
    provider.shutdown()
    return statistics.median(without), statistics.median(with_sdk)


def main() -> None:
    """Print the table."""
    bare(), site()
    gc.collect()
    gc.disable()
    measured: dict[str, list[float]] = {"bare": [], "site": []}
    for _ in range(ROUNDS):
        measured["bare"].append(_microseconds(bare))
        measured["site"].append(_microseconds(site))
    gc.enable()
    api, ours = statistics.median(measured["bare"]), statistics.median(measured["site"])
    print(f"no SDK: API's no-op span {api:.2f} µs, span site with one attribute {ours:.2f} µs, ratio {ours / api:.2f}")
    for backend in ("asyncio", "trio"):
        without, with_sdk = anyio.run(_with_and_without, 5, backend=backend)
        print(
            f"{backend}: {CALLS} calls of a {TOOL_SECONDS * 1e3:g} ms tool {without:.3f} s, with the SDK and batch "
            f"export {with_sdk:.3f} s, ratio {with_sdk / without:.3f}"
        )


if __name__ == "__main__":
    main()
