"""Tools in worker processes: what became of a call is known, or in doubt, whatever the process gives back."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from trio.testing import MockClock

from agenthelm._runtime.retry import Backoff
from agenthelm.core.cost import Budget, Ledger
from agenthelm.core.executor import ToolExecutor
from agenthelm.core.process import charged_here
from agenthelm.core.storage import EVENTS, InMemoryStorage
from agenthelm.core.tool import Tool, ToolContract, ToolRegistry
from agenthelm.exceptions import OutcomeUnknown, ToolOutputError, ToolTimeoutError
from agenthelm.orchestration.saga import saga
from tests.support import process_tools
from tests.support.process_tools import PeculiarError

TIME = MockClock()
"""An event loop's own time, which passes only when a test says so."""


def in_process(function: Callable[..., Any], **fields: Any) -> Tool:
    return Tool.from_function(function, ToolContract(runs_in="process", **fields), name="work")


class World:
    """A run with one effect in a process that writes a file, and ends with an error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "made"
        self.storage = InMemoryStorage()
        self.result: Any = None
        self.calls = 0

    async def run(self, function: Callable[..., Any], undo: Callable[..., Any], **fields: Any) -> BaseException | None:
        fields = {"retries": 2, "backoff": Backoff(initial=0), **fields}
        work = in_process(function, side_effects=("file:write",), compensating_tool="undo", **fields)
        with pytest.raises(ZeroDivisionError):
            async with saga(
                tools=ToolRegistry([work, Tool.from_function(undo, name="undo")]), storage=self.storage
            ) as scope:
                seen: BaseException | None = None
                try:
                    await scope.use("work", path=str(self.file))
                except Exception as error:
                    seen = error
                self.calls = len(self.file.read_text())
                raise ZeroDivisionError
        self.result = scope.result
        return seen

    async def outcome(self) -> str:
        (event,) = [r.data for r in await self.storage.read(EVENTS) if r.data["tool_name"] == "work"]
        return str(event["outcome"])


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


Elsewhere = Callable[[str], Callable[..., Any]]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    """Makes a tool whose module runs a line of its own when another process imports it."""

    def make(line: str) -> Callable[..., Any]:
        name = f"elsewhere_{abs(hash(tmp_path))}"
        source = f"import os, time\nif os.getpid() != {os.getpid()}:\n    {line}\n"
        (tmp_path / f"{name}.py").write_text(f"{source}def work(path: str): return os.getpid()\n")
        monkeypatch.syspath_prepend(tmp_path)
        return importlib.import_module(name).work  # type: ignore[no-any-return]

    return make


def remove(path: str) -> None:
    Path(path).unlink()


class TestDoubt:
    async def test_a_process_that_dies_leaves_its_effect_in_doubt(self, world: World) -> None:
        error = await world.run(process_tools.die, remove)
        assert isinstance(error, OutcomeUnknown)
        assert "'work' died before it said how the call ended" in str(error)
        assert (world.calls, await world.outcome()) == (1, "in_doubt")
        assert (world.result.status, [stuck.tool for stuck in world.result.stuck]) == ("failed", ["work"])

    async def test_and_what_undoes_it_runs_where_that_is_harmless(self, world: World) -> None:
        def remove_if_there(path: str, idempotency_key: str) -> None:
            Path(path).unlink(missing_ok=True)

        await world.run(process_tools.die, remove_if_there)
        assert (world.result.status, world.file.exists()) == ("rolled_back", False)

    async def test_one_that_dies_before_the_tool_began_leaves_none(self, world: World, elsewhere: Elsewhere) -> None:
        world.file.write_text("")
        error = await world.run(elsewhere("os._exit(9)"), remove)
        assert isinstance(error, anyio.BrokenWorkerProcess)
        assert (world.calls, await world.outcome()) == (0, "failed")

    async def test_an_exception_that_can_not_be_read_here_leaves_doubt(self, world: World) -> None:
        error = await world.run(process_tools.raise_what_is_unreadable_elsewhere, remove)
        assert isinstance(error, OutcomeUnknown)
        assert (world.calls, await world.outcome()) == (1, "in_doubt")


@pytest.mark.parametrize(
    "function", [process_tools.give_what_does_not_pickle, process_tools.give_what_is_unreadable_elsewhere]
)
class TestLostResults:
    async def test_a_call_whose_result_can_not_come_back_happened_and_is_undone(
        self, world: World, function: Any
    ) -> None:
        error = await world.run(function, remove)
        assert isinstance(error, ToolOutputError)
        assert "ran, but its result can't leave its process: " in str(error)
        assert error.ran
        assert (world.calls, await world.outcome()) == (1, "invalid")
        assert (world.result.status, world.file.exists()) == ("rolled_back", False)

    async def test_what_needs_that_result_is_not_called_without_it(self, world: World, function: Any) -> None:
        def undo(result: Any) -> None:
            raise AssertionError("never called")

        await world.run(function, undo)
        (stuck,) = world.result.stuck
        assert "needs the result, which is not on record" in stuck.reason


class TestErrors:
    async def test_an_exception_that_can_not_be_read_again_keeps_its_class_and_its_message(self, world: World) -> None:
        error = await world.run(process_tools.raise_peculiar, remove, unknown_on=(PeculiarError,))
        assert (type(error), str(error)) == (PeculiarError, "a b")
        assert (world.calls, await world.outcome()) == (1, "in_doubt")

    async def test_one_of_a_local_class_is_the_nearest_that_has_a_name(self, world: World) -> None:
        error = await world.run(process_tools.raise_local, remove)
        assert (type(error), str(error)) == (ConnectionError, "LineWentDeadError: at once")
        assert (world.calls, await world.outcome()) == (1, "in_doubt")

    async def test_a_group_keeps_what_is_in_it_and_so_the_doubt(self, world: World) -> None:
        error = await world.run(process_tools.raise_peculiar_and_others, remove)
        assert isinstance(error, ExceptionGroup)
        peers, plain = error.exceptions
        assert isinstance(peers, ExceptionGroup)
        assert [str(one) for one in (*peers.exceptions, plain)] == ["a b", "after it was sent", "'plain'"]
        assert (world.calls, await world.outcome()) == (1, "in_doubt")
        assert [stuck.tool for stuck in world.result.stuck] == ["work"]

    async def test_others_arrive_as_they_are_and_are_retried(self, world: World) -> None:
        error = await world.run(process_tools.raise_plain, remove)
        assert isinstance(error, KeyError)
        assert (error.args, world.calls, await world.outcome()) == (("plain",), 3, "failed")

    async def test_a_tool_that_exits_has_failed(self, world: World) -> None:
        error = await world.run(process_tools.leave, remove, retries=0)
        assert str(error) == "tool 'work' called sys.exit(4)"
        assert await world.outcome() == "failed"

    async def test_arguments_that_do_not_pickle_are_the_callers_error(self) -> None:
        executor = ToolExecutor(ToolRegistry([in_process(divmod, inputs={"x": Any, "y": Any})]), InMemoryStorage())
        with pytest.raises(TypeError, match="pickle"):
            await executor.call("work", {"x": threading.Lock(), "y": 1})


class TestMoney:
    @pytest.mark.parametrize("fails", [False, True])
    async def test_what_is_charged_in_a_process_is_booked(self, fails: bool) -> None:
        storage = InMemoryStorage()
        executor = ToolExecutor(ToolRegistry([in_process(process_tools.spend, max_cost=1.0)]), storage)
        try:
            await executor.call("work", {"usd": 0.25, "fails": fails})
        except ValueError:
            assert fails
        (record,) = await storage.read(EVENTS)
        assert record.data["estimated_cost_usd"] == 0.25
        assert executor.ledger.spent().usd == 0.25

    @pytest.mark.parametrize(
        ("function", "max_cost"),
        [
            (process_tools.spend_and_hang, 100.0),
            (process_tools.spend_and_die, None),
            (process_tools.spend_and_die, 0.0),
        ],
    )
    async def test_what_a_process_that_is_no_more_has_charged_is_unknown_and_never_nothing(
        self, function: Callable[..., Any], max_cost: float | None
    ) -> None:
        storage = InMemoryStorage()
        work = in_process(function, max_cost=max_cost, timeout=0.5, retries=1, backoff=Backoff(initial=0))
        executor = ToolExecutor(ToolRegistry([work]), storage, ledger=Ledger("run", Budget(usd=200.0)))
        with pytest.raises((OutcomeUnknown, ToolTimeoutError)):
            await executor.call("work", {"usd": 5.0})
        (record,) = await storage.read(EVENTS)
        assert (record.data["retry_count"], record.data["estimated_cost_usd"]) == (1, max_cost)
        assert (executor.ledger.cost_usd, executor.ledger.spent().usd) == (max_cost, max_cost or 0.0)

    async def test_one_that_ended_after_others_had_died_settles_them_all_at_what_they_may_cost(
        self, tmp_path: Path
    ) -> None:
        work = in_process(process_tools.spend_and_die_once, max_cost=1.0, retries=1, backoff=Backoff(initial=0))
        executor = ToolExecutor(ToolRegistry([work]), InMemoryStorage())
        await executor.call("work", {"path": str(tmp_path / "died"), "usd": 0.25})
        assert executor.ledger.spent().usd == executor.ledger.cost_usd == 1.0

    def test_outside_of_a_process_it_is_nobodys(self) -> None:
        assert not charged_here(1.0)


async def test_ctrl_c_is_left_to_the_process_that_may_undo_the_run(tmp_path: Path) -> None:
    """A service that ends in good order waits for its calls; its terminal tells the worker processes as well."""
    executor = ToolExecutor(ToolRegistry([in_process(process_tools.go_on_after_ctrl_c)]), InMemoryStorage())
    assert await executor.call("work", {"path": str(tmp_path / "made")}) == 7
    assert (tmp_path / "made").read_text() == "x"


@pytest.mark.parametrize("anyio_backend", [pytest.param(("trio", {"clock": TIME}), id="trio")])
async def test_the_start_of_a_process_is_no_part_of_the_tools_deadline(elsewhere: Elsewhere, tmp_path: Path) -> None:
    starting, go_on = tmp_path / "starting", tmp_path / "go on"
    work = elsewhere(f"open({str(starting)!r}, 'w')\n    while not os.path.exists({str(go_on)!r}): time.sleep(0.01)")
    executor = ToolExecutor(ToolRegistry([in_process(work, timeout=1.0)]), InMemoryStorage())
    ran_in: list[int] = []

    async def call() -> None:
        ran_in.append(await executor.call("work", {"path": ""}))

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        while not starting.exists():
            await anyio.lowlevel.checkpoint()
        TIME.jump(2)  # past the deadline, and the process has only begun to start
        await anyio.wait_all_tasks_blocked()
        go_on.touch()
    assert ran_in != [os.getpid()]


UNGUARDED = """
from pathlib import Path

