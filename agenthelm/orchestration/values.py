"""Values on their way into a journal and back: by field, under the fields' own names.

What JSON has no like of, and no type brings back from its likeness, is an object with one marked name: bytes that are no
text, bytearrays, mappings by tuples, and tuples where a list is another thing. A mapping that looks like one of these is
told by its entries, as those by tuples are.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel, RootModel
from pydantic_core import to_jsonable_python

from agenthelm.core.schemas import adapter

__all__ = ["decode", "encode"]

_DEEPEST: Final = 200
"""Levels of nesting that every JSON encoder and decoder can take."""
_SMALL: Final = 10**18
_ITSELF: Final = frozenset({str, bool, float, type(None)})
"""The types whose values are their own form."""

_MARKED: Final[Mapping[str, Callable[[Any], Any]]] = {
    "$bytes": base64.b64decode,
    "$bytearray": lambda text: bytearray(base64.b64decode(text)),
    "$tuple": lambda items: tuple(map(_unmarked, items)),
    "$entries": lambda entries: {_unmarked(key): _unmarked(item) for key, item in entries},
}
"""How values come back from what stands under these names."""


def encode(value: Any) -> tuple[Any, bool]:
    """A JSON-compatible copy of a value, and whether there is one. Never raises, and uses nothing up.

    Models, dataclasses and named tuples are told by their fields, never by serializers, aliases and computed fields of
    theirs: those say how a value is shown, and undoing needs what it is. Secrets (``SecretStr``) come out masked.
    """
    if type(value) in _ITSELF:
        return value, True
    try:
        return _form(value, 0), True
    except Exception:  # noqa: BLE001 - what a value's own methods raise must not fail the call it is recorded for
        return None, False


def decode(kind: Any, form: Any) -> Any:
    """A value of a type again, from what `encode` made of one; that itself where the two would not say the same."""
    try:
        plain = _unmarked(form)
    except (TypeError, ValueError):  # `encode` made no such marks; what they stand for, nobody knows
        return form
    try:
        if plain is form:
            value = adapter(kind, models=False).validate_json(json.dumps(form), by_alias=False, by_name=True)
        else:
            value = adapter(kind, models=False).validate_python(plain, by_alias=False, by_name=True)
    except Exception:  # noqa: BLE001 - validators are somebody else's code, and the form is as good as before
        return plain
    return value if encode(value) == (form, True) else plain


def _unmarked(form: Any) -> Any:
    """A form with what is marked in it as the values that it stands for; that itself where nothing is."""
    if type(form) is dict:
        if len(form) == 1 and (name := next(iter(form))) in _MARKED:
            return _MARKED[name](form[name])
        entries = {key: _unmarked(item) for key, item in form.items()}
        return entries if any(entries[key] is not item for key, item in form.items()) else form
    if type(form) is list:
        items = [_unmarked(item) for item in form]
        return items if any(new is not old for new, old in zip(items, form, strict=True)) else form
    return form


def _form(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind in _ITSELF:
        return value
    if kind is int:
        return value if -_SMALL < value < _SMALL else _number(value)
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    depth += 1
    if kind is dict:
        return _entries(value, depth)
    if kind is list or kind is tuple:
        return [_form(item, depth) for item in value]
    return _other(value, depth)


def _other(value: Any, depth: int) -> Any:
    """The form of what is not plain JSON data."""
    if isinstance(value, RootModel):
        return _form(value.root, depth)
    if isinstance(value, BaseModel):
        held = value.__dict__
        fields = {name: held[name] for name in type(value).model_fields if name in held}
        return _entries({**fields, **(value.__pydantic_extra__ or {})}, depth)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _entries({field.name: getattr(value, field.name) for field in dataclasses.fields(value)}, depth)
    if isinstance(value, enum.Enum):
        return _exact(value.value, depth)
    if isinstance(value, Mapping):
        return _entries(value, depth)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return _entries(dict(zip(value._fields, value, strict=True)), depth)
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return [_form(item, depth) for item in value]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return _number(int(value))
    if isinstance(value, bytearray):
        return {"$bytearray": base64.b64encode(value).decode()}
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, Iterator):
        raise TypeError("an iterator is read only once")
    return to_jsonable_python(value)


def _exact(value: Any, depth: int) -> Any:
    """The form of what is looked up as it is: the value of an enum's member, or a key."""
    return {"$tuple": [_exact(item, depth + 1) for item in value]} if isinstance(value, tuple) else _form(value, depth)


def _entries(value: Mapping[Any, Any], depth: int) -> dict[Any, Any]:
    form: dict[Any, Any] = {}
    for key, item in value.items():
        if type(key) is not str:
            return _pairs(value, depth)
        form[key] = item if type(item) in _ITSELF else _form(item, depth)
    return form if len(form) != 1 or next(iter(form)) not in _MARKED else {"$entries": [list(*form.items())]}


def _pairs(value: Mapping[Any, Any], depth: int) -> dict[Any, Any]:
    """A mapping whose keys are not all names."""
    keys = [key if type(key) is str else _key(key) for key in value]
    items = [_form(item, depth) for item in value.values()]
    if None in keys or (len(keys) == 1 and keys[0] in _MARKED):
        return {"$entries": [[_exact(key, depth), item] for key, item in zip(value, items, strict=True)]}
    form = dict(zip(keys, items, strict=True))
    if len(form) != len(value):
        raise ValueError("two keys are one in JSON")
    return form


def _key(key: Any) -> str | None:
    """The text of a key; None for one that can't come back from it."""
    return None if isinstance(key, tuple) else str(next(iter(to_jsonable_python({key: None}))))


def _number(value: int) -> int:
    if not -_SMALL < value < _SMALL:
        str(value)  # raises where JSON would, whose limit of digits it shares
    return value
