"""One real run with everything in it: what its spans say, by whose names, and that no secret is in any of it."""

from __future__ import annotations

import io
import json
import logging
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dspy
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from pydantic import SecretStr

from agenthelm import (
    Agent,
    Budget,
    MemoryHub,
    Orchestrator,
    SqliteStorage,
    ToolRegistry,
    WebhookHandler,
    charge,
    tool,
)
from agenthelm.agent.models import resolve_model
from agenthelm.exceptions import ModelCallError
from agenthelm.tracing import names
from agenthelm.tracing.console import TreeProcessor
from agenthelm.tracing.screen import Screen
from tests.support.openai_server import OpenAIServer
from tests.support.otlp_collector import otlp_collector
from tests.support.telemetry import METRICS, Recorded, foreign, recorded
from tests.support.webhook_server import SECRET as APPROVERS
from tests.support.webhook_server import webhook_server

SECRET = "hunter2correcthorse"
"""Planted wherever a secret may stray."""

PASSWORD_URL = f"https://ann:{SECRET}@files.example.org/report?access_token={SECRET}"


class Booker(Agent):
    """Asks a model, remembers, books, and then fails."""

    def __init__(self) -> None:
        super().__init__(name="booker")
        self.plan = dspy.Predict("task -> city")

    async def aforward(self, context: Any, task: str) -> dict[str, Any]:
        plan = await self.ask(self.plan, task=task)
        await context.remember(f"api_key={SECRET}")
        await context.search(f"password={SECRET}")
        await context.write("note", f"token={SECRET}")
        await self.ause("book", city=plan.city, password=SECRET, key=SecretStr(SECRET), link=PASSWORD_URL)
        await self.ause("pay", card=f"Authorization: Bearer {SECRET}")
        return {"never": 1}


class Asker(Agent):
    """Asks a model that can't be reached."""

    class Signature(dspy.Signature):
        task: str = dspy.InputField()
        city: str = dspy.OutputField()


def _tools() -> ToolRegistry:
    tools = ToolRegistry()
    tried: list[str] = []

    @tool(
        registry=tools, compensating_tool="cancel", side_effects=["booking:write"], requires_approval=True, retries=1,
        idempotent=True, max_cost=0.5,
    )  # fmt: skip
    async def book(city: str, password: str, key: SecretStr, link: str, idempotency_key: str) -> dict[str, str]:
        """Book."""
        tried.append(city)
        if len(tried) == 1:
            raise ConnectionError(f"no answer from {link}")
        charge(0.25)
        return {"link": link, "api_key": SECRET}

    @tool(registry=tools, idempotent=True)
    def cancel(idempotency_key: str) -> None:
        """Cancel."""

    @tool(registry=tools)
    def pay(card: str) -> None:
        """Pay."""
        raise ValueError(f"refused {card} by {PASSWORD_URL}")

    return tools


class Ended:
    """What a run left behind, everywhere."""

    def __init__(self, telemetry: Recorded, folder: Path) -> None:
        self.telemetry = telemetry
        self.folder = folder
        self.screen = io.StringIO()
        self.payload = b""
        self.log = ""
        self.webhook: Mapping[str, str] = {}

    def attributes(self, name: str) -> dict[str, Any]:
        """Of the one span of that name."""
        return dict(self.telemetry.span(name).attributes or {})


@pytest.fixture
def telemetry() -> Iterator[Recorded]:
    with recorded() as made:
        yield made


