"""Every storage we ship keeps the contract that we ask of others."""

from __future__ import annotations

from agenthelm.core.storage import InMemoryStorage, JsonStorage, SqliteStorage
from agenthelm.testing.storage import FaultyStorage, storage_contract

TestInMemoryStorage = storage_contract(lambda folder: InMemoryStorage())
TestSqliteStorage = storage_contract(lambda folder: SqliteStorage(folder / "log.db"))
TestJsonStorage = storage_contract(lambda folder: JsonStorage(folder / "log.jsonl"))
TestFaultyStorage = storage_contract(lambda folder: FaultyStorage(SqliteStorage(folder / "log.db"), times=0))
