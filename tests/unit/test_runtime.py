"""The runtime: threads, limiters, task groups, and what native cancellation can't pierce."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import closing
from email.message import Message
from typing import Any
from urllib.error import HTTPError

import anyio
import anyio.from_thread
import anyio.lowlevel
import httpx
import pytest

from agenthelm._runtime.apart import cancelled_once, streamed_once
from agenthelm._runtime.context import RunContext, StopMark, current_run, entered, new_run_id, raise_if_stopped
from agenthelm._runtime.groups import beside, in_child, named, shielded, wait_through
from agenthelm._runtime.retry import Backoff, asked_delay
from agenthelm._runtime.workers import Outlasted, Workers, await_on_loop, hop_back
from agenthelm.telling import conceal
from tests.support.deadlines import overruns

CONTEXT = RunContext(run_id="r", session_id="s", namespace="n")


on_asyncio = pytest.mark.parametrize(
    "anyio_backend", ["asyncio", pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop")]
)
"""For what only asyncio has: cancelling a task from outside of all scopes."""


class Gate:
    """A thread that waits to be let go, and says what it has done."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go = threading.Event()
        self.ended = False

    def __call__(self) -> str:
        self.entered.set()
        assert self.go.wait(60), "nobody let the thread go"
        self.ended = True
        return "value"

    async def wait_entered(self) -> None:
        await anyio.to_thread.run_sync(self.entered.wait)


CALL_IDS_ON_BOTH_SIDES_OF_A_FORK = """
import os
from agenthelm._runtime.context import new_call_id
new_call_id()
for _ in range(2):
    if (child := os.fork()) == 0:
        print(new_call_id(), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
print(new_call_id())
"""


def test_the_calls_of_forked_processes_have_ids_of_their_own() -> None:
    run = subprocess.run(
        [sys.executable, "-c", CALL_IDS_ON_BOTH_SIDES_OF_A_FORK], capture_output=True, text=True, check=True
    )
    assert len(set(run.stdout.split())) == 3


