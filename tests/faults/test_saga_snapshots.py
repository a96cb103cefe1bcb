"""Random sagas killed at every moment, up to four processes one after the other: each end is as promised."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from tests.support.saga_snapshots import play

BACKENDS = [
    pytest.param(("asyncio", {}), id="asyncio"),
    pytest.param(("trio", {}), id="trio"),
]


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """What can't be undone is logged, thousands of times here."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


async def first_wrong(seeds: range, processes: int) -> list[str]:
    for seed in seeds:
        if wrong := await play(seed, processes):
            return wrong
    return []


def check(seeds: range, processes: int, backend: tuple[str, dict[str, Any]]) -> None:
    wrong = anyio.run(first_wrong, seeds, processes, backend=backend[0], backend_options=backend[1])
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_that_is_killed_anywhere_ends_as_promised(backend: tuple[str, dict[str, Any]]) -> None:
    check(range(30), 10, backend)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))  # in parts that end before pytest's own limit
@pytest.mark.parametrize("backend", BACKENDS)
def test_thousands_of_runs_that_are_killed_anywhere_end_as_promised(
    backend: tuple[str, dict[str, Any]], part: int
) -> None:
    check(range(part * 100, (part + 1) * 100), 75, backend)
