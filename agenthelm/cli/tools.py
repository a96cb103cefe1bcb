"""``agenthelm tools``: contracts as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from agenthelm.cli._command import command
from agenthelm.cli._options import App, Json
from agenthelm.cli._types import function_name, type_name
from agenthelm.exceptions import ToolContractError

if TYPE_CHECKING:
    from agenthelm.core.tool import Backoff, Tool

__all__ = ["app", "facts", "undo_line"]

_TOLD: Final = (str, int, float, type(None))
_LONGEST: Final = 60
"""Characters of a default that are shown."""

app: typer.Typer = typer.Typer(
    help="List and show tools with their contracts.", no_args_is_help=True, add_completion=False
)


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
    from agenthelm.cli import _console, _session, _tables
    from agenthelm.core.tool import TOOL_REGISTRY

    settings = _session.settings_from(app=app)
    _session.load_app(settings)
    tools = TOOL_REGISTRY.filter(tags=tag or (), side_effects=effect or ())
    if json:
        _console.print_json([facts(tool) for tool in tools])
        return
    if not tools:
        which = " that fulfil this" if TOOL_REGISTRY else ""
        _console.note(
            f"no tools{which}" + ("" if settings.app else "; --app names the module or file that defines them")
        )
        return
    rows = [(tool.name, tool.description, ", ".join(tool.contract.side_effects), undo_line(tool)) for tool in tools]
    _tables.print_table(["!tool", "description", "changes", "undone by"], rows)


@command(app, "show")
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The tool's name.")], app: App = None, json: Json = False
) -> None:
    """Show a tool's whole contract."""
    from agenthelm.cli import _console, _session, _tables
    from agenthelm.core.tool import TOOL_REGISTRY

    _session.load_app(_session.settings_from(app=app))
    tool = TOOL_REGISTRY.resolve(name)
    if json:
        _console.print_json({**facts(tool), "schema": _schema(tool)})
        return
    console = _console.out()
    console.print(_console.escape_controls(_heading(tool)), style="bold")
    if tool.description:
        console.print(_console.escape_controls(tool.description))
    rows = [(label, value) for label, value in _lines(tool) if value]
    _tables.print_table(["!contract", ""], rows)


def facts(tool: Tool) -> dict[str, Any]:
    """A contract as JSON-compatible data."""
    contract = tool.contract
    return {
        "name": tool.name,
        "description": tool.description,
        "parameters": {key: type_name(parameter.annotation) for key, parameter in tool.parameters.items()},
        "result": type_name(tool.binding.result_type),
        "inputs": {key: type_name(tool.parameters[key].annotation) for key in contract.inputs or ()},
        "outputs": {key: type_name(kind) for key, kind in tool.binding.result_fields.items()},
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
        "backoff": {name: getattr(contract.backoff, name) for name in ("initial", "factor", "maximum", "jitter")},
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
        ("gives", _fields(tool.binding.result_fields)),
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
        ("backs off", _backoff(contract.backoff) if contract.retries else ""),
        ("in doubt after", ", ".join(error.__name__ for error in contract.unknown_on)),
        (
            "runs in",
            "the event loop"
            if tool.is_async
            else f"a {contract.runs_in}" + (", let go at the deadline" if contract.abandonable else ""),
        ),
        ("tags", ", ".join(contract.tags)),
    ]


def _heading(tool: Tool) -> str:
    result = tool.binding.result_type
    gives = "" if result is Any else f" -> {type_name(result)}"
    return f"{tool.name}({', '.join(_parameter(tool, key) for key in tool.parameters)}){gives}"


def _parameter(tool: Tool, key: str) -> str:
    from agenthelm.core.redaction import looks_secret, masked

    parameter = tool.parameters[key]
    told = f"{key}: {type_name(parameter.annotation)}"
    if parameter.required:
        return told
    if key in tool.binding.guarded or looks_secret(key) or not isinstance(parameter.default, _TOLD):
        return f"{told} = …"
    default = masked(parameter.default, cap=_LONGEST)
    return f"{told} = {default if default is None or not isinstance(parameter.default, str) else repr(default)}"


def _schema(tool: Tool) -> dict[str, Any] | None:
    """The schema that an LM is shown; None where a parameter has none, so that only code can call the tool."""
    try:
        return tool.json_schema
    except ToolContractError:
        return None


def _fields(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {type_name(kind)}" for name, kind in fields.items())


def _backoff(backoff: Backoff) -> str:
    return f"up to {backoff.initial:g} s, then {backoff.factor:g} times as long each, at most {backoff.maximum:g} s"


def _named(verify: Any) -> str | None:
    return verify if isinstance(verify, str) or verify is None else function_name(verify)
