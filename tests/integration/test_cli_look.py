"""The commands that look: agents, tools, traces, cost, memory, doctor. They print what is there and change nothing."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
import sys
from pathlib import Path

import anyio
import pytest

from agenthelm.cli._export import _csv_cell
from agenthelm.memory import MemoryHub
from tests.support.apps import AGENTS
from tests.support.cli import Cli


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    cli = Cli(tmp_path)
    cli.env["AGENTHELM_MODEL"] = "offline"
    cli.write("app.py", AGENTS)
    return cli


@pytest.fixture
def ran(cli: Cli) -> Cli:
    """Two runs: one that went well, one that failed with something that looks like markup."""
    cli("run", "Lisbon", "--app", "app.py", "-a", "planner,teller", "--session", "trip", "--quiet")
    cli("run", "Porto", "--app", "app.py", "-a", "planner", "-i", "fail=[/red] no", "--quiet", code=1)
    return cli


# -- the root -----------------------------------------------------------------------------------------------------------


def test_help_names_every_command(cli: Cli) -> None:
    stdout = cli("--help").stdout
    for name in ("run", "list-agents", "describe", "tools", "saga", "traces", "cost", "memory", "init", "doctor"):
        assert f" {name} " in stdout
    assert cli().stdout == stdout


@pytest.mark.parametrize(
    "command",
    ["run", "list-agents", "describe", "tools list", "saga undo", "traces filter", "cost report", "memory set"],
)
def test_every_command_explains_itself_and_takes_the_common_options(cli: Cli, command: str) -> None:
    stdout = cli(*command.split(), "--help").stdout
    assert "--debug" in stdout
    assert "--verbose" in stdout


def test_the_version_is_the_packages(cli: Cli) -> None:
    from importlib.metadata import version

    assert cli("--version").stdout == f"agenthelm {version('agenthelm')}\n"


def test_help_and_import_load_nothing_heavy(cli: Cli) -> None:
    heavy = ("dspy", "chromadb", "redis", "opentelemetry.sdk", "litellm", "pydantic", "anyio")
    cli.write(
        "probe.py",
        "import sys\nimport agenthelm\nfrom agenthelm.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit: pass\n"
        f"print([m for m in {heavy} if m in sys.modules])\n",
    )
    import subprocess

    from tests.support.cli import environment

    done = subprocess.run(
        [sys.executable, "probe.py"], cwd=cli.folder, env=environment(cli.folder), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("rn",), ["there is no command 'rn'", "'run'", "agenthelm --help"]),
        (("run",), ["Missing argument 'TASK'", "agenthelm run --help"]),
        (("run", "x", "--modell", "y"), ["--modell", "--model"]),
        (("traces", "shwo"), ["shwo"]),
        (("traces", "list", "-n", "0"), ["--limit"]),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(cli: Cli, arguments: tuple[str, ...], words: list[str]) -> None:
    done = cli(*arguments, code=2)
    assert done.stdout == ""
    assert len(done.lines) == 1
    for word in ("error: ", *words):
        assert word in done.stderr


# -- agents and tools ---------------------------------------------------------------------------------------------------


def test_agents_are_listed_with_what_they_take_and_give(cli: Cli) -> None:
    stdout = cli("list-agents", "--app", "app.py").stdout
    for word in ("researcher", "writer", "reviewer", "planner", "Books a trip.", "task, [mail], [fail], [badly]"):
        assert word in stdout
    listing = json.loads(cli("list-agents", "--json").stdout)
    assert [entry["name"] for entry in listing] == ["researcher", "reviewer", "writer"]


def test_an_agent_is_described_with_the_tools_in_its_code_and_what_undoes_them(cli: Cli) -> None:
    stdout = cli("describe", "planner", "--app", "app.py").stdout
    assert "planner: Books a trip." in stdout
    assert "booking:write" in stdout
    assert "nothing: irreversible" in stdout  # send_mail
    document = json.loads(cli("describe", "planner", "--app", "app.py", "--json").stdout)
    assert document["inputs"]["task"] == {"type": "str", "required": True}
    tools = {tool["name"]: tool for tool in document["tools"]}
    assert tools["book"]["compensating_tool"] == "cancel"
    assert tools["send_mail"]["irreversible"] is True
    assert tools["book"]["chosen_by"] == "code"


def test_tools_are_listed_and_filtered(cli: Cli) -> None:
    stdout = cli("tools", "list", "--app", "app.py").stdout
    assert "book_badly" in stdout
    by_tag = json.loads(cli("tools", "list", "--app", "app.py", "--tag", "travel", "--json").stdout)
    assert [tool["name"] for tool in by_tag] == ["book"]
    by_effect = json.loads(cli("tools", "list", "--app", "app.py", "--side-effect", "mail:send", "--json").stdout)
    assert [tool["name"] for tool in by_effect] == ["send_mail"]
    assert cli("tools", "list").stdout == ""
    assert "no tools; --app names" in cli("tools", "list").stderr
    assert "on the command line, name it with --app" in cli("tools", "show", "book", code=2).stderr
    named = {"AGENTHELM_APP": "app.py"}
    assert cli("tools", "list", "--tag", "none", **named).stderr == "no tools that fulfil this\n"


def test_a_contract_is_shown_as_a_person_reads_it(cli: Cli) -> None:
    stdout = cli("tools", "show", "book", "--app", "app.py").stdout
    assert "book(what: str, idempotency_key: str)" in stdout
    assert "Book something." in stdout
    assert "cancel" in stdout
    document = json.loads(cli("tools", "show", "book", "--app", "app.py", "--json").stdout)
    assert document["schema"]["properties"]["what"]["type"] == "string"
    assert "Did you mean 'book'" in cli("tools", "show", "boook", "--app", "app.py", code=2).stderr


CONTRACTS = """
import functools
from typing import Annotated, Callable, Literal, NewType

