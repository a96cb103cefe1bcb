"""Finds in types what is marked `Redacted`: in annotations, and in the fields of classes at any depth."""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any, Final

import typing_extensions
from pydantic import BaseModel, GetJsonSchemaHandler, Secret, SecretBytes, SecretStr
from pydantic_core import CoreSchema

__all__ = ["SECRETS", "Redacted", "fields_of", "hidden", "hidden_fields", "inside", "is_marked"]

SECRETS: Final = (SecretStr, SecretBytes, Secret)
"""The types whose values are secrets; ``Secret`` of whatever type."""


class Redacted:
    """Marks a parameter whose value must never be stored or shown: ``Annotated[str, Redacted]``."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "writeOnly": True}  # as pydantic says of SecretStr


_STANDS_FOR: Final = ("__value__", "__supertype__", "__bound__")
"""Where an alias, a ``NewType`` and a type variable have what they stand for."""


def is_marked(annotation: Any) -> bool:
    """Whether an annotation itself carries the mark."""
    return typing.get_origin(annotation) is typing.Annotated and any(
        mark is Redacted or isinstance(mark, Redacted) for mark in typing.get_args(annotation)[1:]
    )


def inside(annotation: Any, *, enter: typing.Callable[[type], bool]) -> Iterator[Any]:
    """An annotation and the types it is made of, each once.

    Args:
        annotation: Where to begin.
        enter: Of which classes the types of the fields count as well.
    """
    seen: dict[int, Any] = {}  # kept, so that no other object gets an id of these
    waiting = [annotation]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        yield one
        origin, parts = typing.get_origin(one), typing.get_args(one)
        if origin is typing.Annotated:
            waiting.append(parts[0])  # the rest are marks and no types
            continue
        if origin is not typing.Literal:
            waiting.extend(parts)
        if origin is not None:
            waiting.append(origin)
        elif isinstance(one, type):
            waiting.extend(fields_of(one).values() if enter(one) else ())
        else:
            waiting.extend(_behind(one))


def _behind(annotation: Any) -> Iterator[Any]:
    for attribute in _STANDS_FOR:
        try:
            found = getattr(annotation, attribute, None)
            if isinstance(found, str):  # how an alias names itself below Python 3.12
                names = vars(sys.modules[annotation.__module__])
                holder = types.SimpleNamespace(__annotations__={attribute: found})
                found = typing.get_type_hints(holder, globalns=names, include_extras=True)[attribute]
        except NameError:  # an alias of what is not defined; pydantic refuses it, too
            continue
        yield found


def fields_of(kind: type) -> dict[str, Any]:
    """The fields of a model, a dataclass, a TypedDict or a named tuple, and their types; empty for other classes."""
    if issubclass(kind, BaseModel):
        return {
            name: typing.Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            for name, field in kind.model_fields.items()
        }
    if not (dataclasses.is_dataclass(kind) or typing_extensions.is_typeddict(kind) or hasattr(kind, "_fields")):
        return {}
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except (NameError, TypeError):  # pydantic has refused what it could not resolve either
        return {}


def _tells_nothing(kind: type) -> bool:
    """Whether values of a class don't know their class: the fields of a TypedDict, say, are those of any dictionary."""
    return not (issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind))


def hidden(annotation: Any) -> bool:
    """Whether a value of this type holds what is marked, and nothing in the value itself says where."""
    return any(map(is_marked, inside(annotation, enter=_tells_nothing)))


@functools.lru_cache(maxsize=512)
def hidden_fields(kind: type) -> frozenset[str]:
    """The fields of a class that must never be stored or shown."""
    return frozenset(name for name, field in fields_of(kind).items() if hidden(field))
