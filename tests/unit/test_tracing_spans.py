"""Spans and metrics: names, parents, errors, content, and next to nothing where nobody listens."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from pydantic import SecretStr

from agenthelm.tracing import context, names, spans
from agenthelm.tracing.calls import describe
from agenthelm.tracing.tracer import AgentHelmTracer
from tests.support.telemetry import CONVENTIONS, METRICS, Recorded, foreign, recorded

SECRET = "hunter2-correct-horse"


@pytest.fixture
def telemetry() -> Iterator[Recorded]:
    with recorded() as made:
        yield made


@pytest.fixture
def content(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(names.CAPTURE_CONTENT, "SPAN_ONLY")


VERBS: dict[str, Any] = {
    "invoke_workflow trip": lambda: spans.workflow("trip", run_id="r", session_id="s", namespace="n"),
    "invoke_agent planner": lambda: spans.agent("planner", description="Plans.", session_id="s"),
    "execute_tool book": lambda: spans.tool("book", call_id="c"),
    "chat gpt": lambda: spans.chat("gpt", provider="openai", server_address="api", server_port=443, session_id="s"),
    "embeddings ada": lambda: spans.embeddings("ada", provider="openai"),
    "search_memory": lambda: spans.memory("recall", store="semantic"),
    "upsert_memory": lambda: spans.memory("write", store="short_term"),
}


@pytest.mark.parametrize("name", VERBS)
def test_each_verb_makes_a_span_of_the_conventions(telemetry: Recorded, name: str) -> None:
    with VERBS[name]():
        pass
    span = telemetry.span(name)
    assert span.attributes is not None
    assert span.attributes[names.OPERATION_NAME] == name.split()[0]
    assert span.kind is (SpanKind.CLIENT if name.split()[0] in {"chat", "embeddings"} else SpanKind.INTERNAL)
    assert span.status.status_code is StatusCode.UNSET
    assert foreign(span.attributes) == set()
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "agenthelm"
    assert span.instrumentation_scope.schema_url == "https://opentelemetry.io/schemas/1.41.1"


def test_what_a_sampler_decides_by_is_there_from_the_start(telemetry: Recorded) -> None:
    with VERBS["chat gpt"]():
        current = trace.get_current_span()
        assert isinstance(current, ReadableSpan)
        assert dict(current.attributes or {}) == {
            "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt",
            "server.address": "api", "server.port": 443, "gen_ai.conversation.id": "s",
        }  # fmt: skip


def test_every_name_in_the_table_is_a_convention_s_or_ours() -> None:
    attributes = {
        value
        for key, value in vars(names).items()
        if key.isupper()
        and isinstance(value, str)
        and "." in value
        and not key.startswith(("METRIC_", "SCHEMA", "CONV"))
    }
    assert len(attributes) > 50
    assert foreign(attributes) == set()
    ours = {value for key, value in vars(names).items() if key.startswith("METRIC_")}
    assert {name for name in ours if not name.startswith("agenthelm.")} == set(METRICS)
    assert attributes >= set(names.BESIDE)
    assert set(names.BESIDE.values()) <= CONVENTIONS


def test_spans_nest_and_share_a_trace(telemetry: Recorded) -> None:
    with spans.workflow("w", run_id="r") as outer, spans.agent("a") as inner, spans.tool("t"):
        assert outer.ids[0] == inner.ids[0]
    workflow, agent, tool = (telemetry.span(name) for name in ("invoke_workflow w", "invoke_agent a", "execute_tool t"))
    assert workflow.parent is None
    assert agent.parent == workflow.context
    assert tool.parent == agent.context


async def test_parents_are_right_across_tasks_and_worker_threads(telemetry: Recorded) -> None:
    def in_thread() -> None:
        with spans.tool("threaded"):
            anyio.from_thread.run(in_loop)

    async def in_loop() -> None:
        with spans.memory("read"):
            await anyio.lowlevel.checkpoint()

    async def branch(name: str) -> None:
        with spans.agent(name):
            await anyio.to_thread.run_sync(in_thread)

    with spans.workflow("w", run_id="r"):
        async with anyio.create_task_group() as group:
            group.start_soon(branch, "one")
            group.start_soon(branch, "two")
    by_id = {span.context.span_id: span for span in telemetry.spans if span.context}
    chains = []
    for span in telemetry.spans:
        if span.name == "read_memory":
            chain = [span.name]
            above = span
            while above.parent is not None:
                above = by_id[above.parent.span_id]
                chain.append(above.name)
            chains.append(chain)
    assert sorted(chains) == [
        ["read_memory", "execute_tool threaded", f"invoke_agent {name}", "invoke_workflow w"] for name in ("one", "two")
    ]
    assert len({span.context.trace_id for span in telemetry.spans if span.context}) == 1


def test_an_error_marks_every_span_it_leaves(telemetry: Recorded) -> None:
    with pytest.raises(LookupError), spans.workflow("w", run_id="r"), spans.tool("t"):
        raise LookupError("nothing there")
    for span in telemetry.spans:
        assert span.status.status_code is StatusCode.ERROR
        assert span.status.description == "nothing there"
        assert (span.attributes or {})["error.type"] == "LookupError"
        (event,) = span.events
        assert dict(event.attributes or {}) == {"exception.type": "LookupError", "exception.message": "nothing there"}


def test_an_error_that_was_handled_can_be_told(telemetry: Recorded) -> None:
    with spans.tool("t") as span:
        span.fail(TimeoutError())
    failed = telemetry.span("execute_tool t")
    assert (failed.attributes or {})["error.type"] == "TimeoutError"
    assert failed.status.description == "TimeoutError"  # its message is empty


def test_a_failure_may_be_a_text(telemetry: Recorded) -> None:
    with spans.tool("t") as span:
        span.fail("refused")
    assert (telemetry.span("execute_tool t").attributes or {})["error.type"] == "_OTHER"


def test_our_own_errors_are_named_in_full(telemetry: Recorded) -> None:
    from agenthelm.exceptions import ToolTimeoutError

    with pytest.raises(ToolTimeoutError), spans.tool("t"):
        raise ToolTimeoutError("t", 1.0)
    assert (telemetry.span("execute_tool t").attributes or {})["error.type"] == "agenthelm.exceptions.ToolTimeoutError"


def test_an_error_whose_str_fails_does_not_hide_itself(telemetry: Recorded) -> None:
    class HostileError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    with pytest.raises(HostileError), spans.tool("t"):
        raise HostileError
    assert telemetry.span("execute_tool t").status.description == "HostileError"


async def test_a_cancelled_span_says_so_on_every_backend(telemetry: Recorded) -> None:
    with anyio.CancelScope() as scope, spans.tool("t"):
        scope.cancel()
        await anyio.sleep(1)
    span = telemetry.span("execute_tool t")
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "cancelled"


def test_an_interrupt_is_no_cancellation(telemetry: Recorded) -> None:
    with pytest.raises(KeyboardInterrupt), spans.tool("t"):
        raise KeyboardInterrupt
    assert (telemetry.span("execute_tool t").attributes or {})["error.type"] == "KeyboardInterrupt"


def test_newer_names_stand_beside_the_tagged_ones(telemetry: Recorded) -> None:
    with spans.chat("m") as span:
        span.set(names.USAGE_CACHE_CREATION, 5)
    attributes = telemetry.span("chat m").attributes or {}
    assert attributes["gen_ai.usage.cache_creation.input_tokens"] == 5
    assert attributes["gen_ai.usage.cache_write.input_tokens"] == 5


def test_values_become_what_opentelemetry_takes(telemetry: Recorded) -> None:
    with spans.chat("m") as span:
        span.set(names.RESPONSE_FINISH_REASONS, ["stop"])
        span.set("agenthelm.nothing", None)
        span.set("agenthelm.mapping", {"a": 1})
        span.set("agenthelm.flag", True)
    attributes = telemetry.span("chat m").attributes or {}
    assert attributes[names.RESPONSE_FINISH_REASONS] == ("stop",)
    assert attributes["agenthelm.mapping"] == '{"a": 1}'
    assert attributes["agenthelm.flag"] is True
    assert "agenthelm.nothing" not in attributes


def test_a_compensation_links_to_what_it_undoes_and_a_recovery_to_the_first_run(telemetry: Recorded) -> None:
    with spans.tool("book") as booked:
        stored = booked.ids
    with (
        spans.workflow("undo", run_id="r", links=[(*stored, "continues")]),
        spans.tool(
            "cancel", links=[(*stored, "undoes"), (None, None, "undoes"), ("zz", "1", "undoes"), ("0" * 32, "0" * 16)]
        ),
    ):
        pass
    for name, kind in (("execute_tool cancel", "undoes"), ("invoke_workflow undo", "continues")):
        (link,) = telemetry.span(name).links
        assert (f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}") == stored
        assert dict(link.attributes or {}) == {"agenthelm.link": kind}


def test_a_web_request_s_trace_continues_into_the_run_and_out_again(telemetry: Recorded) -> None:
    headers = {"TraceParent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"}
    with context.extract(headers), spans.workflow("w", run_id="r") as span:
        assert span.ids[0] == "a" * 32
        assert context.inject() == {"traceparent": f"00-{'a' * 32}-{span.ids[1]}-01"}
        assert context.inject({"x": "y"})["x"] == "y"
    parent = telemetry.span("invoke_workflow w").parent
    assert parent is not None
    assert f"{parent.span_id:016x}" == "b" * 16
    with context.extract({"traceparent": "nonsense"}), spans.workflow("v", run_id="r") as span:
        assert span.ids[0] != "a" * 32
    assert context.inject() == {}


@pytest.mark.parametrize("setting", [None, "", "NO_CONTENT", "EVENT_ONLY", "false"])
def test_content_stays_out_unless_opted_in(
    telemetry: Recorded, monkeypatch: pytest.MonkeyPatch, setting: str | None
) -> None:
    if setting is not None:
        monkeypatch.setenv(names.CAPTURE_CONTENT, setting)
    with spans.tool("t") as span:
        for key in names.CONTENT:
            span.set(key, "what people wrote")
    assert "what people wrote" not in telemetry.span("execute_tool t").to_json()
    assert not spans.captures_content()


@pytest.mark.parametrize("setting", ["SPAN_ONLY", "span_and_event", "true"])
def test_content_is_recorded_as_json_when_opted_in(
    telemetry: Recorded, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv(names.CAPTURE_CONTENT, setting)
    with spans.tool("t") as span:
        span.set(names.TOOL_ARGUMENTS, {"city": "Évora"})
        span.set(names.TOOL_RESULT, "booked")
    attributes = telemetry.span("execute_tool t").attributes or {}
    assert attributes["gen_ai.tool.call.arguments"] == '{"city": "Évora"}'
    assert attributes["gen_ai.tool.call.result"] == "booked"


def test_secrets_reach_no_exporter_even_with_content(telemetry: Recorded, content: None) -> None:
    with suppress(ValueError), spans.tool("t") as span:
        span.set(names.TOOL_DESCRIPTION, f"uses https://u:{SECRET}@h/")
        span.set(names.TOOL_ARGUMENTS, {"password": SECRET, "deep": [{"api_key": SECRET}], "s": SecretStr(SECRET)})
        span.set(names.TOOL_RESULT, f"https://user:{SECRET}@example.org/")
        span.set(names.INPUT_MESSAGES, [{"role": "user", "content": f"my api_key={SECRET}"}])
        span.set("agenthelm.note", f"Bearer {SECRET}")
        span.set("agenthelm.notes", [f"token={SECRET}"])
        raise ValueError(f"401 for Authorization: Bearer {SECRET}")
    shown = telemetry.span("execute_tool t").to_json()
    assert SECRET not in shown
    assert shown.count("***") >= 8


def test_a_span_says_which_budget_refused_its_call(telemetry: Recorded) -> None:
    from agenthelm.exceptions import BudgetExceededError

    with suppress(BudgetExceededError), spans.chat("m"):
        raise BudgetExceededError(scope="run", resource="usd", limit=0.5, spent=0.4, requested=0.2)
    attributes = telemetry.span("chat m").attributes or {}
    assert {key: value for key, value in attributes.items() if ".budget." in key} == {
        "agenthelm.budget.scope": "run",
        "agenthelm.budget.resource": "usd",
        "agenthelm.budget.limit": 0.5,
        "agenthelm.budget.spent": 0.4,
    }


_EVENT = {
    "kind": "tool", "outcome": "success", "retry_count": 0, "late": False, "run_id": "r", "session_id": "s",
    "namespace": "n", "agent_name": "a", "step": None, "effect_id": "e-1", "compensates": "e-0",
    "estimated_cost_usd": 0.05, "inputs": {"city": "Lisbon"}, "outputs": {"result": {"id": 1}},
}  # fmt: skip


def test_a_span_tells_what_its_event_tells(telemetry: Recorded) -> None:
    with spans.tool("t") as span:
        describe(span, _EVENT)
    attributes = dict(telemetry.span("execute_tool t").attributes or {})
    for key in ("gen_ai.operation.name", "gen_ai.tool.name", "gen_ai.tool.type"):
        del attributes[key]
    assert attributes == {
        "agenthelm.outcome": "success", "agenthelm.retry.count": 0, "agenthelm.run.id": "r", "gen_ai.conversation.id": "s",
        "agenthelm.namespace": "n", "gen_ai.agent.name": "a", "agenthelm.effect.id": "e-1",
        "agenthelm.saga.compensates": "e-0", "agenthelm.cost.usd": 0.05,
    }  # fmt: skip


def test_a_span_tells_its_event_s_content_when_opted_in(telemetry: Recorded, content: None) -> None:
    with spans.tool("t") as span:
        describe(span, _EVENT)
    attributes = telemetry.span("execute_tool t").attributes or {}
    assert attributes["gen_ai.tool.call.arguments"] == '{"city": "Lisbon"}'
    assert attributes["gen_ai.tool.call.result"] == '{"id": 1}'


def test_the_facade_makes_the_same_spans(telemetry: Recorded, content: None) -> None:
    class Planner:
        name = "planner"
        description = "Plans."

    tracer = AgentHelmTracer()
    with tracer.trace_agent(Planner(), {"task": "x", "password": SECRET}) as span, tracer.trace_memory_op("read", "k"):
        span.set("agenthelm.x", 1)
    with tracer.trace_agent("writer"), tracer.trace_memory_op("recall"):
        pass
    attributes = telemetry.span("invoke_agent planner").attributes or {}
    assert attributes["gen_ai.agent.description"] == "Plans."
    assert attributes["agenthelm.input"] == '{"task": "x", "password": "***"}'
    assert (telemetry.span("read_memory").attributes or {})["agenthelm.memory.key"] == "k"
    assert telemetry.span("invoke_agent writer").parent is None


def test_the_facade_names_its_service_where_it_is_another_one(telemetry: Recorded) -> None:
    with AgentHelmTracer(service_name="planning").trace_agent("planner"), AgentHelmTracer().trace_agent("writer"):
        pass
    assert (telemetry.span("invoke_agent planner").attributes or {})["agenthelm.service.name"] == "planning"
    assert "agenthelm.service.name" not in (telemetry.span("invoke_agent writer").attributes or {})


def test_durations_tokens_cost_sagas_and_approvals_are_measured(telemetry: Recorded) -> None:
    with spans.workflow("w", run_id="r") as workflow, spans.agent("a"):
        with spans.chat("m", provider="p") as chat:
            chat.set(names.USAGE_INPUT, 100)
            chat.set(names.USAGE_OUTPUT, 20)
            chat.set(names.COST_USD, 0.5)
        with suppress(ValueError), spans.tool("t") as tool:
            tool.set(names.APPROVAL_OUTCOME, "approved")
            tool.set(names.APPROVAL_WAIT, 1.5)
            raise ValueError
        workflow.set(names.SAGA_STATUS, "success")
        workflow.set(names.COST_USD, 0.5)
    metrics = telemetry.metrics()
    for name, unit in METRICS.items():
        assert metrics[name].unit == unit
    for name in ("agenthelm.cost", "agenthelm.sagas", "agenthelm.approvals", "agenthelm.approval.wait"):
        assert name in metrics
    for metric in metrics.values():
        for point in metric.data.data_points:
            assert foreign(point.attributes) == set()
            assert not {"agenthelm.run.id", "gen_ai.conversation.id"} & set(point.attributes)
    tokens = {point.attributes["gen_ai.token.type"]: point for point in telemetry.points("gen_ai.client.token.usage")}
    assert (tokens["input"].sum, tokens["output"].sum) == (100, 20)
    assert tokens["input"].explicit_bounds == tuple(4.0**power for power in range(14))
    assert tokens["input"].attributes["gen_ai.provider.name"] == "p"
    (duration,) = telemetry.points("gen_ai.client.operation.duration")
    assert duration.explicit_bounds[0] == 0.01
    assert duration.explicit_bounds[-1] == pytest.approx(81.92)
    (failed,) = telemetry.points("gen_ai.execute_tool.duration")
    assert failed.attributes["error.type"] == "ValueError"
    assert sum(point.value for point in telemetry.points("agenthelm.cost")) == 0.5  # not once more for the run
    (saga,) = telemetry.points("agenthelm.sagas")
    assert (saga.value, saga.attributes["agenthelm.saga.status"]) == (1, "success")
    (approval,) = telemetry.points("agenthelm.approvals")
    assert approval.attributes["agenthelm.approval.outcome"] == "approved"
    assert telemetry.points("agenthelm.approval.wait")[0].sum == 1.5


def test_measurements_need_no_tracing() -> None:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from agenthelm.tracing.providers import use_providers

    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    use_providers(None, meters)
    try:
        with spans.tool("t") as span:
            span.set(names.APPROVAL_OUTCOME, "denied")
            span.fail("no")
            assert (span.recording, span.ids) == (False, (None, None))
        data = reader.get_metrics_data()
        assert data is not None
        assert "gen_ai.execute_tool.duration" in data.to_json()
    finally:
        use_providers()
        meters.shutdown()


def test_spans_that_are_not_sampled_cost_no_attributes() -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    from agenthelm.tracing.providers import use_providers

    use_providers(TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False))
    try:
        with suppress(ValueError), spans.tool("t") as span:
            assert not span.recording
            span.set(names.TOOL_ARGUMENTS, object())
            raise ValueError
    finally:
        use_providers()


def test_without_an_sdk_there_is_one_shared_handle_that_does_nothing() -> None:
    with spans.tool("t") as one, spans.chat("m") as other:
        assert one is other
        one.set(names.TOOL_ARGUMENTS, object())
        one.fail(ValueError())
        describe(one, {})
        assert (one.recording, one.ids) == (False, (None, None))


def test_without_an_sdk_a_caller_s_trace_is_still_known() -> None:
    with context.extract({"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"}), spans.tool("t") as span:
        assert span.ids == ("a" * 32, "b" * 16)


def test_a_caller_s_span_that_knows_nothing_of_itself_is_none() -> None:
    class Broken(trace.NonRecordingSpan):
        def get_span_context(self) -> trace.SpanContext:
            raise ZeroDivisionError

    with trace.use_span(Broken(trace.INVALID_SPAN_CONTEXT)), spans.tool("t") as span:
        assert span.ids == (None, None)


_FRESH = {
    "nothing of OpenTelemetry is imported by a span without a provider": """
        import sys
        from agenthelm.tracing import spans
        from agenthelm.tracing.tracer import AgentHelmTracer
        with spans.workflow("w", run_id="r"), AgentHelmTracer().trace_agent("a", {}):
            pass
        assert not [name for name in sys.modules if name.startswith("opentelemetry")]
    """,
    "a host that sets its global provider late is found, and left alone": """
        from opentelemetry import metrics, trace
        from agenthelm.tracing import spans
        with spans.tool("early") as span:
            assert span.ids == (None, None)
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        provider, exporter = TracerProvider(), InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
        with provider.get_tracer("host").start_as_current_span("request"), spans.tool("late") as span:
            assert span.ids[0] is not None
        late, request = exporter.get_finished_spans()
        assert late.parent == request.context
        assert trace.get_tracer_provider() is provider
    """,
    "a provider that the environment names is loaded by the first span": """
        import os
        os.environ["OTEL_PYTHON_TRACER_PROVIDER"] = "sdk_tracer_provider"
        from agenthelm.tracing import spans
        with spans.tool("t") as span:
            assert span.recording
    """,
    "configure() touches no global provider, and a host's spans stay its own": """
        from opentelemetry import metrics, trace
        from agenthelm.tracing import spans
        from agenthelm.tracing.setup import configure
        before = trace.get_tracer_provider(), metrics.get_meter_provider()
        with configure("console") as telemetry:
            with spans.tool("t") as span:
                assert span.recording
        assert (trace.get_tracer_provider(), metrics.get_meter_provider()) == before
        with spans.tool("t") as span:
            assert not span.recording
    """,
}


@pytest.mark.parametrize("name", _FRESH)
def test_in_a_fresh_process(name: str) -> None:
    import textwrap

    ran = subprocess.run(
        check=False,
        args=[sys.executable, "-W", "error", "-c", textwrap.dedent(_FRESH[name])],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert ran.returncode == 0, ran.stderr
