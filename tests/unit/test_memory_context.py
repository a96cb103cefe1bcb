"""What agents see: contexts, their sync view, and the hub that owns the stores."""

from __future__ import annotations

import inspect
import json
import secrets
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agenthelm.exceptions import MemoryStoreError, MemoryValueError
from agenthelm.memory import MemoryContext, MemoryHub, SemanticMemory, ShortTermMemory, SyncMemoryContext
from agenthelm.memory.backends.in_memory import InMemoryBackend
from agenthelm.memory.backends.vector_list import VectorListBackend
from agenthelm.tracing import spans
from tests.support.chroma_server import shared_chroma


async def test_a_session_has_its_values_and_a_namespace_its_shared_ones_and_texts() -> None:
    async with MemoryHub() as hub:
        mine, yours, theirs = hub.create_context("a"), hub.create_context("b"), hub.create_context("a", "acme")
        await mine.write("city", "Lisbon")
        await mine.set_shared("plan", [1])
        memory_id = await mine.remember("Maria prefers a window seat", {"agent": "planner", "nested": {"x": None}})
        assert await mine.read("city") == "Lisbon"
        assert await yours.read("city") is None
        assert await yours.get_shared("plan") == [1]
        assert await theirs.get_shared("plan", "none") == "none"
        assert await yours.recall("which seat?") == ["Maria prefers a window seat"]
        assert await yours.recall("which seat?", this_session=True) == []
        assert await theirs.recall("which seat?") == []
        (match,) = await mine.search("which seat?", this_session=True, where={"agent": "planner"})
        assert (match.id, match.metadata) == (memory_id, {"agent": "planner", "nested": {"x": None}})
        assert not await theirs.forget(memory_id)
        assert await yours.forget(memory_id)
        assert await mine.count() == 0


async def test_a_context_without_a_session_id_starts_a_new_session() -> None:
    async with MemoryHub() as hub:
        first, second = hub.create_context(), hub.create_context()
        assert first.session_id != second.session_id
        assert first.namespace == "default"
        assert first.hub is hub
        assert hub.create_context(first.session_id).session_id == first.session_id


@pytest.mark.parametrize("names", [("", "n"), ("s", ""), (3, "n"), ("s", "\ud800")])
async def test_names_no_store_can_hold_are_refused(names: tuple[Any, str]) -> None:
    async with MemoryHub() as hub:
        with pytest.raises(MemoryValueError):
            hub.create_context(*names)


async def test_remember_refuses_what_it_could_not_give_back() -> None:
    async with MemoryHub() as hub:
        context = hub.create_context("s")
        for text in ("", "  \n", None, "\ud800"):
            with pytest.raises(MemoryValueError, match="text to remember"):
                await context.remember(text)  # type: ignore[arg-type]
        for metadata in ("agent", {"agenthelm.session": "other"}, {"agenthelm.x": 1}, {1: 2}, {"x": object()}):
            with pytest.raises(MemoryValueError):
                await context.remember("text", metadata)  # type: ignore[arg-type]
        with pytest.raises(MemoryValueError, match="top_k"):
            await context.recall("text", 0)
        with pytest.raises(MemoryValueError, match="query"):
            await context.recall(3)  # type: ignore[arg-type]
        assert await context.count() == 0
        assert await context.recall(" ") == []


async def test_min_score_and_top_k_bound_what_is_found() -> None:
    async with SemanticMemory(embedder="lexical") as memory:
        await memory.add_many(["trains to Porto", "trains to Braga", "an invoice"], ids=["p", "b", None])
        found = await memory.search("trains to Porto", 2)
        assert [match.id for match in found] == ["p", "b"]
        assert found[0].score == pytest.approx(1.0, abs=1e-6)
        assert [match.id for match in await memory.search("trains to Porto", min_score=0.99)] == ["p"]
        assert await memory.add_many([]) == []
        with pytest.raises(MemoryValueError, match="add_many takes a list"):
            await memory.add_many("text")
        with pytest.raises(MemoryValueError, match="as many of each"):
            await memory.add_many(["a"], ids=["1", "2"])


