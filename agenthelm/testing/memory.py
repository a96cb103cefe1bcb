"""For authors of memory backends: the contracts that every store of values and every store of vectors keeps."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio

from agenthelm.exceptions import MemoryStoreError, MemoryValueError
from agenthelm.memory.base import EmbeddingSpec, KeyValueBackend, VectorBackend, VectorRecord
from agenthelm.testing._raising import raises

__all__ = ["HOSTILE", "key_value_contract", "vector_contract"]

HOSTILE = (
    "../../etc/passwd", "*", "?", "[a-z]", "[", "\\", "\\*", "a*b", ":", "::", "a:b", "%", "%3A", "_", "'; DROP TABLE x; --",
    " ", "a b", "\n", "\x00", "\x00a", "日本語", "é", "e\u0301", "\U0001f600", "\u202e", "\uffff", "Ａ", "A", "a", "user_1", "userX1",
    "x" * 10_000, "é" * 5_000, "{}", '"', "`", "$(id)", "nan", "None", "0",
)  # fmt: skip
"""Names that have broken stores: paths, wildcards, separators, look-alikes, 10 kB."""


def key_value_contract(factory: Callable[[Path], KeyValueBackend]) -> type:
    """Make a class of tests that hold a store of values to its promises (see `KeyValueBackend`).

    Assign the class to a name that pytest collects. The tests are coroutines; anyio's pytest plugin (its ``auto``
    mode) runs them on the backends of the ``anyio_backend`` fixture. They use keys that nobody else uses, so the
    store may be shared.

    ```python
    TestMyBackend = key_value_contract(lambda folder: MyBackend(folder / "values"))
    ```

    Args:
        factory: Opens a backend; it may keep its files in the folder it is given.
    """
    return type("KeyValueContract", (_KeyValueContract,), {"factory": staticmethod(factory)})


def vector_contract(factory: Callable[[Path], VectorBackend]) -> type:
    """Make a class of tests that hold a store of vectors to its promises (see `VectorBackend`); as the other one."""
    return type("VectorContract", (_VectorContract,), {"factory": staticmethod(factory)})


async def _gone(store: KeyValueBackend, key: str) -> None:
    """Wait until a key has lapsed; real time, because a server's clock is its own."""
    until = time.monotonic() + 60
    while (await store.read([key]))[0] is not None:
        assert time.monotonic() < until, "still there long after its time"
        await anyio.sleep(0.01)


