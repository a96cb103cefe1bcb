"""How often the built-in embedder finds the right one of twenty facts for a paraphrased question.

Run it with ``python -m tests.benchmarks.recall_quality [embedder]``.
"""

from __future__ import annotations

import sys

import anyio

from agenthelm.memory import SemanticMemory

PAIRS = [
    ("Maria prefers a window seat on long flights.", "Where does Maria like to sit when she flies?"),
    ("The quarterly report is due on the fifteenth of March.", "When do we have to hand in the report for the quarter?"),
    ("Our office in Lisbon moved to Rua Augusta 24.", "What is the new address of the Lisbon office?"),
    ("The customer is allergic to peanuts and shellfish.", "Which allergies does the client have?"),
    ("Invoices above 5000 euros need approval from finance.", "Who must approve an expensive invoice?"),
    ("The staging database is restored every night at two.", "How often is the database for staging reset?"),
    ("Jonas speaks German, Danish and a little Polish.", "What languages can Jonas speak?"),
    ("The hotel booking can be cancelled free of charge until Friday.", "Until when is cancelling the hotel free?"),
    ("The API key for the weather service rotates monthly.", "How frequently do we rotate the weather API keys?"),
    ("The team retrospective takes place every second Thursday.", "On which day is the team's retro?"),
    ("The new coffee machine needs descaling every six weeks.", "When should the coffee maker be descaled?"),
    ("Deployment to production is frozen in the last week of December.", "Can we deploy to prod after Christmas?"),
    ("Dr. Chen leads the cardiology research group.", "Who heads research on the heart at Dr. Chen's department?"),
    ("The warranty for the laptop ends in August next year.", "How long is the notebook covered by warranty?"),
    ("Payments by credit card carry a fee of two percent.", "What does it cost to pay with a card?"),
    ("The parking garage closes at eleven at night.", "At what time does the car park shut?"),
    ("The user asked to be addressed by his first name, Tom.", "What name should we use for the user?"),
    ("Backups are stored encrypted in two regions.", "Where are our backups kept, and are they encrypted?"),
    ("The train from Porto to Braga takes about an hour.", "How long does it take to travel from Porto to Braga by rail?"),
    ("Refunds are processed within five working days.", "How soon does a customer get the money back after a refund?"),
]  # fmt: skip
"""Facts, and questions about them in other words."""


WORDLESS = [
    ("Maria prefers a window seat on long flights.", "Where does she like to sit in the plane?"),
    ("The car is parked behind the supermarket.", "Where did we leave our vehicle?"),
    ("My daughter was born in June.", "When is the birthday of your child?"),
    ("The physician prescribed antibiotics.", "Which medicine did the doctor recommend?"),
    ("The meeting was postponed to Monday.", "To which day has the appointment been moved?"),
    ("The laptop's battery is broken.", "What is wrong with the computer?"),
    ("He earns sixty thousand a year.", "How high is his salary?"),
    ("The shop opens at nine.", "At what hour can customers enter the store?"),
    ("Our CEO lives in Hamburg.", "Which city is the boss's home?"),
    ("The contract was signed yesterday.", "Has the agreement been concluded?"),
]
"""The same without a content word in common, which only a model that knows meanings can answer."""


async def ranks(embedder: str, pairs: list[tuple[str, str]] = PAIRS) -> list[int]:
    """For each question, the place of its fact among all of them, counted from 1."""
    async with SemanticMemory("memory://", embedder=embedder) as memory:
        ids = await memory.add_many([fact for fact, _ in pairs])
        places: list[int] = []
        for wanted, (_, question) in zip(ids, pairs, strict=True):
            found = await memory.search(question, len(pairs))
            places.append([match.id for match in found].index(wanted) + 1)
        return places


def hit_at(places: list[int], k: int) -> float:
    """The share of questions whose fact is among the first ``k``."""
    return sum(place <= k for place in places) / len(places)


async def main(embedder: str = "lexical") -> None:
    """Print the table."""
    places = await ranks(embedder)
    print(f"embedder: {embedder}; place of the right fact among {len(PAIRS)}\n")
    for place, (fact, question) in zip(places, PAIRS, strict=True):
        print(f"{place:3}  {question:62} {fact}")
    print(f"\nhit@1 {hit_at(places, 1):.2f}   hit@3 {hit_at(places, 3):.2f}   hit@5 {hit_at(places, 5):.2f}")
    wordless = await ranks(embedder, WORDLESS)
    print(f"{len(WORDLESS)} facts and questions without a common content word: hit@3 {hit_at(wordless, 3):.2f}")


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])
