"""`agenthelm saga`: plans from files, journals as drawings, and taking things back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.apps import AGENTS, WORLD
from tests.support.cli import Cli, environment
from tests.support.permissions import obeying

TRIP = """
- {tool: book, id: flight, arguments: {what: flight to Lisbon}}
- - {tool: book, id: hotel, arguments: {what: hotel}}
  - {tool: book, id: car, arguments: {what: {"$ref": flight.what}}}
"""
FAILING = """
steps:
  - {tool: book, id: flight, arguments: {what: flight}}
  - {tool: explode, arguments: {why: no seats}}
"""
STUCK = """
- {tool: book_badly, id: desk, arguments: {what: flight}}
- {tool: explode}
"""


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    cli = Cli(tmp_path)
    cli.write("agenthelm.toml", 'app = "world.py"\n')
    cli.write("world.py", WORLD)
    cli.write("trip.yaml", TRIP)
    cli.write("failing.yaml", FAILING)
    cli.write("stuck.yaml", STUCK)
    return cli


def world(cli: Cli) -> list[str]:
    path = cli.folder / "world.json"
    return list(json.loads(path.read_text()).values()) if path.exists() else []


def latest(cli: Cli) -> str:
    return str(json.loads(cli("saga", "list", "--json").stdout)[0]["run_id"])


def test_a_plan_runs_and_prints_its_results(cli: Cli) -> None:
    done = cli("saga", "run", "trip.yaml")
    assert done.stdout.splitlines()[0] == 'flight: {"what": "flight to Lisbon"}'
    assert set(done.stdout.splitlines()[1:]) == {'hotel: {"what": "hotel"}', 'car: {"what": "flight to Lisbon"}'}
    assert sorted(world(cli)) == ["flight to Lisbon", "flight to Lisbon", "hotel"]
    assert ": success" in done.stderr


def test_a_plan_can_be_json_with_dependencies(cli: Cli) -> None:
    steps = [
        {"tool": "book", "id": "b", "arguments": {"what": {"$ref": "a.what"}}, "depends_on": "a"},
        {"tool": "book", "id": "a", "arguments": {"what": "first"}},
    ]
    cli.write("plan.json", json.dumps({"name": "two", "steps": steps}))
    document = json.loads(cli("saga", "run", "plan.json", "--json").stdout)
    assert document["status"] == "success"
    assert document["steps"] == {"a": {"what": "first"}, "b": {"what": "first"}}


def test_a_dry_run_shows_the_order_and_what_undoes_what(cli: Cli) -> None:
    cli.write("mail.yaml", TRIP + "- {tool: send_mail, arguments: {to: ada}}\n")
    done = cli("saga", "run", "mail.yaml", "--dry-run")
    assert "CAN'T be undone" in done.stdout
    rows = json.loads(cli("saga", "run", "mail.yaml", "--dry-run", "--json").stdout)
    assert [(row["order"], row["step"], row["undone_by"]) for row in rows] == [
        (1, "flight", "cancel"), (2, "hotel", "cancel"), (2, "car", "cancel"), (3, "send_mail", None),
    ]  # fmt: skip
    assert world(cli) == []
    assert not (cli.folder / ".agenthelm").exists()


def test_a_plan_that_fails_is_undone_and_ends_with_1(cli: Cli) -> None:
    done = cli("saga", "run", "failing.yaml", code=1)
    assert world(cli) == ["cancelled"]
    assert "because: ValueError: no seats" in done.stderr
    assert [line.split("s  ")[1] for line in done.stderr.splitlines() if line.startswith(" ")] == [
        "book (flight)", "explode", "explode failed: ValueError: no seats", "cancel", "undone: book (flight)"
    ]  # fmt: skip
    assert json.loads(cli("saga", "run", "failing.yaml", "--json", code=1).stdout)["status"] == "rolled_back"


def test_on_error_stop_leaves_things(cli: Cli) -> None:
    cli("saga", "run", "failing.yaml", "--on-error", "stop", code=1)
    assert world(cli) == ["flight"]
    refused = cli("saga", "run", "failing.yaml", "--on-error", "rolback", code=2).stderr
    assert "--on-error must be one of rollback, stop, continue, not 'rolback'. Did you mean 'rollback'?" in refused
    cli.write("told.yaml", "on_error: stop\nsteps:\n- {tool: book, arguments: {what: hotel}}\n")
    assert (
        "unknown key 'on_error'. Say it to the command: --on-error." in cli("saga", "run", "told.yaml", code=2).stderr
    )


PAYING = """from agenthelm import charge, tool

