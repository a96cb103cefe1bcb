"""Vectors in a matrix of this process, searched exactly."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio.lowlevel

from agenthelm._runtime.workers import Workers
from agenthelm.exceptions import MemoryStoreError
from agenthelm.memory.base import Embedding, EmbeddingSpec, Filter, MemoryMatch, VectorBackend, VectorRecord
from agenthelm.memory.filters import matches

if TYPE_CHECKING:
    import numpy

__all__ = ["VectorListBackend"]


@dataclass(slots=True)
class _Collection:
    spec: EmbeddingSpec
    rows: dict[str, int] = field(default_factory=dict)
    records: list[VectorRecord | None] = field(default_factory=list)
    matrix: Any = None


class VectorListBackend(VectorBackend):
    """Vectors in this process; gone with it.

    The default, because it opens in a moment (Chroma takes most of a second and 77 MB to import), each instance is a
    world of its own (all of Chroma's ephemeral clients in a process share one), and its search is exact. It compares
    the query with every vector: fine up to some hundred thousand, beyond which Chroma's index pays.
    """

    store = "memory"

    def __init__(self) -> None:
        self._workers = Workers(4)
        self._lock = threading.Lock()
        self._collections: dict[str, _Collection] = {}
        self._closed = False

    @property
    def location(self) -> str:
        return "memory://"

    async def open(self, collection: str, spec: EmbeddingSpec | None = None) -> EmbeddingSpec | None:
        await anyio.lowlevel.checkpoint()
        with self._lock:
            self._check_open()
            found = self._collections.get(collection)
            if found is None and spec is not None:
                found = self._collections[collection] = _Collection(spec)
            return None if found is None else found.spec

    async def upsert(self, collection: str, records: Sequence[VectorRecord]) -> None:
        await self._workers.hop(self._upsert, collection, records)

    async def query(
        self, collection: str, vector: Embedding, *, top_k: int, where: Filter | None = None
    ) -> list[MemoryMatch]:
        return await self._workers.hop(self._query, collection, vector, top_k, where)

    async def delete(self, collection: str, ids: Sequence[str]) -> int:
        await anyio.lowlevel.checkpoint()
        with self._lock:
            self._check_open()
            held = self._collections.get(collection)
            if held is None:
                return 0
            gone = [row for row in (held.rows.pop(id_, None) for id_ in dict.fromkeys(ids)) if row is not None]
            for row in gone:
                held.records[row] = None
                held.matrix[row] = 0.0
            return len(gone)

    async def count(self, collection: str, *, where: Filter | None = None) -> int:
        await anyio.lowlevel.checkpoint()
        with self._lock:
            self._check_open()
            held = self._collections.get(collection)
            if held is None:
                return 0
            if where is None:
                return len(held.rows)
            return sum(1 for record in held.records if record is not None and matches(where, record.metadata))

    async def ping(self) -> None:
        await anyio.lowlevel.checkpoint()
        self._check_open()

    async def aclose(self) -> None:
        self._closed = True
        self._collections.clear()

    def _check_open(self) -> None:
        if self._closed:
            raise MemoryStoreError("this memory is closed; open another SemanticMemory or MemoryHub")

    def _upsert(self, collection: str, records: Sequence[VectorRecord]) -> None:
        with self._lock:
            self._check_open()
            held = self._collections[collection]
            for record in records:
                row = held.rows.get(record.id)
                if row is None:
                    row = held.rows[record.id] = self._free_row(held)
                held.records[row] = record
                held.matrix[row] = _unit(record.vector)

    def _free_row(self, held: _Collection) -> int:
        import numpy

        if held.matrix is None:
            held.matrix = numpy.zeros((16, held.spec.dimension), dtype=numpy.float32)
        if len(held.records) > 64 and len(held.rows) < len(held.records) // 2:
            self._compact(held)
        if len(held.records) == len(held.matrix):
            held.matrix = numpy.concatenate([held.matrix, numpy.zeros_like(held.matrix)])
        held.records.append(None)
        return len(held.records) - 1

    @staticmethod
    def _compact(held: _Collection) -> None:
        """Close the gaps that deletions left; the id being added has no row yet."""
        kept = [row for row, record in enumerate(held.records) if record is not None]
        held.matrix[: len(kept)] = held.matrix[kept]
        held.matrix[len(kept) :] = 0.0
        held.records = [held.records[row] for row in kept]
        held.rows = {record.id: row for row, record in enumerate(held.records) if record is not None}

    def _query(self, collection: str, vector: Embedding, top_k: int, where: Filter | None) -> list[MemoryMatch]:
        import numpy

        with self._lock:
            self._check_open()
            held = self._collections.get(collection)
            if held is None or not held.rows:
                return []
            scores = held.matrix[: len(held.records)] @ _unit(vector)
            records = list(held.records)
        wanted = [row for row, record in enumerate(records) if record is not None and matches(where, record.metadata)]
        order = numpy.argsort(-scores[wanted], kind="stable")[:top_k]
        found: list[MemoryMatch] = []
        for row in (wanted[int(index)] for index in order):
            record = records[row]
            if record is not None:
                score = min(1.0, max(0.0, float(scores[row])))
                found.append(MemoryMatch(record.id, record.text, score, dict(record.metadata)))
        return found


def _unit(vector: Embedding) -> numpy.ndarray[Any, Any]:
    import numpy

    array = numpy.asarray(vector, dtype=numpy.float32)
    norm = float(numpy.linalg.norm(array))
    return array / norm if norm else array
