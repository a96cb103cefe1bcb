"""What a run cost, as the command line tells it: at its end, in reports, and where a budget or a price stops it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.apps import AGENTS, WORLD
from tests.support.cli import Cli, Outcome
from tests.support.openai_server import Behaviour, OpenAIServer

PRICES = '[pricing."gpt-test"]\ninput = 0.001\noutput = 0.002\n'

TRANSLATOR = (
    WORLD
    + '''

import dspy

from agenthelm import Agent, charge


@tool(max_cost=1.0)
def translate(text: str) -> str:
    """Ask a model from inside a tool, and pay for something else."""
    charge(0.25)
    return dspy.Predict("text -> translation")(text=text).translation


@tool
def postage() -> None:
    """Pay, without a limit."""
    charge(0.125)


class Translator(Agent):
    """Asks a model, and a tool that asks one."""

    class Signature(dspy.Signature):
        task: str = dspy.InputField()
        text: str = dspy.OutputField()

    def __init__(self):
        super().__init__(name="translator")
        self.plan = dspy.Predict(self.Signature)

    async def aforward(self, context, task):
        text = (await self.ask(self.plan, task=task)).text
        await self.ause("postage")
        return {"text": await self.ause("translate", text=text)}
'''
)


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as running:
        yield running


@pytest.fixture
def cli(tmp_path: Path, server: OpenAIServer) -> Cli:
    cli = Cli(tmp_path)
    cli.env.update(AGENTHELM_MODEL="gpt-test", AGENTHELM_API_BASE=server.base_url)
    cli.write("app.py", AGENTS)
    cli.write("translator.py", TRANSLATOR)
    cli.write("agenthelm.toml", PRICES)
    return cli


def report(cli: Cli, *options: str) -> dict[str, dict[str, object]]:
    document = json.loads(cli("cost", "report", "--json", *options).stdout)
    return {str(group[document["by"]]): group for group in document["groups"]} | {"total": document["total"]}


def test_reports_add_up_to_what_the_run_said_whatever_they_are_grouped_by(cli: Cli, server: OpenAIServer) -> None:
    server.script = [Behaviour("status", status=500), Behaviour("status", status=429, retry_after=0.01)]
    run = json.loads(cli("run", "x", "--app", "translator.py", "--json").stdout)
    cost = run["cost_usd"]
    tokens = sum(seen.input_tokens for seen in server.seen), sum(seen.output_tokens for seen in server.seen)
    assert cost == pytest.approx(0.375 + (tokens[0] + 2 * tokens[1]) / 1e6, abs=1e-12)
    for by in ("model", "agent", "day"):
        rows = report(cli, "--by", by)
        assert rows["total"]["cost_usd"] == cost
        assert sum(row["priced_usd"] for row in rows.values()) == pytest.approx(2 * cost, abs=1e-12)  # type: ignore[misc]
    models = report(cli)
    assert models["openai/gpt-test"]["calls"] == models["total"]["calls"] == run["usage"]["calls"] == server.asked == 4
    assert (models["openai/gpt-test"]["input_tokens"], models["openai/gpt-test"]["output_tokens"]) == tokens
    assert models["(charged by tools)"]["cost_usd"] == 0.375
    assert set(report(cli, "--by", "agent")) == {"translator", "total"}


def test_a_call_of_a_model_inside_a_tool_is_the_runs_the_agents_and_the_tools(cli: Cli, server: OpenAIServer) -> None:
    told = cli("run", "x", "--app", "translator.py").stderr
    inner = server.seen[1]
    tools = report(cli, "--by", "tool")
    spent = 0.25 + (inner.input_tokens + 2 * inner.output_tokens) / 1e6
    assert tools["translate"]["cost_usd"] == pytest.approx(spent, abs=1e-12)
    assert (tools["translate"]["calls"], tools["translate"]["input_tokens"]) == (1, inner.input_tokens)
    assert tools["postage"]["cost_usd"] == 0.125
    assert report(cli, "--by", "agent")["translator"]["calls"] == 2
    rows = [line.split() for line in told.splitlines()]
    (agent,) = (cells for cells in rows if cells[:2] == ["agent", "translator"])
    assert f"total {agent[-1]} for 2 model calls and 2 tool calls" in told  # charges of its tools included
    for row in (["agent", "translator", "2"], ["model", "openai/gpt-test", "2"], ["tool", "translate", "1"]):
        assert row in [cells[:3] for cells in rows]


def test_the_report_of_a_run_whose_process_was_killed_says_what_it_lacks(cli: Cli) -> None:
    deadly = """

