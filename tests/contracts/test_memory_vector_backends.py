"""Every store of vectors keeps its contract."""

from __future__ import annotations

import pytest

from agenthelm.memory.backends.chroma import ChromaBackend
from agenthelm.memory.backends.chroma_server import ChromaServerBackend
from agenthelm.memory.backends.vector_list import VectorListBackend
from agenthelm.testing.memory import vector_contract
from tests.support.chroma_server import shared_chroma


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Without uvloop: the calls run in threads or through httpx, which do not know it from asyncio's own loop."""
    return str(request.param)


TestVectorList = vector_contract(lambda folder: VectorListBackend())
TestChromaInProcess = vector_contract(lambda folder: ChromaBackend(None))
TestChromaFolder = vector_contract(lambda folder: ChromaBackend(folder / "vectors"))
TestChromaServer = vector_contract(lambda folder: ChromaServerBackend(shared_chroma().url))
