"""Handlers that decide by themselves, and policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agenthelm.core.handlers import (
    ApprovalHandler,
    ApprovalRequest,
    AutoApprove,
    AutoDeny,
    CliHandler,
    Decision,
    PolicyHandler,
    PolicyRule,
)
from agenthelm.exceptions import ConfigError
from agenthelm.testing.approvals import approval_contract, approval_request


class Person(ApprovalHandler):
    """Says yes, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[ApprovalRequest] = []

    async def request_approval(self, request: ApprovalRequest) -> Decision:
        self.asked.append(request)
        return Decision(True, reason="fine", approver="ann", digest=request.digest)


TestAutoApprove = approval_contract(AutoApprove)
TestAutoDeny = approval_contract(AutoDeny)
TestPolicyHandler = approval_contract(PolicyHandler)
TestPolicyHandlerThatAsks = approval_contract(lambda: PolicyHandler(default="ask", ask=AutoApprove()))
TestCliHandlerWithoutTerminal = approval_contract(CliHandler)


class Broken(ApprovalHandler):
    def __init__(self, answer: object) -> None:
        self.answer = answer

    async def request_approval(self, request: ApprovalRequest) -> Decision:
        return self.answer  # type: ignore[return-value]


@pytest.mark.parametrize(
    "answer",
    [
        True,
        None,
        Decision(1, approver="x"),
        Decision(True),
        Decision(False, approver="x"),
        Decision(True, "", "x", "0" * 64),
    ],
    ids=repr,
)
async def test_the_contract_finds_broken_handlers(answer: object) -> None:
    tests = approval_contract(lambda: Broken(answer))()
    with pytest.raises(AssertionError):
        await tests.test_decides_with_a_name_and_a_reason_bound_to_the_call()


async def test_auto_deny_gives_its_reason() -> None:
    decision = await AutoDeny("closed on Sundays").request_approval(approval_request())
    assert (decision.approved, decision.reason) == (False, "closed on Sundays")


async def test_a_policy_without_rules_denies() -> None:
    decision = await PolicyHandler().request_approval(approval_request())
    assert not decision.approved
    assert "no rule" in decision.reason
    assert decision.approver == "policy, default"


@pytest.mark.parametrize(
    ("rule", "applies"),
    [
        (PolicyRule("allow"), True),
        (PolicyRule("allow", tool=("book_*",)), True),
        (PolicyRule("allow", tool=("cancel_*", "book_hotel")), True),
        (PolicyRule("allow", tool=("BOOK_*",)), False),
        (PolicyRule("allow", tool=("book",)), False),
        (PolicyRule("allow", tag=("travel",)), True),
        (PolicyRule("allow", tag=("tra*",)), True),
        (PolicyRule("allow", tag=("money",)), False),
        (PolicyRule("allow", side_effect=("booking:*",)), True),
        (PolicyRule("allow", side_effect=("*:read",)), False),
        (PolicyRule("allow", irreversible=False), True),
        (PolicyRule("allow", irreversible=True), False),
        (PolicyRule("allow", tool=("book_*",), tag=("travel",), side_effect=("booking:write",)), True),
        (PolicyRule("allow", tool=("book_*",), tag=("money",)), False),
    ],
)
async def test_a_rule_applies_where_all_its_conditions_hold(rule: PolicyRule, applies: bool) -> None:
    decision = await PolicyHandler([rule]).request_approval(approval_request())
    assert decision.approved is applies


@pytest.mark.parametrize("field", ["tool", "tag", "side_effect"])
async def test_a_string_is_one_pattern_not_its_characters(field: str) -> None:
    mine = {"tool": "book_*", "tag": "travel", "side_effect": "booking:*"}[field]
    stranger = PolicyRule("allow", **{field: "read_*"})  # type: ignore[arg-type]
    assert not (await PolicyHandler([stranger]).request_approval(approval_request())).approved
    rule = PolicyRule("deny", **{field: mine})  # type: ignore[arg-type]
    assert rule == PolicyRule("deny", **{field: (mine,)})  # type: ignore[arg-type]
    assert not (await PolicyHandler([rule], default="allow").request_approval(approval_request())).approved


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"action": "alow"}, "action is one of .* Did you mean 'allow'"),
        ({"action": "allow", "tool": 5}, "tool is a pattern or a list"),
        ({"action": "allow", "tag": ("a", 5)}, "tag is a pattern or a list"),
        ({"action": "allow", "side_effect": []}, "side_effect is a pattern or a list"),
        ({"action": "allow", "tool": ""}, "tool is a pattern or a list"),
        ({"action": "allow", "irreversible": "no"}, "irreversible is true or false"),
        ({"action": "allow", "reason": 5}, "reason is a text"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PolicyRule(**fields)


def test_a_default_that_is_no_action_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"policy: default is one of .* Did you mean 'allow'"):
        PolicyHandler(default="alow")  # type: ignore[arg-type]


