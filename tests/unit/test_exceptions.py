"""The errors are the tree that their module draws, and an exception is told in one line."""

from __future__ import annotations

import builtins
import json
import re
from typing import Any

import anyio

from agenthelm import exceptions
from agenthelm.agent.base import Agent
from agenthelm.core.storage import InMemoryStorage
from agenthelm.core.storage.base import EVENTS
from agenthelm.core.tool import ToolRegistry, tool
from agenthelm.orchestration.journal import stream_of
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.telling import describe


def test_the_tree_says_what_each_error_is() -> None:
    drawn: dict[str, tuple[str | None, str | None]] = {}
    above: list[str] = []
    for line in (exceptions.__doc__ or "").splitlines():
        found = re.match(r"    ([│├└─ ]*)([A-Z]\w+)(?: +(\w+Error))?", line)
        if found and found[2] in exceptions.__all__:
            del above[len(found[1]) // 4 :]
            drawn[found[2]] = (above[-1] if above else None, found[3])
            above.append(found[2])
    assert sorted(drawn) == sorted(exceptions.__all__)
    for name, (parent, builtin) in drawn.items():
        bases = getattr(exceptions, name).__bases__
        assert bases[0] is getattr(exceptions, parent or "", Exception), name
        assert bases[1:] == ((getattr(builtins, builtin),) if builtin else ()), name


async def test_a_cancellation_is_told_without_the_event_loops_words() -> None:
    told = []
    for scope in (anyio.CancelScope(), anyio.move_on_after(-1)):
        with scope:
            if scope.deadline > anyio.current_time():
                scope.cancel()
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class() as error:
                told.append(describe(error))
                raise
    assert told == ["cancelled", "cancelled: a deadline passed"]


def test_other_exceptions_are_told_by_their_type() -> None:
    class CancelledError(Exception):
        """Somebody else's."""

    assert describe(CancelledError("the order was cancelled")) == "CancelledError: the order was cancelled"
    assert describe(KeyError()) == "KeyError"


async def test_a_cancelled_run_leaves_no_words_of_the_event_loop_in_events_and_journal() -> None:
    tools, storage = ToolRegistry(), InMemoryStorage()
    began = anyio.Event()

    @tool(registry=tools, compensating_tool="off", side_effects=["light:write"])
    async def on(idempotency_key: str) -> None:
        began.set()
        await anyio.sleep_forever()

    @tool(registry=tools, idempotent=True)
    async def off(idempotency_key: str) -> None: ...

    class Switch(Agent):
        """Switches on."""

        async def aforward(self, context: Any, task: str) -> dict[str, Any]:
            await self.ause("on")
            return {}

    async with anyio.create_task_group() as group:
        group.start_soon(Orchestrator(tools=tools, storage=storage).run, Switch(), "go")
        await began.wait()
        group.cancel_scope.cancel()
    (run,) = await storage.streams(prefix=stream_of(""))
    records = [*await storage.read(run.name), *await storage.read(EVENTS)]
    text = json.dumps([record.data for record in records], default=str)
    assert "scope 7f" not in text
    assert "<Task" not in text
    assert [record.data["reason"] for record in records if record.data.get("type") == "unwinding"] == ["cancelled"]
