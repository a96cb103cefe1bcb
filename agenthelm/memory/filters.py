"""Filters on metadata: one small language with one meaning on every backend."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agenthelm.exceptions import MemoryValueError
from agenthelm.memory.base import Filter, Scalar

__all__ = ["can_be_filtered", "matches", "normalise"]

_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
_KNOWN = ("$eq", "$ne", *_ORDER, "$in", "$nin")


def normalise(where: Mapping[str, Any] | None) -> Filter | None:
    """A filter in its long form: one field and one operator per level, several joined by ``$and``.

    The language is Chroma's: ``{"field": value}``, ``{"field": {"$gte": 3, "$lt": 9}}`` with ``$eq $ne $gt $gte $lt
    $lte $in $nin``, and ``{"$and": [...]}``, ``{"$or": [...]}``. Several fields must all hold. A record without the
    field fulfils only ``$ne`` and ``$nin``. A number never equals a text or a bool; ``1`` equals ``1.0``.

    Raises:
        MemoryValueError: It is none of these.
    """
    if where is None:
        return None
    if not isinstance(where, Mapping):
        raise MemoryValueError(f"where must be a mapping from field to value, not {type(where).__name__}")
    terms: list[Filter] = []
    for name, condition in where.items():
        if not isinstance(name, str) or not name:
            raise MemoryValueError(f"where names a field that is no non-empty string: {name!r}")
        if name in ("$and", "$or"):
            terms.append(_joined(name, condition))
        elif name.startswith("$"):
            raise MemoryValueError(f"where has the unknown operator {name!r}; it knows $and and $or here")
        elif not can_be_filtered(name):
            raise MemoryValueError(
                f"where names the field {name!r}, which is stored but can't be filtered by; rename it"
            )
        elif isinstance(condition, Mapping):
            if not condition:
                raise MemoryValueError(f"where has no condition for {name!r}")
            terms.extend(_term(name, op, value) for op, value in condition.items())
        else:
            terms.append(_term(name, "$eq", condition))
    return _all(terms)


def can_be_filtered(name: str) -> bool:
    """Whether every store takes a field by this name; operators begin with ``$``, and some names are Chroma's own."""
    return bool(name) and not name.startswith(("$", "#")) and name != "chroma:document"


def _all(terms: Sequence[Filter]) -> Filter | None:
    if not terms:
        return None
    return terms[0] if len(terms) == 1 else {"$and": list(terms)}


def _joined(name: str, parts: Any) -> Filter:
    if isinstance(parts, (str, Mapping)) or not isinstance(parts, Sequence) or not parts:
        raise MemoryValueError(f"where has {name!r} without a list of filters")
    terms = [term for term in map(normalise, parts) if term is not None]
    if len(terms) != len(parts):
        raise MemoryValueError(f"where has an empty filter in {name!r}")
    return terms[0] if len(terms) == 1 else {name: terms}


def _term(name: str, op: Any, value: Any) -> Filter:
    if op not in _KNOWN:
        raise MemoryValueError(f"where has the unknown operator {op!r} for {name!r}; it knows {', '.join(_KNOWN)}")
    if op in ("$in", "$nin"):
        if isinstance(value, str) or not isinstance(value, Sequence) or not value:
            raise MemoryValueError(f"where needs a non-empty list for {name!r} {op}, not {value!r}")
        # One comparison per value: stores are strict about lists that mix types.
        single = [_term(name, "$eq" if op == "$in" else "$ne", item) for item in value]
        return single[0] if len(single) == 1 else {"$or" if op == "$in" else "$and": single}
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if op in _ORDER and not number:
        raise MemoryValueError(f"where compares {name!r} {op} with {value!r}; only numbers have an order")
    if not isinstance(value, (str, int, float)) or (isinstance(value, float) and not math.isfinite(value)):
        raise MemoryValueError(f"where compares {name!r} with {value!r}; it can compare texts, numbers and bools")
    return {name: {op: value}}


def matches(where: Filter | None, metadata: Mapping[str, Scalar]) -> bool:
    """Whether metadata fulfil a normalised filter."""
    if where is None:
        return True
    ((name, condition),) = where.items()
    if name == "$and":
        return all(matches(part, metadata) for part in condition)
    if name == "$or":
        return any(matches(part, metadata) for part in condition)
    ((op, value),) = condition.items()
    held = metadata.get(name)
    alike = held is not None and _kind(held) is _kind(value)
    if op == "$eq":
        return alike and held == value
    if op == "$ne":
        return not alike or held != value
    return alike and _ORDER[op](held, value)


def _kind(value: Scalar) -> type:
    return float if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value)
