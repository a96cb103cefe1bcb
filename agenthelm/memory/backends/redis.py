"""Values in a Redis server."""

from __future__ import annotations

import math
import re
import ssl
from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast
from urllib.parse import SplitResult

import anyio
from anyio.lowlevel import checkpoint_if_cancelled

from agenthelm._runtime.per_loop import PerLoop
from agenthelm._runtime.retry import Backoff, Clock, SystemClock
from agenthelm._runtime.workers import Workers, on_trio
from agenthelm.exceptions import ConfigError, MemoryStoreError
from agenthelm.memory.backends._urls import split_url, unreadable
from agenthelm.memory.base import KeyValueBackend
from agenthelm.memory.values import not_an_integer
from agenthelm.telling import behind, describe

if TYPE_CHECKING:
    import redis

__all__ = ["RedisBackend"]

_EXAMPLE = "redis://host:6379/0"
_IDLE = 1.0
_RETRIES = 3
_PAGE = 1000

_SWAP = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[3] == '' then redis.call('SET', KEYS[1], ARGV[2])
else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return 1
"""

Command = tuple["str | int", ...]


class _Link(Protocol):
    """The two things that are asked of redis-py, on either kind of event loop.

    Attributes:
        used: When it was last answered; infinity if it never was, as no connection can have died then.
    """

    used: float

    async def one(self, *command: str | int) -> Any: ...

    async def several(self, commands: Sequence[Command]) -> list[Any]: ...

    async def aclose(self) -> None: ...


class RedisBackend(KeyValueBackend):
    """Values in a Redis server, through pooled connections that come back after it was restarted.

    On asyncio redis-py's own client is used, on trio its sync client in worker threads. Reads, writes and deletions
    are tried again for about a second when the connection breaks. `incr` and `swap` never are, because nobody could
    say how often they happened; after a quiet second the server is asked whether it is there before they are sent. A
    server that accepts a call and does not answer costs one ``timeout``, not several.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, with redis-py's query parameters.
        max_connections: At most so many per event loop; further calls wait for their turn.
        timeout: Seconds to wait for an answer.
        connect_timeout: Seconds to wait for a connection.
        clock: What waits between tries, and quiet times, are measured with; times to live are Redis's own.

    Raises:
        ConfigError: The URL can't be read, or redis-py refuses one of its parameters.
    """

    store = "redis"

    def __init__(
        self,
        url: str,
        *,
        max_connections: int = 64,
        timeout: float = 5.0,
        connect_timeout: float = 2.0,
        clock: Clock | None = None,
    ) -> None:
        parts = _parts(url)
        self._location = _shown(parts)
        self._url = url
        self._size = max_connections
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._clock = clock or SystemClock()
        self._backoff = Backoff(initial=0.05, factor=4.0, maximum=1.0, jitter=False)
        self._links: PerLoop[_Link] = PerLoop(lambda link: link.aclose())
        self._failures: tuple[type[Exception], ...] = ()
        self._closed = False
        if parts.query:
            _check_options(url)

    @property
    def location(self) -> str:
        return self._location

    async def read(self, keys: Sequence[str]) -> list[str | None]:
        if len(keys) == 1:
            return [await self._one("GET", keys[0])]
        return cast("list[str | None]", await self._one("MGET", *keys))

    async def write(self, items: Mapping[str, str], ttl: float | None) -> None:
        if len(items) == 1:
            ((key, value),) = items.items()
            await self._one("SET", key, value, *_expiry(ttl))
        elif ttl is None:
            await self._one("MSET", *(part for item in items.items() for part in item))
        else:
            commands: list[Command] = [("SET", key, value, *_expiry(ttl)) for key, value in items.items()]
            await self._call("several", commands)

    async def delete(self, keys: Sequence[str]) -> int:
        pages = [keys[start : start + _PAGE] for start in range(0, len(keys), _PAGE)]
        return sum([int(await self._one("DEL", *page)) for page in pages])

    async def scan(self, prefix: str) -> list[str]:
        pattern = re.sub(r"([*?\[\]\\])", r"\\\1", prefix) + "*"
        found: set[str] = set()  # SCAN may name a key twice
        cursor = 0
        while True:
            cursor, keys = await self._one("SCAN", cursor, "MATCH", pattern, "COUNT", _PAGE)
            found.update(key for key in keys if key.startswith(prefix))
            if int(cursor) == 0:
                return sorted(found)

    async def swap(self, key: str, expected: str | None, new: str, *, ttl: float | None) -> bool:
        if expected is None:
            return bool(await self._once("SET", key, new, *_expiry(ttl), "NX"))
        milliseconds = "" if ttl is None else _expiry(ttl)[1]
        return bool(await self._once("EVAL", _SWAP, 1, key, expected, new, milliseconds))

    async def incr(self, key: str, amount: int, *, ttl: float | None) -> int:
        from redis.exceptions import ResponseError

        try:
            if ttl is None:
                return int(await self._once("INCRBY", key, amount))
            commands: list[Command] = [("SET", key, 0, *_expiry(ttl), "NX"), ("INCRBY", key, amount)]
            return int((await self._call("several", commands, retries=0))[1])
        except MemoryStoreError as exc:
            if isinstance(exc.__cause__, ResponseError) and re.search("not an integer|overflow", str(exc.__cause__)):
                raise not_an_integer(key) from exc
            raise

    async def ping(self) -> None:
        await self._one("PING")

    async def aclose(self) -> None:
        self._closed = True
        await self._links.close()

    def _one(self, *command: str | int) -> Awaitable[Any]:
        return self._call("one", *command)

    def _once(self, *command: str | int) -> Awaitable[Any]:
        return self._call("one", *command, retries=0)

    async def _call(self, method: Literal["one", "several"], *args: Any, retries: int = _RETRIES) -> Any:
        if self._closed:
            await self.aclose()  # perhaps from another event loop, which left open what belongs to this one
            raise MemoryStoreError(f"the memory at {self._location} is closed; open another one")
        link = self._links.get() or await self._link()
        if not retries and self._clock.monotonic() - link.used > _IDLE:
            await self.ping()  # a connection that died meanwhile must not be found out by what is never repeated
        attempt = 0
        while True:
            attempt += 1
            try:
                answer = await getattr(link, method)(*args)
            except self._failures as exc:
                # A thread can't be interrupted: whoever was cancelled while it waited is told that, not what it ran into.
                await checkpoint_if_cancelled()
                if attempt > retries or not _may_pass(exc):
                    raise self._translated(exc) from exc
            else:
                link.used = self._clock.monotonic()
                return answer
            await self._clock.sleep(self._backoff.delay(attempt))

    async def _link(self) -> _Link:
        """Make what belongs to this event loop; redis-py is loaded here."""
        from redis.exceptions import RedisError

        self._failures = (RedisError, OSError, UnicodeDecodeError)
        made = _ThreadLink if on_trio() else _AsyncLink
        link = made(self._url, self._size, self._timeout, self._connect_timeout)
        await self._links.set(link)
        return link

    def _translated(self, error: Exception) -> MemoryStoreError:
        from redis import exceptions

        what = f"Redis at {self._location}"
        match error:
            case exceptions.AuthenticationError() | exceptions.AuthorizationError() | exceptions.NoPermissionError():
                text = f"{what} refused the user or the password"
            case exceptions.TimeoutError():
                text = f"{what} did not answer within {self._timeout:g} s; whether it did what it was asked is unknown"
            case exceptions.ConnectionError() | OSError():
                text = f"{what} can't be reached; is it running? ({describe(error)})"
            case exceptions.OutOfMemoryError():
                text = f"{what} is out of memory; nothing was written"
            case UnicodeDecodeError():
                text = f"{what} holds bytes under an agenthelm: key that AgentHelm did not write; delete them"
            case _:
                text = f"{what} refused the command ({describe(error)})"
        return MemoryStoreError(text)


class _AsyncLink:
    """redis-py's client for asyncio."""

    used = math.inf

    def __init__(self, url: str, size: int, timeout: float, connect_timeout: float) -> None:
        from redis.asyncio import ConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        # The semaphore is the limit, not the pool: a pool that counts loses a place for good when a cancellation
        # strikes while a connection is handed back, and its waiting list costs more than a semaphore.
        self._turns = anyio.Semaphore(size, fast_acquire=True)
        options = _options(url, timeout, connect_timeout, Retry(NoBackoff(), 0))
        self._client: redis.asyncio.Redis = Redis(connection_pool=ConnectionPool.from_url(url, **options))

    async def one(self, *command: str | int) -> Any:
        async with self._turns:
            return await self._client.execute_command(*command)  # type: ignore[no-untyped-call]

    async def several(self, commands: Sequence[Command]) -> list[Any]:
        async with self._turns, self._client.pipeline(transaction=True) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return await pipeline.execute()

    async def aclose(self) -> None:
        await self._client.aclose(close_connection_pool=True)


