"""Apps that the tests of the command line run: files with agents and tools, over a world kept in a JSON file."""

from __future__ import annotations

WORLD = '''"""Tools over a world in a file."""

import json
import threading
from pathlib import Path

from agenthelm import tool

WORLD = Path("world.json")
LOCK = threading.Lock()


def world():
    return json.loads(WORLD.read_text()) if WORLD.exists() else {}


def put(key, value):
    with LOCK:
        WORLD.write_text(json.dumps({**world(), key: value}))


@tool(side_effects=["booking:write"], compensating_tool="cancel", tags=["travel"])
def book(what: str, idempotency_key: str) -> dict:
    """Book something."""
    put(idempotency_key, what)
    return {"what": what}


@tool(idempotent=True)
def cancel(idempotency_key: str) -> None:
    """Cancel what was booked under that key."""
    put(idempotency_key, "cancelled")


@tool(side_effects=["desk:write"], compensating_tool="unbook")
def book_badly(what: str) -> dict:
    """Book what can only be cancelled while the desk is open."""
    return {"what": what}


@tool
def unbook(what: str) -> None:
    """Fails while the desk is closed."""
    if not Path("desk-open").exists():
        raise RuntimeError("the desk is closed")


@tool(side_effects=["mail:send"], requires_approval=True)
def send_mail(to: str) -> str:
    """Send a mail that nothing calls back."""
    put("mail", to)
    return "sent"


@tool
def explode(why: str = "no reason") -> None:
    """Fail."""
    raise ValueError(why)
'''

AGENTS = (
    WORLD
    + '''

import dspy

from agenthelm import Agent


class Planner(Agent):
    """Books a trip."""

    class Signature(dspy.Signature):
        task: str = dspy.InputField()
        city: str = dspy.OutputField()

    def __init__(self):
        super().__init__(name="planner")
        self.plan = dspy.Predict(self.Signature)

    async def aforward(self, context, task, mail: bool = False, fail: str = "", badly: bool = False):
        plan = await self.ask(self.plan, task=task)
        await self.ause("book", what=plan.city)
        if badly:
            await self.ause("book_badly", what=plan.city)
        if mail:
            await self.ause("send_mail", to="ada@example.org")
        if fail:
            raise RuntimeError(fail)
        await context.write("city", plan.city)
        return {"city": plan.city, "details": {"nights": 3, "rooms": [1, 2]}}


class Teller(Agent):
    """Tells how it went."""

    class Signature(dspy.Signature):
        city: str = dspy.InputField()
        text: str = dspy.OutputField()

    def __init__(self):
        super().__init__(name="teller")
        self.tell = dspy.Predict(self.Signature)

    def forward(self, context, city):
        return self.tell(city=city)
'''
)

HANGING = '''"""An agent that books, and then waits for a tool that does not end."""

import threading
import time
from pathlib import Path

from agenthelm import Agent, tool

from world import book, cancel


@tool
async def wait_for_ever() -> None:
    """Never returns, but can be cancelled."""
    import anyio

    Path("waiting").touch()
    await anyio.sleep_forever()


@tool(side_effects=["thread:write"])
def hang_in_thread() -> None:
    """Never returns, and can't be cancelled."""
    Path("waiting").touch()
    threading.Event().wait()


class Waiter(Agent):
    """Books and waits."""

    async def aforward(self, context, task: str, tool: str = "wait_for_ever", badly: bool = False) -> dict:
        await self.ause("book", what=task)
        if badly:
            await self.ause("book_badly", what=task)
        await self.ause(tool)
        return {}
'''
