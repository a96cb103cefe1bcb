"""Every store of values and every store of vectors keeps its contract."""

from __future__ import annotations

from agenthelm.memory.backends.chroma import ChromaBackend
from agenthelm.memory.backends.chroma_server import ChromaServerBackend
from agenthelm.memory.backends.in_memory import InMemoryBackend
from agenthelm.memory.backends.redis import RedisBackend
from agenthelm.memory.backends.sqlite import SqliteBackend
from agenthelm.memory.backends.vector_list import VectorListBackend
from agenthelm.testing.memory import key_value_contract, vector_contract
from tests.support.chroma_server import shared_chroma
from tests.support.redis_server import shared_redis

TestInMemory = key_value_contract(lambda folder: InMemoryBackend())
TestSqlite = key_value_contract(lambda folder: SqliteBackend(folder / "memory.db"))
TestRedis = key_value_contract(lambda folder: RedisBackend(shared_redis().url))

TestVectorList = vector_contract(lambda folder: VectorListBackend())
TestChromaInProcess = vector_contract(lambda folder: ChromaBackend(None))
TestChromaFolder = vector_contract(lambda folder: ChromaBackend(folder / "vectors"))
TestChromaServer = vector_contract(lambda folder: ChromaServerBackend(shared_chroma().url))