class _ThreadLink:
    """redis-py's sync client in worker threads, for event loops it has no client for."""

    used = math.inf

    def __init__(self, url: str, size: int, timeout: float, connect_timeout: float) -> None:
        from redis import BlockingConnectionPool, Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._workers = Workers(size)
        options = _options(url, timeout, connect_timeout, Retry(NoBackoff(), 0))
        pool = BlockingConnectionPool.from_url(url, max_connections=size, timeout=timeout, **options)
        self._client: redis.Redis = Redis(connection_pool=pool)

    async def one(self, *command: str | int) -> Any:
        return await self._workers.hop(self._client.execute_command, *command)

    async def several(self, commands: Sequence[Command]) -> list[Any]:
        return await self._workers.hop(self._several, commands)

    async def aclose(self) -> None:
        await self._workers.hop(self._close)

    def _several(self, commands: Sequence[Command]) -> list[Any]:
        with self._client.pipeline(transaction=True) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
            return pipeline.execute()

    def _close(self) -> None:
        self._client.close()
        self._client.connection_pool.disconnect()


def _options(url: str, timeout: float, connect_timeout: float, retry: object) -> dict[str, Any]:
    kept_alive = {} if url.startswith("unix:") else {"socket_keepalive": True}
    return kept_alive | {
        "decode_responses": True,
        "protocol": 2,  # the newer one asks two more questions per connection, for features not used here
        "retry": retry,  # named, because what redis-py does by itself depends on how its client was made
        "socket_timeout": timeout,
        "socket_connect_timeout": connect_timeout,
        "client_name": "agenthelm",
    }


