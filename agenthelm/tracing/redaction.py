"""What may be shown and stored of a value: safe copies without secrets."""

from __future__ import annotations

import dataclasses
import enum
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel

from agenthelm.copies import own
from agenthelm.tracing.marks import SECRETS, hidden_fields
from agenthelm.tracing.scrub import MASK, scrub, veiled

__all__ = ["Hook", "looks_secret", "masked"]

Hook = Callable[[str, Any], Any]
"""``(name, value) -> value``: asked for every named value before it is shown or stored."""

ITEMS: Final = 256
"""How many items of one collection are kept."""
DEPTH: Final = 12
"""How many collections within each other are followed."""
_BITS: Final = 8192
"""Integers above this are told by their size: Python refuses to print them."""

_LONGEST_NAME: Final = 64
"""Longer keys are text, and take the long way."""

_NO_NAMES: Final[frozenset[str]] = frozenset()


_WORDS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_ALWAYS: Final = frozenset(
    [
        "password",
        "passwd",
        "passphrase",
        "passcode",
        "pwd",
        "secret",
        "secrets",
        "apikey",
        "authorization",
        "credential",
        "credentials",
        "bearer",
        "cookie",
        "cookies",
        "cvv",
        "cvc",
        "jwt",
    ]
)
_ENDINGS: Final = ("password", "passwd", "passphrase", "apikey", "secret", "accesstoken", "authtoken", "secretkey")
_KEYS: Final = frozenset(
    [
        "api",
        "access",
        "private",
        "secret",
        "encryption",
        "signing",
        "master",
        "ssh",
        "auth",
        "account",
        "service",
        "client",
        "webhook",
        "hmac",
        "openai",
        "anthropic",
        "mistral",
        "stripe",
        "aws",
        "azure",
        "google",
        "github",
    ]
)
_PASSES: Final = frozenset(["db", "database", "user", "admin", "root", "smtp", "mail", "ftp", "redis", "login"])
_TOKENS: Final = frozenset(
    ["access", "auth", "api", "refresh", "bearer", "session", "id", "csrf", "bot", "user", "oauth", "security"]
)
_NOT_LAST: Final = frozenset(
    [
        "length",
        "count",
        "policy",
        "required",
        "enabled",
        "expiry",
        "expires",
        "limit",
        "usage",
        "type",
        "budget",
        "min",
        "max",
        "version",
    ]
)


@functools.lru_cache(maxsize=2048)
def looks_secret(key: str) -> bool:
    """Whether values under this name are taken for secrets.

    ``password``, ``api_key``, ``accessToken``, ``Authorization`` are; ``max_tokens``, ``token_usage``,
    ``idempotency_key``, ``author`` are not.
    """
    words = [word.lower() for word in _WORDS.findall(key)]
    if not words or words[-1] in _NOT_LAST:
        return False
    if not _ALWAYS.isdisjoint(words) or any(word.endswith(_ENDINGS) for word in words):
        return True
    last, before = words[-1], words[-2] if len(words) > 1 else ""
    if last in {"token", "auth"}:
        return True
    if last in {"value", "header", "string"} and before == "token":
        return True
    kinds = _KEYS if last in {"key", "keys"} else _TOKENS if last == "tokens" else _PASSES if last == "pass" else ()
    return before in kinds


def masked(
    value: Any,
    *,
    sensitive: AbstractSet[str] = _NO_NAMES,
    secrets: Sequence[str] = (),
    hook: Hook | None = None,
    cap: int = 8192,
) -> Any:
    """A JSON-compatible deep copy that may be shown and stored.

    Secrets are replaced by ``***``: ``SecretStr`` and ``SecretBytes``, values under secret-looking names, fields
    marked `Redacted`, and secrets of known shapes inside strings. What is too long or too deep is cut and says how
    long it was; what JSON can't hold is told by its ``repr``. Never raises on account of the value.

    Args:
        value: Anything; for a mapping, a dict comes back.
        sensitive: Further names that are masked, at the top level.
        secrets: What no string may contain and no number read like, the longest first. They are taken out before
            anything is cut or looked through for others, so that no part of one is left.
        hook: Asked for each named value that is not masked already; what it returns is masked in its turn. If it
            raises, the value is masked. It gets copies, which it may change.
        cap: The longest string that is kept whole, in characters; the whole copy holds at most eight times as many.
    """
    kind = type(value)
    if hook is None and not secrets and (kind is dict or kind is str):
        try:
            return _quick(value, sensitive, [cap], 3) if kind is dict else _quick_value(kind, value, [cap], 3)
        except _NotQuick:
            pass
    return _Masking(hook, cap, secrets).top(value, sensitive)


