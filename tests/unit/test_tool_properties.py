"""Tools of any shape: binding is stable, digests tell calls apart, and a secret shows nowhere."""

from __future__ import annotations

import inspect
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, SecretStr

from agenthelm.core.digest import digest
from agenthelm.core.executor import ToolExecutor
from agenthelm.core.redaction import Redacted
from agenthelm.core.storage.base import EVENTS
from agenthelm.core.storage.memory_storage import InMemoryStorage
from agenthelm.core.tool import Tool, ToolRegistry
from agenthelm.exceptions import ToolInputError

SECRET = "zq-hush-zq"
some = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Address(BaseModel):
    city: str
    number: int = 0


@dataclass
class Point:
    x: int
    y: int = 0


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8)
INTEGERS = st.integers(-(2**40), 2**40)
KINDS: dict[Any, st.SearchStrategy[Any]] = {
    int: INTEGERS,
    str: TEXT,
    bool: st.booleans(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    Literal["s", "m"]: st.sampled_from(["s", "m"]),
    str | None: st.none() | TEXT,
    list[int]: st.lists(INTEGERS, max_size=3),
    dict[str, int]: st.dictionaries(TEXT, INTEGERS, max_size=3),
    tuple[int, str]: st.tuples(INTEGERS, TEXT),
    Annotated[int, Field(ge=0)]: st.integers(0, 100),
    Address: st.builds(lambda city, number: {"city": city, "number": number}, TEXT, INTEGERS),
    Point: st.builds(lambda x, y: {"x": x, "y": y}, INTEGERS, INTEGERS),
}
PLACES = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def make(parameters: list[inspect.Parameter]) -> Tool:
    """A tool with this signature that gives back what it was called with."""
    signature = inspect.Signature(parameters)

    def echo(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    echo.__signature__ = signature  # type: ignore[attr-defined]
    echo.__annotations__ = {p.name: p.annotation for p in parameters}
    return Tool.from_function(echo, name="echo")


@st.composite
def calls(draw: st.DrawFn) -> tuple[Tool, dict[str, Any]]:
    """A tool of any signature, and arguments that fit it."""
    places = sorted(draw(st.lists(st.sampled_from(PLACES), max_size=5)))
    parameters, arguments, optional = [], {}, False
    for number, place in enumerate(places):
        kind = draw(st.sampled_from(list(KINDS)))
        # Python wants no required parameter behind an optional positional one.
        optional = draw(st.booleans()) or (optional and place != inspect.Parameter.KEYWORD_ONLY)
        default = None if optional else inspect.Parameter.empty
        parameters.append(inspect.Parameter(f"p{number}", place, annotation=kind, default=default))
        if not optional or place == inspect.Parameter.POSITIONAL_ONLY or draw(st.booleans()):
            arguments[f"p{number}"] = draw(KINDS[kind])
    return make(parameters), arguments


@some
@given(calls())
def test_what_fits_is_bound_and_reaches_the_function_whole(call: tuple[Tool, dict[str, Any]]) -> None:
    tool, arguments = call
    bound = tool.binding.bind(arguments)
    assert set(bound) == set(tool.parameters)
    assert dict(tool.binding.invoke(bound)) == bound
    assert set(tool.json_schema["properties"]) == set(tool.parameters)
    assert set(tool.json_schema.get("required", [])) == {p.name for p in tool.parameters.values() if p.required}


@some
@given(calls())
def test_binding_what_was_bound_changes_nothing(call: tuple[Tool, dict[str, Any]]) -> None:
    tool, arguments = call
    once = tool.binding.bind(arguments)
    given_again = {key: value for key, value in once.items() if key in arguments}
    assert tool.binding.bind(given_again) == once


@some
@given(calls())
def test_a_digest_is_of_the_call_and_not_of_its_order(call: tuple[Tool, dict[str, Any]]) -> None:
    tool, arguments = call
    bound = tool.binding.bind(arguments)
    told = digest("echo", bound)
    assert told == digest("echo", dict(reversed(bound.items()))) == digest("echo", tool.binding.bind(arguments))
    assert told != digest("other", bound)
    for name in bound:
        assert told != digest("echo", {**bound, name: object()})
        assert told != digest("echo", {key: value for key, value in bound.items() if key != name})


@some
@given(calls(), st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=4))
def test_what_does_not_fit_is_one_line_that_names_the_tool(
    call: tuple[Tool, dict[str, Any]], wrong: dict[str, Any]
) -> None:
    tool, _ = call
    if not set(wrong) <= set(tool.parameters):
        with pytest.raises(ToolInputError, match="'echo'"):
            tool.binding.bind(wrong)
        return
    with suppress(ToolInputError):
        tool.binding.bind(wrong)


HIDING: dict[str, Any] = {
    "plain": SecretStr,
    "marked": Annotated[str, Redacted],
    "maybe": SecretStr | None,
    "several": list[SecretStr],
    "named": dict[str, SecretStr],
}


@pytest.mark.parametrize("kind", HIDING)
@some
@given(calls(), st.booleans(), st.booleans(), st.sets(st.sampled_from(["drop", "wrong", "misspelt"])))
def test_a_secret_shows_in_no_event_whatever_becomes_of_the_call(
    kind: str, call: tuple[Tool, dict[str, Any]], fails: bool, known: bool, mistakes: set[str]
) -> None:
    _, arguments = call

    def enter(secret: Any, **rest: Any) -> dict[str, Any]:
        told = {"told": f"it was {SECRET}", "rest": sorted(rest)}
        if fails:
            raise ValueError(json.dumps(told))
        return told

    async def run() -> None:
        enter.__annotations__ = {"secret": HIDING[kind], "rest": Any, "return": Any}
        registry = ToolRegistry([enter])
        secret: Any = {"several": [SECRET], "named": {"one": SECRET}}.get(kind, SECRET)
        given_now = {**arguments, "secret": secret}
        if "misspelt" in mistakes:
            given_now["sceret"] = secret
        if "drop" in mistakes:
            del given_now["secret"]
            given_now["secrets"] = SECRET
        if "wrong" in mistakes:
            given_now["secret"] = {"is": [SECRET, 1]}
        storage = InMemoryStorage()
        try:
            await ToolExecutor(registry, storage).call("enter" if known else "entr", given_now)
        except (ValueError, LookupError):
            pass
        (record,) = await storage.read(EVENTS)
        assert SECRET not in json.dumps(dict(record.data))

    anyio.run(run)