@tool(max_cost=1.0, side_effects=["stock:write"], compensating_tool="sell")
def buy() -> None:
    charge(0.9)

@tool(idempotent=True)
def sell() -> None: ...
"""


def test_a_plan_is_held_to_a_budget_wherever_that_was_said(cli: Cli) -> None:
    cli.write("paying.py", PAYING)
    cli.write("buy.yaml", "- {tool: buy}\n")
    run = ("saga", "run", "buy.yaml", "--app", "paying.py")
    assert "budget of run is 0.5 usd" in cli(*run, "--budget", "0.5", code=1).stderr
    assert "budget of run is 0.4 usd" in cli(*run, code=1, AGENTHELM_BUDGET_USD="0.4").stderr
    cli.write("agenthelm.toml", "budget_usd = 0.3\n")
    assert "budget of run is 0.3 usd" in cli(*run, code=1).stderr
    assert ": success" in cli(*run, "--budget", "2").stderr


def test_a_plan_takes_the_same_limits_as_agents_do(cli: Cli) -> None:
    asker = (
        "\n\n@tool\nasync def ask() -> None:\n    await Agent('a', signature='task -> b', lm='offline').run(task='x')\n"
    )
    cli.write("asker.py", AGENTS + asker)
    cli.write("ask.yaml", "- {tool: ask}\n- {tool: ask, id: again}\n")
    run = ("saga", "run", "ask.yaml", "--app", "asker.py")
    assert "budget of run is 1 call;" in cli(*run, "--max-calls", "1", code=1).stderr
    assert "budget of run is 5 tokens;" in cli(*run, "--max-tokens-total", "5", code=1).stderr
    assert "--timeout must be above 0" in cli(*run, "--timeout", "0", code=2).stderr
    cli(*run, "--max-calls", "2")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["plan.yaml", "no steps"]),
        ("a: [", ["plan.yaml", "not valid YAML"]),
        ("- {id: book}", ["plan.yaml, step 1", "needs a tool"]),
        ("- {tol: book}", ["plan.yaml, step 1", "'tol'", "Did you mean 'tool'"]),
        ("- {tool: book, argments: {}}", ["plan.yaml, step 1", "'argments'", "Did you mean 'arguments'"]),
        ("- {tool: boook}", ["no tool named 'boook'", "Did you mean 'book'"]),
        ("- {tool: book, arguments: {wat: 1}}", ["takes no 'wat'", "Did you mean 'what'"]),
        ("- {tool: book, arguments: {what: {$ref: hotl.x}}}", ["'hotl'", "not in the plan"]),
        ("- {tool: book, id: a, depends_on: [b]}\n- {tool: book, id: b, depends_on: [a]}", ["circle", "a, b"]),
        ("- {tool: book, id: a}\n- {tool: book, id: a}", ["'a'"]),
        ("stepz: []", ["'stepz'", "Did you mean 'steps'"]),
    ],
)
def test_plans_that_make_no_sense_are_refused_before_the_first_effect(cli: Cli, text: str, words: list[str]) -> None:
    cli.write("plan.yaml", text)
    for arguments in (("saga", "run", "plan.yaml"), ("saga", "run", "plan.yaml", "--dry-run")):
        done = cli(*arguments, code=2)
        assert done.stdout == ""
        assert len(done.lines) == 1
        for word in ("error: ", *words):
            assert word in done.stderr
    assert world(cli) == []
    assert cli("saga", "list").stdout == ""


def test_a_plan_that_is_not_there_is_refused(cli: Cli) -> None:
    assert "can't read nowhere.yaml: No such file" in cli("saga", "run", "nowhere.yaml", code=2).stderr


def test_runs_are_listed_and_shown(cli: Cli) -> None:
    cli("saga", "run", "trip.yaml")
    cli("saga", "run", "failing.yaml", code=1)
    stdout = cli("saga", "list").stdout
    assert "3 finished" in stdout
    assert "1 undone" in stdout
    (only,) = json.loads(cli("saga", "list", "--state", "rolled_back", "--json").stdout)
    assert only["name"] == "failing"
    shown = cli("saga", "show", "last").stdout
    assert "↶ flight" in shown
    assert "unwound because: ValueError: no seats" in shown
    document = json.loads(cli("saga", "show", "last", "--json").stdout)
    assert [(effect["step"], effect["status"]) for effect in document["effects"]] == [("flight", "undone")]
    assert "what" not in json.dumps(document)  # arguments stay in the journal
    assert "no run 'nowhere'" in cli("saga", "show", "nowhere", code=2).stderr


def test_a_good_run_is_taken_back_after_a_preview_and_a_yes(cli: Cli) -> None:
    cli("saga", "run", "trip.yaml")
    preview = cli("saga", "undo", "last", "--dry-run").lines
    assert preview[-1] == "undo book (flight) by cancel"
    assert len(preview) == 3
    rows = json.loads(cli("saga", "undo", "last", "--dry-run", "--json").stdout)
    assert {(row["effect_id"], row["step"], row["problem"]) for row in rows[:2]} == {
        ("e2", "hotel", None), ("e3", "car", None),
    }  # fmt: skip
    assert rows[2] == {
        "effect_id": "e1", "tool": "book", "step": "flight", "status": "finished", "undone_by": "cancel", "problem": None,
    }  # fmt: skip
    assert "say --yes" in cli("saga", "undo", "last", code=2).stderr
    assert "cancelled" not in world(cli)
    done = cli("saga", "undo", "last", "--yes")
    assert done.stderr.splitlines()[:3] == preview
    assert world(cli) == ["cancelled"] * 3
    assert cli("saga", "undo", "last", "--yes").lines == ["nothing to undo", f"run {latest(cli)}: rolled_back"]
    assert json.loads(cli("saga", "undo", "last", "--dry-run", "--json").stdout) == []


def test_a_preview_names_only_what_is_left_to_undo(cli: Cli) -> None:
    fails = '@tool(compensating_tool="unbook")\ndef rent(what: str) -> dict:\n    raise ValueError("no cars")\n'
    cli.write("world.py", f"{WORLD}\n\n{fails}")
    steps = "".join(f"  - {{tool: book, id: {what}, arguments: {{what: {what}}}}}\n" for what in ("flight", "hotel"))
    cli.write("trip.yaml", f"steps:\n{steps}  - {{tool: rent, arguments: {{what: car}}}}\n")
    cli("saga", "run", "trip.yaml", "--on-error", "continue")
    cli("saga", "resolve", "last", "hotel", "--as", "undone")
    assert cli("saga", "undo", "last", "--dry-run").lines == ["undo book (flight) by cancel"]


def test_undo_without_the_app_says_which_tool_is_missing(cli: Cli) -> None:
    cli("saga", "run", "trip.yaml")
    cli.write("agenthelm.toml", "")
    done = cli("saga", "undo", "last", "--dry-run")
    assert done.stderr.count("CAN'T undo book") == 3
    done = cli("saga", "undo", "last", "--yes", code=2)
    assert "tool 'book' is not registered; load the app that defines" in done.stderr
    cli("saga", "undo", "last", "--yes", "--app", "world.py")
    assert world(cli) == ["cancelled"] * 3


def test_a_dead_run_whose_tool_is_gone_is_ended_by_a_human_and_recover(cli: Cli) -> None:
    died = WORLD + "\n\n@tool\ndef die():\n    import os\n\n    os.kill(os.getpid(), 9)\n"
    old = died.replace("def book(", "def book_once(", 1)  # as it was called once
    cli.write("old.yaml", "- {tool: book_once, id: flight, arguments: {what: flight}}\n- {tool: die}\n")
    cli.write("world.py", died + old[old.index("@tool(") : old.index("@tool(idempotent")])
    cli.process("saga", "run", "old.yaml", code=-9)
    run = latest(cli)
    cli.write("world.py", died)
    done = cli("saga", "recover", code=3)
    way_out = f"undo e1 by hand and say so with `agenthelm saga resolve {run} e1 --as undone`"
    assert (way_out in done.lines[0], done.lines[1:]) == (True, [f"run {run}: left as it is"])
    assert way_out in cli("saga", "recover", "last", code=2).stderr
    assert "recover" in cli("saga", "resolve", "last", "e1", "--as", "done", code=1).stderr
    done = cli("saga", "resolve", "last", "flight", "--as", "undone")
    assert done.lines == [
        "undone: book_once (flight)", f"run {run}: open; 'agenthelm saga recover {run} --app APP' ends it",
    ]  # fmt: skip
    shown = cli("saga", "show", "last").stdout
    assert "undone  as a human said  [e1]" in shown
    assert "interrupted: its process is gone" in shown
    assert cli("saga", "recover").lines[-1] == f"run {run}: rolled_back"
    assert world(cli) == ["flight"]  # which nobody but the human has touched


def test_tools_of_an_app_that_is_a_file_run_in_processes(cli: Cli) -> None:
    cli.write(
        "apps/my-app.py",
        "import beside, os\nfrom pydantic import BaseModel\nfrom agenthelm import tool\n\n"
        "class Square(BaseModel):\n    value: int\n    pid: int\n\n"
        "@tool(runs_in='process')\ndef square(n: int) -> Square:\n    return Square(value=n * n, pid=os.getpid())\n\n"
        "@tool(runs_in='process')\ndef root(square: Square) -> int:\n    return beside.root(square.value)\n",
    )
    cli.write("apps/beside.py", "def root(n):\n    return int(n ** 0.5)\n")
    steps = [
        {"tool": "square", "arguments": {"n": 3}},
        {"tool": "root", "arguments": {"square": {"$ref": "square"}}},
    ]
    cli.write("plan.json", json.dumps(steps))
    done = cli.process("saga", "run", "plan.json", "--app", "apps/my-app.py", "--json")
    results = json.loads(done.stdout)["steps"]
    assert (results["square"]["value"], results["root"]) == (9, 3)


def test_what_is_stuck_can_be_tried_again(cli: Cli) -> None:
    done = cli("saga", "run", "stuck.yaml", code=3)
    assert "could not be undone: book_badly" in done.stderr
    assert "the desk is closed" in cli("saga", "show", "last").stdout
    cli("saga", "retry", "last", code=3)
    assert "agenthelm saga retry" in cli("saga", "undo", "last", code=3).stderr  # it asks nothing, and does nothing
    cli.write("desk-open", "")
    assert "rolled_back" in cli("saga", "retry", "last").stderr
    assert "1 undone" in cli("saga", "list").stdout


@pytest.mark.parametrize(("word", "status"), [("undone", "undone"), ("done", "accepted")])
def test_what_is_stuck_can_be_resolved_by_a_humans_word(cli: Cli, word: str, status: str) -> None:
    cli("saga", "run", "stuck.yaml", code=3)
    assert (
        "--as must be one of done, undone, not 'gone'"
        in cli("saga", "resolve", "last", "desk", "--as", "gone", code=2).stderr
    )
    assert "no effect, step or tool 'dsk'" in cli("saga", "resolve", "last", "dsk", "--as", word, code=2).stderr
    cli("saga", "resolve", "last", "desk", "--as", word)
    document = json.loads(cli("saga", "show", "last", "--json").stdout)
    assert [(effect["status"], effect["said_by"]) for effect in document["effects"]] == [(status, "a human")]
    assert f"{status}  as a human said  [e1]" in cli("saga", "show", "last").stdout


def test_what_never_happened_is_not_drawn_as_undone_by_a_tool_that_never_ran(cli: Cli) -> None:
    cli.write(
        "doubt.py",
        "import os\n\nfrom agenthelm import tool\n\n"
        "@tool(compensating_tool='pay_back', verify=lambda amount: None, side_effects=['money:move'])\n"
        "def pay(amount: int) -> None:\n    os._exit(9)\n\n"
        "@tool\ndef pay_back(amount: int) -> None: ...\n",
    )
    cli.write("pay.yaml", "- {tool: pay, arguments: {amount: 5}}\n")
    cli.process("saga", "run", "pay.yaml", "--app", "doubt.py", code=9)
    (recovered,) = json.loads(cli("saga", "recover", "--app", "doubt.py", "--json").stdout)  # a list, also of one
    assert recovered["status"] == "rolled_back"
    assert "pay(amount=5)  undone  as verify said" in cli("saga", "show", "last").stdout


def test_finished_journals_are_pruned_and_open_or_stuck_ones_stay(cli: Cli) -> None:
    cli("saga", "run", "trip.yaml")
    cli("saga", "run", "stuck.yaml", code=3)
    assert json.loads(cli("saga", "prune", "--older-than", "30d", "--json").stdout)["dropped"] == []
    assert "would drop 1 journal\n" in cli("saga", "prune", "--older-than", "0s", "--dry-run").stdout
    assert "dropped 1 journal\n" in cli("saga", "prune", "--older-than", "0s").stdout
    (left,) = json.loads(cli("saga", "list", "--json").stdout)
    assert left["name"] == "stuck"


def test_a_job_that_is_started_twice_under_one_id_works_once(cli: Cli) -> None:
    assert "run nightly-1: success" in cli("saga", "run", "trip.yaml", "--run-id", "nightly-1").stderr
    done = sorted(world(cli))
    again = cli("saga", "run", "trip.yaml", "--run-id", "nightly-1", code=2)
    assert again.stderr.startswith("error: there is a run 'nightly-1' already (success), so this one did not begin")
    refused = json.loads(cli("saga", "run", "trip.yaml", "--run-id", "nightly-1", "--json", code=2).stdout)
    assert (refused["run_id"], refused["error"]["type"]) == (None, "RunExistsError")  # it is no document of that run
    same = cli("run", "A trip", "--agents", "writer", "--model", "offline", "--run-id", "nightly-1", code=2)
    assert "there is a run 'nightly-1' already" in same.stderr
    assert sorted(world(cli)) == done
    assert [run["run_id"] for run in json.loads(cli("saga", "list", "--json").stdout)] == ["nightly-1"]


NESTED = """

