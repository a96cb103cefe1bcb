"""Fixtures that every test may use: the backends, and a world without network."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

# Before anything imports DSPy, LiteLLM, Chroma or onnxruntime: no test downloads a price list or sends telemetry.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["ANONYMIZED_TELEMETRY"] = "False"
for _name in [name for name in os.environ if name.startswith(("AGENTHELM_", "NEXUS_TRACE", "OTEL_"))] + [
    "OPENAI_API_KEY",
    "ANTHROPIC_API_KEY",
    "MISTRAL_API_KEY",
    "OPENAI_API_BASE",
]:
    os.environ.pop(_name, None)
for _name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[_name]  # every server of the tests is on this machine, and a proxy elsewhere

import pytest


@pytest.fixture(
    params=[
        pytest.param("asyncio", id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"),
        pytest.param("trio", id="trio"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Every async test runs on asyncio, uvloop and trio."""
    return request.param


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """The command line sets up logging for a process; a test that runs it in this one must not do so for the rest."""
    logger = logging.getLogger("agenthelm")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])
