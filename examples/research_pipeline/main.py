"""Three agents in a row write a report and publish it; the reviewer refuses, and the publication is taken back."""

import os
import sys
from pathlib import Path

import anyio
import dspy

from agenthelm import Agent, MemoryHub, Orchestrator, ResearcherAgent, WriterAgent, tool

MODEL = os.environ.get("AGENTHELM_MODEL", "offline")
SITE = Path("site")


@tool(compensating_tool="unpublish", side_effects=["site:write"], retries=2, timeout=5.0)
def publish(title: str, body: str, idempotency_key: str) -> dict[str, str]:
    """Publish a page."""
    SITE.mkdir(exist_ok=True)
    page = SITE / f"{idempotency_key}.md"
    page.write_text(f"# {title}\n\n{body}\n", "utf-8")
    return {"page": str(page)}


@tool(idempotent=True)
def unpublish(idempotency_key: str) -> None:
    """Take a page down; fine if it is not there."""
    (SITE / f"{idempotency_key}.md").unlink(missing_ok=True)


class Publisher(Agent):
    """Publishes what the writer wrote."""

    class Signature(dspy.Signature):
        task: str = dspy.InputField()
        text: str = dspy.InputField()
        page: str = dspy.OutputField()

    def forward(self, context, task: str, text: str):
        page = self.use("publish", title=task, body=text)
        context.set_shared("last_page", page)
        return page


class Auditor(Agent):
    """Refuses what it is told to refuse."""

    class Signature(dspy.Signature):
        page: str = dspy.InputField()
        approved: bool = dspy.OutputField()

    async def aforward(self, context, page: str, strict: bool = False):
        if strict:
            raise PermissionError(f"{page} may not stay online")
        return {"approved": True}


def pages() -> list[str]:
    return sorted(path.name for path in SITE.glob("*.md"))


async def main(task: str) -> None:
    team = [ResearcherAgent(), WriterAgent(), Publisher(), Auditor()]
    async with MemoryHub() as hub, Orchestrator(hub, lm=MODEL) as orchestrator:
        try:
            await orchestrator.run_pipeline(team, task, inputs={"strict": True})
        except PermissionError as error:
            print(f"refused: {error}\nthe run was {error.saga.status}; online now: {pages()}")

        result = await orchestrator.run_pipeline(team, task)
        print(f"\nonline: {pages()}\n{result['text']}\n\n{result.usage.calls} model calls, run {result.run_id}")

        await orchestrator.undo(result.run_id)
        print(f"changed our mind; online now: {pages()}")


if __name__ == "__main__":
    anyio.run(main, " ".join(sys.argv[1:]) or "Sagas in distributed systems")
