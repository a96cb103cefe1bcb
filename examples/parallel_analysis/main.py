"""Three analysts look at one text at once; what one of them filed is taken back because it failed, the others stand."""

import os
import sys

import anyio
import dspy

from agenthelm import Agent, MemoryHub, Orchestrator, Parallel, tool

MODEL = os.environ.get("AGENTHELM_MODEL", "offline")
filed: list[str] = []


@tool(compensating_tool="withdraw", side_effects=["report:write"])
def file_report(analyst: str) -> None:
    """File a report."""
    filed.append(analyst)


@tool(idempotent=True)
def withdraw(analyst: str) -> None:
    """Withdraw a report; fine if there is none."""
    if analyst in filed:
        filed.remove(analyst)


class Analyst(Agent):
    """Looks at a text from one side and files a report."""

    class Signature(dspy.Signature):
        """Say in one sentence what the text means, seen from this side."""

        task: str = dspy.InputField()
        side: str = dspy.InputField()
        finding: str = dspy.OutputField()

    def __init__(self, side: str, *, reliable: bool = True):
        super().__init__(name=side, description=f"Looks at the {side} side")
        self.reliable = reliable

    async def aforward(self, context, task: str):
        await self.ause("file_report", analyst=self.name)
        if not self.reliable:
            raise ConnectionError(f"the {self.name} data base is down")
        reply = await self.ask(self.Signature, task=task, side=self.name)
        return {"finding": reply.finding}


async def main(text: str) -> None:
    sides = [Analyst("technical"), Analyst("legal", reliable=False), Analyst("economic")]
    async with MemoryHub() as hub, Orchestrator(hub, lm=MODEL) as orchestrator:
        try:
            await orchestrator.run(Parallel(sides), text)
        except ConnectionError as error:
            print(f"all or nothing: {error}; filed: {filed}")

        result = await orchestrator.run(Parallel(sides, on_error="collect"), text)
        print(f"what succeeded stands; filed: {sorted(filed)}")
        errors = result["errors"]
        for side in sides:
            print(f"  {side.name}: {errors[side.name] if side.name in errors else result[side.name]['finding']}")


if __name__ == "__main__":
    anyio.run(main, " ".join(sys.argv[1:]) or "The city closes its centre to cars.")
