"""Arguments of a plan mean the same after a crash as before it, also those that look like references."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.plan import Plan
from agenthelm.orchestration.saga import Ref, Step

Point = namedtuple("Point", "x y")  # noqa: PYI024


def test_a_plan_survives_its_journal_with_what_looks_like_a_reference() -> None:
    arguments = {
        "schema": {"$ref": "#/defs/x"},
        "both": {"$ref": "a", "path": "b"},
        "more": [{"$ref": "x", "type": "y"}, {"$literal": {"$ref": "z"}}],
        "real": {"deep": Ref("first", "thing")},
    }
    plan = Plan.of([Step("make", id="first"), Step("save", arguments)])
    assert Plan.from_data(plan.data()).steps["save"].arguments == arguments


async def test_named_tuples_stay_what_they_are() -> None:
    tools, got = ToolRegistry(), []

    @tool(registry=tools)
    async def mark(point: Any) -> None:
        got.append(point)

    result = await Orchestrator(tools=tools).run_saga([Step("mark", {"point": Point(1, 2)})])
    assert (result.status, got, type(got[0])) == ("success", [Point(1, 2)], Point)
