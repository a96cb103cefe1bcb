"""The door to a language model: stop, reserve, ask under a deadline, settle, record.

A run's LM is the user's LM with an engine of ours in it, which is DSPy's supported way to stand in an LM's path. DSPy's
own retries are off in it, so every attempt passes here once, whoever makes the call: an agent in a thread, a tool, a
nested flow, an adapter's second try.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

import anyio
import dspy
from dspy.lm15 import Request, Response
from dspy.utils.callback import ACTIVE_CALL_ID, BaseCallback

from agenthelm._runtime.context import current_run
from agenthelm._runtime.groups import shielded
from agenthelm._runtime.retry import Backoff
from agenthelm._runtime.workers import Workers, answers, await_on_loop, in_worker_thread, on_event_loop
from agenthelm.agent.backends import Backend, LMBackend, backend_for
from agenthelm.agent.home import HOME, Home
from agenthelm.agent.lm_call import LMCall, cached_answer
from agenthelm.agent.pricing import METADATA, MetadataPrices
from agenthelm.core.cost import Price, PriceSource, override_price
from agenthelm.core.executor import ToolExecutor, current_executor
from agenthelm.core.storage.base import Record
from agenthelm.exceptions import ModelError
from agenthelm.telling import describe

__all__ = ["LMPolicy", "Meter", "Unpriced", "is_metered", "metered"]

T = TypeVar("T")

_Events: TypeAlias = Iterator[Any] | AsyncGenerator[Any, None]

Unpriced = Literal["warn", "deny", "allow"]

_log = logging.getLogger(__name__)

_GENERIC_KEYS = frozenset({"temperature", "max_tokens", "max_completion_tokens", "top_p", "stop", "rollout_id"})
"""What an LM of another class than ``dspy.LM`` may say about its requests."""

_CLIENT_KEYS = (
    "api_key", "api_base", "base_url", "headers", "extra_headers", "timeout", "api_version", "azure_ad_token_provider",
    "organization", "project", "extra_query", "custom_llm_provider",
)  # fmt: skip
"""Settings of a connection. They stay with the user's LM: DSPy refuses them beside an engine object."""


@dataclass(frozen=True, slots=True)
class LMPolicy:
    """How LM calls are made in a run.

    Attributes:
        timeout: Seconds that one call may take in all, its retries and waits included; None for no limit.
        retries: Attempts after the first, and only for failures that may pass: rate limits, server errors, a broken
            connection.
        cache: Whether DSPy's response cache may answer. Off by default: an agent that asks again wants a new answer.
        backoff: The waits between attempts. A ``Retry-After`` of the peer is waited at least, if it is a minute at most.
    """

    timeout: float | None = 120.0
    retries: int = 2
    cache: bool = False
    backoff: Backoff = field(default_factory=lambda: Backoff(longest_wait=60.0))


