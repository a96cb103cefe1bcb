"""The digest of a call: which tool, with exactly which arguments."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel
from pydantic_core import to_json, to_jsonable_python

from agenthelm.core.sensitive import is_plain
from agenthelm.tracing.marks import SECRETS

__all__ = ["digest"]

_DEEPEST: Final = 100
"""How many collections within each other are told apart where JSON fails."""


def digest(tool_name: str, arguments: Mapping[str, Any]) -> str:
    """SHA-256 over a tool's name and its exact arguments, secrets included, in hex.

    The same for equal arguments whatever their order; another one as soon as a value, or its kind, changes. Never raises
    on account of the values.
    """
    if is_plain(arguments.values()):
        try:
            told = to_json([tool_name, sorted(arguments.items())], inf_nan_mode="constants")
            return hashlib.sha256(told).hexdigest()
        except (TypeError, ValueError):  # keys of several kinds, what UTF-8 can't hold
            pass
    call = [tool_name, dict(arguments)]
    try:
        text = _digested.encode(call)
    except Exception:  # noqa: BLE001 - cycles, depth, keys of several kinds, numbers too long to print
        text = _apart(call, ())
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _exact(value: Any) -> Any:
    """What stands for a value that JSON can't hold; its kind is part of it."""
    kind = _kind(value)
    if isinstance(value, SECRETS):
        secret = value.get_secret_value()
        return {kind: secret.hex() if isinstance(secret, bytes) else secret}
    if isinstance(value, (bytes, bytearray)):
        return {kind: value.hex()}
    if isinstance(value, BaseModel):
        return {kind: dict(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {kind: {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}}
    if isinstance(value, (set, frozenset)):
        return {kind: sorted(json.dumps(item, sort_keys=True, default=_exact) for item in value)}
    if isinstance(value, Mapping):
        return {kind: dict(value)}
    try:
        # Looking into what can be read only once would empty it.
        return {kind: repr(value) if isinstance(value, Iterator) else to_jsonable_python(value)}
    except Exception:  # noqa: BLE001 - what pydantic does not know, and what fails when it is looked at
        return {kind: _shown(value)}


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - somebody else's __repr__; then it is this very object
        return f"{_kind(value)} at {id(value):x}"


def _apart(value: Any, above: tuple[int, ...]) -> str:
    """The digest of a value where JSON fails: as exact, slower, and never raising."""
    text = f"{_kind(value)} at {id(value):x}"
    if id(value) not in above and len(above) < _DEEPEST:
        try:
            text = f"{_kind(value)} {_content(value, (*above, id(value)))}"
        except Exception:  # noqa: BLE001, S110 - somebody else's methods; then it is this very object
            pass
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _content(value: Any, above: tuple[int, ...]) -> Any:
    if isinstance(value, int):
        return hex(value)
    if isinstance(value, (list, tuple)):
        return [_apart(item, above) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(_apart(item, above) for item in value)
    if value is None or isinstance(value, (str, float)):
        return repr(value)
    if not isinstance(value, Mapping):
        return _apart(_exact(value)[_kind(value)], above)
    return sorted((_apart(key, above), _apart(item, above)) for key, item in value.items())


_digested = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=_exact)
