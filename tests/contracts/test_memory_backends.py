"""Every store of values keeps its contract."""

from __future__ import annotations

from agenthelm.memory.backends.in_memory import InMemoryBackend
from agenthelm.memory.backends.redis import RedisBackend
from agenthelm.memory.backends.sqlite import SqliteBackend
from agenthelm.testing.memory import key_value_contract
from tests.support.redis_server import shared_redis

TestInMemory = key_value_contract(lambda folder: InMemoryBackend())
TestSqlite = key_value_contract(lambda folder: SqliteBackend(folder / "memory.db"))
TestRedis = key_value_contract(lambda folder: RedisBackend(shared_redis().url))
