"""Random plans meeting random failure, cancellation, denial, budgets and broken compensators: what always holds."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings

from tests.support.saga_random import Case, cases, play

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


def check(case: Case, backend: tuple[str, dict[str, Any]]) -> None:
    wrong = anyio.run(play, case, backend=backend[0], backend_options=backend[1])
    assert not wrong, wrong


def limits(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples <= 1_000,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@limits(1_000)
@given(case=cases())
def test_a_random_saga_ends_as_promised(backend: tuple[str, dict[str, Any]], case: Case) -> None:
    check(case, backend)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))  # other examples each time, in parts that end before pytest's own limit
@pytest.mark.parametrize("backend", BACKENDS)
@limits(5_000)
@given(case=cases())
def test_a_hundred_thousand_random_sagas_end_as_promised(
    backend: tuple[str, dict[str, Any]], part: int, case: Case
) -> None:
    check(case, backend)