class Meter:
    """What the metered LMs of one run share.

    Args:
        policy: How calls are made.
        unpriced: What to do about a model without a known price: ``"warn"`` once, ``"deny"``, or ``"allow"``.
        prices: Where prices come from; `MODEL_PRICING` comes before it, always.
    """

    def __init__(
        self, policy: LMPolicy | None = None, *, unpriced: Unpriced = "warn", prices: PriceSource | None = None
    ) -> None:
        self.policy: LMPolicy = policy or LMPolicy()
        self.unpriced = unpriced
        self._prices: PriceSource = prices or METADATA
        self._known: dict[tuple[str, Price | None], Price | None] = {}
        self._pending: list[tuple[ToolExecutor, Record]] = []
        self._half_read: list[AsyncGenerator[Any, None]] = []
        self._lock = threading.Lock()
        self.closed: bool = False

    def price(self, model: str, declared: Price | None) -> Price | None:
        """A model's price: an override, else what its engine declares, else what the source knows."""
        asked = model, declared  # two engines may call their models the same
        if asked in self._known:
            return self._known[asked]
        found = override_price(model) or declared or self._prices.price(model)
        self._known[asked] = found
        if found is None and self.unpriced == "warn":
            _log.warning(
                "no price is known for model %r: its calls count against token and call budgets only, and the run's "
                "cost will be None. Name it in MODEL_PRICING, or choose unpriced='deny' or 'allow'.",
                model,
            )
        return found

    async def load_prices(self) -> None:
        """See to it that looking up a price does not read a file on the event loop."""
        if isinstance(self._prices, MetadataPrices) and not self._prices.loaded:
            await Workers().hop(self._prices.load)

    def close(self) -> None:
        """Meter nothing any more: the run is over."""
        self.closed = True

    def defer(self, executor: ToolExecutor, record: Record) -> None:
        """Keep an event that can't be awaited where it happened; the next call or `flush` writes it."""
        with self._lock:
            self._pending.append((executor, record))

    def leave(self, events: AsyncGenerator[Any, None]) -> None:
        """Keep a half-read stream that can't be closed where it was left; `flush` closes it."""
        with self._lock:
            self._half_read.append(events)

    async def record(self, executor: ToolExecutor, record: Record) -> None:
        """Write an event, and those kept before it."""
        await executor.storage.append([*self._taken(executor), record])

    async def flush(self) -> None:
        """Close the streams and write the events that were kept, whatever is cancelled."""
        if self._half_read:
            await shielded(self._close_half_read)
        if self._pending:
            await shielded(self._write)

    async def _close_half_read(self) -> None:
        while self._half_read:
            events = self._half_read.pop()
            try:
                await events.aclose()
            except Exception as error:  # noqa: BLE001 - it is nobody's, and the others are to be closed, too
                _log.warning("a stream that was left half read could not be closed: %s", describe(error))

    async def _write(self) -> None:
        while self._pending:
            executor = self._pending[0][0]
            await executor.storage.append(self._taken(executor))

    def _taken(self, executor: ToolExecutor) -> list[Record]:
        if not self._pending:
            return []
        with self._lock:
            taken = [record for one, record in self._pending if one.storage is executor.storage]
            self._pending = [entry for entry in self._pending if entry[0].storage is not executor.storage]
        return taken


