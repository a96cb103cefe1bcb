"""Retry(deadline(call)): the attempts of one tool call, and what is known of its effect after each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio

from agenthelm._runtime.context import current_run, entered, raise_if_stopped
from agenthelm._runtime.groups import cut_short
from agenthelm._runtime.workers import Workers
from agenthelm.core.binding import own_copy
from agenthelm.core.call import Call
from agenthelm.core.cost import Ledger
from agenthelm.core.process import carried, received, reported
from agenthelm.exceptions import (
    ApprovalDeniedError,
    BudgetExceededError,
    LeaseLostError,
    OutcomeUnknown,
    ToolContractError,
    ToolInputError,
    ToolOutputError,
    ToolTimeoutError,
    UnknownToolError,
)
from agenthelm.telling import describe

__all__ = ["Attempts", "Verdict"]

_NEVER_RETRIED = (
    ApprovalDeniedError,
    BudgetExceededError,
    LeaseLostError,
    ToolContractError,
    ToolInputError,
    ToolOutputError,  # of a call inside, which was made and would be made again
    UnknownToolError,
)
_OWN_STOPS = (ApprovalDeniedError, BudgetExceededError, LeaseLostError)


def _is_one_of(error: BaseException, kinds: tuple[type[Exception], ...]) -> bool:
    """Whether an exception is of these kinds, or a group in which one is."""
    if isinstance(error, BaseExceptionGroup):
        return any(_is_one_of(inner, kinds) for inner in error.exceptions)
    return isinstance(error, kinds)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What ``verify`` said.

    Attributes:
        happened: Whether the effect is there.
        known: Whether its result is known as well.
        value: The result.
    """

    happened: bool
    known: bool = False
    value: Any = None

    @classmethod
    def of(cls, answer: Any) -> Verdict:
        """None or False: it did not happen; True: it did; anything else: it did, with this result."""
        if answer is None or answer is False:
            return cls(False)
        return cls(True) if answer is True else cls(True, True, answer)


