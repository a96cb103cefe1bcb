"""What turns texts into vectors, chosen by name, model string or callable."""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

from agenthelm.exceptions import ConfigError, MemoryStoreError
from agenthelm.memory.base import Embedding
from agenthelm.memory.lexical import LexicalEmbedder
from agenthelm.telling import describe

__all__ = ["MINILM", "Embedder", "EmbedderLike", "MiniLM", "checked", "embedder_for", "resolve"]

_log = logging.getLogger(__name__)

MINILM = "minilm"
"""What a collection of Chroma's all-MiniLM-L6-v2 records."""

EmbedderLike: TypeAlias = "str | Callable[[list[str]], Any]"
"""``"auto"``, ``"lexical"``, ``"minilm"``, a model string such as ``"openai/text-embedding-3-small"``, a
``dspy.Embedder``, or a sync or async callable from texts to vectors."""

_MINILM_FILES = (
    "config.json", "model.onnx", "special_tokens_map.json", "tokenizer_config.json", "tokenizer.json", "vocab.txt",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Embedder:
    """A named function from texts to vectors.

    Attributes:
        name: What a collection records.
        embed: The function; it may block, and is called in a worker thread unless it is async.
        is_async: Whether it is awaited on the event loop instead.
    """

    name: str
    embed: Callable[[list[str]], Any]
    is_async: bool = False


def resolve(embedder: EmbedderLike, *, name: str | None = None) -> Embedder:
    """The embedder that a setting means; ``"auto"`` is decided now, and said once in the log.

    Args:
        embedder: The setting.
        name: What collections record for a callable, instead of its qualified name.

    Raises:
        ConfigError: It is none of the known kinds, or a lambda, an inner function or a partial without a name.
    """
    if embedder == "auto":
        return _automatic()
    if embedder == "lexical":
        return Embedder(LexicalEmbedder.name, LexicalEmbedder())
    if embedder == MINILM:
        return Embedder(MINILM, MiniLM())
    if isinstance(embedder, str):
        if "/" not in embedder:
            raise ConfigError(
                f"unknown embedder {embedder!r}; use 'auto', 'lexical', 'minilm', a model such as "
                "'openai/text-embedding-3-small', or a callable",
                setting="embedder",
            )
        return Embedder(name or embedder, _Hosted(embedder))
    if not callable(embedder):
        raise ConfigError(f"an embedder must be a name or callable, not {type(embedder).__name__}", setting="embedder")
    return Embedder(name or _name_of(embedder), embedder, is_async=_is_async(embedder))


def embedder_for(recorded: str) -> Embedder | None:
    """The built-in embedder that a collection records, if it can be had without a download."""
    if recorded == LexicalEmbedder.name:
        return resolve("lexical")
    if recorded == MINILM and minilm_present():
        return resolve(MINILM)
    return None


def minilm_folder() -> Path:
    """Where Chroma keeps the files of MiniLM."""
    return Path.home() / ".cache" / "chroma" / "onnx_models" / "all-MiniLM-L6-v2" / "onnx"


def minilm_present() -> bool:
    """Whether the files of MiniLM are here, so that it needs no download."""
    folder = minilm_folder()
    return all((folder / name).is_file() for name in _MINILM_FILES)


def checked(vectors: Any, texts: Sequence[str], *, embedder: str) -> list[Embedding]:
    """The vectors an embedder returned, if they are what was asked for.

    Raises:
        MemoryStoreError: Their number is not that of the texts, or they are empty, uneven, or not finite.
    """
    import numpy

    try:
        matrix = numpy.asarray(vectors, dtype=numpy.float32)
    except (TypeError, ValueError) as exc:
        raise MemoryStoreError(f"embedder {embedder!r} did not return vectors of one length: {exc}") from exc
    if matrix.ndim != 2 or matrix.shape[0] != len(texts) or matrix.shape[1] == 0:
        raise MemoryStoreError(
            f"embedder {embedder!r} returned an array of shape {matrix.shape} for {len(texts)} texts; "
            f"it must return {len(texts)} vectors of one length"
        )
    if not numpy.isfinite(matrix).all():
        raise MemoryStoreError(f"embedder {embedder!r} returned a vector that is not finite")
    return list(matrix)


_said: set[str] = set()


def _automatic() -> Embedder:
    chosen = resolve(MINILM if minilm_present() else "lexical")
    if chosen.name not in _said:
        _said.add(chosen.name)
        why = (
            "its files are here" if chosen.name == MINILM else "Chroma's MiniLM is not here, and nothing is downloaded"
        )
        _log.info("embedder 'auto' takes %s: %s", chosen.name, why)
    return chosen


class MiniLM:
    """Chroma's all-MiniLM-L6-v2 on onnxruntime; downloads its 80 MB on first use, because it was asked for by name.

    Args:
        progress: Told in a worker thread how many bytes of how many have arrived; 0 of them where that is not known.
    """

    name = MINILM

    def __init__(self, progress: Callable[[int, int], None] | None = None) -> None:
        self._progress = progress
        self._function: Callable[[list[str]], Any] | None = None

    def __call__(self, texts: list[str]) -> Any:
        """The vectors of some texts.

        Raises:
            MemoryStoreError: The files could not be downloaded, or are damaged.
        """
        if self._function is None:
            # Read while onnxruntime is imported, which would otherwise write its telemetry into the user's home.
            os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
            from chromadb.utils.embedding_functions import ONNXMiniLM_L6_V2

            function: Any = ONNXMiniLM_L6_V2()
            function.tqdm = self._download  # or else Chroma draws a bar on the stderr of whoever uses the library
            self._function = function
        try:
            return self._function(texts)
        except Exception as exc:  # an edge: onnxruntime, tokenizers and httpx each bring their own errors
            advice = (
                f"its files in {minilm_folder()} seem damaged, delete them"
                if minilm_present()
                else "it could not be downloaded; go online, or use embedder='lexical'"
            )
            raise MemoryStoreError(f"the MiniLM embedder failed: {advice} ({describe(exc)})") from exc

    def _download(self, *, total: int = 0, **_options: Any) -> _Download:
        _log.info("downloading %s (%s bytes) to %s, once", MINILM, total or "unknown", minilm_folder())
        return _Download(total, self._progress)


class _Download:
    """Stands where Chroma draws a bar."""

    def __init__(self, total: int, progress: Callable[[int, int], None] | None) -> None:
        self._total = total
        self._done = 0
        self._progress = progress

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Nothing to close."""

    def update(self, size: int) -> None:
        """More bytes have arrived."""
        self._done += size
        if self._progress is not None:
            self._progress(self._done, self._total)


class _Hosted:
    """Any model that ``dspy.Embedder`` reaches; imported and built on first use."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._embedder: Callable[[list[str]], Any] | None = None

    def __call__(self, texts: list[str]) -> Any:
        if self._embedder is None:
            os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
            import dspy

            self._embedder = dspy.Embedder(self._model, caching=False)
        try:
            return self._embedder(texts)
        except Exception as exc:  # an edge: every provider has errors of its own
            raise MemoryStoreError(f"embedding with {self._model!r} failed: {describe(exc)}") from exc


def _is_async(embedder: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(embedder) or inspect.iscoroutinefunction(type(embedder).__call__)


def _name_of(embedder: Callable[..., Any]) -> str:
    """A name that stays the same over processes."""
    for attribute in ("name", "model"):
        name = getattr(embedder, attribute, None)
        if isinstance(name, str) and name:
            return name
    inner = getattr(embedder, "model", None)  # a dspy.Embedder around a function
    named = inner if callable(inner) else embedder
    kind = named if hasattr(named, "__qualname__") else type(named)
    if isinstance(named, functools.partial) or "<" in kind.__qualname__:
        raise ConfigError(
            f"the embedder {kind.__qualname__} has no name of its own, so a collection could not tell it from another; "
            "pass embedder_name=, or a function of a module",
            setting="embedder",
        )
    return f"{kind.__module__}.{kind.__qualname__}"