class _Door:
    """The sync engine in a run's LM."""

    def __init__(self, meter: Meter, backend: Backend, hints: dspy.BaseLM) -> None:
        self.meter = meter
        self.backend = backend
        self.behind = hints
        self._home = Home()
        self.model = hints.model
        self.price: Price | None = backend.price
        self._plain = LMBackend(hints)

    # What adapters ask an LM about itself is answered by the LM this engine stands in.
    @property
    def supports_function_calling(self) -> bool:
        return bool(self.behind.supports_function_calling)

    @property
    def supports_reasoning(self) -> bool:
        return bool(self.behind.supports_reasoning)

    @property
    def supports_response_schema(self) -> bool:
        return bool(self.behind.supports_response_schema)

    @property
    def supported_params(self) -> frozenset[str]:
        return frozenset(self.behind.supported_params)

    def executor(self) -> ToolExecutor | None:
        """The executor in force; None outside of runs, where the LM behind the door is asked plainly."""
        return None if self.meter.closed else current_executor() or self._nearest_home().executor

    def outside(self) -> LMBackend:
        """The LM as it is outside of runs.

        Raises:
            ModelError: What asks is left of the run that this door was made for: a thread that was let go, or a task.
        """
        home: Home | None = dspy.settings.get(HOME)
        run = current_run() or (home.run if home is not None else None)
        if run is not None and getattr(run.models, "meter", None) is self.meter:
            raise ModelError(
                f"model {self.model!r} was asked after its run {run.run_id!r} had ended; don't let threads or tasks "
                "outlive the run"
            )
        return self._plain

    def complete(self, request: Request) -> Response:
        """One call from sync code: on the event loop where there is a way back to it, else right here."""
        _passed_door()
        executor = self.executor()
        if executor is None:
            return self.outside().ask(request)
        return self._in_run(self._complete, request, executor)

    def _complete(self, request: Request, executor: ToolExecutor) -> Response:
        back = self._way_back()
        if back is not None:
            return back(self.complete_async, request, executor)
        call = LMCall(self.meter, self.backend, request, executor)
        try:
            with call:
                while True:
                    call.attempt()
                    try:
                        response = self.backend.ask(request)
                    except Exception as error:  # noqa: BLE001 - `retry_after` raises it again, or says when to ask again
                        time.sleep(call.retry_after(error))
                    else:
                        call.answered(response)
                        return response
        finally:
            self._write(call)

    async def complete_async(self, request: Request, executor: ToolExecutor) -> Response:
        """One call on the event loop: cancellable, under its deadline."""
        await self.meter.load_prices()
        call = LMCall(self.meter, self.backend, request, executor)
        try:
            with call:
                with anyio.move_on_after(self.meter.policy.timeout):
                    while True:
                        call.attempt()
                        try:
                            response = await self.backend.ask_async(request, executor.workers)
                        except Exception as error:  # noqa: BLE001 - see `complete`
                            await executor.clock.sleep(call.retry_after(error))
                        else:
                            call.answered(response)
                            return response
                raise call.timed_out()
        finally:
            await call.write()

    def stream(self, request: Request) -> Iterator[Any]:
        """One streamed call from sync code; each event must arrive before the call's deadline."""
        _passed_door()
        executor = self.executor()
        if executor is None:
            yield from self.outside().stream(request)
            return
        call = self._in_run(LMCall, self.meter, self.backend, request, executor)
        try:
            with call:
                while True:
                    call.attempt()
                    events = self._in_run(self._events, request, executor)
                    try:
                        while (event := self._in_run(self._next_event, call, events)) is not None:
                            if call.is_news(event):
                                yield event
                        return
                    except Exception as error:  # noqa: BLE001 - see `complete`
                        time.sleep(call.retry_after(error))
                    finally:
                        self._in_run(self._close, events)
        finally:
            self._in_run(self._write, call)

    def _events(self, request: Request, executor: ToolExecutor) -> _Events:
        """What is streamed; on the loop where there is a way to it, because there it can be closed at any time."""
        if self._way_back() is None:
            return self.backend.stream(request)
        return self.backend.stream_async(request, executor.workers)

    def _next_event(self, call: LMCall, events: _Events) -> Any | None:
        """A stream's next event, or None at its end; where there is no way to the loop, however long it takes."""
        if isinstance(events, AsyncGenerator):
            back = self._way_back()
            if back is None:
                raise ModelError(
                    f"model {self.model!r} streams on an event loop that has ended, or that waits for the thread which "
                    "reads; await threads, don't block the event loop on them"
                )
            return back(call.next_event, events)
        call.check_deadline()
        if (event := next(events, None)) is not None:
            call.event(event)
        return event

    def _close(self, events: _Events) -> None:
        """Let go of the connection; the run may be cancelled by now, and the loop be waiting for this thread."""
        run = current_run()
        if not isinstance(events, AsyncGenerator):
            close = getattr(events, "close", None)
            if close is not None:
                close()
        elif getattr(events, "ag_frame", None) is None:
            return  # they have ended
        elif run is not None and run.loop is not None and not on_event_loop() and answers(run.loop):
            await_on_loop(events.aclose, token=run.loop)
        else:
            self.meter.leave(events)

    def close(self) -> None:
        """The user's LM owns its connections."""

    def answered_from_cache(self) -> None:
        """Book an answer that came from no engine."""
        executor = self.executor()
        if executor is not None:
            self.meter.defer(executor, self._in_run(cached_answer, executor, self.model))

    def _write(self, call: LMCall) -> None:
        """Put a call on record from sync code: at once where there is a way to the loop, else with the next one."""
        if call.record is None:
            return
        try:
            back = self._way_back()
        except BaseException:  # this thread's run was cancelled, and nothing can be awaited from here any more
            self.meter.defer(call.executor, call.record)
            raise
        if back is not None:
            back(call.write)
        else:
            self.meter.defer(call.executor, call.record)

    def _way_back(self) -> Callable[..., Any] | None:
        """How to await something on the run's event loop from here; None on the loop itself, or without a loop."""
        if on_event_loop():
            return None
        if in_worker_thread():
            return await_on_loop
        run = current_run()
        if run is None or run.loop is None or not answers(run.loop):
            return None
        return functools.partial(await_on_loop, token=run.loop)

    def _in_run(self, function: Callable[..., T], /, *args: Any) -> T:
        """Call a function with the identity of the run, also in a thread that DSPy started, where it is not in force."""
        return function(*args) if current_run() is not None else self._nearest_home().call(function, *args)

    def _nearest_home(self) -> Home:
        """Where this thread was started from, or else where this LM was put in force."""
        home: Home | None = dspy.settings.get(HOME)
        return home or self._home


