"""Language models in runs: metered, under budgets and deadlines, one for all or one per agent."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import dspy

from agenthelm._runtime.context import RunContext, current_run, entered
from agenthelm.agent.backends import connections
from agenthelm.agent.home import HOME, Home
from agenthelm.agent.lm_errors import unwrap
from agenthelm.agent.metering import LMPolicy, Meter, Unpriced, metered
from agenthelm.agent.pricing import without_price_downloads
from agenthelm.agent.stray import StrayWatch
from agenthelm.core.cost import PriceSource
from agenthelm.core.executor import ToolExecutor, using
from agenthelm.exceptions import ModelNotConfiguredError, StorageError

__all__ = ["LMPolicy", "Unpriced", "agent_lm_scope", "connections", "lm_scope", "unwrap"]

_log = logging.getLogger(__name__)

without_price_downloads()


@dataclass(frozen=True, slots=True)
class _Models:
    """The LMs of one run, in ``RunContext.models``."""

    meter: Meter
    default: dspy.BaseLM | None
    by_agent: Mapping[str, dspy.BaseLM]


class _Forgetful(list[Any]):
    """A trace that keeps nothing. ``None`` would do for predictors, but ``BestOfN`` and ``Refine`` extend it."""

    def append(self, item: Any) -> None:
        """Forget it."""

    def extend(self, items: Any) -> None:
        """Forget them."""


class _NoLM(dspy.BaseLM):
    """Stands where nobody gave a model: DSPy would say so in words about DSPy."""

    def __init__(self) -> None:
        super().__init__("none")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Say how to give one."""
        raise ModelNotConfiguredError(
            "no language model is configured; give one to the orchestrator, Orchestrator(lm='openai/gpt-4o-mini'), or to "
            "the agent, or to dspy.configure (lm='offline' tries everything without one)"
        )

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Say how to give one."""
        return self()


_NO_LM = _NoLM()


class lm_scope:  # noqa: N801 - used like a function: `async with lm_scope(lm):`
    """Put a run's language models in force, each behind the door that meters it.

    Calls are held to the executor's ledger and recorded in its storage. ``dspy.configure`` is never called; the LM is
    DSPy's for the length of the scope only, and for the tasks and threads that are started in it.

    Entering gives the identity in force inside, which carries the models; None where there is none.

    Args:
        lm: The LM of all agents that have none of their own; None for the one that DSPy is configured with.
        lms: The LMs of single agents, by agent name. They come before an agent's own.
        policy: Deadline, retries and cache of the calls.
        unpriced: What to do about models without a known price.
        prices: Where prices come from, when not from DSPy's metadata.
        context: The run's identity; the one in force by default.
        executor: The run's executor; the one in force by default.
    """

    __slots__ = ("_connections", "_context", "_executor", "_lm", "_lms", "_meter", "_settings", "_stack")

    _settings: AbstractContextManager[Any]

    def __init__(
        self,
        lm: dspy.BaseLM | None,
        *,
        lms: Mapping[str, dspy.BaseLM] | None = None,
        policy: LMPolicy | None = None,
        unpriced: Unpriced = "warn",
        prices: PriceSource | None = None,
        context: RunContext | None = None,
        executor: ToolExecutor | None = None,
    ) -> None:
        self._context = context or current_run()
        self._executor = executor
        self._lm = lm
        self._lms = lms or {}
        self._meter = Meter(policy, unpriced=unpriced, prices=prices)
        self._connections = connections()
        self._stack = ExitStack()

    async def __aenter__(self) -> RunContext | None:
        meter = self._meter
        default = self._lm if self._lm is not None else dspy.settings.lm
        if isinstance(default, _NoLM):  # of the run around this one
            default = None
        models = _Models(meter, default, dict(self._lms))
        identity = None if self._context is None else self._context.evolve(models=models)
        await self._connections.__aenter__()
        try:
            if self._executor is not None:
                self._stack.enter_context(using(self._executor))
            if identity is not None:
                self._stack.enter_context(entered(identity))
            # Of a run inside another one the inner watch books for both: their books are one.
            others = [callback for callback in dspy.settings.callbacks or () if not isinstance(callback, StrayWatch)]
            callbacks = [*others, StrayWatch(meter)]
            self._settings = _dspy(models, default, callbacks=callbacks)
            self._settings.__enter__()
        except BaseException:
            await self._leave()
            raise
        return identity

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._settings.__exit__(None, None, None)
        finally:
            await self._leave()

    async def flush(self) -> None:
        """Put on record what calls could not write where they were made; what can't be written is better known early.

        Raises:
            StorageError: It can't be written.
        """
        await self._meter.flush()

    async def _leave(self) -> None:
        self._meter.close()  # no more calls are metered, then what they left behind is written
        try:
            await self._meter.flush()
        except StorageError as broken:  # how the run ended is decided, and its journal closed
            _log.error("events of model calls could not be written: %s", broken)
        finally:
            try:
                self._stack.close()
            finally:
                await self._connections.__aexit__()


@contextmanager
def agent_lm_scope(agent_name: str, lm: dspy.BaseLM | None = None) -> Iterator[None]:
    """Put an agent's LM in force: the run's for that agent, else the agent's own, else the run's for all.

    Outside of runs an agent's own LM is used as it is.

    Args:
        agent_name: The agent.
        lm: The agent's own LM, if it has one.
    """
    run = current_run()
    models = run.models if run is not None else None
    if isinstance(models, _Models):
        chosen = models.by_agent.get(agent_name) or lm or models.default
        with _dspy(models, chosen):
            yield
    elif lm is not None:
        with dspy.context(lm=lm):
            yield
    else:
        yield


def _dspy(models: _Models, lm: dspy.BaseLM | None, **settings: Any) -> Any:
    """DSPy's settings for code under an LM: no trace and no history, which would grow with every call."""
    settings[HOME] = Home()
    settings["lm"] = _NO_LM if lm is None else metered(lm, models.meter)
    return dspy.context(trace=_Forgetful(), disable_history=True, **settings)
