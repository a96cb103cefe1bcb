"""Nothing secret is shown or stored, and nothing that is shown can break what stores it."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Secret, SecretBytes, SecretStr

from agenthelm.core.digest import digest
from agenthelm.core.redaction import MASK, Redacted, looks_secret, masked, scrub

SECRET = "hunter2-correct-horse"


@pytest.mark.parametrize(
    "key",
    [
        "password", "PASSWORD", "user_password", "userPassword", "dbpassword", "passwd", "passphrase", "pwd", "secret",
        "client_secret", "clientSecret", "api_key", "apiKey", "apikey", "API-KEY", "X-Api-Key", "openai_api_key", "token",
        "access_token", "accessToken", "refresh-token", "auth_tokens", "bearer", "authorization", "Authorization",
        "proxy-authorization", "auth", "credentials", "aws_secret_access_key", "private_key", "privateKey", "ssh_key",
        "session_token", "Set-Cookie", "cvv", "token_value", "db_pass", "smtpPass", "stripe_key", "OPENAI_KEY", "webhook_key",
    ],
)  # fmt: skip
def test_names_of_secrets_are_recognised(key: str) -> None:
    assert looks_secret(key)


@pytest.mark.parametrize(
    "key",
    [
        "max_tokens", "maxTokens", "token_usage", "token_count", "input_tokens", "tokens", "total_tokens", "tokenizer",
        "idempotency_key", "key", "keys", "primary_key", "author", "authors", "authored_by", "city", "secretary",
        "password_length", "token_type", "passenger", "compass", "monkey", "keyboard", "", "…", "token_budget", "pass", "boarding_pass", "sort_key",
    ],
)  # fmt: skip
def test_names_that_only_resemble_secrets_are_not(key: str) -> None:
    assert not looks_secret(key)


class Account(BaseModel):
    user: str
    password: str
    pin: Annotated[str, Redacted] = "0000"
    note: Annotated[str, Redacted()] = "n"
    wrapped: SecretStr = SecretStr(SECRET)


@dataclass
class Login:
    user: str
    api_key: str


class Row(NamedTuple):
    user: str
    password: str


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    "value",
    [
        {"password": SECRET},
        {"deep": [{"headers": {"Authorization": SECRET}}]},
        {"value": SecretStr(SECRET)},
        {"value": [SecretBytes(SECRET.encode())]},
        {"value": Secret[list[str]]([SECRET])},
        {"mine": SECRET},
        {"account": Account(user="u", password=SECRET, pin=SECRET, note=SECRET)},
        {"login": Login("u", SECRET)},
        {"row": Row("u", SECRET)},
        {"text": f"https://user:{SECRET}@example.org/"},
        {"text": f"é Bearer {SECRET}"},
        {"error": ValueError(f"api_key={SECRET}")},
        {"list": (f"Authorization: Bearer {SECRET}",)},
        {"mapping": OrderedDict(password=SECRET)},
        {f"password={SECRET}": 1, "x": [1]},
        {"password": 123456789012, "x": SECRET[:0]},
    ],
    ids=repr,
)
def test_secrets_are_masked_wherever_they_are(value: dict[str, Any]) -> None:
    shown = json.dumps(masked(value, sensitive=frozenset({"mine"})))
    assert SECRET not in shown
    assert "123456789012" not in shown
    assert MASK in shown


def test_what_is_not_secret_stays_as_it_is() -> None:
    value = {
        "city": "Lisbon",
        "nights": 3,
        "price": 1.5,
        "max_tokens": 10,
        "ok": True,
        "none": None,
        "l": [1, {"a": "b"}],
    }
    assert masked(value) == value


def test_the_copy_is_not_the_original() -> None:
    inner = [1]
    value = {"inner": inner}
    copy = masked(value)
    inner.append(2)
    assert copy == {"inner": [1]}


def test_none_and_flags_under_a_secret_name_say_nothing_and_stay() -> None:
    assert masked({"password": None, "token": True}) == {"password": None, "token": True}


def test_sensitive_names_count_at_the_top_only() -> None:
    assert masked({"a": 1, "b": {"a": 1}}, sensitive={"a"}) == {"a": MASK, "b": {"a": 1}}
    assert masked({"a": True}, sensitive={"a"}) == {"a": MASK}


def test_the_hook_sees_every_named_value_and_its_result_is_masked_too() -> None:
    seen = []

    def hook(name: str, value: Any) -> Any:
        seen.append(name)
        return {"password": "x"} if name == "inner" else value

    assert masked({"a": 1, "b": [{"inner": 2}]}, hook=hook) == {"a": 1, "b": [{"inner": {"password": MASK}}]}
    assert seen == ["a", "b", "inner"]


def test_a_hook_never_sees_what_is_masked_already() -> None:
    assert masked({"password": "x", "s": SecretStr("y")}, hook=lambda name, value: "shown") == {
        "password": MASK,
        "s": MASK,
    }


def test_a_hook_changes_what_is_shown_and_nothing_else() -> None:
    def hook(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            value.pop("card", None)
        return value

    value = {"paid": {"card": "4111", "by": {"card": "4111", "name": "ann"}}}
    assert masked(value, hook=hook) == {"paid": {"by": {"name": "ann"}}}
    assert value == {"paid": {"card": "4111", "by": {"card": "4111", "name": "ann"}}}


def test_a_hook_is_shown_what_can_not_be_copied_itself() -> None:
    lock = threading.Lock()
    shown: list[Any] = []
    masked({"lock": lock}, hook=lambda name, value: shown.append(value))
    assert shown == [lock]


def test_a_hook_that_raises_shows_nothing() -> None:
    def hook(name: str, value: Any) -> Any:
        raise RuntimeError(value)

    assert masked({"a": "x"}, hook=hook) == {"a": MASK}


def test_long_texts_are_cut_and_say_how_long_they_were() -> None:
    shown = masked({"text": "x" * 100_000}, cap=100)["text"]
    assert shown.startswith("x" * 100 + "…")
    assert "100 of 100000 characters" in shown
    assert len(shown) < 200


def test_a_secret_across_the_cut_is_not_left_in_half() -> None:
    text = "a" * 90 + " sk-" + "k" * 40
    assert "sk-" not in masked(text, cap=100)


def test_long_collections_are_cut_and_say_how_long_they_were() -> None:
    shown = masked({"many": list(range(5000)), "wide": {str(i): i for i in range(5000)}})
    assert shown["many"][-1] == "<256 of 5000 items>"
    assert shown["wide"]["…"] == "<256 of 5000 entries>"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://a@example.org/", "https://b@example.org/"),
        ("password=first-one", "password=other-one"),
        ("\ud800", "\\ud800"),
        (1, "1"),
        ("k" * 9000 + "a", "k" * 9000 + "b"),
    ],
)
def test_no_entry_hides_another_one_whose_name_is_shown_alike(one: object, other: object) -> None:
    held = {one: {"amount": 1_000_000}, other: {"amount": 1}, "third": {"amount": 2}}
    for shown in (masked(held), masked({"payload": held})["payload"]):
        assert len(shown) == 3
        assert [value["amount"] for value in shown.values() if value != MASK] in ([1_000_000, 1, 2], [2])


def test_an_entry_can_not_stand_for_those_that_are_left_out() -> None:
    shown = masked({"…": "all", **{str(number): number for number in range(5000)}})
    assert shown["…"] == "all"
    assert "<256 of 5001 entries>" in shown.values()


def test_the_whole_copy_is_bounded() -> None:
    assert len(json.dumps(masked({"l": [["x" * 1000] * 200] * 200}, cap=1000))) < 20_000


def test_cycles_and_depth_end() -> None:
    cycle: list[Any] = [1]
    cycle.append(cycle)
    deep: Any = "end"
    for _ in range(1000):
        deep = {"d": deep}
    shown = json.dumps(masked({"cycle": cycle, "deep": deep}))
    assert "contains itself" in shown
    assert "nested too deeply" in shown


def test_the_same_value_twice_is_no_cycle() -> None:
    shared = {"a": 1}
    assert masked([shared, shared]) == [shared, shared]


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError(SECRET)


class HostileMapping(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError(SECRET)


class HostileError(Exception):
    def __str__(self) -> str:
        raise RuntimeError(SECRET)


@pytest.mark.parametrize("value", [Hostile(), [Hostile()], HostileMapping(a=1), HostileError(), {Hostile(): 1}])
def test_a_value_whose_own_methods_fail_is_told_by_its_type(value: object) -> None:
    shown = json.dumps(masked({"value": value}))
    assert "unreadable" in shown
    assert SECRET not in shown


def test_values_json_does_not_have_are_told_by_name() -> None:
    shown = masked(
        {
            "when": datetime(2026, 1, 2, tzinfo=UTC), "amount": Decimal("1.10"), "path": Path("a/b"), "colour": Colour.RED,
            "bytes": b"abc", "set": {1}, "tuple": (1, 2), "nan": float("nan"), "huge": 10**5000, "object": object,
            3: "number", "surrogate": "\ud800",
        }
    )  # fmt: skip
    assert shown["when"] == "2026-01-02T00:00:00+00:00"
    assert (shown["amount"], shown["path"], shown["colour"]) == ("1.10", "a/b", "red")
    assert (shown["bytes"], shown["set"], shown["tuple"], shown["nan"]) == ("<3 bytes>", [1], [1, 2], "nan")
    assert shown["huge"].startswith("<integer of")
    assert shown["3"] == "number"
    json.dumps(shown, allow_nan=False, ensure_ascii=False).encode()


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.text().map(SecretStr),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4),
    max_leaves=12,
)


@given(_ANYTHING)
def test_whatever_comes_json_and_utf8_can_hold_the_copy(value: object) -> None:
    text = json.dumps(masked({"value": value}), allow_nan=False, ensure_ascii=False)
    text.encode("utf-8")


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("password=hunter2"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("token"), inner, max_size=3),
    max_leaves=6,
)


@given(_PLAIN)
def test_the_short_way_for_plain_values_shows_what_the_long_way_does(value: Any) -> None:
    assert repr(masked(value)) == repr(masked(value, hook=lambda _, item: item))


@pytest.mark.parametrize(
    "text",
    [
        f"postgres://user:{SECRET}@db/x is down", f"postgres://user:p@{SECRET}@db/x is down", f"redis://:{SECRET}@h", f"Authorization: Bearer {SECRET}",
        f"authorization=Basic {SECRET}", f"Incorrect key sk-proj-{SECRET}", f"sk-ant-{SECRET}", f"api_key={SECRET}",
        f"https://h/?access_token={SECRET}&x=1", f'{{"password": "{SECRET}"}}', f"{{'clientSecret': '{SECRET} {SECRET}'}}",
        "ghp_" + "a" * 36 + SECRET[:0], f"X-Api-Key: {SECRET}", f"PASSWORD={SECRET}", f"Uid=sa;Pwd={SECRET};",
        f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----",
    ],
)  # fmt: skip
def test_secrets_of_known_shapes_are_taken_out_of_texts(text: str) -> None:
    shown = scrub(text)
    assert SECRET not in shown
    assert "a" * 36 not in shown
    assert MASK in shown


@pytest.mark.parametrize(
    "secret", [SECRET, f"it's {SECRET}", f'1"{SECRET}', f"back\\{SECRET}", f"b\\'{SECRET}", f'\\"{SECRET}\\n']
)
def test_a_secret_between_quotes_is_taken_out_whole_also_of_json_within_json(secret: str) -> None:
    value = {"user": "ann", "password": secret, "n": "kept"}
    as_json = json.dumps(value)
    within = json.dumps({"arguments": as_json})
    as_bytes = repr({"password": secret.encode(), "n": "kept"})
    for text in (as_json, within, json.dumps(within), repr(value), repr([repr(value)]), as_bytes):
        shown = scrub(text)
        assert SECRET not in shown
        assert "kept" in shown
        assert scrub(shown) == shown
    assert json.loads(scrub(as_json)) == {**value, "password": MASK}


@pytest.mark.parametrize(
    "text",
    [
        "", "all is well", "the token was refused", "https://example.org/a?b=c@d", "used 12 tokens: fine", "basic idea",
        "mail ann@example.org", "idempotency_key=abc-1", "secretly: no", "a monkey=banana", "risk-averse approach",
    ],
)  # fmt: skip
def test_ordinary_texts_stay(text: str) -> None:
    assert scrub(text) == text


@pytest.mark.parametrize("scheme", ["http", "HTTPS"])
def test_the_host_that_a_request_would_go_to_is_not_taken_for_a_password(scheme: str) -> None:
    """For requests, browsers and others a backslash ends the host; whoever approves must see what stands before it."""
    text = f"{scheme}://mallory.example\\@bank.example/ {scheme}://ann:{SECRET}@bank.example/"
    assert scrub(text) == f"{scheme}://mallory.example\\@bank.example/ {scheme}://***@bank.example/"
    assert (
        scrub(f"{scheme}://mallory.example\\sk-abcdefghijkl@bank.example")
        == f"{scheme}://mallory.example\\***@bank.example"
    )
    assert scrub(f"redis://ann:back\\{SECRET}@cache.example") == "redis://***@cache.example"


@pytest.mark.parametrize(
    "word",
    [
        "a-",
        "token-",
        "a://",
        "token:",
        "secret =  ",
        "eyJaaaaaaaaa.",
        "Bearer ",
        "sk-",
        "a://b@",
        'token="',
        'token="\\',
        '\\"token\\": \\"',
    ],
)
def test_long_hostile_texts_are_scrubbed_in_a_time_that_grows_with_their_length(word: str) -> None:
    text = "key" + word * (1_000_000 // len(word))
    scrub(text)  # with quadratic growth this would take many minutes, and the run would be stopped


def test_digests_are_the_same_for_the_same_call_only() -> None:
    base = digest("pay", {"to": "ann", "amount": 5})
    assert len(base) == 64
    assert base == digest("pay", {"amount": 5, "to": "ann"})
    others = [
        digest("pay", {"to": "bob", "amount": 5}), digest("pay", {"to": "ann", "amount": 5.5}),
        digest("pay", {"to": "ann", "amount": "5"}), digest("refund", {"to": "ann", "amount": 5}),
        digest("pay", {"to": "ann"}),
    ]  # fmt: skip
    assert len({base, *others}) == len(others) + 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (SecretStr("a"), SecretStr("b")), (Secret[int](1), Secret[int](2)), (SecretStr("a"), "a"), (SecretBytes(b"a"), SecretBytes(b"b")), (b"a", b"b"),
        (b"a", "61"), ({1, 2}, {1, 3}), (Decimal("1.0"), Decimal("1.1")), (Path("a"), "a"),
        (Account(user="u", password="a"), Account(user="u", password="b")), (Login("u", "a"), Login("u", "b")),
        ({1: "a", "1": "b"}, {1: "b", "1": "a"}), ({1: "a"}, {1: "b", "c": 1}), ("\ud800", "\ud801"),
    ],
    ids=repr,
)  # fmt: skip
def test_the_digest_covers_secrets_and_what_json_does_not_have(one: object, other: object) -> None:
    assert digest("t", {"v": one}) == digest("t", {"v": one})
    assert digest("t", {"v": one}) != digest("t", {"v": other})


def test_sets_have_one_digest_whatever_their_order() -> None:
    assert digest("t", {"v": {"a", "b", "c"}}) == digest("t", {"v": {"c", "b", "a"}})


class Unprintable:
    def __repr__(self) -> str:
        raise OSError("no words")


class Untold(dict[str, int]):
    def items(self) -> Any:
        raise OSError("no items")


def nested(depth: int, inside: object) -> object:
    for _ in range(depth):
        inside = [inside]
    return inside


def cyclic(inside: object) -> object:
    value: list[object] = [inside]
    value.append(value)
    return value


HUGE = 10**5000


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (HUGE, HUGE + 1), (HUGE, hex(HUGE)), ([HUGE, "a"], [HUGE, "b"]), ({"n": HUGE, "x": 1.0}, {"n": HUGE, "x": 1.5}),
        ({HUGE}, {HUGE, 1}), (Login("u", HUGE), Login("v", HUGE)), ([HUGE, SecretStr("a")], [HUGE, SecretStr("b")]),
        ([HUGE, None], [HUGE, "None"]), ({1: HUGE, "1": 2}, {1: HUGE, "1": 3}), (Unprintable(), Unprintable()),
        ([HUGE, Unprintable()], [HUGE, b"a"]), (nested(50, HUGE), nested(50, HUGE + 1)), (cyclic(1), cyclic(2)),
        (nested(10_000, 1), nested(10_000, 2)), ([HUGE, Untold()], [HUGE, Untold()]),
    ],
    ids=range(15),
)  # fmt: skip
def test_what_can_not_be_printed_has_a_digest_too(one: object, other: object) -> None:
    assert digest("t", {"v": one}) == digest("t", {"v": one})
    assert digest("t", {"v": one}) != digest("t", {"v": other})


def test_a_digest_tells_apart_what_is_nearly_the_same() -> None:
    values: list[Any] = [
        1,
        1.0,
        True,
        "1",
        "true",
        None,
        "null",
        "",
        float("nan"),
        "NaN",
        -0.0,
        0.0,
        10**40,
        "ä",
        "a\udcff",
        [1],
        {"x": 1},
    ]
    assert len({digest("t", {"v": value}) for value in values}) == len(values)
    assert digest("t", {"v": 1}) != digest("t", {"w": 1}) != digest("u", {"w": 1})
    assert digest("t", {"a": "x", "b": "y"}) != digest("t", {"a": 'x","b":"y'})


def test_what_can_be_read_only_once_is_still_there_after_its_digest() -> None:
    once = iter([1, 2])
    later = (item for item in once)
    digest("t", {"v": later, "w": [once]})
    assert list(later) == [1, 2]


def test_a_number_that_can_not_be_printed_is_told_by_its_length() -> None:
    shown = masked({"n": HUGE, "more": [-HUGE], HUGE: 1})
    assert shown["n"] == "<integer of 16610 bits>"
    json.dumps(shown)