@pytest.mark.parametrize("store", ["memory", "Chroma", "Chroma's server"])
async def test_metadata_come_back_whole_and_scalars_can_be_filtered(store: str) -> None:
    metadata = {
        "n": 1,
        "f": 1.5,
        "b": True,
        "s": "x",
        "none": None,
        "big": 2**70,
        "list": [1, {"a": 2}],
        "": "blank",
        "$x": 1,
        "#x": 2,
        "#document": "d",
        "chroma:document": "d",
    }
    place = "memory://" if store == "memory" else "ephemeral://" if store == "Chroma" else shared_chroma().url
    async with SemanticMemory(place, collection=secrets.token_hex(6), embedder="lexical") as memory:
        await memory.add("text", metadata, id="1")
        (match,) = await memory.search("text", where={"n": 1, "b": True, "s": {"$in": ["x", "y"]}})
        assert match.metadata == metadata
        for name in ("#x", "#document", "chroma:document"):
            with pytest.raises(MemoryValueError, match="can't be filtered by"):
                await memory.search("text", where={"$or": [{"n": 1}, {name: {"$ne": 0}}]})


async def test_the_last_text_under_an_id_is_kept() -> None:
    async with SemanticMemory(embedder="lexical") as memory:
        await memory.add_many(["one", "two"], ids=["x", "x"])
        await memory.add("three", id="y")
        await memory.add("four", id="y")
        assert await memory.count() == 2
        assert {match.text for match in await memory.search("one two three four")} == {"two", "four"}


def test_the_sync_view_has_every_method_with_the_same_parameters() -> None:
    def public(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(value).parameters)
            for name, value in vars(kind).items()
            if inspect.isfunction(value) and not name.startswith("_") and name != "sync"
        }

    assert public(SyncMemoryContext) == public(MemoryContext)


async def test_the_sync_view_works_from_a_worker_thread() -> None:
    def work(context: SyncMemoryContext) -> dict[str, Any]:
        context.write("a", 1, ttl=60)
        context.write_many({"b": 2})
        context.set_shared("s", {"x": 1})
        kept = context.remember("Maria prefers a window seat", {"agent": "x"})
        seen = {
            "read": context.read("a"),
            "default": context.read("z", "d"),
            "many": context.read_many(["a", "b", "z"]),
            "keys": context.list_keys(),
            "shared": context.get_shared("s"),
            "shared keys": context.list_shared(),
            "swapped": context.compare_and_set_shared("s", {"x": 1}, 2),
            "counted": context.incr_shared("n", 3),
            "recalled": context.recall("seat", top_k=1),
            "scores": [match.score > 0.2 for match in context.search("seat", this_session=True)],
            "count": context.count(where={"agent": "x"}),
            "forgot": context.forget(kept),
            "deleted": (context.delete("a"), context.delete("a"), context.delete_shared("s")),
            "cleared": context.clear(),
        }
        return seen | {"who": (context.session_id, context.namespace, context.hub)}

    async with MemoryHub() as hub:
        seen = await anyio.to_thread.run_sync(work, hub.create_context("s", "n").sync())
        assert seen == {
            "read": 1, "default": "d", "many": {"a": 1, "b": 2}, "keys": ["a", "b"], "shared": {"x": 1},
            "shared keys": ["s"], "swapped": True, "counted": 3, "recalled": ["Maria prefers a window seat"],
            "scores": [True], "count": 1, "forgot": True, "deleted": (True, False, True), "cleared": 1,
            "who": ("s", "n", hub),
        }  # fmt: skip


async def test_the_sync_view_on_the_event_loop_says_what_to_do() -> None:
    async with MemoryHub() as hub:
        with pytest.raises(RuntimeError, match="sync forward"):
            hub.create_context().sync().read("a")


async def test_a_call_of_the_sync_view_is_a_cancellation_point() -> None:
    reached: list[str] = []

    def work(context: SyncMemoryContext) -> None:
        for _ in range(100_000):
            context.read("a")
        reached.append("end")

    async with MemoryHub() as hub:
        context = hub.create_context()
        with anyio.move_on_after(0.05) as scope:
            await anyio.to_thread.run_sync(work, context.sync())
        assert scope.cancelled_caught
        assert reached == []


