"""Which parameters hold secrets, and how what they hold is kept out of all that is told of a call."""

from __future__ import annotations

import dataclasses
import enum
import itertools
import json
import typing
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, time
from decimal import Decimal
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

import typing_extensions
from pydantic import BaseModel

from agenthelm.core.redaction import MASK
from agenthelm.tracing.marks import SECRETS, fields_of, hidden_fields, inside, is_marked

__all__ = [
    "PLAIN",
    "carries_secret",
    "holds_secrets",
    "is_plain",
    "is_sensitive",
    "secret_fields",
    "secret_texts",
    "unmarked_fields",
    "without_marked",
]

_SHORTEST: Final = 4
"""Shorter texts turn up by chance; masking them everywhere would tell more than it hides."""
_LONGEST: Final = 8192
"""Bits of the longest number that is told; Python refuses to print much longer ones."""
PLAIN: Final = frozenset({str, int, float, bool, type(None)})
"""Types that hold nothing but what they say."""
_SPOKEN: Final = (int, float, Decimal, UUID, date, time, PurePath)
"""What is told by its ``str`` where it is no text."""


def is_sensitive(annotation: Any) -> bool:
    """Whether a parameter of this type must never be stored or shown.

    It is or wraps a secret, or has a field marked `Redacted`. Models with ``SecretStr`` fields are not: such fields mask
    themselves.
    """
    return any(map(_is_secret, inside(annotation, enter=_nothing))) or any(
        map(is_marked, inside(annotation, enter=_everything))
    )


def holds_secrets(annotation: Any) -> bool:
    """Whether a value of this type that was not validated yet may hold a secret at any depth."""
    return any(map(_is_secret, inside(annotation, enter=_everything)))


def is_plain(values: Iterable[Any]) -> bool:
    """Whether all of these say what they say and nothing else: no secret, no reference, nothing to be used up."""
    for value in values:  # noqa: SIM110 - `all` costs five times as much
        if type(value) not in PLAIN:
            return False
    return True


def carries_secret(value: Any) -> bool:
    """Whether a secret is somewhere in a value: one that JSON would carry as a mask, or a field marked `Redacted`.

    So may be what can't be looked through: what its own methods raise, or that a thread changes it meanwhile.
    """
    try:
        return _carries_secret(value)
    except Exception:  # noqa: BLE001 - see above
        return True


def _carries_secret(value: Any) -> bool:
    kind: type = type(value)
    if kind in PLAIN or (kind is dict and is_plain(value.values())):
        return False
    if isinstance(value, SECRETS):
        return True
    parts = _parts(value)
    return parts is not None and (bool(hidden_fields(kind)) or any(map(_carries_secret, parts)))


def _parts(value: Any) -> Iterable[Any] | None:
    """What a value is made of, one level down; None for what is no collection, model or dataclass."""
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, BaseModel):
        return dict(value).values()
    if isinstance(value, (list, tuple, set, frozenset)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return None


def secret_fields(annotation: Any) -> frozenset[str]:
    """The fields of a declared result whose values must never be stored."""
    kind = _class_of(annotation)
    return frozenset(name for name, field in fields_of(kind).items() if holds_secrets(field)) if kind else frozenset()


def unmarked_fields(annotation: Any) -> frozenset[str]:
    """The fields of a declared TypedDict that must never be shown, and that no value of it knows of."""
    kind = _class_of(annotation)
    return hidden_fields(kind) if kind and typing_extensions.is_typeddict(kind) else frozenset()


def without_marked(value: Any, shown: Any) -> Any:
    """A JSON-compatible copy of a value in which fields marked `Redacted` are masked, at any depth.

    Args:
        value: The value.
        shown: Its JSON-compatible copy, which is changed.
    """
    if isinstance(value, BaseModel) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        if isinstance(shown, dict):
            hidden = hidden_fields(type(value))
            for name in fields_of(type(value)):
                if name in shown and (inner := getattr(value, name, None)) is not None:
                    shown[name] = MASK if name in hidden else without_marked(inner, shown[name])
            return shown
    elif isinstance(value, Mapping):
        if isinstance(shown, dict) and len(value) == len(shown):
            pairs = zip(shown.items(), value.values(), strict=True)
            return {name: without_marked(inner, item) for (name, item), inner in pairs}
    elif isinstance(value, (list, tuple, set, frozenset)) and isinstance(shown, list) and len(value) == len(shown):
        hidden, names = hidden_fields(type(value)), getattr(value, "_fields", itertools.repeat(""))  # of a named tuple
        return [
            MASK if name in hidden and inner is not None else without_marked(inner, item)
            for name, inner, item in zip(names, value, shown, strict=False)
        ]
    # Of what a serialiser of its own made another shape of, nobody can tell what is what.
    return MASK if carries_secret(value) else shown


def secret_texts(values: Iterable[Any], *, whole: bool) -> set[str]:
    """What secrets say, where it is long enough to be told from chance.

    Args:
        values: Where to look.
        whole: Whether every text in them is a secret; otherwise those that are typed as secrets.
    """
    return {text for text in _texts(values, whole) if len(text) >= _SHORTEST}


def _texts(values: Iterable[Any], whole: bool) -> Iterator[str]:
    for value in values:
        if isinstance(value, SECRETS):
            yield from _texts([value.get_secret_value()], True)
        elif isinstance(value, enum.Enum):
            yield from _texts([value.value], whole)
        elif isinstance(value, (str, bytes, *_SPOKEN)):
            if whole:
                yield from _wordings(value)
        else:
            if whole and isinstance(value, Mapping):
                yield from _texts(value, whole)  # its keys
            yield from _texts(_parts(value) or (), whole)


def _wordings(value: Any) -> Iterator[str]:
    """A scalar as it is told, also between quotes."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        yield from (value, repr(value)[1:-1], json.dumps(value)[1:-1], " ".join(value.split()))
    elif not isinstance(value, bool) and not (isinstance(value, int) and value.bit_length() > _LONGEST):
        yield str(value)


def _is_secret(annotation: Any) -> bool:
    return is_marked(annotation) or (isinstance(annotation, type) and issubclass(annotation, SECRETS))


def _nothing(kind: type) -> bool:
    return False


def _everything(kind: type) -> bool:
    return True


def _class_of(annotation: Any) -> type | None:
    """The class whose fields a value of this type has, if it is one class's."""
    while not isinstance(annotation, type):
        if annotation is None or is_marked(annotation):
            return None
        if (origin := typing.get_origin(annotation)) is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        else:
            annotation = getattr(annotation, "__value__", None) or getattr(annotation, "__supertype__", origin)
    return annotation
