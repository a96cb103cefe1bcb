"""One attempt at a language model, without DSPy's own retries, cache or history around it.

A run's LM is the user's LM with another engine (`agenthelm.agent.metering`), and that engine asks a *backend*. Which one
depends on what the LM is: an engine object of the user's is asked directly; DSPy's native engine is built as DSPy would
build it; all else (LiteLLM, subclasses of ``BaseLM``, whatever comes) is called as an LM with a typed request.
"""

from __future__ import annotations

import importlib
import os
import sys
import weakref
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlsplit

import dspy
from anyio.lowlevel import RunVar
from dspy.lm15 import LMRouter, Request, Response, RouterConfig, UnsupportedFeatureError, response_to_events
from dspy.utils import DummyLM

from agenthelm._runtime.apart import cancelled_once
from agenthelm._runtime.groups import shielded
from agenthelm._runtime.workers import Workers, on_trio
from agenthelm.agent import streams
from agenthelm.core.cost import Price

__all__ = ["Backend", "LMBackend", "Server", "backend_for", "connections", "declared_price", "missing_key"]

Server: TypeAlias = tuple[str, int | None]
"""A host and its port, as a trace names them: nothing else of an address, which may hold a key."""


class Backend(Protocol):
    """What the metering engine asks. Each method is one attempt; none is retried or cached below here."""

    verbatim: str | None
    """The provider whose way of counting tokens shows in the usage, where nothing below has evened it out."""

    price: Price | None
    """What the engine itself says its tokens cost."""

    server: Server | None
    """Whom it asks, where that was configured."""

    def ask(self, request: Request) -> Response:
        """Ask, and block until the answer is there."""
        ...

    async def ask_async(self, request: Request, workers: Workers) -> Response:
        """Ask, and be cancellable at once."""
        ...

    def stream(self, request: Request) -> Iterator[Any]:
        """Ask for events, blocking."""
        ...

    def stream_async(self, request: Request, workers: Workers) -> AsyncGenerator[Any, None]:
        """Ask for events, and be cancellable at once."""
        ...


class ObjectBackend:
    """An engine object and its async twin, if it has one."""

    def __init__(self, engine: Any, async_engine: Any, *, verbatim: str | None = None) -> None:
        self.engine = engine
        self.async_engine = async_engine
        self.verbatim = verbatim
        self.server: Server | None = None
        self.price: Price | None = declared_price(engine)

    def ask(self, request: Request) -> Response:
        """Ask the sync engine."""
        return self.engine.complete(request)

    async def ask_async(self, request: Request, workers: Workers) -> Response:
        """Await the async twin where the event loop allows; else ask the sync engine in a thread that is let go."""
        twin = self.async_engine
        if getattr(twin, "any_backend", False):
            return await twin.complete(request)
        if twin is not None and not on_trio():
            return await cancelled_once(twin.complete, request)
        if getattr(self.engine, "nonblocking", False):
            return self.engine.complete(request)
        return await workers.run_abandonable(self.engine.complete, request)

    def stream(self, request: Request) -> Iterator[Any]:
        """The sync engine's events, or its whole answer as events."""
        stream = getattr(self.engine, "stream", None)
        yield from response_to_events(self.ask(request)) if stream is None else stream(request)

    async def stream_async(self, request: Request, workers: Workers) -> AsyncGenerator[Any, None]:
        """The async twin's events where the event loop allows, else the sync engine's; or a whole answer as events."""
        twin = self.async_engine
        if twin is None or (on_trio() and not getattr(twin, "any_backend", False)):
            source = streams.read(self.stream(request), workers)
        elif hasattr(twin, "stream"):
            source = streams.events(twin.stream(request))
        else:
            source = streams.whole(self.ask_async, request, workers)
        async with aclosing(source) as events:
            async for event in events:
                yield event


def declared_price(engine: Any) -> Price | None:
    """What an engine object says its tokens cost, if it says so."""
    price = getattr(engine, "price", None)
    return price if isinstance(price, Price) else None


