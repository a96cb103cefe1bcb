"""Random plans meeting random failure, cancellation, denial, budgets and broken compensators: what always holds."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given

from tests.support.saga_random import Case, cases, limits, play

pytestmark = pytest.mark.usefixtures("unlogged")


def check(case: Case, backend: str) -> None:
    wrong = anyio.run(play, case, backend=backend)
    assert not wrong, wrong


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@limits(1_000)
@given(case=cases())
def test_a_random_saga_ends_as_promised(backend: str, case: Case) -> None:
    check(case, backend)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))  # other examples each time, in parts that end before pytest's own limit
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@limits(5_000)
@given(case=cases())
def test_a_hundred_thousand_random_sagas_end_as_promised(backend: str, part: int, case: Case) -> None:
    check(case, backend)
