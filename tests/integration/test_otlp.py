"""Telemetry over OTLP/HTTP, as a receiver that knows only the protocol sees it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from agenthelm.tracing import names, spans
from agenthelm.tracing.setup import configure
from tests.support.otlp_collector import Collector, attributes_of, otlp_collector
from tests.support.redis_server import free_port
from tests.support.telemetry import METRICS, foreign

SECRET = "hunter2-correct-horse"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with otlp_collector() as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        yield server


def test_a_collector_sees_agents_tools_tokens_and_cost(collector: Collector) -> None:
    with configure("otlp"), spans.workflow("trip", run_id="run-1", session_id="s") as run:
        with spans.agent("planner"):
            with spans.chat("gpt", provider="openai") as chat:
                chat.set(names.USAGE_INPUT, 100)
                chat.set(names.USAGE_OUTPUT, 20)
                chat.set(names.COST_USD, 0.5)
            with suppress(ValueError), spans.tool("book", call_id="c-1") as tool:
                tool.set(names.TOOL_ARGUMENTS, {"password": SECRET})
                raise ValueError(f"token={SECRET}")
        run.set(names.SAGA_STATUS, "success")
    received = collector.spans()
    assert set(received) == {"invoke_workflow trip", "invoke_agent planner", "chat gpt", "execute_tool book"}
    assert all(foreign(attributes_of(span)) == set() for span in received.values())
    assert attributes_of(received["chat gpt"]) == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt",
        "gen_ai.usage.input_tokens": 100, "gen_ai.usage.output_tokens": 20, "agenthelm.cost.usd": 0.5,
    }  # fmt: skip
    tool_span = received["execute_tool book"]
    assert tool_span.parent_span_id == received["invoke_agent planner"].span_id
    assert tool_span.status.code == tool_span.status.STATUS_CODE_ERROR
    assert tool_span.trace_id.hex() == run.ids[0]
    resource = attributes_of(collector.traces[0].resource_spans[0].resource)
    assert resource["service.name"] == "agenthelm"
    measured = {
        metric.name: metric.unit
        for request in collector.metrics
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert {name: measured.get(name) for name in METRICS} == METRICS
    assert SECRET.encode() not in b"".join(collector.raw)


def test_metrics_can_be_left_out(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    with configure("otlp"), spans.tool("t"):
        pass
    assert collector.spans()
    assert not collector.metrics


def _lost(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_unreachable_collector_costs_one_warning_and_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://user:{SECRET}@127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    telemetry = configure("otlp")
    for _ in range(3):
        with spans.tool("t"):
            pass
    began = time.monotonic()
    telemetry.shutdown()
    assert time.monotonic() - began < 25  # by itself the exporter would try for half a minute
    (warning,) = _lost(caplog)
    assert warning.name == "agenthelm.tracing.setup"
    assert f"127.0.0.1:{port}" in warning.getMessage()
    assert SECRET not in caplog.text


def test_a_silent_collector_does_not_hold_the_process_either(
    collector: Collector, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    collector.silent = True
    telemetry = configure("otlp")
    with spans.tool("t"):
        pass
    telemetry.shutdown(0.2)
    assert not collector.gave_up  # it is silent still
    assert len(_lost(caplog)) == 1


def test_a_collector_of_traces_alone_costs_one_warning_that_says_how_to_be_rid_of_it(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.refuses_metrics = True
    with configure("otlp"), spans.tool("t"):
        pass
    assert collector.spans()
    (warning,) = _lost(caplog)
    assert "metrics could not be delivered" in warning.getMessage()
    assert "OTEL_METRICS_EXPORTER=none" in warning.getMessage()


def test_a_collector_that_refuses_costs_one_warning(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    collector.status = 400
    with configure("otlp"):
        for _ in range(3):
            with spans.tool("t"):
                pass
    assert len(_lost(caplog)) == 1


def test_what_was_recorded_is_delivered_when_the_run_fails_or_is_interrupted(collector: Collector) -> None:
    program = """
        from agenthelm.tracing import spans
        from agenthelm.tracing.setup import configure
        with configure("otlp"), spans.workflow("w", run_id="r"):
            raise KeyboardInterrupt
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=False, capture_output=True, text=True, env=os.environ
    )
    assert "KeyboardInterrupt" in ran.stderr
    assert attributes_of(collector.spans()["invoke_workflow w"])["error.type"] == "KeyboardInterrupt"
