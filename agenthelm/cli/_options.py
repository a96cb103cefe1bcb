"""Options that several commands share, worded once."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = [
    "MOST",
    "ApiBase",
    "App",
    "Approve",
    "Json",
    "Limit",
    "Model",
    "Namespace",
    "Session",
    "Since",
    "Trace",
    "Yes",
]

MOST = 2**63 - 1
"""The largest number that a storage counts to."""


def _agent_names(incomplete: str) -> list[str]:
    from agenthelm.cli._session import agent_names

    return [name for name in agent_names() if name.startswith(incomplete)]


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
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to stdout, nothing else.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=MOST, help="At most so many.")]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="MODEL", help="As DSPy names it, such as openai/gpt-4o-mini; or offline."),
]
Namespace = Annotated[str, typer.Option("--namespace", help="The tenant whose memory is used.")]
Session = Annotated[str | None, typer.Option("--session", "-s", metavar="ID", help="The conversation to continue.")]
Since = Annotated[
    str | None, typer.Option("--since", metavar="WHEN", help="From then on: 30m, 12h, 7d, 2w, or a date (UTC).")
]
Trace = Annotated[
    str | None, typer.Option("--trace", metavar="WHERE", help="Spans: console, otlp, or a JSON Lines file.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]
