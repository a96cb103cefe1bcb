"""Approvals by rule: allow, deny or ask, by a tool's name, tags and side effects."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

from agenthelm.core.decisions import ApprovalHandler, ApprovalRequest, Decision
from agenthelm.exceptions import ConfigError, nearest

__all__ = ["PolicyHandler", "PolicyRule"]

Action = Literal["allow", "deny", "ask"]
"""What a rule does: approve, deny, or leave it to another handler."""

_ACTIONS: Final = get_args(Action)
_PATTERNS: Final = ("tool", "tag", "side_effect")
_RULE_KEYS: Final = ("action", *_PATTERNS, "irreversible", "reason")
_FILE_KEYS: Final = ("default", "rule")


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """One rule. It applies where all its conditions hold; a rule without conditions applies to every call.

    Attributes:
        action: What happens to calls it applies to.
        tool: Patterns for the tool's name; one must match. ``*``, ``?`` and ``[...]`` as in file names, case matters.
            Here and below a string is one pattern.
        tag: Patterns for tags; one must match one of the tool's.
        side_effect: Patterns for side effects; one must match one of the tool's.
        irreversible: Whether the call must have side effects that nothing undoes; None for either.
        reason: Said with the decision.

    Raises:
        ConfigError: A field has a value that no rule can have.
    """

    action: Action
    tool: tuple[str, ...] = ()
    tag: tuple[str, ...] = ()
    side_effect: tuple[str, ...] = ()
    irreversible: bool | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        where = "a policy rule"
        _action(self.action, where, "action")
        for key in _PATTERNS:
            if (value := getattr(self, key)) != ():
                object.__setattr__(self, key, _texts(value, where, key))
        _flag(self.irreversible, where)
        _text(self.reason, where)

    def applies(self, request: ApprovalRequest) -> bool:
        """Whether all conditions hold."""
        return (
            (not self.tool or _any_match((request.tool_name,), self.tool))
            and (not self.tag or _any_match(request.tags, self.tag))
            and (not self.side_effect or _any_match(request.side_effects, self.side_effect))
            and (self.irreversible is None or self.irreversible == request.irreversible)
        )


class PolicyHandler(ApprovalHandler):
    """Decides by rules; the first that applies wins, and where none does the default holds.

    Rules bind every call, also of tools whose contract asks for no approval: those are denied or asked about as soon
    as a rule says so. The default only speaks where the contract asks.

    Args:
        rules: In the order in which they are tried.
        default: What happens where no rule applies.
        ask: Who decides where the action is ``ask``.
        name: What the policy calls itself as approver.

    Raises:
        ConfigError: A rule or the default says ``ask``, and there is nobody to ask; or the default is no action.
    """

    gates = True

    def __init__(
        self,
        rules: Iterable[PolicyRule] = (),
        *,
        default: Action = "deny",
        ask: ApprovalHandler | None = None,
        name: str = "policy",
    ) -> None:
        self.rules: tuple[PolicyRule, ...] = tuple(rules)
        self.default = _action(default, name, "default")
        self.ask = ask
        self.name = name
        asks = [str(number) for number, rule in enumerate(self.rules, 1) if rule.action == "ask"]
        if ask is None and (asks or default == "ask"):
            where = f"rule {', '.join(asks)}" if asks else "the default"
            raise ConfigError(f"{name}: {where} says 'ask', but no handler to ask was given (ask=...)", setting="ask")

    @classmethod
    def from_toml(cls, path: str | PathLike[str], *, ask: ApprovalHandler | None = None) -> Self:
        """Read a policy file.

        Args:
            path: A TOML file with ``default = "..."`` and any number of ``[[rule]]`` tables.
            ask: Who decides where the action is ``ask``.

        Raises:
            ConfigError: The file can't be read, is no TOML, or has keys or values a policy does not know.
        """
        where = str(path)
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise ConfigError(f"the policy {where} is not valid TOML: {exc}") from exc
        except (OSError, ValueError) as exc:  # ValueError: the path holds a NUL
            raise ConfigError(f"the policy {where} can't be read: {getattr(exc, 'strerror', None) or exc}") from exc
        _known(data, _FILE_KEYS, where)
        tables = data.get("rule", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise ConfigError(f"{where}: rules are written as [[rule]] tables", setting="rule")
        rules = [_rule(table, f"{where}, rule {number}") for number, table in enumerate(tables, 1)]
        default = _action(data.get("default", "deny"), where, "default")
        return cls(rules, default=default, ask=ask, name=Path(path).name)

    def covers(self, request: ApprovalRequest) -> bool:
        """Whether a rule denies the call or wants somebody asked."""
        found = self._find(request)
        return found is not None and found[1].action != "allow"

    async def request_approval(self, request: ApprovalRequest) -> Decision:
        """Decide by the first rule that applies, or by the default."""
        found = self._find(request)
        action, reason, approver = self.default, "", f"{self.name}, default"
        if found is not None:
            number, rule = found
            action, reason, approver = rule.action, rule.reason, f"{self.name}, rule {number}"
        if action == "ask":
            assert self.ask is not None
            return await self.ask.request_approval(request)
        if action == "allow":
            return Decision(True, reason=reason or "allowed by the policy", approver=approver)
        reason = reason or ("denied by the policy" if found else "no rule of the policy allows it")
        return Decision(False, reason=reason, approver=approver)

    def _find(self, request: ApprovalRequest) -> tuple[int, PolicyRule] | None:
        for number, rule in enumerate(self.rules, 1):
            if rule.applies(request):
                return number, rule
        return None


def _any_match(values: Iterable[str], patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(value, pattern) for value in values for pattern in patterns)


def _known(table: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in keys:
            hint = nearest(key, keys) or f" It knows: {', '.join(keys)}."
            raise ConfigError(f"{where}: unknown key {key!r}.{hint}", setting=key)


def _rule(table: Mapping[str, Any], where: str) -> PolicyRule:
    _known(table, _RULE_KEYS, where)
    if "action" not in table:
        raise ConfigError(f"{where}: no action; it is one of {', '.join(_ACTIONS)}", setting="action")
    irreversible = _flag(table.get("irreversible"), where)
    reason = _text(table.get("reason", ""), where)
    patterns = {key: _texts(table[key], where, key) for key in _PATTERNS if key in table}
    action = _action(table["action"], where, "action")
    return PolicyRule(action, irreversible=irreversible, reason=reason, **patterns)


def _flag(value: object, where: str) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise ConfigError(f"{where}: irreversible is true or false, not {value!r}", setting="irreversible")


def _text(value: object, where: str) -> str:
    if isinstance(value, str):
        return value
    raise ConfigError(f"{where}: reason is a text, not {value!r}", setting="reason")


def _texts(value: object, where: str, key: str) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    # An empty list would hold for every call, which is the opposite of what it looks like.
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise ConfigError(f"{where}: {key} is a pattern or a list of patterns, not {value!r}", setting=key)
    return tuple(texts)


def _action(value: object, where: str, key: str) -> Action:
    for action in _ACTIONS:
        if value == action:
            return action  # type: ignore[no-any-return]
    hint = nearest(value, _ACTIONS) if isinstance(value, str) else ""
    raise ConfigError(f"{where}: {key} is one of {', '.join(_ACTIONS)}, not {value!r}.{hint}", setting=key)