@pytest.fixture
async def ended(
    telemetry: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Ended:
    """A run that asked, remembered, was approved over HTTP, retried, paid, failed and was undone; content opted in."""
    caplog.set_level(logging.DEBUG, "agenthelm")
    monkeypatch.setenv(names.CAPTURE_CONTENT, "SPAN_ONLY")
    ended = Ended(telemetry, tmp_path)
    provider = telemetry.tracer_provider
    provider.add_span_processor(TreeProcessor(Screen(file=ended.screen, width=400, color_system=None)))
    with OpenAIServer() as server, webhook_server() as approver, otlp_collector() as collector:
        exporter = OTLPSpanExporter(f"{collector.url}/v1/traces")
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        with (tmp_path / "spans.jsonl").open("w") as lines:
            to_file = ConsoleSpanExporter(out=lines, formatter=lambda span: span.to_json(indent=None) + "\n")
            provider.add_span_processor(SimpleSpanProcessor(to_file))
            lm = resolve_model("gpt-4o-mini", api_base=server.base_url, api_key=SECRET)
            handler = WebhookHandler(f"{approver.url}?token={SECRET}", secret=APPROVERS)
            handler_error = f"refused Authorization: Bearer {SECRET}"
            async with Orchestrator(
                tools=_tools(), lm=lm, approval_handler=handler, storage=SqliteStorage(tmp_path / "log.db"),
                memory_hub=MemoryHub(), lm_retries=0,
            ) as orchestrator:  # fmt: skip
                with pytest.raises(ValueError, match=handler_error):
                    await orchestrator.run(Booker(), task=f"Lisbon with sk-{SECRET}", budget=Budget(usd=1, calls=5))
                # DSPy's native engine takes no user in an address, and says so with all of it.
                elsewhere = resolve_model("gpt-other", api_base=f"http://ann:{SECRET}@127.0.0.1:1/v1", api_key=SECRET)
                with pytest.raises(ModelCallError):
                    await orchestrator.run(Asker(lm=elsewhere), task="Lisbon")
        ended.log = caplog.text
        ended.payload = b"".join(collector.raw)
        ended.webhook = {name.lower(): value for name, value in approver.asked[0].headers.items()}
    return ended


async def test_each_span_of_a_run_tells_its_facts(ended: Ended) -> None:
    run, book = ended.attributes("invoke_workflow booker"), ended.attributes("execute_tool book")
    chat = ended.attributes("chat openai/gpt-4o-mini")
    assert run[names.SAGA_STATUS] == "rolled_back"
    assert (run[names.BUDGET["usd"]], run[names.BUDGET["calls"]], run[names.SAGA_UNDONE]) == (1, 5, 1)
    assert run[names.COST_USD] == pytest.approx(0.25 + chat[names.COST_USD])
    assert (book[names.APPROVAL_OUTCOME], book[names.APPROVAL_APPROVER]) == ("approved", "ann")
    assert book[names.APPROVAL_WAIT] > 0
    assert (book[names.RETRY_COUNT], book[names.COST_USD], book[names.OUTCOME]) == (1, 0.25, "success")
    assert chat[names.USAGE_INPUT] > 0 < chat[names.USAGE_OUTPUT]
    assert chat[names.COST_USD] > 0
    assert "price list" in chat[names.COST_SOURCE]
    assert (chat[names.PROVIDER_NAME], chat[names.SERVER_ADDRESS]) == ("openai", "127.0.0.1")
    assert chat[names.SERVER_PORT] > 0
    (link,) = ended.telemetry.span("execute_tool cancel").links
    booked = ended.telemetry.span("execute_tool book").context
    assert booked is not None
    assert (link.context.trace_id, link.context.span_id) == (booked.trace_id, booked.span_id)
    inputs = json.loads(chat[names.INPUT_MESSAGES])
    assert {message["role"] for message in inputs} <= {"user", "assistant"}
    assert inputs[-1]["parts"][0]["type"] == "text"
    assert json.loads(chat[names.OUTPUT_MESSAGES])[0]["finish_reason"] == "stop"
    spans = ended.telemetry.spans
    embedded = [span for span in spans if span.name.startswith("embeddings ")]
    assert [_named(spans, span.parent) for span in embedded] == ["create_memory", "search_memory"]


def _named(spans: list[ReadableSpan], context: Any) -> str:
    (found,) = [span.name for span in spans if span.context and span.context.span_id == context.span_id]
    return found


async def test_everything_a_whole_run_emits_is_in_the_conventions_list_or_our_table(ended: Ended) -> None:
    for span in ended.telemetry.spans:
        for part in (span, *span.events, *span.links):
            assert foreign(part.attributes) == set(), span.name
    assert set(METRICS) <= set(ended.telemetry.metrics())
    for metric in ended.telemetry.metrics().values():
        for point in metric.data.data_points:
            assert foreign(point.attributes) == set(), metric.name


async def test_an_approval_s_webhook_is_asked_inside_the_trace(ended: Ended) -> None:
    context = ended.telemetry.span("execute_tool book").context
    assert context is not None
    assert ended.webhook["traceparent"].startswith(f"00-{context.trace_id:032x}-{context.span_id:016x}-")


async def test_secrets_are_in_no_exporter_event_or_log(ended: Ended) -> None:
    with sqlite3.connect(ended.folder / "log.db") as database:
        stored = [data for (data,) in database.execute("SELECT data FROM events UNION ALL SELECT data FROM fresh")]
    database.close()
    places = {
        "the OTLP payload": ended.payload.decode("utf-8", "replace"),
        "the JSON Lines file": (ended.folder / "spans.jsonl").read_text("utf-8"),
        "the console": ended.screen.getvalue(),
        "the metrics": str(ended.telemetry.metrics()),
        "the events": "".join(stored),
        "the log": ended.log,
    }
    assert len(stored) == 5
    for place, text in places.items():
        assert SECRET not in text, f"{place}: …{text[max(0, text.find(SECRET) - 200) : text.find(SECRET) + 30]}"
    for place in ("the OTLP payload", "the JSON Lines file", "the console", "the events"):
        assert "execute_tool pay" in places[place] or '"pay"' in places[place]
        assert "***" in places[place], place
    assert "tool pay: failed" in places["the log"]