from agenthelm import saga


@tool
async def try_a_desk() -> None:
    async with saga("desk") as scope:
        await scope.use("book_badly", what="desk")
        raise ValueError("too dark")
"""


def test_what_could_not_be_undone_in_a_run_that_was_left_as_it_is_is_not_forgotten(cli: Cli) -> None:
    cli.write("world.py", WORLD + NESTED)
    cli.write("desk.yaml", "- {tool: try_a_desk}")
    done = cli("saga", "run", "desk.yaml", "--on-error", "stop", code=3)
    assert "could not be undone: book_badly" in done.stderr
    assert f"run {latest(cli)}: stopped" in done.stderr
    assert "dropped 0 journals" in cli("saga", "prune", "--older-than", "0s").stdout
    cli("saga", "resolve", "last", "book_badly", "--as", "undone")
    assert "dropped 1 journal" in cli("saga", "prune", "--older-than", "0s").stdout


def test_every_call_and_everything_stuck_has_its_line(cli: Cli) -> None:
    cli.write(
        "twice.yaml",
        STUCK.replace("- {tool: explode}", STUCK.splitlines()[1].replace("desk", "lamp") + "\n- {tool: explode}"),
    )
    lines = [
        line.split("s  ", 1)[1]
        for line in cli("saga", "run", "twice.yaml", code=3).stderr.splitlines()
        if "s  " in line
    ]
    for step in ("desk", "lamp"):
        assert lines.count(f"book_badly ({step})") == 1
        assert sum(line.startswith(f"could not be undone: book_badly ({step})") for line in lines) == 1


def test_there_may_be_nothing_to_recover(cli: Cli) -> None:
    assert "nothing to recover" in cli("saga", "recover").stderr
    assert json.loads(cli("saga", "recover", "--json").stdout) == []
    assert "no run 'nowhere'" in cli("saga", "recover", "nowhere", code=2).stderr
    cli("saga", "run", "trip.yaml")
    assert "nothing to recover" in cli("saga", "recover").stderr
    assert json.loads(cli("saga", "recover", "--json").stdout) == []
    assert "no run 'nowhere'" in cli("saga", "recover", "nowhere", code=2).stderr


def test_runs_of_agents_are_in_the_same_list_and_taken_back_the_same_way(cli: Cli) -> None:
    cli.write("agents.py", AGENTS)
    run = json.loads(cli("run", "x", "--app", "agents.py", "-a", "planner", "--model", "offline", "--json").stdout)[
        "run_id"
    ]
    assert latest(cli) == run
    cli("saga", "undo", run, "--yes", "--app", "agents.py")
    assert world(cli) == ["cancelled"]
    done = cli("traces", "filter", "--run", run, "--tool", "cancel", "--json")
    assert json.loads(done.stdout)[0]["compensates"]


@pytest.mark.parametrize("seconds", ["-1", "0", "nan"])
def test_a_deadline_that_is_none_is_refused(cli: Cli, seconds: str) -> None:
    assert "--timeout must be above 0" in cli("saga", "run", "trip.yaml", "--timeout", seconds, code=2).stderr
    assert world(cli) == []


def test_a_plan_may_say_what_it_is_called(cli: Cli) -> None:
    cli.write("named.yaml", "name: my trip\nsteps:\n- {tool: book, arguments: {what: flight}}\n")
    cli("saga", "run", "named.yaml")
    assert json.loads(cli("saga", "list", "--json").stdout)[0]["name"] == "my trip"
    cli.write("named.yaml", "name: [3]\nsteps:\n- {tool: book, arguments: {what: flight}}\n")
    assert "name must be a text" in cli("saga", "run", "named.yaml", code=2).stderr


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ("{tool: book, arguments: {what: 3}}", "'what': Input should be a valid string"),
        ("{tool: book}", "'what' is missing"),
    ],
)
def test_a_plan_that_could_not_run_is_refused_beforehand(cli: Cli, step: str, says: str) -> None:
    cli.write("bad.yaml", f"- {{tool: book, id: a, arguments: {{what: flight}}}}\n- {step}\n")
    for dry in ([], ["--dry-run"]):
        assert says in cli("saga", "run", "bad.yaml", *dry, code=2).stderr
    assert world(cli) == []


@pytest.mark.parametrize(("resume", "code"), [(["--resume"], 1), ([], 0)])
def test_a_resumed_plan_that_fails_is_a_run_that_failed(cli: Cli, resume: list[str], code: int) -> None:
    cli.write(
        "world.py",
        WORLD
        + """

