"""``agenthelm list-agents`` and ``agenthelm describe``: who can be run, and what they take and give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import CodeType
from typing import TYPE_CHECKING, Any

import typer

from agenthelm.cli._command import command
from agenthelm.cli._options import AgentName, App, Json

if TYPE_CHECKING:
    from agenthelm.core.tool import Tool

__all__ = ["describe_app", "list_app"]

list_app: typer.Typer = typer.Typer(add_completion=False)
describe_app: typer.Typer = typer.Typer(add_completion=False)


@command(list_app, "list-agents")
def list_agents(app: App = None, json: Json = False) -> None:
    """List the agents that can be run: the built-in ones and the app's."""
    from agenthelm.cli import _console, _session, _tables

    registry, _ = _session.load_app(_session.settings_from(app=app))
    listing = [signature.as_dict() for signature in registry.list_all()]
    if json:
        _console.print_json(listing)
        return
    rows = [
        (entry["name"], entry["description"], _names(entry["inputs"]), _names(entry["outputs"])) for entry in listing
    ]
    _tables.print_table(["!agent", "description", "takes", "gives"], rows)


def _names(fields: Mapping[str, Any]) -> str:
    return ", ".join(name if spec.get("required", True) else f"[{name}]" for name, spec in fields.items())


@command(describe_app, "describe")
def describe(name: AgentName, app: App = None, json: Json = False) -> None:
    """Describe an agent: its inputs, outputs and tools, and which of those can't be undone."""
    from agenthelm.cli import _console, _session, _tables
    from agenthelm.cli.tools import facts, undo_line
    from agenthelm.core.tool import TOOL_REGISTRY

    registry, _ = _session.load_app(_session.settings_from(app=app))
    agent: Any = registry[name]
    signature = agent.get_signature().as_dict()
    offered: dict[str, Tool] = dict(getattr(agent, "tools", None) or {})
    named = {word: TOOL_REGISTRY[word] for word in _words(type(agent)) if word in TOOL_REGISTRY and word not in offered}
    if json:
        tools = [
            {**facts(tool), "chosen_by": by}
            for by, group in (("model", offered), ("code", named))
            for tool in group.values()
        ]
        _console.print_json({**signature, "tools": tools})
        return
    console = _console.out()
    console.print(f"{signature['name']}: {signature['description']}", style="bold")
    for title, fields in (("takes", signature["inputs"]), ("gives", signature["outputs"])):
        rows = [(key, spec["type"], _requirement(spec, title), spec.get("desc", "")) for key, spec in fields.items()]
        if rows:
            _tables.print_table([f"!{title}", "type", "", "meaning"], rows)
    rows = [
        (
            tool.name,
            "its model" if tool.name in offered else "its code",
            ", ".join(tool.contract.side_effects),
            undo_line(tool),
        )
        for tool in (*offered.values(), *named.values())
    ]
    if rows:
        _tables.print_table(["!tool", "!called by", "changes", "undone by"], rows)
    else:
        console.print("no tools")


def _requirement(spec: Mapping[str, Any], title: str) -> str:
    if title == "gives":
        return ""
    return "required" if spec.get("required", True) else f"default {spec.get('default')!r}"


def _words(agent_type: type) -> Iterator[str]:
    """The string constants in an agent's own methods: the tools it names in ``use`` and ``ause`` are among them."""
    seen: set[str] = set()
    for cls in agent_type.__mro__:
        if cls.__module__.partition(".")[0] in ("agenthelm", "dspy", "builtins"):
            continue
        for member in vars(cls).values():
            code = getattr(member, "__code__", None)
            if isinstance(code, CodeType):
                yield from (word for word in _constants(code) if word not in seen and not seen.add(word))  # type: ignore[func-returns-value]


def _constants(code: CodeType) -> Iterator[str]:
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, CodeType):
            yield from _constants(constant)
