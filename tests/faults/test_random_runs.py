"""Random agents meeting failing models, budgets and cancellation: what a run costs is what a real server billed."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import HealthCheck, given, settings

from tests.support.random_runs import Case, cases, play

pytestmark = pytest.mark.usefixtures("unlogged")


def limits(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples <= 100,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )


def check(case: Case, backend: str) -> None:
    wrong = anyio.run(play, case, backend=backend)
    assert not wrong, wrong


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@limits(40)
@given(case=cases())
def test_a_random_run_costs_what_was_billed_and_leaves_nothing(backend: str, case: Case) -> None:
    check(case, backend)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@limits(2_000)
@given(case=cases())
def test_thousands_of_random_runs_cost_what_was_billed(backend: str, case: Case) -> None:
    check(case, backend)
