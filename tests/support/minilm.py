"""Stands in for the files of MiniLM, which can't be downloaded in tests: a real ONNX model and tokenizer, but tiny.

The model is one ``OneHot`` node, so that a text's vector is the bag of its words. Chroma's code downloads, checks, unpacks
and runs it as it does the real one.
"""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

__all__ = ["archive", "served"]

WORDS = ("[PAD]", "[UNK]", "the", "a", "hotel", "pool", "in", "lisbon", "trains", "to", "porto", "leave", "has")
DEPTH = 32
_INT64, _FLOAT = 7, 1


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _field(number: int, value: int | str | bytes) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _tensor(name: str, kind: int, dims: tuple[int, ...], raw: bytes) -> bytes:
    return b"".join(_field(1, dim) for dim in dims) + _field(2, kind) + _field(8, name) + _field(9, raw)


def _value(name: str, kind: int, *dims: str) -> bytes:
    shape = b"".join(_field(1, _field(2, dim)) for dim in dims)
    return _field(1, name) + _field(2, _field(1, _field(1, kind) + _field(2, shape)))


def _model() -> bytes:
    node = b"".join(_field(1, name) for name in ("input_ids", "depth", "values"))
    node += _field(2, "last_hidden_state") + _field(4, "OneHot")
    graph = _field(1, node) + _field(2, "bag_of_words")
    graph += _field(5, _tensor("depth", _INT64, (), struct.pack("<q", DEPTH)))
    graph += _field(5, _tensor("values", _FLOAT, (2,), struct.pack("<2f", 0.0, 1.0)))
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        graph += _field(11, _value(name, _INT64, "batch", "tokens"))
    graph += _field(12, _value("last_hidden_state", _FLOAT, "batch", "tokens", "depth"))
    return _field(1, 7) + _field(7, graph) + _field(8, _field(1, "") + _field(2, 11))


def archive() -> bytes:
    """What the download holds."""
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    files = {
        "config.json": b"{}",
        "model.onnx": _model(),
        "special_tokens_map.json": b"{}",
        "tokenizer_config.json": b"{}",
        "tokenizer.json": tokenizer.to_str().encode(),
        "vocab.txt": b"".join(
            hashlib.sha512(bytes([n % 256, n // 256])).digest() for n in range(1000)
        ),  # has some size
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"onnx/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


@contextmanager
def served(monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[list[str]]:
    """Let Chroma download from here, into that home; yields the requests so far."""
    from chromadb.utils.embedding_functions import ONNXMiniLM_L6_V2

    data = archive()
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/onnx.tar.gz"
        folder = home / ".cache" / "chroma" / "onnx_models" / "all-MiniLM-L6-v2"
        monkeypatch.setattr(ONNXMiniLM_L6_V2, "MODEL_DOWNLOAD_URL", url)
        monkeypatch.setattr(ONNXMiniLM_L6_V2, "DOWNLOAD_PATH", folder)
        monkeypatch.setattr(ONNXMiniLM_L6_V2, "_MODEL_SHA256", hashlib.sha256(data).hexdigest())
        try:
            yield asked
        finally:
            server.shutdown()
            thread.join()
