"""A saga is a scope that undoes its effects when it does not complete.

Last first, once, and on record. The exception arrives as it was raised, and says how undoing went.
"""

from __future__ import annotations

import pytest

from agenthelm import ToolRegistry, saga, tool

tools = ToolRegistry()
log: list[str] = []


@tool(compensating_tool="cancel", side_effects=["booking:write"], registry=tools)
async def book(what: str) -> dict[str, str]:
    log.append(f"book {what}")
    return {"number": f"#{what}"}


@tool(registry=tools)
async def cancel(number: str) -> None:
    """Gets the number from what `book` returned."""
    log.append(f"cancel {number}")


async def test_what_fails_is_undone_last_first() -> None:
    log.clear()
    with pytest.raises(RuntimeError, match="the office calls") as caught:
        async with saga("trip", tools=tools) as scope:
            await scope.use("book", what="flight")
            await scope.use("book", what="hotel")
            raise RuntimeError("the office calls")
    assert log == ["book flight", "book hotel", "cancel #hotel", "cancel #flight"]
    assert caught.value.saga.status == "rolled_back"  # type: ignore[attr-defined]


async def test_what_completes_stands() -> None:
    log.clear()
    async with saga("trip", tools=tools) as scope:
        await scope.use("book", what="flight")
    assert log == ["book flight"]
    assert scope.result is not None
    assert scope.result.ok