@tool
def power_cut():
    import os, signal
    if not Path("cut").exists():
        Path("cut").touch()
        os.kill(os.getpid(), signal.SIGKILL)
""",
    )
    steps = "- {tool: book, arguments: {what: flight}}\n- {tool: power_cut}\n- {tool: explode}\n"
    cli.write("cut.yaml", steps)
    cli.process("saga", "run", "cut.yaml", code=-9)
    settings = (cli.folder / "agenthelm.toml").read_text()
    cli.write("agenthelm.toml", "")
    left = cli("saga", "recover", *resume, code=3)
    assert left.lines[-1] == f"run {latest(cli)}: left as it is"
    assert "tool 'book' is not registered; load the app" in left.stderr
    assert len(world(cli)) == 1
    cli.write("agenthelm.toml", settings)
    done = cli("saga", "recover", *resume, code=code)
    assert "rolled_back" in done.stderr
    assert world(cli) == ["cancelled"]


def test_what_goes_with_its_enclosing_call_is_previewed_and_drawn_so(cli: Cli) -> None:
    cli.write(
        "world.py",
        WORLD
        + """
from agenthelm.core.executor import current_executor

@tool(compensating_tool="undo_trip")
async def trip() -> dict:
    await current_executor().call("book", {"what": "flight"})
    return {"id": 1}

