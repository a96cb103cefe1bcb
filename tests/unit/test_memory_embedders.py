"""Embedders: the built-in one, and how one is chosen."""

from __future__ import annotations

import functools
import logging
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import dspy
import numpy
import pytest

from agenthelm.exceptions import ConfigError, EmbedderMismatchError, MemoryStoreError
from agenthelm.memory import MemoryHub, SemanticMemory, embedders
from agenthelm.memory.embedders import resolve
from agenthelm.memory.lexical import LexicalEmbedder
from tests.benchmarks.recall_quality import hit_at, ranks

FROZEN = (
    "agenthelm-lexical-1",
    {304: -0.300109, 716: 0.300109, 722: -0.300109, 826: 0.300109, 838: -0.300109, 851: -0.300109},
)


def cosine(a: str, b: str) -> float:
    left, right = LexicalEmbedder()([a, b])
    return math.fsum(x * y for x, y in zip(left, right, strict=True))


def test_the_lexical_vectors_are_the_same_on_every_machine() -> None:
    (vector,) = LexicalEmbedder()(["Zürich's trains were planned, ＴＷＩＣＥ: 東京 n°5"])
    assert len(vector) == LexicalEmbedder.dimension
    assert math.isclose(math.fsum(x * x for x in vector), 1.0)
    # Frozen: whoever changes the recipe changes the name too, or stored collections find nonsense.
    largest = sorted(range(len(vector)), key=lambda i: -abs(vector[i]))[:6]
    assert (LexicalEmbedder.name, {i: round(vector[i], 6) for i in sorted(largest)}) == FROZEN


def test_the_lexical_vectors_do_not_depend_on_the_hash_seed() -> None:
    code = "from agenthelm.memory.lexical import LexicalEmbedder as E; print(E()(['some words about trains'])[0])"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("0", "1")
    }
    assert len(runs) == 1


def test_lexical_neighbours_share_words_stems_or_parts() -> None:
    assert cosine("book a flight", "booked flights") > 0.5
    assert cosine("reimbursement policy", "reimbursments policies") > 0.4
    assert cosine("Zürich café", "zurich cafe") > 0.99
    assert abs(cosine("the train to Porto", "an invoice from finance")) < 0.15
    assert cosine("...", "...") > 0.99
    assert LexicalEmbedder()(["", " \n"]) == [[0.0] * LexicalEmbedder.dimension] * 2
    assert LexicalEmbedder()(["\ud800"])  # a lone surrogate is no reason to fail


async def test_the_lexical_embedder_finds_paraphrased_facts() -> None:
    assert hit_at(await ranks("lexical"), 3) >= 0.9


def test_auto_takes_the_lexical_embedder_when_minilm_is_not_here_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(embedders, "_said", set())
    with caplog.at_level(logging.INFO, "agenthelm.memory.embedders"):
        assert resolve("auto").name == LexicalEmbedder.name
        assert resolve("auto").name == LexicalEmbedder.name
    assert [record.getMessage() for record in caplog.records] == [
        "embedder 'auto' takes agenthelm-lexical-1: Chroma's MiniLM is not here, and nothing is downloaded"
    ]


def _files_of_minilm(home: Path) -> None:
    folder = home / ".cache" / "chroma" / "onnx_models" / "all-MiniLM-L6-v2" / "onnx"
    folder.mkdir(parents=True)
    for name in embedders._MINILM_FILES:
        (folder / name).write_text("not a model")


def test_auto_takes_minilm_when_its_files_are_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    _files_of_minilm(tmp_path)
    assert resolve("auto").name == "minilm"


async def test_damaged_files_of_minilm_are_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _files_of_minilm(tmp_path)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    _point_chroma_at(monkeypatch, tmp_path)
    async with SemanticMemory(embedder="minilm") as memory:
        with pytest.raises(MemoryStoreError, match="seem damaged, delete them"):
            await memory.add("text")


async def test_minilm_offline_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    _point_chroma_at(monkeypatch, tmp_path, url="http://127.0.0.1:1/onnx.tar.gz")
    async with SemanticMemory(embedder="minilm") as memory:
        with pytest.raises(MemoryStoreError, match=r"could not be downloaded.*lexical"):
            await memory.add("text")


def _point_chroma_at(monkeypatch: pytest.MonkeyPatch, home: Path, *, url: str | None = None) -> None:
    from chromadb.utils.embedding_functions import ONNXMiniLM_L6_V2

    folder = home / ".cache" / "chroma" / "onnx_models" / "all-MiniLM-L6-v2"
    monkeypatch.setattr(ONNXMiniLM_L6_V2, "DOWNLOAD_PATH", folder)
    if url is not None:
        monkeypatch.setattr(ONNXMiniLM_L6_V2, "MODEL_DOWNLOAD_URL", url)


@pytest.mark.parametrize("embedder", ["lexcial", "", 3, None])
def test_an_unknown_embedder_is_refused(embedder: Any) -> None:
    with pytest.raises(ConfigError, match="embedder"):
        MemoryHub(embedder=embedder)


def by_length(texts: Sequence[str]) -> list[list[float]]:
    return [[float(len(text)), 1.0] for text in texts]