def _may_pass(error: Exception) -> bool:
    """Whether the connection broke, so that another one may do."""
    from redis import exceptions

    if isinstance(error, (exceptions.AuthenticationError, exceptions.AuthorizationError)):
        return False
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in behind(error)):
        return False
    return isinstance(error, exceptions.ConnectionError)


def _expiry(ttl: float | None) -> tuple[str | int, ...]:
    return () if ttl is None else ("PX", max(1, math.ceil(ttl * 1000)))


def _parts(url: str) -> SplitResult:
    """The parts of a URL that redis-py takes as it is meant: it ignores a path or a query that makes no sense to it."""
    parts = split_url(url, store="Redis", example=_EXAMPLE, setting="memory_url")
    if parts.scheme != "unix" and not re.fullmatch("/?[0-9]*", parts.path):
        raise ConfigError(
            f"the path of a Redis URL is the number of a database, as in {_EXAMPLE}; use namespaces to keep things apart",
            setting="memory_url",
        )
    if any("=" not in option for option in parts.query.split("&") if option):
        raise unreadable("Redis", _EXAMPLE, "memory_url")
    return parts


def _check_options(url: str) -> None:
    """Refuse what redis-py would only refuse when it is used; loads it."""
    from redis.asyncio import ConnectionPool
    from redis.exceptions import RedisError

    try:
        ConnectionPool.from_url(url, **_options(url, 1.0, 1.0, None)).make_connection()  # type: ignore[no-untyped-call]
    except (TypeError, ValueError, AttributeError, RedisError) as exc:
        text = f"redis-py refuses an option of the Redis URL ({exc}); correct what stands behind its question mark"
        raise ConfigError(text, setting="memory_url") from None


def _shown(parts: SplitResult) -> str:
    """A URL without its secrets."""
    user = f"{parts.username}@" if parts.username else ""
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{user}{host}{port}{parts.path}"
