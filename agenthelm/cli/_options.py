"""Options that several commands share, worded once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agenthelm.exceptions import ConfigError

__all__ = [
    "AgentName",
    "Agents",
    "ApiBase",
    "App",
    "Approve",
    "Dollars",
    "Inputs",
    "Json",
    "Limit",
    "MaxCalls",
    "MaxTokens",
    "Model",
    "Namespace",
    "RunId",
    "Session",
    "Since",
    "Timeout",
    "Trace",
    "Yes",
    "check_timeout",
    "countable",
    "expanded",
    "not_empty",
]

_MOST = 2**63 - 1
"""The largest number that a storage counts to."""


def _agent_names(incomplete: str) -> list[str]:
    from agenthelm.cli._session import agent_names

    return [name for name in agent_names() if name.startswith(incomplete)]


def not_empty(name: str | None) -> str | None:
    """Refuse an empty name, as a shell variable that is not set gives it: nobody means all of them by it.

    Raises:
        BadParameter: It is empty.
    """
    if name is not None and not name.strip():
        raise typer.BadParameter("it is empty; leave the option out, or give a name")
    return name


def countable(number: int | None) -> int | None:
    """Refuse a number that no storage counts to; as the end of a range it would be all that the help page has room for.

    Raises:
        BadParameter: It is too large.
    """
    if number is not None and number > _MOST:
        raise typer.BadParameter(f"{number} is more than there can be")
    return number


AgentName = Annotated[str, typer.Argument(metavar="NAME", help="The agent's name.", autocompletion=_agent_names)]
Agents = Annotated[
    list[str] | None,
    typer.Option(
        "--agents", "-a", metavar="NAMES", autocompletion=_agent_names, help="Which agents: a comma list, or repeated."
    ),
]
App = Annotated[
    str | None,
    typer.Option("--app", metavar="APP", help="Module or file with agents and tools: my_app, my_app:attr, my_app.py."),
]
ApiBase = Annotated[
    str | None, typer.Option("--api-base", metavar="URL", help="An endpoint that speaks the OpenAI protocol.")
]
Approve = Annotated[
    str | None, typer.Option("--approve", metavar="HOW", help="Approvals: ask, allow, deny, or a policy file (.toml).")
]
Dollars = Annotated[float | None, typer.Option("--budget", metavar="USD", min=0, help="Stop before spending more.")]
Inputs = Annotated[
    list[str] | None,
    typer.Option("--input", "-i", metavar="KEY=VALUE", help="A further input; JSON or text. Repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout, nothing else.")]
Limit = Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, callback=countable, help="At most so many.")]
MaxCalls = Annotated[
    int | None, typer.Option("--max-calls", metavar="N", min=1, help="Stop before making more LM calls.")
]
MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens-total", metavar="N", min=1, help="Stop before using more tokens.")
]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="MODEL", help="As DSPy names it, such as openai/gpt-4o-mini; or offline."),
]
Namespace = Annotated[str, typer.Option("--namespace", callback=not_empty, help="The tenant whose memory is used.")]
RunId = Annotated[
    str | None,
    typer.Option("--run-id", metavar="ID", callback=not_empty, help="Its id; refused if there is such a run already."),
]
Session = Annotated[
    str | None,
    typer.Option("--session", "-s", metavar="ID", callback=not_empty, help="The conversation to continue."),
]
Since = Annotated[
    str | None, typer.Option("--since", metavar="WHEN", help="From then on: 30m, 12h, 7d, 2w, or a date (UTC).")
]
Timeout = Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", help="The deadline of the whole run.")]
Trace = Annotated[
    str | None, typer.Option("--trace", metavar="WHERE", help="Spans: console, otlp, or a JSON Lines file.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]


def expanded(path: Path) -> Path:
    """A path with ``~`` for a home folder spelled out.

    Raises:
        ConfigError: There is no such home folder.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise ConfigError(f"{path} must begin with a home folder that this system knows") from None


def check_timeout(timeout: float | None) -> None:
    """Refuse a deadline that has passed before anything begins.

    Raises:
        ConfigError: It is not above 0.
    """
    if timeout is not None and not timeout > 0:
        raise ConfigError("--timeout must be above 0", setting="timeout")
