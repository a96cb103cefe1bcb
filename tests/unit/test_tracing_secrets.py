"""A secret that looks like nothing, repeated in a tool's error, is in no span: not the tool's, not one around it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, SecretStr

from agenthelm import (
    Agent,
    InMemoryStorage,
    Orchestrator,
    Parallel,
    Pipeline,
    Redacted,
    Step,
    ToolAgent,
    ToolRegistry,
    saga,
    tool,
)
from agenthelm._runtime.progress import Progress
from agenthelm.core.storage.base import EVENTS
from agenthelm.telling import conceal, describe, message_of
from agenthelm.testing import ScriptedLM
from agenthelm.tracing import names
from agenthelm.tracing.console import TreeProcessor
from agenthelm.tracing.screen import Screen
from tests.support.telemetry import Recorded, recorded

SECRET = "blaue Katze 4711"
"""Of no known shape: only the parameter's type says that it is one."""


@pytest.fixture
def telemetry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorded]:
    monkeypatch.setenv(names.CAPTURE_CONTENT, "SPAN_ONLY")
    with recorded() as made:
        yield made


class Login(BaseModel):
    user: str
    code: SecretStr


class FrozenError(Exception):
    """An exception that lets nobody but Python itself set attributes."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in ("__traceback__", "__cause__", "__context__", "__suppress_context__"):
            raise AttributeError(name)
        super().__setattr__(name, value)


RAISED: dict[str, Callable[[str], BaseException]] = {
    "in a sentence": lambda text: ValueError(f"the peer refused {text!r} for ann"),
    "alone": lambda text: ValueError(text),  # noqa: PLW0108
    "as a key": lambda text: KeyError(text),  # noqa: PLW0108
    "over two lines": lambda text: ValueError(f"refused:\n{text}\n"),
    "after much else": lambda text: ValueError(f"{'x' * 9000} {text}"),
    "in an error that can't be changed": FrozenError,
    "in doubt": lambda text: ConnectionError(f"lost after {text}"),
}


@pytest.fixture
def tools() -> ToolRegistry:
    registry = ToolRegistry()

    @tool(registry=registry)
    async def pay(pin: SecretStr, how: str) -> None:
        """Pay."""
        raise RAISED[how](pin.get_secret_value())

    @tool(registry=registry, side_effects=["payment:write"])
    def pay_here(pin: Annotated[str, Redacted], how: str) -> None:
        """Pay, in a worker thread, for an effect that is on record."""
        raise RAISED[how](pin)

    @tool(registry=registry, retries=1)
    async def sign_in(login: Login, how: str) -> None:
        """Sign in, twice."""
        raise RAISED[how](login.code.get_secret_value())

    return registry


GIVEN: dict[str, dict[str, Any]] = {
    "pay": {"pin": SecretStr(SECRET)},
    "pay_here": {"pin": SECRET},
    "sign_in": {"login": {"user": "ann", "code": SECRET}},
}


class Payer(Agent):
    """Pays."""

    async def aforward(self, context: Any, tool: str, how: str) -> dict[str, Any]:
        await self.ause(tool, how=how, **GIVEN[tool])
        return {}


class SyncPayer(Agent):
    """Pays, in a worker thread."""

    def forward(self, context: Any, tool: str, how: str) -> dict[str, Any]:
        self.use(tool, how=how, **GIVEN[tool])
        return {}


class Quoting(Agent):
    """Raises an error of its own, in the words of the tool's."""

    async def aforward(self, context: Any, tool: str, how: str) -> dict[str, Any]:
        try:
            await self.ause(tool, how=how, **GIVEN[tool])
        except Exception as error:
            if how == "alone":
                raise RuntimeError(f"could not pay: {error}") from None
            raise RuntimeError(f"could not pay: {error}") from error
        return {}


def _no_secret(telemetry: Recorded, *, failed: int) -> None:
    ended = telemetry.spans
    assert len([span for span in ended if not span.status.is_ok]) == failed
    for span in ended:
        assert SECRET not in (span.status.description or ""), span.name
        assert SECRET not in str([dict(event.attributes or {}) for event in span.events]), span.name
        assert SECRET not in str(dict(span.attributes or {})), span.name
        assert SECRET not in span.to_json(), span.name


@pytest.mark.parametrize(
    ("name", "how"), [*(("pay", how) for how in RAISED), ("pay_here", "in doubt"), ("sign_in", "in a sentence")]
)
async def test_a_secret_argument_in_a_tool_s_error_is_in_no_span(
    telemetry: Recorded, tools: ToolRegistry, name: str, how: str
) -> None:
    screen = io.StringIO()
    telemetry.tracer_provider.add_span_processor(TreeProcessor(Screen(file=screen, width=400, color_system=None)))
    storage = InMemoryStorage()
    heard: list[Progress] = []
    async with Orchestrator(tools=tools, storage=storage, observer=heard.append) as orchestrator:
        for agent in (Payer("one"), SyncPayer("two"), Pipeline([Payer("three")]), Parallel([Quoting("four")])):
            with pytest.raises(type(RAISED[how]("")) if not isinstance(agent, Parallel) else RuntimeError):
                await orchestrator.run(agent, inputs={"tool": name, "how": how})
    _no_secret(telemetry, failed=12)
    assert SECRET not in screen.getvalue()
    for stream in [EVENTS, *(info.name for info in await storage.streams())]:
        assert SECRET not in str([record.data for record in await storage.read(stream)]), stream
    assert heard
    assert SECRET not in str(heard)
    if how == "in a sentence":
        (spoken,) = {span.status.description for span in telemetry.spans if span.name == f"execute_tool {name}"}
        assert spoken == "the peer refused '***' for ann"
        assert telemetry.span("invoke_agent four").status.description == f"could not pay: {spoken}"