def _unlike(name: str, taken: Mapping[str, Any]) -> str:
    """A name as it is, or with a number where one that is shown alike is taken: no entry may hide another."""
    if name not in taken:
        return name
    return next(f"{name} ({number})" for number in itertools.count(2) if f"{name} ({number})" not in taken)


def _fields(value: Any) -> list[tuple[str, Any]] | None:
    """The fields of a model, a dataclass or a named tuple; None for what has none."""
    if isinstance(value, BaseModel):
        return list(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    return None


class _NotQuick(Exception):  # noqa: N818 - no error: the long way is taken then
    """There is something in it that needs a closer look."""


@functools.lru_cache(maxsize=2048)
def _tells(name: str) -> bool | None:
    """Whether the value under a name can be shown; None for a name that needs a closer look itself."""
    if len(name) > _LONGEST_NAME or not name.isascii() or scrub(name) != name:
        return None
    return not looks_secret(name)


def _quick(value: dict[Any, Any], sensitive: AbstractSet[str], room: list[int], depth: int) -> dict[str, Any]:
    """The short way for what most calls are: small dictionaries and lists of short scalars. Error texts take it, too.

    Args:
        value: A dictionary whose keys are names.
        sensitive: Further names that are masked.
        room: How many characters are left, as its one item; a list, because all levels draw on it.
        depth: How many levels are left.
    """
    room[0] -= 8 * len(value)
    if len(value) > ITEMS or depth < 0 or room[0] < 0:
        raise _NotQuick
    shown: dict[str, Any] = {}
    for key, item in value.items():
        kind = type(item)
        if type(key) is not str or (tells := _tells(key)) is None:
            raise _NotQuick
        if item is None or kind is bool:
            shown[key] = MASK if kind is bool and key in sensitive else item
        elif not tells or key in sensitive:
            shown[key] = MASK
        elif kind is int and -(2**63) <= item < 2**63:
            shown[key] = item
        else:
            shown[key] = _quick_value(kind, item, room, depth)
    return shown


def _quick_value(kind: type, item: Any, room: list[int], depth: int) -> Any:
    if kind is str:
        room[0] -= len(item)
        if room[0] < 0 or not item.isascii():
            raise _NotQuick
        return scrub(item)
    if item is None or kind is bool or (kind is int and -(2**63) <= item < 2**63):
        return item
    if kind is float and math.isfinite(item):
        return item
    if kind is dict:
        return _quick(item, _NO_NAMES, room, depth - 1)
    if kind is list:
        room[0] -= 8 * len(item)
        if len(item) > ITEMS or depth < 0 or room[0] < 0:
            raise _NotQuick
        return [_quick_value(type(inner), inner, room, depth - 1) for inner in item]
    raise _NotQuick


class _Masking:
    """One walk over a value."""

    __slots__ = ("cap", "hook", "open", "room", "secrets")

    def __init__(self, hook: Hook | None, cap: int, secrets: Sequence[str]) -> None:
        self.hook = hook
        self.cap = cap
        self.secrets = secrets
        self.room = cap * 8
        self.open: set[int] = set()
        """The collections that are being walked, to notice cycles."""

    def top(self, value: Any, sensitive: AbstractSet[str]) -> Any:
        """The whole value; ``sensitive`` names count here only."""
        if isinstance(value, Mapping):
            return self.collection(value, lambda: self.entries(value.items(), len(value), sensitive))
        return self.value(value)

    def named(self, name: str, value: Any, *, sensitive: bool = False) -> Any:
        """A value that has a name."""
        if value is None:
            return None
        if sensitive or (type(value) is not bool and looks_secret(name)):
            return MASK
        if self.hook is not None and not isinstance(value, SECRETS):
            try:
                value = self.hook(name, own(value))
            except Exception:  # noqa: BLE001 - somebody else's function; what it can't handle is not shown
                return MASK
        return self.value(value)

    def value(self, value: Any) -> Any:
        """Any value."""
        try:
            return self.known(value)
        except Exception:  # noqa: BLE001 - a value whose own methods fail must not fail the call it is recorded for
            return f"<{type(value).__name__}: unreadable>"

    def known(self, value: Any) -> Any:
        """A value of a known kind, or its repr."""
        if value is None or isinstance(value, (bool, *SECRETS)):
            return MASK if isinstance(value, SECRETS) else value
        if isinstance(value, enum.Enum):
            return self.value(value.value)
        if isinstance(value, str):
            return self.text(str.__str__(value))
        if isinstance(value, (int, float)):
            return self.number(value)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return f"<{len(value)} bytes>"
        if isinstance(value, (datetime, date, time)):
            return self.text(value.isoformat())
        if isinstance(value, (Decimal, UUID, PurePath, timedelta)):
            return self.text(str(value))
        return self.composite(value)

    def composite(self, value: Any) -> Any:
        """A value made of others, or anything else."""
        if isinstance(value, Mapping):
            return self.collection(value, lambda: self.entries(value.items(), len(value), _NO_NAMES))
        if (fields := _fields(value)) is not None:
            kind: type = type(value)
            return self.collection(value, lambda: self.entries(fields, len(fields), hidden_fields(kind)))
        if isinstance(value, (list, tuple, set, frozenset)):
            return self.collection(value, lambda: self.items(value))
        if isinstance(value, BaseException):
            return self.text(f"{type(value).__name__}: {value}")
        return self.text(repr(value))

    def collection(self, value: Any, walk: Callable[[], Any]) -> Any:
        """Walk a collection unless it contains itself, or lies too deep."""
        if id(value) in self.open:
            return f"<{type(value).__name__}: contains itself>"
        if len(self.open) >= DEPTH:
            return f"<{type(value).__name__}: nested too deeply>"
        self.open.add(id(value))
        try:
            return walk()
        finally:
            self.open.discard(id(value))

    def entries(self, pairs: Iterable[tuple[Any, Any]], length: int, sensitive: AbstractSet[str]) -> dict[str, Any]:
        """The entries of a mapping, a model or a dataclass."""
        shown: dict[str, Any] = {}
        for count, (key, item) in enumerate(pairs):
            if count >= ITEMS or self.room <= 0:
                shown[_unlike("…", shown)] = f"<{count} of {length} entries>"
                break
            name = str.__str__(key) if isinstance(key, str) else str(self.value(key))
            # By the whole name, of which a secret may be a part.
            hides = key in sensitive or (type(item) is not bool and looks_secret(name[: self.cap]))
            name = self.text(name)
            self.room -= 8
            shown[_unlike(name, shown)] = self.named(name, item, sensitive=hides)
        return shown

    def items(self, value: Any) -> list[Any]:
        """The items of a list, a tuple or a set."""
        shown: list[Any] = []
        for count, item in enumerate(value):
            if count >= ITEMS or self.room <= 0:
                shown.append(f"<{count} of {len(value)} items>")
                break
            self.room -= 4
            shown.append(self.value(item))
        return shown

    def text(self, text: str) -> str:
        """A string: without the secrets, cut, scrubbed, and fit for UTF-8."""
        text = veiled(text, self.secrets)
        limit = max(min(self.cap, self.room), 16)
        length = len(text)
        if length > limit:
            # Scrubbed with a margin, so that a secret across the cut is still recognised.
            text = f"{scrub(text[: limit + 256])[:limit]}… <{limit} of {length} characters>"
        else:
            text = scrub(text)
        self.room -= len(text)
        return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()

    def number(self, value: float) -> Any:
        """A number that JSON has."""
        if isinstance(value, int) and (bits := value.bit_length()) > _BITS:
            return f"<integer of {bits} bits>"
        if self.secrets and str(value) in self.secrets:
            return MASK
        if isinstance(value, int):
            return int(value)
        return float(value) if math.isfinite(value) else str(float(value))