from pydantic import BaseModel, Field
from typing_extensions import TypeAliasType

from agenthelm import Redacted, tool

class Model(BaseModel):
    a: int

Name = NewType("Name", str)
Alias = TypeAliasType("Alias", list[Model])

@tool(retries=2, verify=functools.partial(lambda x: True), side_effects=["a:write"])
def odd(
    x: Annotated[int, Field(ge=1)],
    models: "list[Model] | None" = None,
    *,
    pin: Annotated[str, Redacted] = "correct horse",
    api_key: str = "correct horse",
    which: Literal["a", "[/b]"] = "a",
    back: Callable[[int], str] | None = None,
    name: Name = Name("ann"),
    alias: Alias = [],
    many: tuple[int, ...] = (),
    huge: int = 10**5000,
) -> dict[str, Model]:
    \"\"\"Do [bold]odd[/nope] things with \x1b[31mcolour.\"\"\"

@tool(inputs={"a": int}, outputs={"b": str, "c": Annotated[str, Redacted]})
def named(a):
    return {"b": "x", "c": "y"}
"""


def test_a_contract_names_types_and_defaults_as_they_were_written_and_no_secret(cli: Cli) -> None:
    cli.write("contracts.py", CONTRACTS)
    stdout = cli("tools", "show", "odd", "--app", "contracts.py", COLUMNS="400").stdout
    heading, description, *_ = stdout.splitlines()
    assert heading.rstrip() == (
        "odd(x: int, models: list[Model] | None = None, pin: str (secret) = …, api_key: str = …, "
        "which: Literal['a', '[/b]'] = 'a', back: Callable[[int], str] | None = None, name: Name = 'ann', "
        "alias: Alias = …, many: tuple[int, ...] = …, huge: int = <integer of 16610 bits>) -> dict[str, Model]"
    )
    assert description.rstrip() == "Do [bold]odd[/nope] things with \\x1b[31mcolour."
    assert "up to 0.5 s, then 2 times as long each, at most 30 s" in stdout
    assert "0x" not in stdout
    document = json.loads(cli("tools", "show", "odd", "--app", "contracts.py", "--json").stdout)
    assert document["schema"] is None  # a callable has none
    assert (document["result"], document["parameters"]["models"]) == ("dict[str, Model]", "list[Model] | None")
    assert document["backoff"] == {"initial": 0.5, "factor": 2.0, "maximum": 30.0, "jitter": True}
    assert "b: str, c: str (secret)" in cli("tools", "show", "named", "--app", "contracts.py").stdout
    document = json.loads(cli("tools", "show", "named", "--app", "contracts.py", "--json").stdout)
    assert (document["inputs"], document["outputs"]) == ({"a": "int"}, {"b": "str", "c": "str (secret)"})


# -- traces -------------------------------------------------------------------------------------------------------------


def test_looking_makes_no_files(cli: Cli) -> None:
    for command in ("traces list", "traces stats", "saga list", "cost report", "memory list", "memory search x"):
        done = cli(*command.split())
        assert done.stdout == ""
        assert done.stderr
    for command in ("memory get x", "memory forget x", "memory forget x --text"):
        cli(*command.split(), code=1)
    assert "made when first needed" in cli("memory", "stats").stdout
    health = json.loads(cli("memory", "stats", "--json").stdout)["health"]
    assert [store["location"] for store in health.values()] == ["sqlite:///.agenthelm/memory.db", ".agenthelm/vectors"]
    assert not (cli.folder / ".agenthelm").exists()
    cli("memory", "set", "a", "1")
    assert "made when first needed" in cli("memory", "stats").stdout
    assert [path.name for path in (cli.folder / ".agenthelm").iterdir()] == ["memory.db"]


def test_calls_are_listed_newest_first_and_paged(ran: Cli) -> None:
    events = json.loads(ran("traces", "list", "--json").stdout)
    assert [event["tool_name"] for event in events] == ["cancel", "book", "offline", "offline", "book", "offline"]
    page = ran("traces", "filter", "-n", "2")
    assert f"--before {events[1]['number']}" in page.stderr
    rest = json.loads(ran("traces", "filter", "--before", str(events[1]["number"]), "--json").stdout)
    assert rest == events[2:]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--agent", "teller"), ["offline"]),
        (("--tool", "book"), ["book", "book"]),
        (("--kind", "lm"), ["offline"] * 3),
        (("--session", "trip"), ["offline", "book", "offline"]),
        (("--run", "last"), ["cancel", "book", "offline"]),
        (("--status", "success", "--tool", "cancel"), ["cancel"]),
        (("--status", "denied"), []),
        (("--since", "1h", "--tool", "cancel"), ["cancel"]),
        (("--until", "2020-01-01"), []),
        (("--longer-than", "60"), []),
        (("--cost-over", "0.01"), []),
        (("--cost-over", "0"), []),
        (("--longer-than", "0", "--tool", "cancel"), ["cancel"]),
    ],
)
def test_calls_are_filtered(ran: Cli, options: tuple[str, ...], expected: list[str]) -> None:
    events = json.loads(ran("traces", "filter", *options, "--json").stdout)
    assert [event["tool_name"] for event in events] == expected


def test_filters_that_make_no_sense_are_refused(cli: Cli) -> None:
    assert "Did you mean 'success'" in cli("traces", "filter", "--status", "succes", code=2).stderr
    assert "Did you mean 'tool'" in cli("traces", "filter", "--kind", "tol", code=2).stderr
    for when in ("yesterdayish", "", " ", "0001-01-01T00:00:00+14:00", "9999-12-31T23:00:00-14:00"):
        for option in ("--since", "--until"):
            assert "30m, 12h, 7d, 2w" in cli("traces", "filter", option, when, code=2).stderr
    assert cli("traces", "filter", "--since", f"{'9' * 5000}d").stdout == ""
    for command in (
        "traces filter --limit", "traces list --limit", "traces filter --before", "traces export --limit", "saga list --limit",
    ):  # fmt: skip
        done = cli(*command.split(), "99999999999999999999", code=2)
        assert done.stderr.startswith("error: ")
        assert len(done.lines) == 1
    assert "Did you mean 'rolled_back'" in cli("saga", "list", "--state", "rolledback", code=2).stderr
    for command in ("filter", "export"):
        for option in ("--longer-than", "--cost-over"):
            for number in ("nan", "inf", "-1"):
                wrong = cli("traces", command, option, number, code=2).stderr
                assert wrong == f"error: {option} must be a number of at least 0, not {number}\n"
    wrong = cli("traces", "stats", "--since", "1h", "--until", "2h", code=2).stderr
    assert wrong == "error: --since 1h is later than --until 2h: nothing lies between them\n"


def test_a_date_is_the_whole_day(ran: Cli) -> None:
    events = json.loads(ran("traces", "list", "--json").stdout)
    first, last = events[-1]["timestamp"][:10], events[0]["timestamp"][:10]
    days = ("--since", first, "--until", last)
    assert json.loads(ran("traces", "filter", *days, "--json").stdout) == events
    assert json.loads(ran("traces", "export", *days).stdout)
    assert json.loads(ran("traces", "filter", "--until", f"{first}T00:00:00", "--json").stdout) == []
    assert json.loads(ran("traces", "filter", "--since", "9999-12-31", "--until", "9999-12-31", "--json").stdout) == []


def test_a_call_that_took_or_cost_exactly_so_much_is_not_over_it(ran: Cli) -> None:
    (call,) = json.loads(ran("traces", "filter", "--tool", "cancel", "--json").stdout)
    options = ("traces", "filter", "--tool", "cancel", "--json", "--longer-than")
    assert json.loads(ran(*options, repr(call["execution_time"])).stdout) == []
    assert json.loads(ran(*options, repr(call["execution_time"] * 0.999)).stdout) == [call]


def test_a_run_is_shown_as_a_tree(ran: Cli) -> None:
    stdout = ran("traces", "show", "last").stdout
    assert "planner" in stdout
    assert "book(what=[offline placeholder: city]" in stdout
    assert "undo: cancel" in stdout
    run = json.loads(ran("traces", "show", "last", "--json").stdout)[0]["run_id"]
    assert ran("traces", "show", run).stdout == stdout
    assert "no run 'nowhere'" in ran("traces", "show", "nowhere", code=2).stderr


def test_a_run_that_called_nothing_is_there_all_the_same(cli: Cli) -> None:
    cli.write(
        "idle.py",
        "from agenthelm import Agent\n\n\nclass Idle(Agent):\n    async def aforward(self, context, task: str):\n        return {}\n",
    )
    run = json.loads(cli("run", "x", "--app", "idle.py", "--json").stdout)["run_id"]
    assert f"run {run} called nothing" in cli("traces", "show", run).stderr
    assert "the latest run called nothing" in cli("traces", "show", "last").stderr
    assert json.loads(cli("traces", "show", run, "--json").stdout) == []
    assert f"no run {run[:-1]!r}" in cli("traces", "show", run[:-1], code=2).stderr


def test_a_tree_begins_with_what_began_first_and_shows_results_that_are_false(cli: Cli) -> None:
    cli.write(
        "app2.py",
        "from agenthelm import ExecutionTracer, tool\n\n"
        "@tool\nasync def is_full(city: str) -> bool:\n    return False\n\n"
        "@tool\nasync def look(city: str) -> int:\n"
        "    await ExecutionTracer().trace_and_execute('is_full', city=city)\n    return 0\n",
    )
    cli.write("plan.yaml", "- {tool: look, arguments: {city: Lisbon}}\n")
    cli("saga", "run", "plan.yaml", "--app", "app2.py")
    drawn = cli("traces", "show", "last").stdout
    assert "-0." not in drawn.split("session")[1]
    outer, result, inner, answer = drawn.splitlines()[-4:]
    assert "0.000s  look(city=Lisbon)" in outer
    assert result.endswith("= 0")
    assert "is_full(city=Lisbon)" in inner
    assert answer.endswith("= false")


def test_what_looks_like_markup_or_drives_a_terminal_is_printed_as_it_is(cli: Cli) -> None:
    cli.write("trip.yaml", '- {tool: book, arguments: {what: "[/bold] \\e[31mred"}}\n')
    cli("saga", "run", "trip.yaml", "--app", "app.py")
    for command in (("traces", "show", "last"), ("saga", "show", "last")):
        assert "[/bold] \\x1b[31mred" in cli(*command).stdout


def test_names_that_data_chose_drive_no_terminal_either(cli: Cli) -> None:
    """The names of steps are a plan's, those of arguments a model's where a tool takes any name."""
    cli.write(
        "app2.py",
        "from agenthelm import tool\n\n@tool(side_effects=['a:write'], compensating_tool='undo')\n"
        "def f(**more: str) -> dict:\n    return more\n\n@tool\ndef undo(result: dict) -> None: ...\n",
    )
    odd = "a\x1b[31m\x9b2J\nnothing to undo\u202e"
    cli.write("f.json", json.dumps([{"tool": "f", "id": odd, "arguments": {odd: odd}}]))
    ran = cli("saga", "run", "f.json", "--app", "app2.py").stdout
    shown = [cli(*command, "last").stdout for command in (("traces", "show"), ("saga", "show"))]
    preview = cli("saga", "undo", "last", "--app", "app2.py", "--dry-run").stderr
    document = cli("traces", "export").stdout
    for text in (ran, *shown, preview, document):
        assert text.replace("\n", "").isprintable(), ascii(text)
        assert "a\\x1b[31m" in text or "a\\u001b[31m" in text
    assert len(preview.splitlines()) == 1
    assert json.loads(document)[0]["inputs"] == {odd: odd}


def test_calls_are_exported_as_json_csv_and_markdown(ran: Cli) -> None:
    events = json.loads(ran("traces", "export").stdout)
    assert [event["tool_name"] for event in events][:2] == ["offline", "book"]
    rows = list(csv.DictReader(io.StringIO(ran("traces", "export", "--format", "csv").stdout)))
    assert [row["tool_name"] for row in rows] == [event["tool_name"] for event in events]
    assert json.loads(rows[1]["inputs"])["what"] == "[offline placeholder: city]"
    markdown = ran("traces", "export", "--format", "md", "--tool", "book").stdout
    assert markdown.count("\n") == 4
    assert "\\[offline placeholder: city\\]" in markdown
    assert json.loads(ran("traces", "export", "--longer-than", "60").stdout) == []
    assert json.loads(ran("traces", "export", "--cost-over", "0.01").stdout) == []
    done = ran("traces", "export", "-f", "csv", "-o", "calls.csv")
    assert done.stdout == ""
    assert len((ran.folder / "calls.csv").read_text().splitlines()) == len(events) + 1
    assert "json, csv, md" in ran("traces", "export", "-f", "xml", code=2).stderr
    assert "can't write" in ran("traces", "export", "-o", "nowhere/calls.json", code=2).stderr


def test_a_spreadsheet_runs_nothing_of_an_export(cli: Cli) -> None:
    cli.write("calls.yaml", "- {tool: explode, arguments: {why: x}}\n")
    cli.write("app2.py", "from agenthelm import tool\n\n@tool(name='=1+1')\ndef f() -> None:\n    '''f'''\n")
    cli.write("f.yaml", "- {tool: '=1+1'}\n")
    cli("saga", "run", "f.yaml", "--app", "app2.py")
    rows = list(csv.DictReader(io.StringIO(cli("traces", "export", "-f", "csv").stdout)))
    assert rows[0]["tool_name"] == "'=1+1"


def test_no_line_break_in_a_call_begins_a_row_and_no_control_character_is_printed(cli: Cli) -> None:
    said = "a\r=1+1\n=2+2\n-3\x1b[2J\x85\u2028＝4 \r\n@5"
    cli.write("app2.py", f"from agenthelm import tool\n\n@tool\ndef f() -> None:\n    raise ValueError({said!r})\n")
    cli.write("f.yaml", "- {tool: f}\n")
    cli("saga", "run", "f.yaml", "--app", "app2.py", code=1)
    csv_text = cli("traces", "export", "-f", "csv").stdout
    assert csv_text.replace("\n", "").isprintable()
    for line in csv_text.splitlines():
        assert line[0] not in "=+-@"
    (row,) = csv.DictReader(io.StringIO(csv_text, newline=""))
    assert row["outcome"] == "failed"
    assert row["error_state"].startswith("ValueError: a\\x0d=1+1")


def test_a_cell_with_lines_stays_one_cell() -> None:
    cell = _csv_cell("=1\n+2\r-3\n\n@4\nplain\n＝5")
    assert cell == "'=1\n'+2\\x0d-3\n\n'@4\nplain\n'＝5"


def test_exported_data_can_neither_break_a_table_nor_be_markup(cli: Cli) -> None:
    hostile = '[/bold] | <b> a_b *c* `d` \\n=HYPERLINK("x")'
    cli.write("trip.yaml", json.dumps([{"tool": "book", "arguments": {"what": hostile}}]))
    cli("saga", "run", "trip.yaml", "--app", "app.py")
    markdown = cli("traces", "export", "-f", "md").stdout
    header, _, row = markdown.splitlines()
    cells = row.replace("\\|", "").count("|")
    assert cells == header.count("|")
    assert "<b>" not in row
    assert "\\[/bold\\]" in row
    (event,) = csv.DictReader(io.StringIO(cli("traces", "export", "-f", "csv").stdout))
    assert json.loads(event["inputs"])["what"] == hostile


def test_statistics_of_nobody_are_not_those_of_a_storage_without_calls(ran: Cli) -> None:
    assert ran("traces", "stats", "--agent", "nobody").stderr == "no calls that fulfil this\n"


def test_statistics_count_calls_failures_and_times(ran: Cli) -> None:
    stats = {entry["name"]: entry for entry in json.loads(ran("traces", "stats", "--json").stdout)}
    assert stats["book"]["calls"] == 2
    assert stats["book"]["failures"] == 0
    assert 0 < stats["book"]["p50"] <= stats["book"]["p95"]
    assert stats["offline"]["kind"] == "lm"
    assert "book" in ran("traces", "stats").stdout


# -- cost ---------------------------------------------------------------------------------------------------------------


def test_prices_are_printed_with_the_datas_date(cli: Cli) -> None:
    done = cli("cost", "models", "gpt-4o-mini")
    assert "gpt-4o-mini" in done.stdout
    assert "USD per million tokens" in done.stderr
    cli.write("agenthelm.toml", '[pricing."house/model"]\ninput = 0.001\noutput = 0.002\n')
    (entry,) = json.loads(cli("cost", "models", "house", "--json").stdout)["models"]
    assert entry["model"] == "house/model"
    assert entry["input"] == pytest.approx(1e-6)
    assert "[pricing]" in cli("cost", "models", "no-such-model", code=1).stderr
    assert json.loads(cli("cost", "models", "no-such-model", "--json", code=1).stdout)["models"] == []


@pytest.mark.parametrize(
    ("by", "names"),
    [("model", {"offline"}), ("agent", {"planner", "teller"}), ("tool", {"book", "cancel"})],
)
def test_cost_is_reported_by_what_was_asked(ran: Cli, by: str, names: set[str]) -> None:
    document = json.loads(ran("cost", "report", "--by", by, "--json").stdout)
    assert {group[by] for group in document["groups"]} == names
    assert "total $0" in ran("cost", "report", "--by", by).stdout


def test_cost_by_day_and_by_run(cli: Cli) -> None:
    cli.write("agenthelm.toml", "[pricing.offline]\ninput = 0.001\noutput = 0.002\n")
    cli("run", "x", "-a", "writer", "--quiet")
    (day,) = json.loads(cli("cost", "report", "--by", "day", "--json").stdout)["groups"]
    assert day["calls"] == 1
    assert day["cost_usd"] == pytest.approx((day["input_tokens"] + 2 * day["output_tokens"]) / 1e6)
    (run,) = json.loads(cli("cost", "report", "--run", "last", "--json").stdout)["groups"]
    assert run["cost_usd"] == day["cost_usd"]
    assert "█" in cli("cost", "report").stdout
    assert "Did you mean 'model'" in cli("cost", "report", "--by", "modle", code=2).stderr


# -- memory -------------------------------------------------------------------------------------------------------------


def test_values_are_kept_read_listed_and_forgotten(cli: Cli) -> None:
    cli("memory", "set", "plan", '{"nights": 3}', "--session", "trip")
    cli("memory", "set", "plan", "shared text")
    assert json.loads(cli("memory", "get", "plan", "--session", "trip").stdout) == {"nights": 3}
    assert cli("memory", "get", "plan").stdout == "shared text\n"
    assert json.loads(cli("memory", "get", "plan", "--json").stdout) == "shared text"
    cli("memory", "set", "other", "-", "--session", "trip", stdin="[1, 2]")
    assert json.loads(cli("memory", "list", "--session", "trip", "--json").stdout) == {
        "other": [1, 2],
        "plan": {"nights": 3},
    }
    assert json.loads(cli("memory", "list", "pl", "--session", "trip", "--json").stdout) == {"plan": {"nights": 3}}
    cli("memory", "forget", "plan", "--session", "trip")
    assert "no value under 'plan'" in cli("memory", "get", "plan", "--session", "trip", code=1).stderr
    assert cli("memory", "get", "plan").stdout == "shared text\n"
    assert "no value" in cli("memory", "forget", "plan", "--session", "trip", code=1).stderr


def test_what_is_piped_from_one_command_to_another_is_the_same_text(cli: Cli) -> None:
    cli("memory", "set", "first", "two\nlines\n")
    cli("memory", "set", "second", "-", stdin=cli("memory", "get", "first").stdout)
    cli("memory", "remember", "-", "--id", "said", stdin="from a file\n")
    assert json.loads(cli("memory", "list", "--json").stdout) == {"first": "two\nlines\n", "second": "two\nlines\n"}
    (match,) = json.loads(cli("memory", "search", "from a file", "--json").stdout)
    assert match["text"] == "from a file"


@pytest.mark.parametrize(
    "command", ["get plan", "set plan private", "list", "forget plan", "search plan", "remember plan"]
)
def test_an_empty_session_is_refused_and_does_not_mean_the_shared_values(cli: Cli, command: str) -> None:
    cli("memory", "set", "plan", "shared")
    assert "it is empty; leave the option out" in cli("memory", *command.split(), "--session", "", code=2).stderr
    assert cli("memory", "get", "plan").stdout == "shared\n"
    assert "it is empty; leave the option out" in cli("run", "x", "-a", "writer", "--session", "", code=2).stderr


def test_texts_are_remembered_found_and_forgotten(cli: Cli) -> None:
    made = cli("memory", "remember", "The hotel in Lisbon has a pool").stdout.strip()
    cli("memory", "remember", "Trains to Porto leave every hour", "--id", "trains")
    (best, *_) = json.loads(cli("memory", "search", "hotel pool", "--json").stdout)
    assert best["id"] == made
    assert "The hotel in Lisbon" in cli("memory", "search", "hotel pool", "-n", "1").stdout
    assert cli("memory", "search", "hotel", "--namespace", "other").stdout == ""
    cli("memory", "forget", "trains", "--text")
    assert "no text" in cli("memory", "forget", "trains", "--text", code=1).stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("set", "a", "1", "--ttl", "0"), "--ttl must be above 0, and at most 1e+10 seconds, not 0"),
        (("set", "a", "1", "--ttl", "nan"), "not nan"),
        (("set", "", "1"), "a key must be a non-empty string"),
        (("get", ""), "a key must be a non-empty string"),
        (("remember", " "), "a text to remember must be a non-blank string"),
        (("remember", "x", "--id", ""), "an id must be a non-empty string"),
        (("forget", "x", "--text", "--session", "trip"), "leave --session out"),
    ],
)
def test_what_no_memory_holds_is_wrong_usage(cli: Cli, arguments: tuple[str, ...], words: str) -> None:
    done = cli("memory", *arguments, code=2)
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert len(done.lines) == 1
    assert not (cli.folder / ".agenthelm" / "vectors").exists()


def test_memory_statistics_say_where_and_how_much(cli: Cli) -> None:
    cli("memory", "set", "a", "1", "--session", "trip")
    cli("memory", "set", "b", "2")
    cli("memory", "remember", "a text")
    document = json.loads(cli("memory", "stats", "--json").stdout)
    assert (document["sessions"], document["shared"], document["texts"]) == ({"trip": 1}, 1, 1)
    assert document["health"]["short_term"]["ok"] is True
    assert "trip" in cli("memory", "stats").stdout


def test_memory_statistics_name_the_embedder_of_what_is_remembered(cli: Cli) -> None:
    async def fill() -> None:
        vectors = str(cli.folder / ".agenthelm" / "vectors")
        async with MemoryHub(
            semantic=vectors, embedder=lambda texts: [[1.0]] * len(texts), embedder_name="mine"
        ) as hub:
            await hub.create_context("s").remember("a text")

    anyio.run(fill)
    assert json.loads(cli("memory", "stats", "--json").stdout)["embedder"] == "mine"
    assert "embedder agenthelm-lexical-1" in cli("memory", "stats", "--namespace", "other").stdout


@pytest.mark.parametrize("text", ["NaN", "1e999", '{"a": -Infinity}', "[" * 20_000, "not json"])
def test_what_is_no_json_is_kept_as_the_text_it_is(cli: Cli, text: str) -> None:
    cli("memory", "set", "mood", text)
    assert cli("memory", "get", "mood").stdout == text + "\n"


def test_a_value_that_somebody_else_wrote_is_named_beside_the_others(cli: Cli) -> None:
    cli("memory", "set", "a", "1")
    cli("memory", "set", "b", "2")
    with sqlite3.connect(cli.folder / ".agenthelm" / "memory.db") as connection:
        connection.execute("UPDATE memory_v1 SET value = 'not json' WHERE key LIKE '%:b'")
    connection.close()
    done = cli("memory", "list", "--json", code=1)
    assert json.loads(done.stdout) == {"a": 1}
    assert done.stderr.startswith("error: what is stored under 'b' is not JSON")
    assert "a" in cli("memory", "list", code=1).stdout


def test_what_ends_with_the_command_is_said_to(cli: Cli) -> None:
    cli.env.update(AGENTHELM_MEMORY_URL="memory://", AGENTHELM_VECTORS="memory://")
    assert "until this command ends" in cli("memory", "set", "a", "1").stderr
    assert "until this command ends" in cli("memory", "remember", "a text").stderr


def test_a_memory_that_can_not_be_reached_is_one_line(cli: Cli) -> None:
    cli.env["AGENTHELM_MEMORY_URL"] = "redis://127.0.0.1:1"
    done = cli("memory", "get", "a", code=1)
    assert len(done.lines) == 1
    assert "127.0.0.1:1" in done.stderr
    cli("memory", "stats", code=1)


# -- doctor -------------------------------------------------------------------------------------------------------------


def test_doctor_says_what_is_used_and_changes_nothing(cli: Cli) -> None:
    cli.write("agenthelm.toml", 'app = "app.py"\nembedder = "lexical"\n')
    done = cli("doctor")
    for word in ("offline", "made when first needed", "lexical", "agents planner, teller", "AGENTHELM_MODEL"):
        assert word in done.stdout
    assert "all there" in done.stderr
    assert not (cli.folder / ".agenthelm").exists()


def test_doctor_says_what_is_missing_and_ends_with_1(cli: Cli) -> None:
    cli.env.pop("AGENTHELM_MODEL")
    cli.env["AGENTHELM_MEMORY_URL"] = "redis://127.0.0.1:1"
    document = json.loads(cli("doctor", "--json", code=1).stdout)
    states = {finding["what"]: finding["state"] for finding in document["findings"]}
    assert document["ok"] is False
    assert states["model"] == "missing"
    assert states["short-term memory"] == "missing"
    assert states["semantic memory"] == "ok"


def test_doctor_names_the_model_that_a_key_picks(cli: Cli) -> None:
    cli.env.pop("AGENTHELM_MODEL")
    stdout = cli("doctor", OPENAI_API_KEY="sk-test-1234567890").stdout
    assert "openai/" in stdout
    assert "picked by its key" in stdout
    assert "1234567890" not in stdout


@pytest.mark.parametrize("json", [(), ("--json",)])
def test_doctor_shows_no_password_of_an_address(cli: Cli, json: tuple[str, ...]) -> None:
    done = cli(
        "doctor", *json, code=1, AGENTHELM_MODEL="openai/gpt-4o-mini", OPENAI_API_KEY="sk-test-1234567890",
        AGENTHELM_API_BASE="https://user:hunter2@host/v1", AGENTHELM_STORAGE="postgres://user:hunter2@host/db",
        AGENTHELM_MEMORY_URL="redis://user:hunter2@127.0.0.1:1",
    )  # fmt: skip
    assert "hunter2" not in done.stdout + done.stderr
    assert "https://***@host/v1" in done.stdout


def test_doctor_finds_an_app_that_does_not_load(cli: Cli) -> None:
    cli.write("broken.py", "x = 1\n1 / 0\n")
    document = json.loads(cli("doctor", "--app", "broken.py", "--json", code=1).stdout)
    (app,) = [finding for finding in document["findings"] if finding["what"] == "app"]
    assert app["state"] == "missing"
    assert "broken.py:2: ZeroDivisionError" in app["detail"]


def missing(cli: Cli, **env: str) -> dict[str, str]:
    """What the doctor finds missing, by what it looked at."""
    document = json.loads(cli("doctor", "--json", code=1, **env).stdout)
    return {finding["what"]: finding["detail"] for finding in document["findings"] if finding["state"] == "missing"}


def test_doctor_opens_the_storage_that_is_there(cli: Cli) -> None:
    cli("run", "x", "-a", "planner", "--app", "app.py")
    assert "all there" in cli("doctor").stderr
    damaged = cli.write(".agenthelm/agenthelm.db", "garbage")
    found = missing(cli)
    assert set(found) == {"storage"}
    assert "it is damaged, or no SQLite file" in found["storage"]
    assert damaged.read_text() == "garbage"


def test_doctor_says_why_a_folder_can_not_be_written(cli: Cli) -> None:
    cli.write("file", "")
    found = missing(cli, AGENTHELM_HOME="file/home")
    assert found["disk"] == "can't write to file/home: file is no folder; set AGENTHELM_HOME to another folder"
    assert set(found) == {"disk", "storage", "short-term memory", "semantic memory"}
    found = missing(cli, AGENTHELM_VECTORS="file/vectors", AGENTHELM_STORAGE="file/x.db")
    assert set(found) == {"storage", "semantic memory"}


def test_doctor_tries_whether_a_folder_can_be_written(cli: Cli) -> None:
    home = "/sys/agenthelm" if Path("/sys/kernel").exists() else "/System/agenthelm"  # where not even root can write
    found = missing(cli, AGENTHELM_HOME=home)
    assert re.match(rf"can't write to {home}: [A-Z][a-z -]+; set AGENTHELM_HOME", found["disk"])
    assert f"can't write to {home}/vectors: " in found["semantic memory"]


def test_doctor_misses_the_otlp_exporter_over_http(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    assert missing(cli, AGENTHELM_TRACE="otlp") == {"traces": "otlp needs the extra: pip install 'agenthelm[otlp]'"}


def test_doctor_misses_what_every_run_would_refuse(cli: Cli) -> None:
    found = missing(cli, AGENTHELM_STORAGE="postgres://h/db", AGENTHELM_APPROVE="none.toml")
    assert found["storage"].startswith("storage 'postgres://h/db' is neither a path nor")
    assert found["approvals"].startswith("the policy none.toml can't be read")
    assert set(found) == {"storage", "approvals"}
    assert "redis.example.com:6379" in missing(cli, AGENTHELM_MEMORY_URL="redis.example.com:6379")["memory"]


def test_doctor_tells_the_price_that_is_reckoned_with(cli: Cli) -> None:
    cli.write("agenthelm.toml", '[pricing."openai/gpt-4o-mini"]\ninput = 1.0\noutput = 2.0\n')
    done = cli("doctor", AGENTHELM_MODEL="openai/gpt-4o-mini", OPENAI_API_KEY="sk-test", COLUMNS="200", code=0)
    assert "$1000 in and $2000 out per million tokens" in done.stdout


def test_a_storage_that_there_is_none_of_is_not_an_empty_one(cli: Cli) -> None:
    for command in ("traces list", "cost report", "saga list", "saga show last"):
        done = cli(*command.split(), code=2, AGENTHELM_STORAGE="postgres://h/db")
        assert "neither a path nor" in done.stderr


def test_a_name_that_the_system_takes_for_none_is_one_clear_line(ran: Cli) -> None:
    long = "x" * 300
    for command, env in (("traces list", {"AGENTHELM_HOME": long}), (f"traces export -o {long}", {})):
        done = ran(*command.split(), code=2, **env)
        assert done.stderr.startswith("error: can't ")
        assert "File name too long" in done.stderr
    for command in ("traces filter --run \udcff", "traces filter --tool \udcff"):
        assert "no calls that fulfil this" in ran(*command.split()).stderr
    assert "\\udcff" in ran("traces", "show", "\udcff", code=2).stderr


def test_the_hint_to_older_calls_keeps_the_conditions(ran: Cli) -> None:
    done = ran("traces", "filter", "--tool", "book", "--longer-than", "0", "-n", "1")
    hint = done.lines[-1].removeprefix("older ones: agenthelm ")
    assert re.fullmatch(r"traces filter --tool book --longer-than 0\.0 --limit 1 --before \d+", hint)
    (older,) = json.loads(ran(*hint.split(), "--json").stdout)
    assert older["tool_name"] == "book"
    narrow = ran("traces", "list", "--run", "last", "-n", "1", COLUMNS="40")
    assert (
        "agenthelm traces filter --run last --limit 1 --before" in narrow.stderr
    )  # half of it would be another command
    assert "--run last --limit 1 --before" in ran("traces", "list", "--run", "last", "-n", "1").stderr


# -- completion ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("agenthelm tra", "traces"),
        ("agenthelm traces f", "filter"),
        ("agenthelm run --max-c", "--max-calls"),
        ("agenthelm run x --agents pla", "planner"),
        ("agenthelm describe wri", "writer"),
    ],
)
def test_the_shell_completes_commands_options_and_agents(cli: Cli, line: str, expected: str) -> None:
    cli.write("agenthelm.toml", 'app = "app.py"\n')
    words = line.split(" ")
    done = cli(
        _AGENTHELM_COMPLETE="complete_bash",
        COMP_WORDS=line,
        COMP_CWORD=str(len(words) - 1),
        _TYPER_COMPLETE_ARGS=line,
    )
    assert expected in done.stdout.split()


def test_completion_is_silent_about_an_app_that_does_not_load(cli: Cli) -> None:
    cli.write("agenthelm.toml", 'app = "nowhere.py"\n')
    line = "agenthelm describe x"
    done = cli(_AGENTHELM_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD="2", _TYPER_COMPLETE_ARGS=line)
    assert done.stdout.strip() == ""
    assert done.stderr == ""