class _AsyncDoor:
    """The async engine in a run's LM."""

    def __init__(self, door: _Door) -> None:
        self._door = door

    async def complete(self, request: Request) -> Response:
        """One awaited call."""
        _passed_door()
        executor = self._door.executor()
        if executor is None:
            return await self._door.outside().ask_async(request, Workers())
        return await self._door.complete_async(request, executor)

    async def stream(self, request: Request) -> AsyncIterator[Any]:
        """One streamed call; each event must arrive before the call's deadline."""
        _passed_door()
        meter, backend, executor = self._door.meter, self._door.backend, self._door.executor()
        if executor is None:
            async for event in self._door.outside().stream_async(request, Workers()):
                yield event
            return
        await meter.load_prices()
        call = LMCall(meter, backend, request, executor)
        try:
            with call:
                while True:
                    call.attempt()
                    events = backend.stream_async(request, executor.workers)
                    try:
                        while (event := await call.next_event(events)) is not None:
                            if call.is_news(event):
                                yield event
                        return
                    except Exception as error:  # noqa: BLE001 - see `complete`
                        await executor.clock.sleep(call.retry_after(error))
                    finally:
                        with anyio.CancelScope(shield=True):
                            await events.aclose()
        finally:
            await call.write()

    async def aclose(self) -> None:
        """The user's LM owns its connections."""


_passed: set[str] = set()
"""The LM calls in flight that reached an engine of ours. Those that end without it were answered from DSPy's cache."""


def _passed_door() -> None:
    call_id = ACTIVE_CALL_ID.get()
    if call_id is not None:
        _passed.add(call_id)


class _CacheWatch(BaseCallback):
    """Notices answers that DSPy's cache gave, which no engine sees."""

    def __init__(self, door: _Door) -> None:
        self._door = door

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        """Book an answer that came from no engine."""
        if call_id in _passed:
            _passed.discard(call_id)
        elif exception is None:
            self._door.answered_from_cache()


def is_metered(lm: dspy.BaseLM) -> bool:
    """Whether the door is in front of an LM, and its run is not over."""
    engine = getattr(lm, "engine", None)
    return isinstance(engine, _Door) and not engine.meter.closed


def metered(lm: dspy.BaseLM, meter: Meter) -> dspy.LM:
    """The same LM with the door in front of it. The LM that was given is left as it is.

    Connections stay with the LM that was given. One that has a door already, because a run is nested in another or an
    agent was handed the running LM, keeps it.
    """
    if is_metered(lm):
        return lm
    if isinstance(engine := getattr(lm, "engine", None), _Door):
        lm = engine.behind
    door = _Door(meter, backend_for(lm), lm)
    engines = {"engine": door, "async_engine": _AsyncDoor(door)}
    cache = meter.policy.cache and bool(getattr(lm, "cache", False))
    if isinstance(lm, dspy.LM) and type(lm).forward is dspy.LM.forward:
        made = lm.copy(**engines, num_retries=0, cache=cache, **{key: None for key in _CLIENT_KEYS if key in lm.kwargs})
    else:
        kept = {key: value for key, value in lm.kwargs.items() if key in _GENERIC_KEYS and value is not None}
        made = dspy.LM(lm.model, model_type=lm.model_type, **engines, num_retries=0, cache=cache, **kept)
    # Always watched, so that ids of calls that passed the door are let go of.
    made.callbacks.append(_CacheWatch(door))
    return made
