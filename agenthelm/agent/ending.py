"""How a model's answer ended: whole, or cut off, which DSPy mends as well as it can and then only warns of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import UnionType
from typing import Any, Union, get_args, get_origin

import dspy

from agenthelm.exceptions import ModelCallError

__all__ = ["check_ending", "cut_off", "watched_ending"]

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
        self.cut: bool = False


@contextmanager
def watched_ending() -> Iterator[Ending]:
    """Be told how answers end that are given to code inside; of several the last one counts, and none is refused."""
    ending = Ending()
    with dspy.context(**{_ENDING: ending}):
        yield ending


def check_ending(finish_reason: str | None, model: str) -> None:
    """Tell whoever watches how an answer ended; where nobody does, refuse one that may be read as what it is not.

    Raises:
        ModelCallError: It was cut off, and what it was to end with is no text: half a number is another number.
    """
    ending: Ending | None = dspy.settings.get(_ENDING)
    if ending is not None:
        ending.cut = finish_reason not in _WHOLE
    elif finish_reason not in _WHOLE and (name := _last_field()) is not None:
        raise cut_off(f"the answer of model {model!r} was cut off, so its {name!r} can't be relied on", model)


def cut_off(what: str, model: str, *, attempts: int = 1) -> ModelCallError:
    """The error of answers that were cut off."""
    return ModelCallError(f"{what}; give the model more max_tokens", model=model, attempts=attempts)


def _last_field() -> str | None:
    """What the answer that is being asked for ends with, unless that is a text."""
    asking = (dspy.settings.get("caller_modules") or [None])[-1]
    fields: dict[str, Any] = getattr(getattr(asking, "signature", None), "output_fields", {})
    if not fields:
        return None
    name, field = list(fields.items())[-1]
    kind = field.annotation
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return None if str in kinds else name