class LMBackend:
    """Any LM, called with a typed request. Streams arrive whole, since an LM hands out no events."""

    verbatim: str | None = None
    price: Price | None = None

    def __init__(self, lm: dspy.BaseLM, *, litellm: bool | None = None) -> None:
        if isinstance(lm, dspy.LM):
            lm = lm.copy(num_retries=0, cache=False)
            lm.callbacks = []  # the LM in front of this backend calls them
        self.lm = lm
        self.server: Server | None = _server_of(lm)
        # A subclass of the old kind may bring the sync half only; DSPy's dummy brings both in one.
        self._awaitable = isinstance(lm, (dspy.LM, DummyLM)) or type(lm).aforward is not dspy.BaseLM.aforward
        self._litellm = litellm

    def ask(self, request: Request) -> Response:
        """Call the LM; history and usage are kept by the LM in front of this backend."""
        with _muted():
            return self.lm(request)

    async def ask_async(self, request: Request, workers: Workers) -> Response:
        """Await the LM on asyncio, if it can be; else call it in a thread that is let go."""
        if on_trio() or not self._awaitable:
            return await workers.run_abandonable(self.ask, request)
        if "litellm" not in sys.modules and self._needs_litellm():
            await workers.run_abandonable(_import_litellm)
        with _muted():
            return await cancelled_once(self.lm.acall, request)

    def stream(self, request: Request) -> Iterator[Any]:
        """The whole answer, as events."""
        yield from response_to_events(self.ask(request))

    def stream_async(self, request: Request, workers: Workers) -> AsyncGenerator[Any, None]:
        """The whole answer, as events."""
        return streams.whole(self.ask_async, request, workers)

    def _needs_litellm(self) -> bool:
        """What DSPy's native engine can't do goes through it; its import takes seconds, and must not be on the loop."""
        if self._litellm is None:
            self._litellm = _goes_through_litellm(self.lm)
        return self._litellm


def _goes_through_litellm(lm: dspy.BaseLM) -> bool:
    if not isinstance(lm, dspy.LM) or not isinstance(lm.engine, str):
        return False
    try:
        from dspy.clients.backend_selection import select_backend

        return not select_backend(lm).native
    except (ImportError, AttributeError, TypeError, ValueError, dspy.lm15.LM15Error):  # the call itself will say so
        return True


def _server_of(lm: dspy.BaseLM) -> Server | None:
    settings = getattr(lm, "kwargs", {})
    address = settings.get("api_base") or settings.get("base_url")
    if not isinstance(address, str):
        return None
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        return (parts.hostname, parts.port) if parts.hostname else None
    except ValueError:  # no address at all; the call will say so
        return None


def _import_litellm() -> None:
    with suppress(ImportError):  # DSPy says what to install
        importlib.import_module("litellm")


def _muted() -> Any:
    return dspy.context(callbacks=[], disable_history=True, usage_tracker=None, track_usage=False, send_stream=None)


_IDLE = 16
"""Models nobody asks just now whose connections an event loop keeps; those that were asked longest ago are let go.

Services make models as they go, one for each customer's key, say; and an open connection keeps alive all that was in
force when it was made.
"""


@dataclass(slots=True)
class _Pool:
    """The async engine of one model, which owns its connections, and how many calls it is busy with."""

    engine: Any
    calls: int = 0

    def __enter__(self) -> Any:
        self.calls += 1
        return self.engine

    def __exit__(self, *_: object) -> None:
        self.calls -= 1


@dataclass(slots=True)
class _Connections:
    """The pools of one event loop, the one asked last at the end, for as long as anybody there uses models."""

    users: int = 0
    pools: dict[NativeBackend, _Pool] = field(default_factory=dict)

    def taken(self) -> list[_Pool]:
        """Those that nobody needs any more; they are let go of."""
        idle = [backend for backend, pool in self.pools.items() if not pool.calls or not self.users]
        return [self.pools.pop(backend) for backend in (idle[:-_IDLE] if self.users else idle)]


async def _close(pools: Sequence[_Pool]) -> None:
    for pool in pools:
        await pool.engine.aclose()


_connections: RunVar[_Connections | None] = RunVar("agenthelm_lm_connections", None)


class connections:  # noqa: N801 - used like a function: `async with connections():`
    """Let LM calls of this event loop share their connections; the last one out closes them.

    An event loop must not end with connections open: uvloop then never ends.
    """

    __slots__ = ("_shared",)

    async def __aenter__(self) -> None:
        shared = _connections.get()
        if shared is None:
            shared = _Connections()
            _connections.set(shared)
        shared.users += 1
        self._shared = shared

    async def __aexit__(self, *_: object) -> None:
        shared = self._shared
        shared.users -= 1
        if pools := shared.taken():  # whoever comes meanwhile opens others
            await shielded(_close, pools)