@tool(compensating_tool="cancel")
def pay_and_die(idempotency_key: str) -> None:
    import os

    from agenthelm import charge

    charge(0.25)
    os.kill(os.getpid(), 9)
"""
    cli.write("deadly.py", WORLD + deadly)
    cli.write("die.yaml", "- {tool: pay_and_die}\n")
    cli.process("saga", "run", "die.yaml", "--app", "deadly.py", code=-9)
    said = cli("cost", "report", "--run", "last").stderr
    assert "nothing was spent" in said
    assert "the run has not ended, so this may not be all" in said
    cli("saga", "recover", "--app", "deadly.py")
    last = cli("cost", "report", "--run", "last").stdout.splitlines()[-1]
    assert last.endswith("its process died, and calls that were under way then are not counted")
    assert "died" in str(report(cli, "--run", "last")["total"]["lacks"])
    assert report(cli)["total"]["lacks"] is None


def test_the_report_of_a_run_ends_with_two_lines_for_finance(cli: Cli, server: OpenAIServer) -> None:
    server.script = [Behaviour("no_usage")]
    run = json.loads(cli("run", "x", "--app", "translator.py", "-s", "trip", "--json").stdout)
    first, second = cli("cost", "report", "--run", "last").stdout.splitlines()[-2:]
    assert first.startswith(f"run {run['run_id']} of 20")
    assert f"UTC, session trip: ${run['cost_usd']:.6f} for 2 model calls" in first
    assert first.endswith("and 2 tool calls")
    assert "(charged by tools) $0.375000, openai/gpt-test $" in second
    assert "prices: own settings" in second
    assert second.endswith("1 call with lost answers, booked at the most that they can have cost")


def test_calls_that_never_reached_their_tool_are_none_of_its_calls(cli: Cli) -> None:
    cli.write(
        "careless.py",
        """
import dspy
from agenthelm import Agent, ExecutionTracer, tool

@tool
async def add(n: int) -> int:
    return n + 1

@tool(requires_approval=True)
async def ask() -> None: ...

@tool
async def ask_on() -> None:
    await ExecutionTracer().trace_and_execute("ask")

class Careless(Agent):
    class Signature(dspy.Signature):
        task: str = dspy.InputField()
        sum: int = dspy.OutputField()

    async def aforward(self, context, task):
        for name, arguments in (("add", {"n": "x"}), ("ad", {}), ("ask", {}), ("ask_on", {})):
            try:
                await self.ause(name, **arguments)
            except (PermissionError, LookupError, ValueError):
                pass
        return {"sum": await self.ause("add", n=1)}

