"""Lists in place of what can be read only once, so that a digest, a record and the tool itself see the same items."""

from __future__ import annotations

import collections.abc
import operator
import typing
from typing import Any, Final

from pydantic import TypeAdapter
from pydantic_core import SchemaValidator

__all__ = ["keep_lists", "reads_once"]

_ONCE: Final = (collections.abc.Iterator, collections.abc.Generator)
_OPAQUE: Final = (collections.abc.Callable, type, typing.Literal)
_NO_SCHEMAS: Final = frozenset({"default", "metadata", "serialization"})


def reads_once(annotation: Any) -> bool:
    """Whether an annotation, or a part of it, asks for an iterator or a generator."""
    origin = typing.get_origin(annotation) or annotation
    if origin in _ONCE:
        return True
    return origin not in _OPAQUE and any(map(reads_once, typing.get_args(annotation)))


def keep_lists(adapter: TypeAdapter[Any], *, models: bool) -> None:
    """Have every ``Iterable`` and ``Iterator`` validated into a list; pydantic gives iterators, empty after one look.

    Args:
        adapter: What validates. One whose types are not all defined yet stays as it is.
        models: Whether values of models are made here. Their fields belong to their class and can't be changed.

    Raises:
        TypeError: A model or a dataclass has such a field, and ``models`` is true.
    """
    if adapter.pydantic_complete:
        schema = _listed(adapter.core_schema, None, models)
        if schema is not adapter.core_schema:
            adapter.validator = SchemaValidator(schema)


def _listed(node: Any, owner: type | None, models: bool) -> Any:
    """A core schema with lists for generators; the same object if there are none."""
    if isinstance(node, (list, tuple)):
        items = [_listed(item, owner, models) for item in node]
        return node if all(map(operator.is_, items, node)) else type(node)(items)
    if not isinstance(node, dict):
        return node
    kind = node.get("type")
    if kind in {"model", "dataclass"}:
        owner = node["cls"]
    once = kind == "generator" or (kind == "is-instance" and node["cls"] in _ONCE)
    if once and owner is not None:
        if models:
            raise TypeError(f"{owner.__name__} has an Iterable field, which could be read only once; make it a list")
        return node
    parts = {key: part if key in _NO_SCHEMAS else _listed(part, owner, models) for key, part in node.items()}
    if once:
        parts.pop("cls", None)
        return {**parts, "type": "list"}
    return node if all(parts[key] is node[key] for key in node) else parts
