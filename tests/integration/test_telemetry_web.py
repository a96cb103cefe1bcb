"""The trace of a web request goes on into the run, and from a tool of the run into the next service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from agenthelm import Agent, Orchestrator, ToolRegistry, tool
from agenthelm.tracing import names
from agenthelm.tracing.context import extract, inject
from tests.support.telemetry import Recorded, recorded

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Booker(Agent):
    """Books with another service, from a worker thread."""

    def forward(self, context: Any, task: str) -> dict[str, Any]:
        return {"booked": self.use("book", city=task)}


@pytest.fixture
def telemetry() -> Iterator[Recorded]:
    with recorded() as made:
        yield made


async def test_a_request_s_trace_continues_into_the_run_and_on_to_the_next_service(telemetry: Recorded) -> None:
    hotel, shop, tools = FastAPI(), FastAPI(), ToolRegistry()
    heard: list[str] = []

    @hotel.post("/book")
    async def book_room(request: Request) -> str:
        heard.append(request.headers["traceparent"])
        return "room 7"

    @tool(registry=tools)
    async def book(city: str) -> str:
        """Book."""
        async with httpx.AsyncClient(transport=httpx.ASGITransport(hotel), base_url="http://hotel") as client:
            return str((await client.post("/book", headers=inject())).json())

    @shop.get("/trip")
    async def trip(request: Request, city: str) -> dict[str, Any]:
        with extract(request.headers):
            return dict(await orchestrator.run(Booker("booker"), task=city))

    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
    async with (
        Orchestrator(tools=tools) as orchestrator,
        httpx.AsyncClient(transport=httpx.ASGITransport(shop), base_url="http://shop", headers=headers) as client,
    ):
        answer = await client.get("/trip", params={"city": "Lisbon"})
    assert answer.json() == {"booked": "room 7"}
    run, call = telemetry.span("invoke_workflow booker"), telemetry.span("execute_tool book")
    assert run.parent is not None
    assert (f"{run.parent.trace_id:032x}", f"{run.parent.span_id:016x}") == (TRACE, SPAN)
    assert call.context is not None
    (sent,) = heard
    assert sent.startswith(f"00-{TRACE}-{call.context.span_id:016x}-")
    assert (run.attributes or {})[names.SAGA_STATUS] == "success"