@pytest.mark.parametrize("name", GIVEN)
async def test_a_secret_argument_in_a_step_s_error_is_in_no_span(
    telemetry: Recorded, tools: ToolRegistry, name: str
) -> None:
    async with Orchestrator(tools=tools) as orchestrator:
        ended = await orchestrator.run_saga([Step(name, {"how": "in a sentence", **GIVEN[name]})])
    _no_secret(telemetry, failed=2)
    assert SECRET not in repr(ended.error)
    with pytest.raises(ValueError, match="refused"):
        async with saga(tools=tools) as scope:
            await scope.use(name, how="in a sentence", **GIVEN[name])
    assert scope.result is not None
    assert SECRET not in repr(scope.result.error)
    _no_secret(telemetry, failed=3)


async def test_a_secret_argument_in_the_error_of_a_tool_s_tool_is_in_no_span(telemetry: Recorded) -> None:
    tools = ToolRegistry()

    @tool(registry=tools)
    async def inner(pin: SecretStr) -> None:
        """Fail."""
        raise ValueError(f"refused {pin.get_secret_value()}")

    @tool(registry=tools)
    async def outer() -> None:
        """Call a tool with a secret."""
        await Agent("caller", signature="a -> b").ause("inner", pin=SECRET)

    storage = InMemoryStorage()
    async with saga(tools=tools, storage=storage) as scope:
        with pytest.raises(ValueError, match="refused"):
            await scope.use("outer")
    assert [record.data["error_state"] for record in await storage.read(EVENTS)] == ["ValueError: refused ***"] * 2
    _no_secret(telemetry, failed=2)
    assert telemetry.span("execute_tool outer").status.description == "refused ***"


async def test_a_language_model_sees_of_an_error_what_is_on_record(telemetry: Recorded, tools: ToolRegistry) -> None:
    turn = {"next_thought": "pay", "next_tool_name": "pay", "next_tool_args": {"pin": SECRET, "how": "alone"}}
    lm = ScriptedLM([turn, {"next_tool_name": "finish"}, {"answer": "no"}])
    async with Orchestrator(tools=tools, lm=lm) as orchestrator:
        await orchestrator.run(ToolAgent("payer", signature="task -> answer", tools=tools), "pay")
    assert "observation: error: ValueError: ***" in lm.prompts[-1]


async def test_an_error_is_left_alone_where_nothing_was_taken_out_of_it(telemetry: Recorded) -> None:
    tools = ToolRegistry()
    error = ValueError("password=hunter22 over\ntwo lines")

    @tool(registry=tools)
    async def fail(pin: SecretStr) -> None:
        """Fail."""
        raise error

    async with saga(tools=tools) as scope:
        with pytest.raises(ValueError, match="two lines"):
            await scope.use("fail", pin=SECRET)
    assert vars(error) == {}
    assert telemetry.span("execute_tool fail").status.description == "password=*** over\ntwo lines"


def test_a_concealed_message_stays_concealed_in_whatever_quotes_it() -> None:
    inner = ValueError(SECRET)
    conceal(inner, "***")
    assert (message_of(inner), describe(inner)) == ("***", "ValueError: ***")
    with pytest.raises(RuntimeError) as raised:
        try:
            raise inner
        except ValueError as error:
            raise RuntimeError(f"it said {error}") from None
    assert describe(raised.value) == "RuntimeError: it said ***"
    group = ExceptionGroup(f"both said {SECRET}", [inner, OSError("full")])
    assert message_of(group) == "both said *** (2 sub-exceptions)"
    assert describe(group) == "ExceptionGroup: both said *** (2 sub-exceptions): ValueError: ***; OSError: full"
    inner.__cause__ = raised.value  # a circle ends
    assert describe(raised.value) == "RuntimeError: it said ***"
    assert str(inner) == SECRET


def test_a_group_is_told_by_the_first_of_what_is_in_it() -> None:
    group = ExceptionGroup("many", [ExceptionGroup("few", [KeyError("a")]), *(OSError(str(n)) for n in range(5))])
    assert describe(group) == (
        "ExceptionGroup: many (6 sub-exceptions): ExceptionGroup: few (1 sub-exception): KeyError: 'a'; "
        "OSError: 0; OSError: 1; ..."
    )