@tool
def undo_trip(id: int) -> None:
    put("trip", "undone")
""",
    )
    cli.write("nested.yaml", "- {tool: trip}\n")
    cli("saga", "run", "nested.yaml")
    assert cli("saga", "undo", "last", "--dry-run").stderr.splitlines() == ["undo trip by undo_trip"]
    cli("saga", "undo", "last", "--yes")
    drawn = cli("saga", "show", "last").stdout
    assert "undone  with the call above" in drawn
    assert "finished" not in drawn


@pytest.mark.parametrize("storage", [".agenthelm/agenthelm.db", ".agenthelm/log.jsonl"])
def test_looking_takes_no_leave_to_write(cli: Cli, storage: str) -> None:
    """Somebody looks who may only read the home, or whose disk is mounted for reading only."""
    cli.env["AGENTHELM_STORAGE"] = storage
    cli("saga", "run", "trip.yaml")
    home, run = cli.folder / ".agenthelm", latest(cli)
    for file in home.iterdir():
        file.chmod(0o444)
    home.chmod(0o555)
    before = sorted(home.iterdir())

    def looks(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            obeying([sys.executable, "-m", "agenthelm.cli.main", *arguments]),
            cwd=cli.folder, env=environment(cli.folder, cli.env),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip

    try:
        listed, shown, undone = (
            looks("saga", "list"),
            looks("saga", "show", "last"),
            looks("saga", "undo", run, "--yes"),
        )
    finally:
        home.chmod(0o755)
    assert (listed.returncode, shown.returncode, listed.stderr, shown.stderr) == (0, 0, "", "")
    assert run in listed.stdout
    assert shown.stdout.count("undone by cancel") == 3
    assert (undone.returncode, "can't write" in undone.stderr) == (1, True)
    assert sorted(home.iterdir()) == before
