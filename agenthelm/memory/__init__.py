"""What agents remember: values for a while, and texts found by meaning."""

from __future__ import annotations

from agenthelm.memory.base import EmbeddingSpec, KeyValueBackend, MemoryMatch, VectorBackend, VectorRecord
from agenthelm.memory.context import MemoryContext
from agenthelm.memory.hub import MemoryHub, StoreHealth
from agenthelm.memory.semantic import SemanticMemory
from agenthelm.memory.short_term import ShortTermMemory
from agenthelm.memory.sync_context import SyncMemoryContext

__all__ = [
    "EmbeddingSpec",
    "KeyValueBackend",
    "MemoryContext",
    "MemoryHub",
    "MemoryMatch",
    "SemanticMemory",
    "ShortTermMemory",
    "StoreHealth",
    "SyncMemoryContext",
    "VectorBackend",
    "VectorRecord",
]
