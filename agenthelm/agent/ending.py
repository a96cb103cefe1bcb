"""How a model's answer ended: whole, or cut off, which DSPy mends as well as it can and then only warns of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dspy

__all__ = ["Ending", "tell_ending", "watched_ending"]

_ENDING = "agenthelm_ending"
"""The name among DSPy's settings, which go wherever DSPy calls a model."""
_WHOLE = ("stop", "tool_call", None)


class Ending:
    """How the last answer ended.

    Attributes:
        cut: Whether it stopped before its end, at the limit of its tokens or by a filter.
    """

    __slots__ = ("cut",)

    def __init__(self) -> None:
        self.cut = False


@contextmanager
def watched_ending() -> Iterator[Ending]:
    """Be told how answers end that are given to code inside; of several the last one counts."""
    ending = Ending()
    with dspy.context(**{_ENDING: ending}):
        yield ending


def tell_ending(finish_reason: str | None) -> None:
    """Tell whoever watches how an answer ended."""
    ending: Ending | None = dspy.settings.get(_ENDING)
    if ending is not None:
        ending.cut = finish_reason not in _WHOLE
