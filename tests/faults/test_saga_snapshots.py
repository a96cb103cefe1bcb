"""Random sagas killed at every moment, up to four processes one after the other: each end is as promised."""

from __future__ import annotations

import anyio
import pytest

from tests.support.saga_snapshots import play

pytestmark = pytest.mark.usefixtures("unlogged")


async def first_wrong(seeds: range, processes: int) -> list[str]:
    for seed in seeds:
        if wrong := await play(seed, processes):
            return wrong
    return []


def check(seeds: range, processes: int, backend: str) -> None:
    wrong = anyio.run(first_wrong, seeds, processes, backend=backend)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_run_that_is_killed_anywhere_ends_as_promised(backend: str) -> None:
    check(range(30), 10, backend)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))  # in parts that end before pytest's own limit
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_thousands_of_runs_that_are_killed_anywhere_end_as_promised(backend: str, part: int) -> None:
    check(range(part * 100, (part + 1) * 100), 75, backend)
