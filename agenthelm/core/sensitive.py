"""Which parameters hold secrets, and how what they hold is kept out of all that is told of a call."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import typing_extensions
from pydantic import BaseModel, SecretBytes, SecretStr

from agenthelm.core.redaction import MASK, Redacted

__all__ = ["carries_secret", "holds_secrets", "is_sensitive", "secret_texts", "veiled"]

_SHORTEST: Final = 4
"""Shorter texts turn up by chance; masking them everywhere would tell more than it hides."""


def is_sensitive(annotation: Any) -> bool:
    """Whether a parameter of this type must never be stored or shown.

    It is or wraps a secret, or has a field marked `Redacted`. Models with ``SecretStr`` fields are not: such fields mask
    themselves.
    """
    return _secret(annotation) or _found(annotation, _marked, set())


def holds_secrets(annotation: Any) -> bool:
    """Whether a value of this type that was not validated yet may hold a secret at any depth."""
    return _found(annotation, _secret, set())


def carries_secret(value: Any) -> bool:
    """Whether a secret is somewhere in a value, which JSON would carry as a mask."""
    if isinstance(value, (str, int, float, type(None))):
        return False
    if isinstance(value, (SecretStr, SecretBytes)):
        return True
    if isinstance(value, Mapping):
        return any(map(carries_secret, value.values()))
    if isinstance(value, BaseModel):
        return any(map(carries_secret, dict(value).values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return any(map(carries_secret, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return any(carries_secret(getattr(value, field.name)) for field in dataclasses.fields(value))
    return False


def secret_fields(annotation: Any) -> frozenset[str]:
    """The fields of a declared result whose values must never be stored."""
    if not isinstance(annotation, type) or typing.get_args(annotation):
        return frozenset()
    return frozenset(name for name, kind in _named_fields(annotation).items() if _found(kind, _secret, set()))


def secret_texts(values: Iterable[Any], *, whole: bool) -> list[str]:
    """What secrets say, longest first, where it is long enough to be told from chance.

    Args:
        values: Where to look.
        whole: Whether every text in them is a secret; otherwise those that are typed as secrets.
    """
    found = set(_texts(values, whole))
    return sorted((text for text in found if len(text) >= _SHORTEST), key=len, reverse=True)


def veiled(value: Any, secrets: Sequence[str]) -> Any:
    """A copy of a JSON-compatible value in which no string contains one of these texts."""
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, MASK)
        return value
    if isinstance(value, dict):
        return {veiled(key, secrets): veiled(item, secrets) for key, item in value.items()}
    return [veiled(item, secrets) for item in value] if isinstance(value, list) else value


def _texts(values: Iterable[Any], whole: bool) -> Iterator[str]:
    for value in values:
        if isinstance(value, (SecretStr, SecretBytes)):
            yield from _texts([value.get_secret_value()], True)
        elif isinstance(value, str):
            if whole:
                yield value
        elif isinstance(value, bytes):
            if whole:
                yield value.decode("utf-8", "replace")
        elif isinstance(value, Mapping):
            yield from _texts(value.values(), whole)
        elif isinstance(value, BaseModel):
            yield from _texts(dict(value).values(), whole)
        elif isinstance(value, (list, tuple, set, frozenset)):
            yield from _texts(value, whole)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _texts([getattr(value, field.name) for field in dataclasses.fields(value)], whole)


def _marked(annotation: Any) -> bool:
    return typing.get_origin(annotation) is typing.Annotated and any(
        mark is Redacted or isinstance(mark, Redacted) for mark in typing.get_args(annotation)[1:]
    )


def _secret(annotation: Any) -> bool:
    """Whether an annotation is, or wraps, a secret."""
    if _marked(annotation) or (isinstance(annotation, type) and issubclass(annotation, (SecretStr, SecretBytes))):
        return True
    return any(_secret(part) for part in _parts(annotation))


def _parts(annotation: Any) -> list[Any]:
    """The types that an annotation is made of."""
    return [part for part in typing.get_args(annotation) if not isinstance(part, (str, int))]


def _found(annotation: Any, wanted: Callable[[Any], bool], seen: set[type]) -> bool:
    """Whether an annotation, one of its parts, or a field at any depth is wanted."""
    if wanted(annotation):
        return True
    if isinstance(annotation, type) and not typing.get_args(annotation):
        if annotation in seen:
            return False
        seen.add(annotation)
        return any(_found(field, wanted, seen) for field in _named_fields(annotation).values())
    return any(_found(part, wanted, seen) for part in _parts(annotation))


def _named_fields(kind: type) -> dict[str, Any]:
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
