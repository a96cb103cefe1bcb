"""The files that ``agenthelm init`` writes."""

from __future__ import annotations

__all__ = ["FILES"]

_AGENTS = '''"""An agent that keeps a to-do list, with a tool that can be taken back."""

from __future__ import annotations

import json
from pathlib import Path

import dspy
from agenthelm import Agent, tool

TODOS = Path("todos.json")


def todos() -> dict[str, str]:
    """The list as it is on disk."""
    return json.loads(TODOS.read_text()) if TODOS.exists() else {}


def save(lines: dict[str, str]) -> None:
    """Write the list."""
    TODOS.write_text(json.dumps(lines, indent=2))


@tool(side_effects=["todos:write"], compensating_tool="remove_todo")
async def add_todo(title: str, idempotency_key: str) -> dict:
    """Add a line to the to-do list."""
    save({**todos(), idempotency_key: title})
    return {"lines": len(todos())}


@tool(idempotent=True)
async def remove_todo(idempotency_key: str) -> None:
    """Take back what was added under that key; fine if nothing was."""
    save({key: title for key, title in todos().items() if key != idempotency_key})


class Secretary(Agent):
    """Turns a wish into a line of the to-do list."""

    class Signature(dspy.Signature):
        """Turn the task into one short line for a to-do list."""

        task: str = dspy.InputField()
        title: str = dspy.OutputField()

    def __init__(self) -> None:
        super().__init__(name="secretary")
        self.plan = dspy.Predict(self.Signature)

    async def aforward(self, context, task: str) -> dict:
        plan = await self.ask(self.plan, task=task)
        added = await self.ause("add_todo", title=plan.title)
        text = f"Added: {plan.title} ({added['lines']} in the list)"
        return {"title": plan.title, "text": text}
'''

_TEST = '''"""The agent against a scripted model: what it adds, and that it can be taken back."""

from __future__ import annotations

import anyio
import pytest
from agenthelm import Orchestrator
from agenthelm.testing import ScriptedLM

import agents


@pytest.fixture(autouse=True)
def own_list(tmp_path, monkeypatch):
    monkeypatch.setattr(agents, "TODOS", tmp_path / "todos.json")


def test_a_todo_is_added_and_can_be_taken_back():
    async def main():
        async with Orchestrator(lm=ScriptedLM([{"title": "Buy milk"}])) as orchestrator:
            result = await orchestrator.run(agents.Secretary(), "we are out of milk")
            assert list(agents.todos().values()) == ["Buy milk"]
            await orchestrator.undo(result.run_id)
            assert agents.todos() == {}

    anyio.run(main)
'''

_README = """# To-do agent

    agenthelm run "we are out of milk" --model offline    # placeholder text, no key, no network
    agenthelm traces show last                             # what was called
    agenthelm saga undo last                               # take it back
    pip install pytest && python -m pytest -q              # the agent against a scripted model

With `OPENAI_API_KEY`, `ANTHROPIC_API_KEY` or `MISTRAL_API_KEY` set, leave out `--model`.

- `agents.py`: the agent, its tool, and the tool that undoes it.
- `agenthelm.toml`: settings; the command line reads it in this folder.
- `.agenthelm/`: events, journal and memory, made by the first run.
"""

_SETTINGS = """app = "agents.py"
# model = "openai/gpt-4o-mini"
# budget_usd = 0.50
# approve = "ask"
"""

_IGNORE = ".agenthelm/\n__pycache__/\ntodos.json\n"

_PYTEST = """[pytest]
pythonpath = .
"""

FILES: dict[str, str] = {
    "agents.py": _AGENTS,
    "tests/test_agents.py": _TEST,
    "agenthelm.toml": _SETTINGS,
    "README.md": _README,
    "pytest.ini": _PYTEST,
    ".gitignore": _IGNORE,
}
"""Path inside the project -> text."""
