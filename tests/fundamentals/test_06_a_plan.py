"""A plan is a saga written down as data: steps, what they depend on, and what they take from each other.

A list is sequential, a nested list runs at once. How it ended is a result, not an exception.
"""

from __future__ import annotations

from agenthelm import Orchestrator, Ref, Step, ToolRegistry, tool

tools = ToolRegistry()
booked: list[str] = []


@tool(compensating_tool="cancel", side_effects=["booking:write"], registry=tools)
async def book(what: str) -> dict[str, str]:
    booked.append(what)
    return {"what": what, "city": "Lisbon"}


@tool(registry=tools)
async def cancel(what: str) -> None:
    booked.remove(what)


@tool(registry=tools)
async def pay(amount: int) -> None:
    if amount > 500:
        raise PermissionError("declined")


def trip(amount: int) -> list[Step | list[Step]]:
    return [
        Step("book", {"what": "flight"}, id="flight"),
        [Step("book", {"what": Ref("flight", "city")}, id="hotel"), Step("book", {"what": "car"}, id="car")],
        Step("pay", {"amount": amount}),
    ]


async def test_a_plan_that_goes_well_and_one_that_does_not() -> None:
    booked.clear()
    async with Orchestrator(tools=tools) as orchestrator:
        good = await orchestrator.run_saga(trip(450))
        assert (good.status, good.result_of("hotel")["what"]) == ("success", "Lisbon")
        assert sorted(booked) == ["Lisbon", "car", "flight"]
        booked.clear()
        bad = await orchestrator.run_saga(trip(900))
    assert (bad.status, bad.error) == ("rolled_back", "PermissionError: declined")
    assert booked == []
