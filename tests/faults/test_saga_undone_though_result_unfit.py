"""A compensator that ran to its end has undone its effect, whatever it returned; nobody runs it a second time."""

from __future__ import annotations

from typing import Any

from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step


async def test_a_result_that_does_not_fit_is_no_reason_to_undo_twice() -> None:
    tools, refunds = ToolRegistry(), []

    @tool(registry=tools, compensating_tool="refund")
    async def pay() -> dict[str, str]:
        return {"txn": "1"}

    @tool(registry=tools)
    async def refund(txn: str) -> bool:
        refunds.append(txn)
        return None  # type: ignore[return-value]

    @tool(registry=tools)
    async def fail() -> None:
        raise ValueError("no")

    orchestrator = Orchestrator(tools=tools)
    result = await orchestrator.run_saga([Step("pay"), Step("fail")])
    assert (result.status, result.undone) == ("rolled_back", ("e1",))
    await orchestrator.retry(result.run_id)
    assert refunds == ["1"]


async def test_one_whose_coroutine_nobody_awaited_did_not_run() -> None:
    tools = ToolRegistry()

    @tool(registry=tools, compensating_tool="refund")
    async def pay() -> dict[str, str]:
        return {"txn": "1"}

    async def work() -> None: ...

    @tool(registry=tools)
    def refund(txn: str) -> Any:
        return work()

    @tool(registry=tools)
    async def fail() -> None:
        raise ValueError("no")

    result = await Orchestrator(tools=tools).run_saga([Step("pay"), Step("fail")])
    assert result.status == "failed"
    assert "nobody awaits" in result.stuck[0].reason


async def test_one_that_failed_over_another_tools_result_failed() -> None:
    tools = ToolRegistry()

    @tool(registry=tools, compensating_tool="refund")
    async def pay() -> dict[str, str]:
        return {"txn": "1"}

    @tool(registry=tools)
    async def look(txn: str) -> bool:
        return None  # type: ignore[return-value]

    @tool(registry=tools)
    async def refund(txn: str) -> None:
        from agenthelm.core.executor import current_executor

        executor = current_executor()
        assert executor is not None
        await executor.call("look", {"txn": txn})

    @tool(registry=tools)
    async def fail() -> None:
        raise ValueError("no")

    result = await Orchestrator(tools=tools).run_saga([Step("pay"), Step("fail")])
    assert result.status == "failed"
    assert "'look' returned" in result.stuck[0].reason
