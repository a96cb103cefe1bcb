"""The trace of real runs: one tree, names of the conventions, links between an undo and what it undoes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from agenthelm import Agent, InMemoryStorage, Orchestrator, Parallel, Pipeline, Step, ToolRegistry, saga, tool
from agenthelm._runtime.progress import Progress
from agenthelm.core.handlers import ApprovalHandler, ApprovalRequest, Decision
from agenthelm.core.storage.base import EVENTS
from agenthelm.exceptions import ApprovalDeniedError
from agenthelm.tracing import context, names
from tests.support.telemetry import Recorded, foreign, recorded

SECRET = "hunter2-correct-horse"


@pytest.fixture
def telemetry() -> Iterator[Recorded]:
    with recorded() as made:
        yield made


@pytest.fixture
def tools() -> ToolRegistry:
    registry = ToolRegistry()

    @tool(registry=registry, compensating_tool="cancel", side_effects=["booking:write"])
    async def book(city: str, idempotency_key: str) -> dict[str, Any]:
        """Book."""
        return {"booking_id": 1}

    @tool(registry=registry, idempotent=True)
    def cancel(idempotency_key: str) -> None:
        """Cancel."""

    @tool(registry=registry)
    def refuse(password: str) -> None:
        """Refuse."""
        raise ValueError(f"refused https://user:{SECRET}@example.org/")

    return registry


class Booker(Agent):
    """Books."""

    async def aforward(self, context: Any, task: str) -> dict[str, Any]:
        await context.write("city", task)
        return {"booking_id": (await self.ause("book", city=task))["booking_id"]}


class Refuser(Agent):
    """Fails in a worker thread."""

    def forward(self, context: Any, task: str) -> dict[str, Any]:
        context.read("city")
        self.use("refuse", password=SECRET)
        return {"never": 1}


def _path(telemetry: Recorded, span: ReadableSpan) -> list[str]:
    by_id = {other.context.span_id: other for other in telemetry.spans if other.context}
    path = [span.name]
    while span.parent is not None:
        span = by_id[span.parent.span_id]
        path.append(span.name)
    return path


async def test_a_run_is_one_trace_across_tasks_threads_and_hops_back(telemetry: Recorded, tools: ToolRegistry) -> None:
    async with Orchestrator(tools=tools) as orchestrator:
        result = await orchestrator.run(Parallel([Booker("one"), Booker("two")]), task="Lisbon")
    paths = sorted(_path(telemetry, span) for span in telemetry.spans)
    run = next(name for name in (path[-1] for path in paths) if name.startswith("invoke_workflow"))
    assert paths == sorted(
        [[run]]
        + [[f"invoke_agent {name}", run] for name in ("one", "two")]
        + [["execute_tool book", f"invoke_agent {name}", run] for name in ("one", "two")]
        + [["upsert_memory", f"invoke_agent {name}", run] for name in ("one", "two")]
    )
    workflow = telemetry.span(run)
    assert (workflow.attributes or {})[names.RUN_ID] == result.run_id
    assert (workflow.attributes or {})[names.SAGA_STATUS] == "success"
    assert workflow.context
    assert f"{workflow.context.trace_id:032x}" == result.trace_id


class Lister(Agent):
    """Sums up, in a worker thread."""

    def forward(self, context: Any, task: str) -> dict[str, Any]:
        return {"list": context.list_keys()}


async def test_a_flow_inside_a_flow_has_a_span_that_holds_its_agents(telemetry: Recorded, tools: ToolRegistry) -> None:
    left = Pipeline([Booker("one"), Lister("two")], name="left")
    right = Pipeline([Lister("three"), Parallel([Booker("four")], name="inner")], name="right")
    flow = Pipeline([Parallel([left, right], name="both"), Lister("last")], name="trip")
    async with Orchestrator(tools=tools) as orchestrator:
        result = await orchestrator.run(flow, task="Lisbon", session_id="s", namespace="n")
    run, both = "invoke_workflow trip", "invoke_workflow both"
    paths = [_path(telemetry, span) for span in telemetry.spans]
    assert sorted(path for path in paths if path[0].startswith("invoke_")) == sorted(
        [
            [run],
            [both, run],
            ["invoke_workflow left", both, run],
            ["invoke_workflow right", both, run],
            ["invoke_workflow inner", "invoke_workflow right", both, run],
            ["invoke_agent one", "invoke_workflow left", both, run],
            ["invoke_agent two", "invoke_workflow left", both, run],
            ["invoke_agent three", "invoke_workflow right", both, run],
            ["invoke_agent four", "invoke_workflow inner", "invoke_workflow right", both, run],
            ["invoke_agent last", run],
        ]
    )
    for span in telemetry.spans:
        assert foreign(span.attributes) == set()
        if span.name.startswith("invoke_workflow"):
            assert (span.attributes or {})[names.RUN_ID] == result.run_id
            assert (span.attributes or {})["gen_ai.conversation.id"] == "s"
            assert (span.attributes or {})["agenthelm.namespace"] == "n"
            assert (names.SAGA_STATUS in (span.attributes or {})) is (span.name == run)
    (sagas,) = telemetry.points("agenthelm.sagas")
    assert sagas.value == 1


async def test_a_collected_flow_that_fails_is_undone_inside_its_span(telemetry: Recorded, tools: ToolRegistry) -> None:
    bad = Pipeline([Booker("booker"), Refuser("refuser")], name="bad")
    async with Orchestrator(tools=tools) as orchestrator:
        result = await orchestrator.run(Parallel([bad, Lister("good")], on_error="collect", name="both"), task="Lisbon")
    assert list(result["errors"]) == ["bad"]
    assert _path(telemetry, telemetry.span("execute_tool cancel")) == [
        "execute_tool cancel", "invoke_workflow bad", "invoke_workflow both",
    ]  # fmt: skip
    assert (telemetry.span("invoke_workflow bad").attributes or {})["error.type"] == "ValueError"
    assert telemetry.span("invoke_workflow both").status.is_unset


async def test_a_flow_outside_of_any_run_has_spans_too(telemetry: Recorded) -> None:
    await Pipeline([Pipeline([Lister("one")], name="inner")]).run(None, task="x")
    assert [span.name for span in telemetry.spans] == ["invoke_agent one", "invoke_workflow inner"]
    assert names.RUN_ID not in (telemetry.span("invoke_workflow inner").attributes or {})


async def test_a_failed_run_s_trace_shows_the_error_and_links_the_undo(
    telemetry: Recorded, tools: ToolRegistry
) -> None:
    async with Orchestrator(tools=tools) as orchestrator:
        with pytest.raises(ValueError, match="refused"):
            await orchestrator.run(Pipeline([Booker("booker"), Refuser("refuser")]), task="Lisbon")
    refused = telemetry.span("execute_tool refuse")
    assert (refused.attributes or {})["error.type"] == "ValueError"
    assert _path(telemetry, telemetry.span("read_memory"))[1] == "invoke_agent refuser"
    (link,) = telemetry.span("execute_tool cancel").links
    assert dict(link.attributes or {}) == {names.LINK_KIND: "undoes"}
    assert link.context.trace_id == refused.context.trace_id  # type: ignore[union-attr]


async def test_everything_a_run_emits_is_named_by_the_conventions_or_ours_and_holds_no_secret(
    telemetry: Recorded, tools: ToolRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(names.CAPTURE_CONTENT, "SPAN_ONLY")
    async with Orchestrator(tools=tools) as orchestrator:
        with pytest.raises(ValueError, match="refused"):
            await orchestrator.run(Pipeline([Booker("booker"), Refuser("refuser")]), task=f"token={SECRET}")
    assert len(telemetry.spans) > 6
    for span in telemetry.spans:
        assert foreign(span.attributes) == set(), span.name
        for part in (*span.events, *span.links):
            assert foreign(part.attributes) == set(), span.name
    assert SECRET not in "".join(span.to_json() for span in telemetry.spans)
    assert SECRET not in json.dumps(str(telemetry.metrics()))
    assert telemetry.points("gen_ai.execute_tool.duration")


async def test_event_and_span_of_a_call_share_their_ids(telemetry: Recorded, tools: ToolRegistry) -> None:
    storage = InMemoryStorage()
    async with Orchestrator(tools=tools, storage=storage) as orchestrator:
        await orchestrator.run(Booker("booker"), task="Lisbon")
    (event,) = await storage.read(EVENTS)
    span = telemetry.span("execute_tool book")
    assert span.context is not None
    assert event.data["trace_id"] == f"{span.context.trace_id:032x}"
    assert event.data["span_id"] == f"{span.context.span_id:016x}"
    assert (span.attributes or {})[names.TOOL_CALL_ID] == event.data["id"]


async def test_a_web_request_s_trace_continues_into_the_run(telemetry: Recorded, tools: ToolRegistry) -> None:
    async with Orchestrator(tools=tools) as orchestrator:
        with context.extract({"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}):
            result = await orchestrator.run(Booker("booker"), task="Lisbon")
    assert result.trace_id == "a" * 32


async def test_a_plan_s_span_names_its_tenant_and_its_tools_spans_what_those_do(
    telemetry: Recorded, tools: ToolRegistry
) -> None:
    async with Orchestrator(tools=tools) as orchestrator:
        await orchestrator.run_saga([Step("book", {"city": "Lisbon"})], name="trip", namespace="n")
    for span in telemetry.spans:
        assert (span.attributes or {})["agenthelm.namespace"] == "n"
    assert (telemetry.span("execute_tool book").attributes or {})["gen_ai.tool.description"] == "Book."


async def test_undoing_a_run_later_links_to_its_trace(telemetry: Recorded, tools: ToolRegistry) -> None:
    async with Orchestrator(tools=tools) as orchestrator:
        result = await orchestrator.run(Booker("booker"), task="Lisbon", namespace="n")
        await orchestrator.undo(result.run_id)
    (undo,) = [span for span in telemetry.spans if span.name.startswith("invoke_workflow undo")]
    assert (undo.attributes or {})["agenthelm.namespace"] == "n"
    (link,) = undo.links
    assert f"{link.context.trace_id:032x}" == result.trace_id
    assert dict(link.attributes or {}) == {names.LINK_KIND: "continues"}


async def test_a_saga_block_stores_the_span_it_stands_in(telemetry: Recorded, tools: ToolRegistry) -> None:
    storage = InMemoryStorage()
    with telemetry.tracer_provider.get_tracer("host").start_as_current_span("handler") as handler:
        async with saga("trip", tools=tools, storage=storage) as scope:
            await scope.use("book", city="Lisbon")
    journal = {record.data["type"]: record.data for record in await storage.read(f"run:{scope.run_id}")}
    own, booked = handler.get_span_context(), telemetry.span("execute_tool book")
    assert booked.context
    assert booked.parent == own
    for kind, span in (("opened", own), ("begin", booked.context)):
        assert (journal[kind]["trace_id"], journal[kind]["span_id"]) == (
            f"{span.trace_id:032x}",
            f"{span.span_id:016x}",
        )
    async with Orchestrator(tools=tools, storage=storage) as later:
        assert (await later.undo(scope.run_id)).status == "rolled_back"
    (link,) = telemetry.span("invoke_workflow undo trip").links
    assert (link.context.trace_id, link.context.span_id) == (own.trace_id, own.span_id)
    (link,) = telemetry.span("execute_tool cancel").links
    assert (link.context.trace_id, link.context.span_id) == (booked.context.trace_id, booked.context.span_id)


async def test_a_saga_block_outside_of_any_span_links_to_nothing(telemetry: Recorded, tools: ToolRegistry) -> None:
    storage = InMemoryStorage()
    async with saga("trip", tools=tools, storage=storage) as scope:
        await scope.use("book", city="Lisbon")
    async with Orchestrator(tools=tools, storage=storage) as later:
        await later.undo(scope.run_id)
    assert telemetry.span("invoke_workflow undo trip").links == ()
    assert len(telemetry.span("execute_tool cancel").links) == 1


async def test_an_observer_hears_no_secret_that_an_error_speaks_of(caplog: pytest.LogCaptureFixture) -> None:
    tools, heard = ToolRegistry(), list[Progress]()

    @tool(registry=tools, compensating_tool="close", side_effects=["desk:write"])
    async def open_desk() -> None: ...

    @tool(registry=tools, idempotent=True)
    async def close() -> None:
        raise OSError(f"https://ann:{SECRET}@desk/ is shut")

    class Clerk(Agent):
        """Opens a desk and fails."""

        async def aforward(self, context: Any, task: str) -> dict[str, Any]:
            await self.ause("open_desk")
            raise ValueError(f"no desk with password={SECRET}")

    async with Orchestrator(tools=tools, observer=heard.append) as orchestrator:
        with pytest.raises(ValueError, match="no desk"):
            await orchestrator.run(Clerk(), task="x")
    told = {progress.kind: progress.error for progress in heard if progress.error}
    assert told["agent_failed"] == "ValueError: no desk with password=***"
    assert "https://***@desk/ is shut" in str(told["undo_failed"])
    assert SECRET not in str(heard) + caplog.text


async def test_a_denial_is_told_as_one_with_who_said_so_and_how_long_it_took(telemetry: Recorded) -> None:
    class Ask(ApprovalHandler):
        async def request_approval(self, request: ApprovalRequest) -> Decision:
            return Decision(request.arguments["amount"] < 100, approver="ann")

    @tool(registry=(tools := ToolRegistry()), requires_approval=True)
    async def pay(amount: int) -> None: ...

    async with saga(tools=tools, approval_handler=Ask()) as scope:
        await scope.use("pay", amount=5)
        with pytest.raises(ApprovalDeniedError):
            await scope.use("pay", amount=500)
    said = [span.attributes or {} for span in telemetry.spans if span.name == "execute_tool pay"]
    assert [(each[names.APPROVAL_OUTCOME], each[names.APPROVAL_APPROVER]) for each in said] == [
        ("approved", "ann"),
        ("denied", "ann"),
    ]
    assert all(each[names.APPROVAL_WAIT] >= 0 for each in said)  # type: ignore[operator]