class Attempts:
    """Runs the tool of one bound call.

    Args:
        call: The call.
        workers: Where sync tools run.
        books: The call's ledger, where what a worker process charged is booked.
        late: Set when nobody waits for further attempts any more; None where somebody always does.

    Attributes:
        doubt: Whether some attempt may have had its effect, should none succeed. Survives later clean failures; only a
            verdict ends it.
    """

    doubt: bool = False
    _entered = False
    _unheard = False
    _took = 0.0

    def __init__(self, call: Call, workers: Workers, books: Callable[[], Ledger], late: anyio.Event | None) -> None:
        self._call = call
        self._workers = workers
        self._books = books
        self._late = late

    async def run(self) -> Any:
        """Attempt the call until it succeeds or may not be retried.

        Raises:
            Exception: What the last attempt raised.
        """
        call = self._call
        assert call.tool is not None
        contract = call.tool.contract
        call.started = call.clock.monotonic()
        while True:
            call.attempts += 1
            self._entered = False
            try:
                try:
                    return await (self._attempt() if call.attempts == 1 else self._again())
                except SystemExit as ended:  # asyncio would drop everything, undoing included
                    raise RuntimeError(f"tool {call.name!r} called sys.exit({ended.code!r})") from ended
            except BaseException as error:
                self._learn(error)
                if not isinstance(error, Exception) or not self._may_retry(error):
                    raise
                failure = error
            try:
                delay = contract.backoff.delay(call.attempts, error=failure, now=call.clock.wall())
                if contract.backoff.too_long(delay):
                    raise failure
                await call.clock.sleep(delay)
                raise_if_stopped()
                self._raise_if_spent(failure)
                if self._late is not None and self._late.is_set():
                    raise failure
            finally:
                del failure

    def settle(self) -> None:
        """Book what nobody heard of: what was charged in a worker process that is no more."""
        if not self._unheard:
            return
        call = self._call
        assert call.tool is not None
        agent, most = call.context.agent if call.context else None, call.tool.contract.max_cost
        ledger = self._books()
        if most is None:
            ledger.charge_unknown(agent=agent)
        else:
            ledger.charge(max(0.0, most - (ledger.charged_usd or 0.0)), agent=agent)

    def _learn(self, error: BaseException) -> None:
        """What an attempt's failure says about its effect."""
        call = self._call
        assert call.tool is not None
        if not call.is_effect and call.compensates is None:
            return  # it changes nothing, so there is nothing to doubt
        if isinstance(error, Exception):
            stopped = call.tool.is_async and cut_short(error)  # a thread can't be
            if stopped or call.tool.contract.in_doubt_after(error) or _is_one_of(error, _OWN_STOPS):
                self.doubt = True
        else:
            # Cancelled, or the process is being torn down: it never returned, if it was entered at all.
            self.doubt = self.doubt or self._entered

    def _raise_if_spent(self, failure: Exception) -> None:
        """Refuse a further attempt where those before it have passed a limit: of the call, the agent or the run."""
        try:
            self._books().check()
        except BudgetExceededError as spent:
            raise spent from failure

    def _may_retry(self, error: Exception) -> bool:
        call = self._call
        assert call.tool is not None
        contract = call.tool.contract
        if call.attempts > contract.retries or _is_one_of(error, _NEVER_RETRIED) or call.cancellation is not None:
            return False
        if self.doubt and not contract.idempotent:
            return False
        if isinstance(error, ExceptionGroup):  # as `except*` would have it
            return error.split(contract.retry_on)[1] is None
        return isinstance(error, contract.retry_on)

    async def _attempt(self) -> Any:
        call = self._call
        assert call.tool is not None and call.bound is not None
        tool, timeout = call.tool, call.tool.contract.timeout
        if tool.contract.runs_in == "process":
            return await self._with_deadline(self._in_process, timeout)
        bound = own_copy(call.bound)
        if tool.is_async and timeout is None:
            return await self._enter(bound)
        invoke = partial(self._enter, bound)
        if tool.is_async:
            return await self._with_deadline(invoke, timeout, at_once=True)
        if tool.contract.abandonable:
            return await self._with_deadline(partial(self._workers.run_abandonable, invoke), timeout)
        outcome = await self._workers.outlast(invoke if timeout is None else partial(self._timed, invoke))
        # A thread can't be stopped, so its deadline can only say that it was late.
        call.late = timeout is not None and self._took > timeout
        call.cancellation = outcome.cancellation
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    async def _again(self) -> Any:
        """A further attempt, so that what it does inside can be told from what those before it did."""
        running = current_run()
        if running is None or self._call.effect is None:
            return await self._attempt()
        with entered(running.evolve(attempt=self._call.attempts)):
            return await self._attempt()

    def _enter(self, bound: dict[str, Any]) -> Any:
        """Call the tool; a sync one in its thread, for which it may have had to wait."""
        assert self._call.tool is not None
        self._entered = True
        return self._call.tool.binding.invoke(bound)

    def _timed(self, invoke: Callable[[], Any]) -> Any:
        """In the tool's thread: what it takes is its own time, without the time that it waited for a thread."""
        clock = self._call.clock
        began = clock.monotonic()
        try:
            return invoke()
        finally:
            self._took = clock.monotonic() - began

    async def _in_process(self, *, begins: Callable[[], None]) -> Any:
        call = self._call
        assert call.tool is not None and call.bound is not None
        binding = call.tool.binding

        def sent() -> None:
            self._entered = True  # as far as can be known here
            begins()

        try:
            report = await self._workers.run_in_process(
                reported, carried(binding.prepared(call.bound)), needs=carried(call.tool.function), begins=sent
            )
        except anyio.BrokenWorkerProcess as broken:
            if not self._entered:
                raise anyio.BrokenWorkerProcess(self._never_began(broken)) from broken
            self._unheard = True
            raise OutcomeUnknown(
                f"the worker process of tool {call.name!r} died before it said how the call ended"
            ) from broken
        except anyio.get_cancelled_exc_class():
            self._unheard = self._unheard or self._entered
            raise
        self._books().charge(report.charged_usd, agent=call.context.agent if call.context else None)
        return received(report)

    def _never_began(self, broken: anyio.BrokenWorkerProcess) -> str:
        """Why the tool's worker process did not get as far as the tool."""
        why = describe(broken.__cause__ or broken)
        return (
            f"tool {self._call.name!r} was not called: its worker process failed while it imported the program's main file "
            f"or the tool's: {why}"
        )

    async def _with_deadline(self, invoke: Callable[..., Any], timeout: float | None, *, at_once: bool = False) -> Any:
        """Await a call that ends at its deadline, which is reckoned from its beginning.

        Args:
            invoke: What is awaited.
            timeout: How long it may take.
            at_once: Whether it begins at once; otherwise it waits for a place first, and calls ``begins`` then.

        Raises:
            ToolTimeoutError: The deadline ended it, whatever it raised when it was cancelled.
        """
        scope = anyio.move_on_after(timeout if at_once else None)

        def begins() -> None:
            if timeout is not None:
                scope.deadline = anyio.current_time() + timeout

        try:
            with scope:
                value = await (invoke() if at_once else invoke(begins=begins))
        except (Exception, SystemExit) as error:
            if not scope.cancel_called:
                raise
            assert timeout is not None
            raise ToolTimeoutError(self._call.name, timeout) from error  # how its clean-up went
        if scope.cancelled_caught:
            assert timeout is not None
            raise ToolTimeoutError(self._call.name, timeout)
        if scope.cancel_called:
            self._call.late = True  # it held off the cancellation and finished all the same
        return value
