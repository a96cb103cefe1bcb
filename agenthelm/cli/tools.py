"""``agenthelm tools``: contracts as a person reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from agenthelm.cli._command import command
from agenthelm.cli._options import App, Json

if TYPE_CHECKING:
    from agenthelm.core.tool import Tool

__all__ = ["app", "facts", "undo_line"]

app: typer.Typer = typer.Typer(help="List and show tools with their contracts.", no_args_is_help=True)


@command(app, "list")
def list_tools(
    app: App = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="Only tools with this tag. Repeatable.")] = None,
    effect: Annotated[
        list[str] | None, typer.Option("--side-effect", help="Only tools with this side effect. Repeatable.")
    ] = None,
    json: Json = False,
) -> None:
    """List the app's tools."""
    from agenthelm.cli import _console, _session
    from agenthelm.core.tool import TOOL_REGISTRY

    _session.load_app(_session.settings_from(app=app), agents=False)
    tools = TOOL_REGISTRY.filter(tags=tag or (), side_effects=effect or ())
    if json:
        _console.print_json([facts(tool) for tool in tools])
        return
    if not tools:
        _console.note("no tools" + ("" if app else "; --app names the module or file that defines them"))
        return
    rows = [(tool.name, tool.description, ", ".join(tool.contract.side_effects), undo_line(tool)) for tool in tools]
    _console.out().print(_console.table(["tool", "description", "changes", "undone by"], rows))


@command(app, "show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The tool's name.")], app: App = None, json: Json = False
) -> None:
    """Show a tool's whole contract."""
    from agenthelm.cli import _console, _session
    from agenthelm.core.tool import TOOL_REGISTRY

    _session.load_app(_session.settings_from(app=app), agents=False)
    tool = TOOL_REGISTRY.resolve(name)
    if json:
        _console.print_json({**facts(tool), "schema": tool.json_schema})
        return
    console = _console.out()
    console.print(f"{tool.name}({', '.join(_parameter(tool, key) for key in tool.parameters)})", style="bold")
    if tool.description:
        console.print(tool.description)
    rows = [(label, value) for label, value in _lines(tool) if value]
    console.print(_console.table(["contract", ""], rows))


def facts(tool: Tool) -> dict[str, Any]:
    """A contract as JSON-compatible data."""
    contract = tool.contract
    return {
        "name": tool.name,
        "description": tool.description,
        "parameters": {key: _type_name(parameter.annotation) for key, parameter in tool.parameters.items()},
        "is_async": tool.is_async,
        "side_effects": list(contract.side_effects),
        "compensating_tool": contract.compensating_tool,
        "irreversible": contract.irreversible,
        "verify": _named(contract.verify),
        "idempotent": contract.idempotent,
        "requires_approval": contract.requires_approval if isinstance(contract.requires_approval, bool) else "depends",
        "max_cost": contract.max_cost,
        "timeout": contract.timeout,
        "retries": contract.retries,
        "retry_on": [error.__name__ for error in contract.retry_on],
        "unknown_on": [error.__name__ for error in contract.unknown_on],
        "abandonable": contract.abandonable,
        "runs_in": "event loop" if tool.is_async else contract.runs_in,
        "tags": list(contract.tags),
    }


def undo_line(tool: Tool) -> str:
    """What undoes a tool, in one phrase."""
    if tool.contract.compensating_tool:
        return tool.contract.compensating_tool
    return "nothing: irreversible" if tool.contract.irreversible else "nothing to undo"


def _lines(tool: Tool) -> list[tuple[str, str]]:
    contract = tool.contract
    approval = contract.requires_approval
    return [
        ("changes", ", ".join(contract.side_effects) or "nothing"),
        ("undone by", undo_line(tool)),
        ("verified by", _named(contract.verify) or ""),
        ("idempotent", "yes" if contract.idempotent else "no"),
        ("approval", "depends on the arguments" if callable(approval) else "required" if approval else ""),
        ("costs at most", "" if contract.max_cost is None else f"${contract.max_cost:g} a call"),
        ("deadline", "" if contract.timeout is None else f"{contract.timeout:g} s an attempt"),
        (
            "retries",
            f"{contract.retries}, on {', '.join(e.__name__ for e in contract.retry_on)}" if contract.retries else "",
        ),
        ("in doubt after", ", ".join(error.__name__ for error in contract.unknown_on)),
        (
            "runs in",
            "the event loop"
            if tool.is_async
            else f"a {contract.runs_in}" + (", let go at the deadline" if contract.abandonable else ""),
        ),
        ("tags", ", ".join(contract.tags)),
    ]


def _parameter(tool: Tool, key: str) -> str:
    parameter = tool.parameters[key]
    return f"{key}: {_type_name(parameter.annotation)}" + ("" if parameter.required else " = …")


def _type_name(annotation: Any) -> str:
    if annotation is None or annotation is type(None):
        return "None"
    if isinstance(annotation, type) and not getattr(annotation, "__args__", None):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def _named(verify: Any) -> str | None:
    return verify if isinstance(verify, str) or verify is None else getattr(verify, "__name__", str(verify))