async def test_the_first_rule_that_applies_wins() -> None:
    deny, allow = PolicyRule("deny", tool=("book_*",), reason="not now"), PolicyRule("allow")
    decision = await PolicyHandler([deny, allow]).request_approval(approval_request())
    assert (decision.approved, decision.reason, decision.approver) == (False, "not now", "policy, rule 1")
    assert (await PolicyHandler([allow, deny]).request_approval(approval_request())).approved


async def test_ask_leaves_the_decision_to_the_other_handler() -> None:
    person = Person()
    request = approval_request()
    decision = await PolicyHandler([PolicyRule("ask", irreversible=False)], ask=person).request_approval(request)
    assert person.asked == [request]
    assert (decision.approved, decision.approver, decision.digest) == (True, "ann", request.digest)


def test_a_policy_that_asks_needs_somebody_to_ask() -> None:
    with pytest.raises(ConfigError, match="rule 2 says 'ask'"):
        PolicyHandler([PolicyRule("allow"), PolicyRule("ask")])
    with pytest.raises(ConfigError, match="default says 'ask'"):
        PolicyHandler(default="ask")


@pytest.mark.parametrize(("action", "covers"), [("allow", False), ("deny", True), ("ask", True)])
def test_rules_bind_calls_whose_contract_asks_for_nothing(action: str, covers: bool) -> None:
    rule = PolicyRule(action, tool=("book_*",))  # type: ignore[arg-type]
    handler = PolicyHandler([rule], ask=AutoApprove())
    assert handler.gates
    assert handler.covers(approval_request()) is covers
    assert not handler.covers(approval_request("other"))  # the default does not


POLICY = """
default = "ask"

[[rule]]
action = "deny"
irreversible = true
side_effect = ["payment:*", "mail:*"]
reason = "nobody could take it back"

[[rule]]
action = "allow"
tool = "book_*"
tag = "travel"
"""


def _policy(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return path


async def test_a_policy_file_says_what_its_rules_say(tmp_path: Path) -> None:
    person = Person()
    handler = PolicyHandler.from_toml(_policy(tmp_path, POLICY), ask=person)
    denied = await handler.request_approval(
        approval_request("pay", side_effects=("payment:write",), irreversible=True, compensating_tool=None)
    )
    assert (denied.approved, denied.reason) == (False, "nobody could take it back")
    assert denied.approver == "policy.toml, rule 1"
    assert (await handler.request_approval(approval_request())).approver == "policy.toml, rule 2"
    assert (await handler.request_approval(approval_request("other"))).approver == "ann"


def test_an_empty_policy_file_denies_by_default(tmp_path: Path) -> None:
    handler = PolicyHandler.from_toml(_policy(tmp_path, ""))
    assert (handler.default, handler.rules) == ("deny", ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("defualt = 'deny'", "unknown key 'defualt'. Did you mean 'default'"),
        ("[[rules]]\naction = 'deny'", "unknown key 'rules'. Did you mean 'rule'"),
        ("[[rule]]\naction = 'deny'\ntags = 'a'", "rule 1: unknown key 'tags'. Did you mean 'tag'"),
        ("[[rule]]\naction = 'deny'\nzzz = 1", "It knows: action, tool"),
        ("[[rule]]\ntool = 'x'", "rule 1: no action"),
        ("[[rule]]\naction = 'allow'\n[[rule]]\naction = 'alow'", "rule 2: action is one of .* Did you mean 'allow'"),
        ("[[rule]]\naction = 1", "action is one of"),
        ("default = ['deny']", "default is one of"),
        ("[[rule]]\naction = 'deny'\ntool = []", "tool is a pattern or a list"),
        ("[[rule]]\naction = 'deny'\ntool = ''", "tool is a pattern or a list"),
        ("[[rule]]\naction = 'deny'\ntag = [1]", "tag is a pattern or a list"),
        ("[[rule]]\naction = 'deny'\nirreversible = 'yes'", "irreversible is true or false"),
        ("[[rule]]\naction = 'deny'\nreason = 5", "reason is a text"),
        ("rule = 5", "written as \\[\\[rule\\]\\]"),
        ("[rule]\naction = 'deny'", "written as \\[\\[rule\\]\\]"),
        ("default = ", "not valid TOML"),
        (f"default = {'[' * 5000}{']' * 5000}", "not valid TOML"),
        ("[[rule]]\naction = 'ask'", "says 'ask'"),
    ],
)
def test_a_mistake_in_a_policy_file_is_an_error_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        PolicyHandler.from_toml(_policy(tmp_path, text))
    assert "policy.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_policy_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("default = 'allow'", encoding="utf-8-sig")
    assert PolicyHandler.from_toml(path).default == "allow"


def test_a_policy_file_that_is_missing_or_no_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read: No such file"):
        PolicyHandler.from_toml(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="can't be read: embedded null"):
        PolicyHandler.from_toml("a\0b.toml")
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        PolicyHandler.from_toml(path)
