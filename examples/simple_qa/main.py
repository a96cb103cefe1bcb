"""One agent answers questions, remembers the conversation, and looks things up with a tool."""

import os
import sys

import anyio
import dspy

from agenthelm import Agent, Budget, MemoryHub, Orchestrator, tool

MODEL = os.environ.get("AGENTHELM_MODEL", "offline")
FACTS = {
    "lisbon": "Lisbon is the capital of Portugal.",
    "saga": "A saga undoes its finished steps when a later one fails.",
}


@tool(side_effects=["facts:read"], timeout=5.0, tags=["lookup"])
def look_up(question: str) -> list[str]:
    """Find facts that a question mentions."""
    return [fact for word, fact in FACTS.items() if word in question.lower()]


class Assistant(Agent):
    """Answers a question from facts and from what was said before."""

    class Signature(dspy.Signature):
        """Answer the question in one sentence, from the facts where they help."""

        question: str = dspy.InputField()
        facts: list[str] = dspy.InputField()
        said_before: list[str] = dspy.InputField()
        answer: str = dspy.OutputField()

    async def aforward(self, context, question: str):
        facts = await self.ause("look_up", question=question)
        said_before = await context.recall(question, top_k=3)
        reply = await self.ask(self.Signature, question=question, facts=facts, said_before=said_before)
        await context.remember(f"Asked {question!r}, answered {reply.answer!r}")
        return {"answer": reply.answer, "recalled": said_before}


async def main(questions: list[str]) -> None:
    async with MemoryHub() as hub, Orchestrator(hub, lm=MODEL, budget=Budget(calls=10)) as orchestrator:
        for question in questions:
            result = await orchestrator.run(Assistant(), question, session_id="simple-qa")
            print(f"Q: {question}\nA: {result['answer']}")
            print(f"   recalled: {result['recalled'] or 'nothing'}; model calls: {result.usage.calls}\n")


if __name__ == "__main__":
    anyio.run(main, sys.argv[1:] or ["What is Lisbon the capital of?", "And what did I just ask about Lisbon?"])