async def test_a_hub_closes_what_it_opened_and_nothing_else() -> None:
    backend, vectors = InMemoryBackend(), VectorListBackend()
    async with MemoryHub(backend, vectors) as hub:
        await hub.create_context("s").write("k", 1)
    await backend.ping()
    await vectors.ping()
    short, semantic = ShortTermMemory("memory://"), SemanticMemory()
    async with MemoryHub(short, semantic):
        pass
    await short.ping()
    await semantic.ping()
    async with MemoryHub() as hub:
        context = hub.create_context("s")
    await hub.aclose()
    for operation in (context.read("k"), context.remember("text"), context.recall("text")):
        with pytest.raises(MemoryStoreError, match="closed"):
            await operation


async def test_hubs_do_not_share_what_they_remember() -> None:
    for semantic in ("memory://", "ephemeral://"):
        async with MemoryHub(semantic=semantic) as one, MemoryHub(semantic=semantic) as two:
            await one.create_context("s").write("k", 1)
            await one.create_context("s").remember("text")
            assert await two.create_context("s").read("k") is None
            assert await two.create_context("s").recall("text") == []


async def test_health_answers_for_both_stores_and_never_raises(tmp_path: Path) -> None:
    async with MemoryHub(f"sqlite:///{tmp_path}/memory.db", "http://127.0.0.1:1") as hub:
        health = await hub.health()
    assert list(health) == ["short_term", "semantic"]
    assert health["short_term"].ok
    assert health["short_term"].location == f"sqlite:///{tmp_path}/memory.db"
    assert not health["semantic"].ok
    assert "can't be reached" in str(health["semantic"].error)
    assert health["semantic"].latency > 0


async def test_a_hub_lists_its_sessions() -> None:
    async with MemoryHub() as hub:
        await hub.create_context("a/b:c").write_many({"x": 1, "y:z": 2})
        await hub.create_context("ü").write("x", 1)
        await hub.create_context("other", "acme").write("x", 1)
        assert await hub.sessions() == {"a/b:c": 2, "ü": 1}
        assert await hub.sessions("acme") == {"other": 1}


def test_the_default_hub_loads_no_heavy_package_and_touches_no_disk(tmp_path: Path) -> None:
    code = """
        import json, sys, anyio
        from agenthelm.memory import MemoryHub
        heavy = ("redis", "chromadb", "dspy", "numpy", "litellm", "opentelemetry.sdk", "onnxruntime", "sqlite3", "httpx")
        hub = MemoryHub()
        before = [name for name in heavy if name in sys.modules]
        async def main():
            async with hub:
                context = hub.create_context("s")
                await context.write("k", 1)
                await context.remember("text")
                assert await context.recall("text") == ["text"]
        anyio.run(main)
        print(json.dumps([before, [name for name in heavy if name in sys.modules]]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [[], ["numpy"]]
    assert list(tmp_path.iterdir()) == []


async def test_operations_make_spans_with_names_and_counts_but_no_content(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    monkeypatch.setattr(spans, "current_tracer", lambda: tracer)
    async with MemoryHub() as hub:
        context = hub.create_context("secret-session", "secret-namespace")
        await context.write("secret-key", "secret-value")
        await context.read("secret-key")
        await context.remember("secret text", {"agent": "secret"})
        await context.recall("secret query")
        with pytest.raises(MemoryValueError):
            await context.write("secret-key", object())
    made = exporter.get_finished_spans()
    embedded = "embeddings agenthelm-lexical-1"
    assert [span.name for span in made] == [
        "upsert_memory", "read_memory", embedded, "create_memory", embedded, "search_memory", "upsert_memory",
    ]  # fmt: skip
    assert made[2].parent == made[3].context
    assert dict(made[2].attributes or {})["gen_ai.embeddings.dimension.count"] > 1
    assert dict(made[5].attributes or {})["gen_ai.memory.record.count"] == 1
    assert dict(made[5].attributes or {})["gen_ai.memory.store.id"] == "semantic:memory"
    assert made[6].status.status_code.name == "ERROR"
    assert "secret" not in "".join(span.to_json() for span in made[:6])
    provider.shutdown()
