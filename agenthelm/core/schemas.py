"""Where a tool reads a type otherwise than pydantic does: two amendments to what pydantic makes of it.

- What can be read only once becomes a list, so that a digest, a record and the tool itself see the same items.
- Members of enums are known by the JSON forms of their values in a ``Literal``, too, and where those are dates or the
  like: models and journals have no others.
"""

from __future__ import annotations

import collections.abc
import enum
import operator
import typing
from contextlib import suppress
from typing import Any, Final

from pydantic import ConfigDict, TypeAdapter
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError, SchemaValidator, core_schema, to_jsonable_python

__all__ = ["adapter", "reads_once"]

_ONCE: Final = (collections.abc.Iterator, collections.abc.Generator)
_OPAQUE: Final = (collections.abc.Callable, type, typing.Literal)
_NO_SCHEMAS: Final = frozenset({"default", "metadata", "serialization"})


def reads_once(annotation: Any) -> bool:
    """Whether an annotation, or a part of it, asks for an iterator or a generator."""
    origin = typing.get_origin(annotation) or annotation
    if origin in _ONCE:
        return True
    return origin not in _OPAQUE and any(map(reads_once, typing.get_args(annotation)))


def adapter(kind: Any, *, models: bool) -> TypeAdapter[Any]:
    """What validates a type: an ``Iterable`` into a list, and the form of an enum's member into that member.

    The fields of models and dataclasses belong to their classes and stay as they are; so does a type whose parts are not
    all defined yet.

    Args:
        kind: The type.
        models: Whether values of models are made here, so that an ``Iterable`` in one is refused.

    Raises:
        TypeError: A model or a dataclass has such a field, and ``models`` is true.
        PydanticUserError: The type can't be validated.
    """
    made: TypeAdapter[Any]
    try:
        made = TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError as exc:
        if exc.code != "type-adapter-config-unused":  # models and TypedDicts bring a config of their own
            raise
        made = TypeAdapter(kind)
    if made.pydantic_complete:
        schema = _amended(made.core_schema, None, models)
        if schema is not made.core_schema:
            made.validator = SchemaValidator(schema)
    return made


def _amended(node: Any, owner: type | None, models: bool) -> Any:
    """A core schema with both amendments; the same object if there is nothing to amend."""
    if isinstance(node, (list, tuple)):
        items = [_amended(item, owner, models) for item in node]
        return node if all(map(operator.is_, items, node)) else type(node)(items)
    if not isinstance(node, dict):
        return node
    kind = node.get("type")
    if kind in {"literal", "enum"}:
        return _known_by_form(node, node["expected"] if kind == "literal" else node["members"])
    if kind in {"model", "dataclass"}:
        owner = node["cls"]
    once = kind == "generator" or (kind == "is-instance" and node["cls"] in _ONCE)
    if once and owner is not None:
        if models:
            raise TypeError(f"{owner.__name__} has an Iterable field, which could be read only once; make it a list")
        return node
    parts = {key: part if key in _NO_SCHEMAS else _amended(part, owner, models) for key, part in node.items()}
    if once:
        parts.pop("cls", None)
        return {**parts, "type": "list"}
    return node if all(parts[key] is node[key] for key in node) else parts


def _known_by_form(node: Any, allowed: list[Any]) -> Any:
    """The schema of a ``Literal`` or an enum, with what finds the member that a value or its JSON form stands for."""
    members = [one for one in allowed if isinstance(one, enum.Enum)]
    stands_for: list[tuple[Any, enum.Enum]] = [(member.value, member) for member in members]
    for member in members:
        with suppress(PydanticSerializationError):  # it has no such form
            stands_for.append((to_jsonable_python(member.value), member))
    if node["type"] == "enum" and all(type(value) is type(member.value) for value, member in stands_for):
        return node  # pydantic does it

    def member_of(value: Any) -> Any:
        return next((member for one, member in stands_for if type(one) is type(value) and one == value), value)

    return core_schema.no_info_before_validator_function(member_of, node) if members else node
