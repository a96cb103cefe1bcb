"""What the faults' random tests share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def unlogged() -> Iterator[None]:
    """What can't be undone is logged: thousands of times where sagas are random."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)