careless = Careless(name="careless", description="Makes mistakes.")
""",
    )
    run = json.loads(cli("run", "x", "--app", "careless.py", "-a", "careless", "--json").stdout)
    assert run["usage"]["tool_calls"] == 2
    assert cli("cost", "report", "--run", "last").stdout.splitlines()[-2].endswith("and 2 tool calls")
    stats = {entry["name"]: entry for entry in json.loads(cli("traces", "stats", "--json").stdout)}
    assert (stats["add"]["calls"], stats["add"]["failures"]) == (2, 1)
    assert stats["add"]["p50"] == stats["add"]["p95"] > 0
    assert stats["ask"]["p50"] is stats["ask"]["p95"] is None
    assert "ask " in cli("traces", "stats").stdout
    tools = report(cli, "--by", "tool")
    assert {name: tools[name]["calls"] for name in ("add", "ask", "ask_on")} == {"add": 1, "ask": 0, "ask_on": 1}


def test_a_run_that_is_not_there_is_named_and_one_that_called_nothing_cost_nothing(cli: Cli) -> None:
    assert "no run 'no-such-run'" in cli("cost", "report", "--run", "no-such-run", code=2).stderr
    cli.write(
        "idle.py",
        "from agenthelm import Agent\n\n\nclass Idle(Agent):\n    async def aforward(self, context, task: str):\n        return {}\n",
    )
    run = json.loads(cli("run", "x", "--app", "idle.py", "--json").stdout)["run_id"]
    assert f"nothing was spent in run {run}" in cli("cost", "report", "--run", run).stderr
    assert f"no run {run[:-1]!r}" in cli("cost", "report", "--run", run[:-1], code=2).stderr


def undone(done: Outcome, cli: Cli) -> bool:
    world = json.loads((cli.folder / "world.json").read_text())
    return "undone: book" in done.stderr and set(world.values()) == {"cancelled"}


def test_over_budget_is_one_line_the_effects_are_undone_and_the_cost_is_told(cli: Cli, server: OpenAIServer) -> None:
    done = cli("run", "x", "--app", "app.py", "-a", "planner,teller", "--max-calls", "1", code=1)
    assert "error: budget of run is 1 call; 1 spent" in done.stderr
    assert undone(done, cli)
    assert server.asked == 1
    assert "cost $" in done.lines[-1]
    refused = json.loads(cli("cost", "report", "--run", "last", "--json").stdout)["total"]
    assert refused["calls"] == 1


def test_a_dollar_budget_that_runs_out_half_way_undoes_the_first_half(cli: Cli, server: OpenAIServer) -> None:
    server.script = [Behaviour(input_tokens=300, output_tokens=1000)]
    done = cli("run", "x", "--app", "app.py", "-a", "planner,teller", "--budget", "0.003", code=1)
    assert "error: budget of run is 0.003 usd; 0.0023 spent and 0 reserved, so a call that may take" in done.stderr
    assert undone(done, cli)
    assert server.asked == 1


@pytest.mark.parametrize(("unpriced", "warned"), [("warn", True), ("allow", False)])
def test_an_unknown_price_is_told_as_unknown_and_warned_of_unless_allowed(
    cli: Cli, unpriced: str, warned: bool
) -> None:
    cli.write("agenthelm.toml", f'unpriced = "{unpriced}"\n')
    done = cli("run", "x", "-a", "writer")
    assert ("no price is known for model 'openai/gpt-test'" in done.stderr) == warned
    assert "total unknown ($0 known, 1 call without a known price)" in done.stderr
    assert "$0 + 1 unpriced call for 1 model call" in cli("cost", "report", "--run", "last").stdout
    assert "$0 + 1 unpriced call  session" in cli("traces", "show", "last").stdout


def test_an_unknown_price_can_be_refused(cli: Cli, server: OpenAIServer) -> None:
    cli.write("agenthelm.toml", 'unpriced = "deny"\n')
    done = cli("run", "x", "-a", "writer", code=1)
    assert "the model has no known price and unpriced='deny'" in done.stderr
    assert server.asked == 0


def test_what_a_tool_spent_in_a_process_that_died_is_told_as_unknown(cli: Cli) -> None:
    cli.write(
        "dying.py", "import os\nfrom agenthelm import tool\n\n@tool(runs_in='process')\ndef die():\n    os._exit(9)\n"
    )
    cli.write("plan.json", json.dumps([{"tool": "die"}]))
    cli.process("saga", "run", "plan.json", "--app", "dying", code=1)
    for by in ("model", "tool"):
        assert "$0 + 1 unpriced call" in cli("cost", "report", "--by", by).stdout
