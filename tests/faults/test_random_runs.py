"""Random agents meeting failing models, budgets and cancellation: what a run costs is what a real server billed."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given

from tests.support.random_runs import Case, cases, play
from tests.support.saga_random import limits

pytestmark = pytest.mark.usefixtures("unlogged")


def check(case: Case, backend: str) -> None:
    wrong = anyio.run(play, case, backend=backend)
    assert not wrong, wrong


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@limits(100)
@given(case=cases())
def test_a_random_run_costs_what_was_billed_and_leaves_nothing(backend: str, case: Case) -> None:
    check(case, backend)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@limits(2_000)
@given(case=cases())
def test_thousands_of_random_runs_cost_what_was_billed(backend: str, case: Case) -> None:
    check(case, backend)