class NativeBackend(ObjectBackend):
    """DSPy's native engine as an LM with these settings would use it; falls back to the LM where it can't.

    Threads share one pool of connections, for as long as the LM lives; an event loop has its own (`connections`).
    """

    def __init__(self, lm: dspy.LM, engines: Any, config: RouterConfig, provider: str) -> None:
        self._sync, self._async = engines
        self._config = config
        self._model_type = lm.model_type
        self._fallback = LMBackend(lm, litellm=True)
        super().__init__(self._sync(config, model_type=lm.model_type), None, verbatim=provider)
        self.server: Server | None = _server_of(lm)

    def _pool(self) -> _Pool | None:
        shared = None if on_trio() else _connections.get()
        if shared is None or not shared.users:
            return None
        pool = shared.pools.pop(self, None) or _Pool(self._async(self._config, model_type=self._model_type))
        shared.pools[self] = pool
        return pool

    def _representable(self, request: Request) -> bool:
        try:
            self.engine.plan(request)
        except UnsupportedFeatureError:
            return False
        return True

    def ask(self, request: Request) -> Response:
        """Ask, natively where the request can be represented."""
        return self.engine.complete(request) if self._representable(request) else self._fallback.ask(request)

    async def ask_async(self, request: Request, workers: Workers) -> Response:
        """Ask, natively where the request can be represented."""
        if not self._representable(request):
            return await self._fallback.ask_async(request, workers)
        pool = self._pool()
        if pool is None:
            return await workers.run_abandonable(self.engine.complete, request)
        with pool as twin:
            response: Response = await cancelled_once(twin.complete, request)
        return response

    def stream(self, request: Request) -> Iterator[Any]:
        """The native engine's events."""
        return self.engine.stream(request) if self._representable(request) else self._fallback.stream(request)

    async def stream_async(self, request: Request, workers: Workers) -> AsyncGenerator[Any, None]:
        """The native engine's events."""
        native = self._representable(request)
        pool = self._pool() if native else None
        with nullcontext() if pool is None else pool as twin:
            if twin is not None:
                source = streams.events(twin.stream(request))
            elif native:
                source = streams.read(self.engine.stream(request), workers)
            else:
                source = self._fallback.stream_async(request, workers)
            async with aclosing(source) as events:
                async for event in events:
                    yield event


_natives: weakref.WeakKeyDictionary[dspy.LM, tuple[object, Backend]] = weakref.WeakKeyDictionary()


def backend_for(lm: dspy.BaseLM) -> Backend:
    """The backend of an LM. A native one is kept for as long as the LM lives, so that connections are used again."""
    if not isinstance(lm, dspy.LM) or type(lm).forward is not dspy.LM.forward:
        return LMBackend(lm)
    if not isinstance(lm.engine, str):
        # DSPy has no public name for the twin; without one the sync engine is asked in a thread.
        return ObjectBackend(lm.engine, getattr(lm, "_async_engine_spec", None))
    settings = (lm.engine, lm.model, lm.model_type, repr(sorted(lm.kwargs.items())))
    known = _natives.get(lm)
    if known is not None and known[0] == settings:
        return known[1]
    native = _native(lm)
    if native is None:
        return LMBackend(lm)
    _natives[lm] = (settings, native)
    return native


def _native(lm: dspy.LM) -> Backend | None:
    """DSPy's native engine for an LM, or None where DSPy would not use it, or builds it differently than we know."""
    try:
        from dspy.clients.backend_selection import select_backend
        from dspy.clients.engines.lm15_engine import AsyncLM15Engine, LM15Engine, timeouts_for

        chosen = select_backend(lm)
        route, clients = chosen.resolution, chosen.clients
        if not chosen.native or route is None or route.declared:
            return None
        url = clients.get("api_base") or clients.get("base_url")
        config = RouterConfig(
            api_keys={route.provider: clients["api_key"]} if clients.get("api_key") else None,
            base_urls={route.provider: url} if url else None,
            timeouts=timeouts_for(clients.get("timeout")),
        )
        # The backend must not keep the LM alive that it is kept for.
        return NativeBackend(lm.copy(), (LM15Engine, AsyncLM15Engine), config, route.provider)
    except (ImportError, AttributeError, TypeError):
        return None


def missing_key(lm: dspy.LM) -> str | None:
    """The environment variable in which DSPy will look for the key of an LM, in vain; None where that can't be said."""
    try:
        from dspy.clients.backend_selection import select_backend

        chosen = select_backend(lm)
        route = chosen.resolution
        if not chosen.native or route is None or route.declared or chosen.clients.get("api_key"):
            return None
        if route.credential_policy != "key" or route.placeholder_key is not None:
            return None
        with LMRouter(RouterConfig()) as router:  # of several variables it names the one that is set
            name = router.resolve(route.requested).env_key
    except (ImportError, AttributeError, TypeError, ValueError):
        return None
    return name if name and not os.environ.get(name) else None
