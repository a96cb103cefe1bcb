"""A tool is a plain function with a contract.

Calling the function runs the function. Through the executor the contract holds: arguments are validated, failed attempts
repeated, and every call leaves one event.
"""

from __future__ import annotations

import pytest

from agenthelm import ExecutionTracer, ToolRegistry, tool
from agenthelm.core.tool import Backoff
from agenthelm.exceptions import ToolInputError

tools = ToolRegistry()


async def test_a_contract_holds_through_the_executor() -> None:
    asked = 0

    with tools.isolated():

        @tool(retries=2, backoff=Backoff(initial=0.0), side_effects=["weather:read"], registry=tools)
        async def forecast(city: str, days: int = 1) -> str:
            """Tell the weather; the service answers at the second attempt."""
            nonlocal asked
            asked += 1
            if asked == 1:
                raise ConnectionError("try again")
            return f"{days} days of sun in {city}"

        tracer = ExecutionTracer(tools=tools)
        assert await tracer.trace_and_execute("forecast", city="Lisbon", days="3") == "3 days of sun in Lisbon"
        with pytest.raises(ToolInputError, match="'city' is missing"):
            await tracer.trace_and_execute("forecast")
        assert await forecast("Porto") == "1 days of sun in Porto"  # the function itself: no contract, no event

    refused, answered = await tracer.events()  # newest first
    assert (answered.outcome, answered.retry_count) == ("success", 1)
    assert (refused.outcome, refused.error_type) == ("invalid", "ToolInputError")