class TestThreads:
    async def test_agents_that_wait_for_tools_never_starve_them_of_threads(self) -> None:
        workers = Workers(2)

        async def tool() -> int:
            return await workers.run(lambda: 1)

        with anyio.fail_after(60), entered(CONTEXT):
            async with anyio.create_task_group() as group:
                for _ in range(8):  # far more agents than threads, each waiting inside its thread for a second one
                    group.start_soon(workers.run, hop_back, tool)

    async def test_identity_follows_the_hop_there_and_back(self) -> None:
        workers = Workers()

        async def on_the_loop() -> RunContext | None:
            return current_run()

        def in_thread() -> tuple[RunContext | None, RunContext | None]:
            return current_run(), hop_back(on_the_loop)

        with entered(CONTEXT.evolve(agent="a")):
            here, back = await workers.run(in_thread)
        assert here is not None
        assert back is not None
        assert here.agent == "a"
        assert back == here
        assert current_run() is None

    @pytest.mark.parametrize("wait", [anyio.lowlevel.checkpoint_if_cancelled, anyio.sleep_forever])
    async def test_what_a_thread_awaits_is_told_of_a_cancellation_that_came_on_the_way(
        self, wait: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hop, patience = anyio.from_thread.run, anyio.CancelScope()

        def cancelled_on_the_way(*args: Any, **options: Any) -> Any:
            anyio.from_thread.run_sync(scope.cancel)
            return hop(*args, **options)

        async def on_the_loop() -> None:
            with patience:
                patience.deadline = anyio.current_time() + 10
                await wait()

        monkeypatch.setattr(anyio.from_thread, "run", cancelled_on_the_way)
        with anyio.CancelScope() as scope:
            await Workers().run(hop_back, on_the_loop)
        assert scope.cancelled_caught
        assert not patience.cancel_called

    @on_asyncio  # trio lets such a thread's work go on, in a task of its own
    @pytest.mark.parametrize("wait", [anyio.lowlevel.checkpoint_if_cancelled, anyio.sleep_forever])
    async def test_what_a_thread_awaits_that_others_let_go_is_told_as_well(self, wait: Any) -> None:
        """As that of ``dspy.asyncify``; without being told it would spin on the event loop for ever."""
        gate, over, told = Gate(), threading.Event(), list[BaseException]()

        def in_thread() -> None:
            gate()
            try:
                await_on_loop(wait)
            except BaseException as error:
                told.append(error)
            finally:
                over.set()

        async with anyio.create_task_group() as group:
            group.start_soon(functools.partial(anyio.to_thread.run_sync, in_thread, abandon_on_cancel=True))
            await gate.wait_entered()
            group.cancel_scope.cancel()
        gate.go.set()
        assert await anyio.to_thread.run_sync(over.wait, 60)
        assert "Cancelled" in type(told[0]).__name__

    async def test_a_cancelled_call_still_waits_for_its_thread(self) -> None:
        gate, workers = Gate(), Workers()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(workers.run, gate)
                await gate.wait_entered()
                scope.cancel()
                gate.go.set()
        assert gate.ended

    @on_asyncio
    async def test_native_cancellation_once_and_twice_waits_for_the_thread(self) -> None:
        for times in (1, 2):
            gate, workers = Gate(), Workers()
            task = asyncio.ensure_future(workers.run(gate))
            await gate.wait_entered()
            for _ in range(times):
                task.cancel()
                await anyio.wait_all_tasks_blocked()
            assert not task.done()
            assert not gate.ended
            gate.go.set()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert gate.ended

    @on_asyncio
    @pytest.mark.parametrize("times", [1, 2])
    async def test_a_native_cancellation_that_a_thread_outlasts_is_handed_back_with_what_it_did(
        self, times: int
    ) -> None:
        gate = Gate()
        task = asyncio.ensure_future(Workers().outlast(gate))
        await gate.wait_entered()
        for _ in range(times):
            task.cancel()
            await anyio.wait_all_tasks_blocked()
        assert not task.done()
        gate.go.set()
        with anyio.fail_after(60):
            thread = await task
        assert (gate.ended, thread.value) == (True, "value")
        assert isinstance(thread.cancellation, asyncio.CancelledError)

    async def test_a_function_that_is_cancelled_while_it_waits_for_a_thread_never_begins(self) -> None:
        workers, gate, other = Workers(1), Gate(), Gate()
        async with anyio.create_task_group() as group:
            group.start_soon(workers.outlast, gate)
            await gate.wait_entered()
            async with anyio.create_task_group() as waiting:
                waiting.start_soon(workers.outlast, other)
                await anyio.wait_all_tasks_blocked()
                waiting.cancel_scope.cancel()
            gate.go.set()
        assert not other.entered.is_set()

    async def test_an_error_leaves_a_thread_bare(self) -> None:
        def fail() -> None:
            raise KeyError("x")

        with pytest.raises(KeyError) as caught:
            await Workers().run(fail)
        assert caught.value.args == ("x",)

    async def test_no_more_threads_are_abandoned_than_there_are_places(self) -> None:
        workers = Workers(2)
        gates = [Gate() for _ in range(3)]
        for gate in gates[:2]:
            async with anyio.create_task_group() as group:
                group.start_soon(workers.run_abandonable, gate)
                await gate.wait_entered()
                group.cancel_scope.cancel()
        with anyio.move_on_after(0.05) as scope:
            await workers.run_abandonable(gates[2])
        assert scope.cancelled_caught
        assert not gates[2].entered.is_set()
        for gate in gates:
            gate.go.set()
        with anyio.fail_after(60):
            assert await workers.run_abandonable(gates[2]) == "value"

    async def test_a_function_that_is_cancelled_before_it_began_never_begins_and_gives_its_place_back(self) -> None:
        workers, gate = Workers(1), Gate()
        async with anyio.create_task_group() as group:
            group.start_soon(workers.run_abandonable, gate)
            await anyio.lowlevel.checkpoint()  # it has its place, and no thread yet
            group.cancel_scope.cancel()
        assert not gate.entered.is_set()
        gate.go.set()
        with anyio.fail_after(60):
            assert await workers.run_abandonable(gate) == "value"

    async def test_what_a_thread_awaits_ends_when_it_is_let_go(self) -> None:
        begun, ended = anyio.Event(), anyio.Event()

        async def on_the_loop() -> None:
            begun.set()
            try:
                await anyio.sleep_forever()
            finally:
                ended.set()

        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(Workers().run_abandonable, hop_back, on_the_loop)
                await begun.wait()
                group.cancel_scope.cancel()
            await ended.wait()

    async def test_it_has_ended_before_the_caller_goes_on(self) -> None:
        begun, ended = anyio.Event(), False

        async def on_the_loop() -> None:
            nonlocal ended
            begun.set()
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    for _ in range(100):
                        await anyio.lowlevel.checkpoint()
                ended = True

        with anyio.fail_after(60), anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:

                async def call() -> None:
                    try:
                        await Workers().run_abandonable(hop_back, on_the_loop)
                    finally:
                        assert ended

                group.start_soon(call)
                await begun.wait()
                scope.cancel()
        assert scope.cancelled_caught

    async def test_nothing_is_done_any_more_for_a_thread_that_was_let_go(self) -> None:
        gate, over, done, told = Gate(), threading.Event(), list[str](), list[BaseException]()

        async def on_the_loop() -> None:
            done.append("it was")

        def in_thread() -> None:
            gate()
            try:
                await_on_loop(on_the_loop)
            except BaseException as exc:  # which it is depends on the backend
                told.append(exc)
            finally:
                over.set()

        async with anyio.create_task_group() as group:
            group.start_soon(Workers().run_abandonable, in_thread)
            await gate.wait_entered()
            group.cancel_scope.cancel()
        gate.go.set()
        assert await anyio.to_thread.run_sync(over.wait, 60)
        assert not done
        assert len(told) == 1

    async def test_a_thread_whose_caller_went_before_it_began_does_nothing(self) -> None:
        gate = Gate()
        thread = Outlasted(gate)
        assert thread.disown_or_wait() is None
        await anyio.to_thread.run_sync(thread.run)
        assert not gate.entered.is_set()

    async def test_a_thread_that_ended_before_it_is_waited_for_is_not_waited_for(self) -> None:
        thread = Outlasted(lambda: "value")
        await anyio.to_thread.run_sync(thread.run)
        ended = thread.disown_or_wait()
        assert ended is not None
        assert (ended.is_set(), thread.value) == (True, "value")

    def test_a_thread_that_was_let_go_ends_although_its_loop_never_runs_again(self) -> None:
        workers, gate, threads = Workers(), Gate(), list[threading.Thread]()

        def work() -> None:
            threads.append(threading.current_thread())
            gate()

        async def let_go() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(workers.run_abandonable, work)
                await gate.wait_entered()
                group.cancel_scope.cancel()

        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(let_go())
            gate.go.set()
            threads[0].join(60)
            assert not threads[0].is_alive()  # it would keep the process from ending
        finally:
            loop.close()

    async def test_a_process_is_killed_when_its_caller_is_cancelled(self) -> None:
        import time

        workers = Workers()
        with anyio.fail_after(60):
            assert await workers.run_in_process(os.path.basename, "a/b") == "b"
            with anyio.move_on_after(0.2) as scope:
                await workers.run_in_process(time.sleep, 60)
        assert scope.cancelled_caught

    def test_a_pool_needs_a_thread(self) -> None:
        with pytest.raises(ValueError, match="at least 1"):
            Workers(0)

    def test_one_pool_serves_several_event_loops(self) -> None:
        workers = Workers()
        for backend in ("asyncio", "trio", "asyncio"):
            assert anyio.run(workers.run, os.path.basename, "a/b", backend=backend) == "b"

    async def test_what_a_pool_had_in_an_event_loop_goes_with_the_pool(self) -> None:
        workers = Workers()  # a service makes one for each saga of its own, and its loop runs for months
        assert await workers.run(os.path.basename, "a/b") == "b"
        limiter = weakref.ref(workers.limiter(0))
        del workers
        gc.collect()
        assert limiter() is None

    def test_hopping_back_from_nowhere_says_where_it_works(self) -> None:
        with pytest.raises(RuntimeError, match="sync forward"):
            hop_back(anyio.sleep, 0)


class TestChildren:
    async def test_a_child_hands_over_its_value_and_its_bare_error(self) -> None:
        async def value() -> int:
            await anyio.lowlevel.checkpoint()
            return 7

        async def error() -> int:
            raise LookupError("gone")

        assert await in_child(value) == 7
        with pytest.raises(LookupError, match="gone"):
            await in_child(error)

    @pytest.mark.parametrize("error", [LookupError("gone"), SystemExit(3)])
    async def test_what_runs_beside_something_ends_with_it_and_changes_nothing_about_its_end(
        self, error: BaseException
    ) -> None:
        ended: list[str] = []

        async def background() -> None:
            begun.set()
            try:
                await anyio.sleep_forever()
            finally:
                ended.append("background")

        async def value() -> int:
            await begun.wait()
            return 7

        async def fail() -> None:
            await begun.wait()
            raise error

        with anyio.fail_after(60):
            begun = anyio.Event()
            assert await beside(background, value) == 7
            begun = anyio.Event()
            with pytest.raises(type(error)) as caught:
                await beside(background, fail)
        assert caught.value is error
        assert ended == ["background", "background"]

    async def test_cancellation_reaches_a_child_as_something_shields_hold_off(self) -> None:
        cleaned: list[str] = []
        reached, release = anyio.Event(), anyio.Event()

        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(in_child, cleaning, reached, release, cleaned)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
                release.set()
        assert cleaned == ["all of it"]

    @on_asyncio
    async def test_native_cancellation_does_too_once_and_twice(self) -> None:
        cleaned: list[str] = []
        reached, release = anyio.Event(), anyio.Event()
        task = asyncio.ensure_future(in_child(cleaning, reached, release, cleaned))
        await anyio.wait_all_tasks_blocked()
        task.cancel()
        await reached.wait()
        task.cancel()
        await anyio.wait_all_tasks_blocked()
        assert not task.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cleaned == ["all of it"]

    @on_asyncio
    async def test_wait_for_overruns_until_the_undo_is_whole(self) -> None:
        done: list[str] = []
        inside, go_on = anyio.Event(), anyio.Event()

        async def undo() -> None:
            await go_on.wait()
            done.append("undone")

        async def body() -> None:
            try:
                inside.set()
                await anyio.sleep_forever()
            finally:
                await shielded(undo)

        await overruns(in_child(body), inside.wait, go_on.set)
        assert done == ["undone"]

    async def test_shielded_work_ends_before_the_cancellation_is_raised(self) -> None:
        done: list[str] = []

        async def work() -> str:
            await anyio.sleep(0.02)
            done.append("x")
            return "x"

        with anyio.CancelScope() as scope:
            scope.cancel()
            await shielded(work)
            await anyio.lowlevel.checkpoint()
        assert done == ["x"]
        assert scope.cancelled_caught

    async def test_a_certain_event_is_waited_for_through_cancellation(self) -> None:
        event, after = anyio.Event(), list[bool]()
        async with anyio.create_task_group() as group:
            group.start_soon(waiting, event, after)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
            event.set()
        assert after == [True]

    @on_asyncio
    async def test_also_through_native_cancellation_which_comes_after_it(self) -> None:
        event, after = anyio.Event(), list[bool]()
        task = asyncio.ensure_future(waiting(event, after))
        await anyio.wait_all_tasks_blocked()
        task.cancel()
        await anyio.wait_all_tasks_blocked()
        event.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert after == [True]


@on_asyncio
class TestAnothersTasks:
    """What was written for asyncio's own cancellation, awaited in scopes."""

    async def test_a_scope_cancels_it_once_and_waits_for_its_clean_up(self) -> None:
        cleaned: list[str] = []
        inside, release = anyio.Event(), anyio.Event()

        async def work() -> None:
            inside.set()
            try:
                await asyncio.sleep(30)
            finally:
                await release.wait()
                cleaned.append("all of it")

        async with anyio.create_task_group() as group:
            group.start_soon(cancelled_once, work)
            await inside.wait()
            group.cancel_scope.cancel()
            release.set()
        assert cleaned == ["all of it"]

    async def test_native_cancellation_waits_for_its_clean_up_as_well(self) -> None:
        cleaned: list[str] = []
        inside, cleaning_up, release = anyio.Event(), anyio.Event(), anyio.Event()

        async def work() -> None:
            inside.set()
            try:
                await asyncio.sleep(30)
            finally:
                cleaning_up.set()
                await release.wait()
                cleaned.append("all of it")

        task = asyncio.ensure_future(cancelled_once(work))
        await inside.wait()
        task.cancel()
        await cleaning_up.wait()
        task.cancel()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cleaned == ["all of it"]

    async def test_what_swallows_its_cancellation_hears_of_it_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("agenthelm._runtime.apart.CLEAN_UP_SECONDS", 0.01)
        inside, heard = anyio.Event(), list[int]()

        async def work() -> None:
            for time in range(3):
                try:
                    inside.set()
                    await asyncio.sleep(30)
                except asyncio.CancelledError:
                    heard.append(time)

        async with anyio.create_task_group() as group:
            group.start_soon(cancelled_once, work)
            await inside.wait()
            group.cancel_scope.cancel()
        assert heard == [0, 1, 2]

    async def test_its_errors_come_out_bare_an_exit_as_well(self) -> None:
        async def fails(error: BaseException) -> None:
            raise error

        for error in (LookupError("gone"), SystemExit(3)):
            with pytest.raises(type(error)) as raised:
                await cancelled_once(fails, error)
            assert raised.value is error

    @pytest.mark.parametrize("seen", [0, 2, 5], ids=["none", "some", "all"])
    async def test_a_stream_runs_in_one_task_from_its_beginning_to_its_end(self, seen: int) -> None:
        tasks: list[object] = []
        set_inside: contextvars.ContextVar[int] = contextvars.ContextVar("set_inside")

        async def source() -> AsyncIterator[int]:
            token = set_inside.set(1)
            try:
                with anyio.CancelScope():
                    for number in range(5):
                        tasks.append(asyncio.current_task())
                        await asyncio.sleep(0)
                        yield number
            finally:
                set_inside.reset(token)
                tasks.append(asyncio.current_task())

        values, stream = list[int](), streamed_once(source())
        for _ in range(seen):
            await in_child(ask, stream, values)
        await in_child(stream.aclose)
        assert values == list(range(seen))
        assert len(set(tasks)) == (1 if seen else 0)

    async def test_a_stream_that_is_cancelled_closes_what_it_reads(self) -> None:
        inside, closed = anyio.Event(), list[str]()

        async def source() -> AsyncIterator[int]:
            try:
                inside.set()
                await asyncio.sleep(30)
                yield 1
            finally:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                closed.append("all of it")

        async with anyio.create_task_group() as group:
            group.start_soon(ask, streamed_once(source()), [])
            await inside.wait()
            group.cancel_scope.cancel()
        assert closed == ["all of it"]

    async def test_a_stream_that_was_dropped_closes_what_it_reads(self) -> None:
        closed, complaints = anyio.Event(), list[Any]()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

        async def source() -> AsyncIterator[int]:
            try:
                while True:
                    yield 1
            finally:
                await asyncio.sleep(0)
                closed.set()

        dropped: list[Any] = [streamed_once(source())]
        assert await anext(dropped[0]) == 1
        await anyio.wait_all_tasks_blocked()
        dropped.append(dropped)
        del dropped
        gc.collect()
        with anyio.fail_after(60):
            await closed.wait()
        assert complaints == []

    async def test_a_streams_error_comes_after_its_values(self) -> None:
        async def source() -> AsyncIterator[int]:
            yield 1
            raise LookupError("gone")

        values = list[int]()
        with pytest.raises(LookupError, match="gone"):
            async for value in streamed_once(source()):
                values.append(value)
        assert values == [1]


async def ask(stream: AsyncIterator[int], values: list[int]) -> None:
    values.append(await anext(stream))


async def cleaning(reached: anyio.Event, release: anyio.Event, cleaned: list[str]) -> None:
    """Hang; on cancellation, clean up for as long as ``release`` takes."""
    try:
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            reached.set()
            await release.wait()
            cleaned.append("all of it")


async def waiting(event: anyio.Event, after: list[bool]) -> None:
    """Wait through anything, and note whether the event was there when the wait ended."""
    try:
        await wait_through(event)
    finally:
        after.append(event.is_set())


class TestNamed:
    async def test_results_come_in_the_order_they_were_named(self) -> None:
        async def after(seconds: float, value: str) -> str:
            await anyio.sleep(seconds)
            return value

        results, errors = await named({"slow": lambda: after(0.02, "s"), "quick": lambda: after(0, "q")})
        assert list(results.items()) == [("slow", "s"), ("quick", "q")]
        assert not errors

    async def test_the_first_failure_leaves_bare_and_cancels_its_siblings(self) -> None:
        cancelled: list[str] = []

        async def hang() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                cancelled.append("hang")

        async def fail() -> None:
            await anyio.wait_all_tasks_blocked()
            raise ValueError("first")

        with pytest.raises(ValueError, match="first"):
            await named({"hang": hang, "fail": fail})
        assert cancelled == ["hang"]

    async def test_further_failures_are_notes_on_the_first(self) -> None:
        async def fail(name: str) -> None:
            raise ValueError(name)

        with pytest.raises(ValueError, match=r"^[ab]") as caught:
            await named({"a": lambda: fail("a"), "b": lambda: fail("b")})
        other = {"a": "b", "b": "a"}[str(caught.value)]  # trio starts tasks in random order
        assert caught.value.__notes__ == [f"{other} failed too: ValueError: {other}"]

    async def test_what_is_concealed_of_a_further_failure_stays_so_in_the_note(self) -> None:
        async def fail(name: str) -> None:
            error = ValueError(f"{name} with its secret")
            conceal(error, f"{name} with ***")
            raise error

        with pytest.raises(ValueError, match="secret") as caught:
            await named({"a": lambda: fail("a"), "b": lambda: fail("b")})
        assert caught.value.__notes__[0].endswith(" with ***")

    async def test_collecting_lets_the_others_finish(self) -> None:
        async def fail() -> str:
            raise ValueError("x")

        async def fine() -> str:
            await anyio.sleep(0.01)
            return "fine"

        results, errors = await named({"bad": fail, "good": fine}, collect=True)
        assert results == {"good": "fine"}
        assert list(errors) == ["bad"]

    @pytest.mark.parametrize("collect", [False, True])
    async def test_an_exit_leaves_bare_also_when_all_others_have_ended(self, collect: bool) -> None:
        async def leave() -> None:
            raise SystemExit(3)

        with pytest.raises(SystemExit) as caught:
            await named({"leave": leave}, collect=collect)
        assert caught.value.code == 3

    async def test_no_more_run_at_once_than_allowed(self) -> None:
        running = peak = 0

        async def one() -> None:
            nonlocal running, peak
            running += 1
            peak = max(peak, running)
            await anyio.sleep(0.001)
            running -= 1

        await named({str(i): one for i in range(10)}, max_concurrency=3)
        assert peak == 3


class TestIdentity:
    def test_a_stop_mark_keeps_its_first_reason(self) -> None:
        mark = StopMark()
        first = ValueError("first")
        mark.set(first)
        mark.set(ValueError("second"))
        with entered(CONTEXT.evolve(stops=(StopMark(), mark))), pytest.raises(ValueError, match="first"):
            raise_if_stopped()

    def test_an_identity_has_no_other_fields_than_its_own(self) -> None:
        with pytest.raises(TypeError, match="a run context has no tenant"):
            CONTEXT.evolve(tenant="t")

    def test_nothing_stops_outside_of_runs(self) -> None:
        raise_if_stopped()

    def test_run_ids_are_unique(self) -> None:
        assert len({new_run_id() for _ in range(1000)}) == 1000


DELAYS_ON_BOTH_SIDES_OF_A_FORK = """
import os
from agenthelm import Backoff
backoff = Backoff(initial=1)
for _ in range(2):
    if (child := os.fork()) == 0:
        print(backoff.delay(1), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
print(backoff.delay(1))
"""


def test_forked_workers_that_failed_together_do_not_come_back_together() -> None:
    run = subprocess.run(
        [sys.executable, "-c", DELAYS_ON_BOTH_SIDES_OF_A_FORK], capture_output=True, text=True, check=True
    )
    assert len(set(run.stdout.split())) == 3


class TestBackoff:
    def test_bounds_grow_up_to_the_maximum(self) -> None:
        backoff = Backoff(initial=1, factor=2, maximum=5, jitter=False)
        assert [backoff.delay(n) for n in (1, 2, 3, 4, 5000)] == [1, 2, 4, 5, 5]

    def test_jitter_stays_below_the_bound(self) -> None:
        backoff = Backoff(initial=1, factor=1, maximum=1)
        delays = [backoff.delay(1) for _ in range(200)]
        assert 0 <= min(delays) < max(delays) <= 1

    def test_a_peer_that_asks_for_time_gets_it(self) -> None:
        error = RuntimeError()
        error.retry_after = 9.5  # type: ignore[attr-defined]
        assert Backoff(maximum=1).delay(1, error=error) == 9.5

    @pytest.mark.parametrize(
        ("said", "seconds"),
        [
            ("7", 7.0),
            ("Thu, 01 Jan 1970 00:20:00 GMT", 200.0),
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
            ("soon", 0.0),
            ("inf", 0.0),
            ("nan", 0.0),
            ("-5", 0.0),
        ],
    )
    def test_the_retry_after_header_of_a_response_is_heard(self, said: str, seconds: float) -> None:
        response = httpx.Response(429, headers={"retry-after": said}, request=httpx.Request("GET", "http://x"))
        with pytest.raises(httpx.HTTPStatusError) as raised:
            response.raise_for_status()
        assert asked_delay(raised.value, now=1000.0) == seconds
        headers = Message()
        headers["Retry-After"] = said
        with closing(HTTPError("http://x", 503, "busy", headers, None)) as busy:
            assert asked_delay(busy, now=1000.0) == seconds

    def test_a_date_that_a_peer_names_is_reckoned_from_the_callers_time(self) -> None:
        response = httpx.Response(429, headers={"retry-after": "Thu, 01 Jan 1970 00:20:00 GMT"})
        error = httpx.HTTPStatusError("busy", request=httpx.Request("GET", "http://x"), response=response)
        assert Backoff(maximum=0).delay(1, error=error, now=1000.0) == 200.0
        assert Backoff(maximum=0).delay(1, error=error) == 0.0  # long ago

    def test_of_a_group_the_peer_that_asked_for_most_is_heard(self) -> None:
        patient, busy = RuntimeError(), ConnectionError()
        patient.retry_after, busy.retry_after = 2.0, 9.5  # type: ignore[attr-defined]
        group = ExceptionGroup("calls", [patient, ExceptionGroup("more", [busy, ValueError()])])
        assert asked_delay(group, now=0.0) == 9.5

    def test_what_can_not_be_read_of_an_error_asks_for_nothing(self) -> None:
        class HugeError(Exception):
            retry_after = 10**400

        class BrokenError(Exception):
            @property
            def retry_after(self) -> float:
                raise RuntimeError("no")

        class HeadersError(Exception):
            class headers:  # noqa: N801
                @staticmethod
                def get(name: str) -> str:
                    raise RuntimeError("no")

        assert [asked_delay(kind(), now=0.0) for kind in (HugeError, BrokenError, HeadersError)] == [0.0, 0.0, 0.0]

    def test_no_factor_overflows_the_maximum(self) -> None:
        assert Backoff(factor=1e6, maximum=5, jitter=False).delay(100) == 5
        assert Backoff(factor=10**200, maximum=5, jitter=False).delay(3) == 5
        assert Backoff(initial=0, factor=1e6).delay(100) == 0

    @pytest.mark.parametrize(
        "numbers",
        [
            {"factor": 0.5},
            {"initial": math.nan},
            {"factor": math.inf},
            {"maximum": math.nan},
            {"maximum": -1},
            {"longest_wait": -1},
            {"initial": "1"},
        ],
    )
    def test_senseless_numbers_are_refused(self, numbers: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="factor >= 1"):
            Backoff(**numbers)


SIGINT_PROGRAM = """
    import anyio, signal, sys, time, threading
    from agenthelm._runtime.groups import in_child, shielded
    from agenthelm._runtime.workers import Workers

    async def undo():
        await anyio.sleep(0.05)
        print("undone", flush=True)

    async def body():
        workers = Workers()
        def effect():
            print("ready", flush=True)
            sys.stdin.readline()
            print("effect", flush=True)
        try:
            await workers.run(effect)
            await anyio.sleep_forever()
        finally:
            await shielded(undo)

    async def main():
        await in_child(body)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
    try:
        anyio.run(main, backend=sys.argv[1])
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_ctrl_c_waits_for_the_thread_and_the_undo(backend: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SIGINT_PROGRAM), backend],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        program.send_signal(signal.SIGINT)
        try:
            rest, _ = program.communicate("go\n", timeout=120)
        finally:
            program.kill()
    assert rest.splitlines() == ["effect", "undone", "interrupted"]