async def by_length_async(texts: list[str]) -> Any:
    await anyio.lowlevel.checkpoint()
    return numpy.array(by_length(texts))


def by_factor(factor: float) -> Callable[[list[str]], Any]:
    def embed(texts: list[str]) -> list[list[float]]:
        return [[factor * len(text), 1.0] for text in texts]

    return embed


class Embedding:
    def __call__(self, texts: list[str]) -> list[list[float]]:
        return by_length(texts)


@pytest.mark.parametrize(
    ("embedder", "name"),
    [
        (by_length, f"{__name__}.by_length"),
        (by_length_async, f"{__name__}.by_length_async"),
        (Embedding(), f"{__name__}.Embedding"),
        (dspy.Embedder(by_length, caching=False), f"{__name__}.by_length"),
    ],
    ids=["function", "coroutine function", "object", "dspy.Embedder"],
)
async def test_any_callable_embeds(embedder: Any, name: str) -> None:
    async with SemanticMemory(embedder=embedder) as memory:
        assert memory.embedder == name
        await memory.add_many(["ab", "abcdefgh"])
        assert [match.text for match in await memory.search("xyzxyzxy", 1)] == ["abcdefgh"]


def test_a_callable_can_be_given_a_name() -> None:
    assert SemanticMemory(embedder=by_length, embedder_name="length-1").embedder == "length-1"


@pytest.mark.parametrize(
    "embedder",
    [
        lambda texts: [[1.0] for _ in texts],
        by_factor(2.0),
        functools.partial(by_length),
        dspy.Embedder(lambda texts: [[1.0] for _ in texts], caching=False),
        dspy.Embedder(functools.partial(by_length), caching=False),
    ],
    ids=["lambda", "inner function", "partial", "dspy.Embedder of a lambda", "dspy.Embedder of a partial"],
)
def test_a_callable_that_others_have_the_name_of_must_be_given_one(embedder: Any) -> None:
    """Or another one of the same length would find nonsense in its collection."""
    with pytest.raises(ConfigError, match="pass embedder_name="):
        MemoryHub(embedder=embedder)
    assert MemoryHub(embedder=embedder, embedder_name="length-1").semantic.embedder == "length-1"


@pytest.mark.parametrize(
    ("returned", "said"),
    [([[1.0]], "for 2 texts"), ([[1.0], [1.0, 2.0]], "one length"), ([[], []], "shape"), ([[math.nan], [1.0]], "finite"), (None, "embedder")],
)  # fmt: skip
async def test_an_embedder_that_returns_nonsense_is_named(returned: Any, said: str) -> None:
    async with SemanticMemory(embedder=lambda texts: returned, embedder_name="mine") as memory:
        with pytest.raises(MemoryStoreError, match=f"(?s)'mine'.*{said}|{said}.*'mine'"):
            await memory.add_many(["a", "b"])
        assert await memory.count() == 0


async def test_a_sync_embedder_does_not_block_the_loop() -> None:
    import threading

    entered, release = threading.Event(), threading.Event()

    def slow(texts: list[str]) -> list[list[float]]:
        entered.set()
        assert release.wait(60)
        return by_length(texts)

    async with SemanticMemory(embedder=slow, embedder_name="slow") as memory, anyio.create_task_group() as group:
        group.start_soon(memory.add, "text")
        with anyio.fail_after(60):
            while not entered.is_set():
                await anyio.sleep(0.001)
        release.set()


async def test_an_error_of_the_embedder_stores_nothing() -> None:
    def broken(texts: list[str]) -> Any:
        raise ZeroDivisionError("mine")

    async with SemanticMemory(embedder=broken, embedder_name="broken") as memory:
        with pytest.raises(ZeroDivisionError, match="mine"):
            await memory.add("text")
        assert await memory.count() == 0


async def test_another_embedder_is_refused_with_what_to_do(tmp_path: Path) -> None:
    async with SemanticMemory(str(tmp_path / "v"), embedder=by_length, embedder_name="one") as memory:
        await memory.add("text")
    async with SemanticMemory(str(tmp_path / "v"), embedder="lexical") as memory:
        for operation in (memory.add, memory.search):
            with pytest.raises(
                EmbedderMismatchError, match=r"made with the embedder one \(2 numbers\).*another collection"
            ):
                await operation("text")
        assert await memory.count() == 1
        assert await memory.delete("x") is False
    async with SemanticMemory(
        str(tmp_path / "v"), embedder=lambda texts: [[1.0, 2.0, 3.0]] * len(texts), embedder_name="one"
    ) as memory:
        for operation in (memory.add, memory.search):
            with pytest.raises(EmbedderMismatchError, match=r"one \(3 numbers\)"):
                await operation("text")


async def test_auto_stays_with_the_embedder_that_made_the_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SemanticMemory(str(tmp_path / "v"), embedder="lexical") as memory:
        await memory.add("a window seat")
    _files_of_minilm(tmp_path)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    async with SemanticMemory(str(tmp_path / "v")) as memory:
        assert memory.embedder == "minilm"
        assert [match.text for match in await memory.search("seat")] == ["a window seat"]
        assert memory.embedder == LexicalEmbedder.name