class _KeyValueContract:
    factory: Callable[[Path], KeyValueBackend]

    def setup_method(self) -> None:
        self.root = f"agenthelm:contract:{secrets.token_hex(8)}:"

    async def test_reads_what_was_written_in_the_order_asked(self, tmp_path: Path) -> None:
        a, b, c = (self.root + name for name in "abc")
        async with self.factory(tmp_path) as store:
            await store.write({a: "1", b: '"zwei \U0001f600 \\u0000"'}, None)
            assert await store.read([a]) == ["1"]
            assert await store.read([c]) == [None]
            assert await store.read([c, b, a, b]) == [
                None,
                '"zwei \U0001f600 \\u0000"',
                "1",
                '"zwei \U0001f600 \\u0000"',
            ]
            await store.write({a: "3"}, None)
            assert await store.read([a]) == ["3"]

    async def test_keeps_a_large_text_whole(self, tmp_path: Path) -> None:
        text = '"' + "é" * 500_000 + '"'
        async with self.factory(tmp_path) as store:
            await store.write({self.root: text}, 60)
            assert await store.read([self.root]) == [text]

    async def test_delete_says_how_many_there_were(self, tmp_path: Path) -> None:
        a, b, c = (self.root + name for name in "abc")
        async with self.factory(tmp_path) as store:
            await store.write({a: "1", b: "2"}, None)
            assert await store.delete([a, c]) == 1
            assert await store.delete([a]) == 0
            assert await store.read([a, b]) == [None, "2"]

    async def test_a_lapsed_key_is_absent_for_every_operation(self, tmp_path: Path) -> None:
        keys = [self.root + str(n) for n in range(6)]
        async with self.factory(tmp_path) as store:
            await store.write(dict.fromkeys(keys, "7"), 0.3)
            began = time.monotonic()
            assert await store.read(keys[:2]) == ["7", "7"]
            await _gone(store, keys[0])
            assert time.monotonic() - began > 0.2, "gone before its time"
            assert await store.read(keys) == [None] * 6
            assert await store.scan(self.root) == []
            assert await store.delete(keys[1:2]) == 0
            assert await store.incr(keys[2], 1, ttl=None) == 1
            assert not await store.swap(keys[3], "7", "8", ttl=None)
            assert await store.swap(keys[4], None, "9", ttl=None)
            assert await store.scan(self.root) == [keys[2], keys[4]]

    async def test_writing_again_replaces_the_time_to_live(self, tmp_path: Path) -> None:
        kept, lapses = self.root + "kept", self.root + "lapses"
        async with self.factory(tmp_path) as store:
            await store.write({kept: "1"}, 0.2)
            await store.write({kept: "2"}, None)
            await store.write({lapses: "1"}, None)
            await store.write({lapses: "2"}, 0.2)
            await _gone(store, lapses)
            assert await store.read([kept]) == ["2"]

    async def test_scan_takes_every_character_literally(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as store:
            keys = [self.root + name for name in HOSTILE]
            await store.write({key: str(n) for n, key in enumerate(keys)}, None)
            assert await store.read(keys) == [str(n) for n in range(len(keys))]
            assert await store.scan(self.root) == sorted(keys)
            for name in HOSTILE:
                prefix = self.root + name
                assert await store.scan(prefix) == sorted(key for key in keys if key.startswith(prefix)), name[:20]
            assert await store.delete([self.root + "*"]) == 1
            assert len(await store.scan(self.root)) == len(keys) - 1

    async def test_scan_finds_thousands(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as store:
            keys = sorted(f"{self.root}{n}" for n in range(2500))
            await store.write(dict.fromkeys(keys, "1"), None)
            assert await store.scan(self.root) == keys
            assert await store.read(keys) == ["1"] * 2500
            assert await store.delete(keys) == 2500

    async def test_concurrent_increments_lose_nothing(self, tmp_path: Path) -> None:
        totals: list[int] = []
        async with self.factory(tmp_path) as store:

            async def add() -> None:
                totals.extend([await store.incr(self.root, 1, ttl=None) for _ in range(5)])

            async with anyio.create_task_group() as group:
                for _ in range(10):
                    group.start_soon(add)
            assert sorted(totals) == list(range(1, 51))
            assert await store.incr(self.root, -60, ttl=None) == -10
            assert await store.read([self.root]) == ["-10"]

    async def test_incr_refuses_what_is_no_integer_and_changes_nothing(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as store:
            for text in ('"5"', "5.0", "null", '{"a":1}', "true", str(2**63 - 1)):
                await store.write({self.root: text}, None)
                await raises(MemoryValueError, store.incr, self.root, 1, ttl=None)
                assert await store.read([self.root]) == [text]
            await store.write({self.root: str(2**63)}, None)
            await raises(MemoryValueError, store.incr, self.root, -1, ttl=None)

    async def test_incr_gives_only_a_new_counter_a_time_to_live(self, tmp_path: Path) -> None:
        old, new = self.root + "old", self.root + "new"
        async with self.factory(tmp_path) as store:
            await store.write({old: "1"}, None)
            assert await store.incr(old, 1, ttl=0.2) == 2
            assert await store.incr(new, 5, ttl=0.2) == 5
            await _gone(store, new)
            assert await store.read([old]) == ["2"]

    async def test_swap_writes_only_over_what_was_expected(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as store:
            assert not await store.swap(self.root, "1", "2", ttl=None)
            assert await store.swap(self.root, None, "1", ttl=None)
            assert not await store.swap(self.root, None, "2", ttl=None)
            assert not await store.swap(self.root, "3", "2", ttl=None)
            assert await store.swap(self.root, "1", '{"é":2}', ttl=None)
            assert await store.swap(self.root, '{"é":2}', "3", ttl=60)
            assert await store.read([self.root]) == ["3"]

    async def test_of_concurrent_swaps_exactly_one_wins(self, tmp_path: Path) -> None:
        won: list[int] = []
        async with self.factory(tmp_path) as store:
            await store.write({self.root: "0"}, None)

            async def claim(n: int) -> None:
                if await store.swap(self.root, "0", str(n), ttl=None):
                    won.append(n)

            async with anyio.create_task_group() as group:
                for n in range(1, 21):
                    group.start_soon(claim, n)
            assert len(won) == 1
            assert await store.read([self.root]) == [str(won[0])]

    async def test_a_cancelled_caller_leaves_the_store_usable(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as store:
            await store.write({self.root: "0"}, None)
            operations: list[Callable[[], Any]] = [
                lambda: store.read([self.root]),
                lambda: store.write({self.root: "0"}, 60),
                lambda: store.delete([self.root + "x"]),
                lambda: store.scan(self.root),
                lambda: store.incr(self.root, 0, ttl=None),
                lambda: store.swap(self.root, "0", "0", ttl=None),
            ]
            for turns in range(6):
                for operation in operations:
                    await _cancelled_after(operation, turns)
            with anyio.fail_after(10):
                async with anyio.create_task_group() as group:
                    for operation in operations * 30:
                        group.start_soon(operation)
                assert await store.read([self.root]) == ["0"]

    async def test_answers_a_ping_and_says_where_it_is(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as store:
            await store.ping()
            assert store.store
            assert store.location

    async def test_a_closed_store_refuses_and_may_be_closed_again(self, tmp_path: Path) -> None:
        store = self.factory(tmp_path)
        await store.write({self.root: "1"}, 60)
        await store.aclose()
        await store.aclose()
        await raises(MemoryStoreError, store.read, [self.root])
        await raises(MemoryStoreError, store.ping)


_SPEC = EmbeddingSpec("contract", 3)
_EAST, _NORTH, _NORTH_EAST, _WEST = [1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [1.0, 1.0, 0.0], [-3.0, 0.0, 0.0]


def _record(name: str, vector: list[float], **metadata: Any) -> VectorRecord:
    return VectorRecord(name, f"text of {name}", vector, metadata)


class _VectorContract:
    factory: Callable[[Path], VectorBackend]

    def setup_method(self) -> None:
        self.name = f"contract {secrets.token_hex(8)}"

    async def test_a_collection_that_was_never_made_is_empty(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as store:
            assert await store.open(self.name) is None
            assert await store.query(self.name, _EAST, top_k=3) == []
            assert await store.count(self.name) == 0
            assert await store.delete(self.name, ["a"]) == 0
            assert await store.open(self.name) is None

    async def test_records_the_embedder_that_came_first(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as store:
            assert await store.open(self.name, _SPEC) == _SPEC
            assert await store.open(self.name, EmbeddingSpec("other", 5)) == _SPEC
            assert await store.open(self.name) == _SPEC

    async def test_finds_the_nearest_first_and_scores_by_cosine(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as store:
            await store.open(self.name, _SPEC)
            await store.upsert(
                self.name,
                [_record("n", _NORTH), _record("w", _WEST), _record("e", [9.0, 0.0, 0.0]), _record("ne", _NORTH_EAST)],
            )
            found = await store.query(self.name, _EAST, top_k=10)
            assert [match.id for match in found[:2]] == ["e", "ne"]
            assert {match.id for match in found[2:]} == {"n", "w"}
            scores = [match.score for match in found]
            assert all(
                abs(score - known) < 1e-3 for score, known in zip(scores, [1.0, 0.5**0.5, 0.0, 0.0], strict=True)
            )
            assert all(0.0 <= score <= 1.0 for score in scores)
            assert found[0].text == "text of e"
            assert [match.id for match in await store.query(self.name, _EAST, top_k=1)] == ["e"]

    async def test_the_same_id_replaces_text_vector_and_metadata(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as store:
            await store.open(self.name, _SPEC)
            await store.upsert(self.name, [_record("a", _EAST, old=1, both="x")])
            await store.upsert(self.name, [VectorRecord("a", "new", _NORTH, {"both": "y", "new": True})])
            assert await store.count(self.name) == 1
            (match,) = await store.query(self.name, _NORTH, top_k=5)
            assert (match.text, dict(match.metadata)) == ("new", {"both": "y", "new": True})
            assert match.score > 0.99
            await store.upsert(self.name, [VectorRecord("a", "bare", _NORTH)])
            (match,) = await store.query(self.name, _NORTH, top_k=5)
            assert (match.text, dict(match.metadata)) == ("bare", {})

    async def test_of_two_writers_of_one_id_one_stands_whole(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as store:
            await store.open(self.name, _SPEC)
            names = [str(n) for n in range(10)]
            await store.upsert(self.name, [_record(name, _NORTH, old=1) for name in names])

            async def write(owner: str) -> None:
                for name in names:
                    record = VectorRecord(name, f"note of {owner}", _EAST, {"owner": owner, owner: True})
                    await store.upsert(self.name, [record])

            async with anyio.create_task_group() as group:
                group.start_soon(write, "alice")
                group.start_soon(write, "bob")
            for match in await store.query(self.name, _EAST, top_k=20):
                owner = match.text.removeprefix("note of ")
                assert dict(match.metadata) == {"owner": owner, owner: True}

    async def test_delete_says_how_many_there_were(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as store:
            await store.open(self.name, _SPEC)
            await store.upsert(self.name, [_record("a", _EAST), _record("b", _NORTH)])
            assert await store.delete(self.name, ["a", "missing"]) == 1
            assert await store.delete(self.name, ["a"]) == 0
            assert [match.id for match in await store.query(self.name, _EAST, top_k=5)] == ["b"]

    async def test_filters_before_it_ranks(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as store:
            await store.open(self.name, _SPEC)
            await store.upsert(
                self.name,
                [
                    _record("a", _EAST, n=1, s="x", b=True),
                    _record("b", _EAST, n=2.0, s="y", b=False),
                    _record("c", _EAST, n=3),
                    _record("d", _NORTH),
                ],
            )
            cases: dict[str, tuple[dict[str, Any], set[str]]] = {
                "text": ({"s": {"$eq": "x"}}, {"a"}),
                "a number by its value": ({"n": {"$eq": 2}}, {"b"}),
                "at least": ({"n": {"$gte": 2}}, {"b", "c"}),
                "more": ({"n": {"$gt": 2}}, {"c"}),
                "less": ({"n": {"$lt": 2}}, {"a"}),
                "at most": ({"n": {"$lte": 2}}, {"a", "b"}),
                "not": ({"s": {"$ne": "x"}}, {"b", "c", "d"}),
                "true": ({"b": {"$eq": True}}, {"a"}),
                "no bool is a number": ({"b": {"$eq": 1}}, set()),
                "no text is a number": ({"n": {"$eq": "1"}}, set()),
                "and": ({"$and": [{"n": {"$gt": 0}}, {"s": {"$ne": "x"}}]}, {"b", "c"}),
                "or": ({"$or": [{"s": {"$eq": "x"}}, {"n": {"$eq": 3}}]}, {"a", "c"}),
                "nobody": ({"z": {"$eq": 1}}, set()),
            }
            for what, (where, wanted) in cases.items():
                found = await store.query(self.name, _NORTH, top_k=10, where=where)
                assert {match.id for match in found} == wanted, what
                assert await store.count(self.name, where=where) == len(wanted), what
            (nearest,) = await store.query(self.name, _NORTH, top_k=1, where={"n": {"$eq": 3}})
            assert nearest.id == "c"

    async def test_collections_and_ids_are_told_apart_whatever_their_names(self, tmp_path: Path) -> None:
        names = [f"{self.name}{name}" for name in HOSTILE]
        async with self.factory(tmp_path) as store:
            for name in names[:12]:
                await store.open(name, _SPEC)
                await store.upsert(name, [VectorRecord(name, name, _EAST)])
            for name in names[:12]:
                assert [(match.id, match.text) for match in await store.query(name, _EAST, top_k=50)] == [(name, name)]
            await store.open(self.name, _SPEC)
            await store.upsert(self.name, [VectorRecord(name, name, _EAST, {"n": name}) for name in names])
            assert await store.count(self.name) == len(names)
            for name in names:
                (match,) = await store.query(self.name, _EAST, top_k=50, where={"n": {"$eq": name}})
                assert match.id == name
            assert await store.delete(self.name, names) == len(names)
            assert await store.count(names[0]) == 1

    async def test_takes_thousands_at_once(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as store:
            await store.open(self.name, _SPEC)
            await store.upsert(self.name, [_record(str(n), [1.0, n / 1000, 0.0]) for n in range(2200)])
            assert await store.count(self.name) == 2200
            (match,) = await store.query(self.name, _EAST, top_k=1)
            assert match.score > 0.999

    async def test_concurrent_writers_and_readers_lose_nothing(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as store:
            await store.open(self.name, _SPEC)

            async def write(start: int) -> None:
                for n in range(start, start + 5):
                    await store.upsert(self.name, [_record(str(n), _EAST)])
                    await store.query(self.name, _EAST, top_k=2)

            async with anyio.create_task_group() as group:
                for start in range(0, 40, 5):
                    group.start_soon(write, start)
            assert await store.count(self.name) == 40

    async def test_a_cancelled_caller_leaves_the_store_usable(self, tmp_path: Path) -> None:
        async with self.factory(tmp_path) as store:
            await store.open(self.name, _SPEC)
            await store.upsert(self.name, [_record("a", _EAST)])
            operations: list[Callable[[], Any]] = [
                lambda: store.upsert(self.name, [_record("a", _EAST)]),
                lambda: store.query(self.name, _EAST, top_k=1),
                lambda: store.delete(self.name, ["none"]),
                lambda: store.count(self.name),
                lambda: store.open(self.name),
            ]
            for turns in range(4):
                for operation in operations:
                    await _cancelled_after(operation, turns)
            with anyio.fail_after(20):
                async with anyio.create_task_group() as group:
                    for operation in operations * 4:
                        group.start_soon(operation)
                assert await store.count(self.name) == 1

    async def test_a_closed_store_refuses_and_may_be_closed_again(self, tmp_path: Path) -> None:
        store = self.factory(tmp_path)
        await store.ping()
        await store.open(self.name, _SPEC)
        await store.aclose()
        await store.aclose()
        await raises(MemoryStoreError, store.open, self.name)
        await raises(MemoryStoreError, store.query, self.name, _EAST, top_k=1)


async def _cancelled_after(operation: Callable[[], Any], turns: int) -> None:
    """Cancel a call after it has had some turns of the event loop, at whatever point that finds it."""
    async with anyio.create_task_group() as group:
        group.start_soon(operation)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
