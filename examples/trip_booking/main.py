"""A trip is booked and taken back: because a step fails, because the process is killed, and because we changed our mind."""

import argparse
import os
import subprocess
import sys

import anyio
import dspy
from tools import CARS, bookings

from agenthelm import Agent, Orchestrator, Ref, SagaResult, SqliteStorage, Step
from agenthelm.testing.lm import ScriptedLM

JOURNAL = ".agenthelm/agenthelm.db"  # where the command line looks as well
MODEL = os.environ.get("AGENTHELM_MODEL", "offline")


class Planner(Agent):
    """Reads a wish and says where to and for how long."""

    class Signature(dspy.Signature):
        task: str = dspy.InputField()
        city: str = dspy.OutputField()
        nights: int = dspy.OutputField()


class Booker(Agent):
    """Books what was planned."""

    async def aforward(self, context, city: str, nights: int, car: str):
        await self.ause("book_flight", to=city)
        hotel = await self.ause("book_hotel", city=city, nights=nights)
        await self.ause("book_car", city=city, kind=car)
        return {"hotel": hotel["number"]}


def steps(car: str) -> list[Step]:
    city = Ref("flight", "city")
    return [
        Step("book_flight", {"to": "Lisbon"}, id="flight"),
        Step("book_hotel", {"city": city, "nights": 3}, id="hotel"),
        Step("book_car", {"city": city, "kind": car}, id="car"),
    ]


def watch(progress) -> None:
    """What the run is doing, line by line."""
    words = {
        "tool_finished": "    done", "tool_failed": "  FAILED", "unwinding": " undoing", "undone": "  undone",
        "undo_failed": "   STUCK",
    }  # fmt: skip
    forward = progress.name.startswith("book_")  # a compensation is told by `unwinding` and `undone`
    if progress.kind in words and (forward or progress.kind == "unwinding"):
        print(words[progress.kind], progress.name, progress.error or "", flush=True)


def opened() -> Orchestrator:
    lm = ScriptedLM([{"city": "Lisbon", "nights": 3}], repeat=True) if MODEL == "offline" else MODEL
    return Orchestrator(lm=lm, storage=SqliteStorage(JOURNAL), observer=watch)


def tell(result: SagaResult) -> SagaResult:
    print(f"run {result.run_id}: {result.status}" + (f" ({result.error})" if result.error else ""))
    print(f"booked now: {', '.join(bookings()) or 'nothing'}\n")
    return result


async def book_steps(car: str) -> SagaResult:
    """A plan of tool calls."""
    async with opened() as orchestrator:
        return tell(await orchestrator.run_saga(steps(car), name="trip"))


async def book_agents(car: str) -> SagaResult:
    """The same by agents; they know nothing of undoing."""
    async with opened() as orchestrator:
        try:
            team = [Planner("planner"), Booker("booker")]
            run = await orchestrator.run_pipeline(team, "Three nights in Lisbon", inputs={"car": car})
        except LookupError as error:
            return tell(error.saga)
        return tell(run.saga)


async def recover(*, resume: bool) -> None:
    """What a process that died left behind."""
    async with opened() as orchestrator:
        for result in await orchestrator.recover(resume=resume):
            tell(result)


async def undo(run_id: str) -> None:
    """A good run, on purpose."""
    async with opened() as orchestrator:
        tell(await orchestrator.undo(run_id))


def killed(what: str, moment: str) -> None:
    """Book in another process that dies at a moment of our choice."""
    subprocess.run([sys.executable, __file__, what, "--kill", moment], check=False)  # noqa: S603 - this very program
    print(f"the process is gone; booked now: {', '.join(bookings()) or 'nothing'}\n")


async def story() -> None:
    print("-- a plan whose last step fails")
    await book_steps("limousine")
    print("-- agents whose last call fails")
    await book_agents("limousine")
    print("-- kill -9 right after the hotel was booked, before anybody could write that down; then recover")
    killed("agents", "after book_hotel")
    await recover(resume=False)
    print("-- the same with a plan of steps, which can also go on where it was")
    killed("steps", "after book_hotel")
    await recover(resume=True)
    print("-- another trip that went well, and a change of mind")
    result = await book_agents("van")
    await undo(result.run_id)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=["story", "steps", "agents", "recover", "undo"], default="story")
    parser.add_argument("run", nargs="?", help="for undo: which run")
    parser.add_argument("--car", default="compact", help=f"there are {' and '.join(CARS)}; anything else is sold out")
    parser.add_argument("--kill", metavar="MOMENT", help="die there: 'after book_hotel', 'before cancel_flight', ...")
    parser.add_argument("--resume", action="store_true", help="for recover: go on where that is safe")
    given = parser.parse_args()
    if given.kill:
        os.environ["TRIP_KILL"] = given.kill
    if given.what == "undo" and not given.run:
        parser.error("undo needs the id of a run")
    work = {
        "story": story,
        "steps": lambda: book_steps(given.car),
        "agents": lambda: book_agents(given.car),
        "recover": lambda: recover(resume=given.resume),
        "undo": lambda: undo(given.run),
    }
    anyio.run(work[given.what])


if __name__ == "__main__":
    main()
