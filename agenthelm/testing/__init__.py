"""Test doubles and contract tests for people who build on AgentHelm. Each name is imported when it is first used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agenthelm.lazy import lazily

if TYPE_CHECKING:
    from agenthelm.testing.approvals import approval_contract, approval_request
    from agenthelm.testing.lm import Reply, ScriptedLM
    from agenthelm.testing.memory import key_value_contract, vector_contract
    from agenthelm.testing.storage import FaultyStorage, SimulatedCrash, storage_contract

__all__ = [
    "FaultyStorage",
    "Reply",
    "ScriptedLM",
    "SimulatedCrash",
    "approval_contract",
    "approval_request",
    "key_value_contract",
    "storage_contract",
    "vector_contract",
]

_HOMES = {
    "FaultyStorage": "storage",
    "Reply": "lm",
    "ScriptedLM": "lm",
    "SimulatedCrash": "storage",
    "approval_contract": "approvals",
    "approval_request": "approvals",
    "key_value_contract": "memory",
    "storage_contract": "storage",
    "vector_contract": "memory",
}


if not TYPE_CHECKING:  # a type checker must see which names are not there
    __getattr__ = lazily(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