import anyio

from agenthelm import Agent, ExecutionTracer, Orchestrator, Step, saga, tool

with Path("imported").open("a") as file:
    file.write("x")


@tool(side_effects=["mail:send"])
def mail() -> None:
    with Path("mails").open("a") as file:
        file.write("x")


@tool(runs_in="process")
def work() -> int:
    return 7


async def by_saga():
    async with saga("s") as scope:
        await scope.use("mail")
        print(await scope.use("work"))


async def by_orchestrator():
    async with Orchestrator() as orchestrator:
        print(await orchestrator.run_saga([Step("mail"), Step("work")]))


async def by_tracer():
    tracer = ExecutionTracer()
    await tracer.trace_and_execute("mail")
    print(await tracer.trace_and_execute("work"))


class Clerk(Agent):
    async def aforward(self, context):
        await self.ause("mail")
        return {"value": await self.ause("work")}


async def by_agent():
    print(await Clerk().run())


anyio.run(HERE)
"""


class TestAProgramThatRunsWhenItIsImported:
    """A worker process imports the program's main file; one that starts its work there would do all of it again."""

    @pytest.mark.parametrize("way", ["by_saga", "by_orchestrator", "by_tracer", "by_agent"])
    def test_does_nothing_twice_and_is_told_why(self, tmp_path: Path, way: str) -> None:
        program = tmp_path / "program.py"
        program.write_text(UNGUARDED.replace("HERE", way))
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, str(program)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert (tmp_path / "imported").read_text() == "xx"
        assert (tmp_path / "mails").read_text() == "x"
        assert "put what it starts under `if __name__ == '__main__':`" in done.stdout + done.stderr

    def test_one_that_is_typed_in_has_no_file_for_its_tools_to_be_imported_from(self, tmp_path: Path) -> None:
        program = "from agenthelm import tool\n@tool(runs_in='process')\ndef work() -> int: return 7\n"
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(
            [sys.executable, "-"],
            input=program,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "work is in no file; define it in a module" in done.stderr

    async def test_a_tool_may_run_others_in_its_process(self) -> None:
        executor = ToolExecutor(ToolRegistry([in_process(process_tools.run_a_saga)]), InMemoryStorage())
        assert await executor.call("work", {}) == "success"
