"""`agenthelm run`: what it prints where, what it leaves behind, and with which code it ends."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from tests.support.apps import AGENTS
from tests.support.cli import Cli


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    cli = Cli(tmp_path)
    cli.env["AGENTHELM_MODEL"] = "offline"
    cli.write("app.py", AGENTS)
    return cli


def world(cli: Cli) -> dict[str, str]:
    path = cli.folder / "world.json"
    return json.loads(path.read_text()) if path.exists() else {}


def test_a_text_is_the_result_and_the_rest_goes_to_stderr(cli: Cli) -> None:
    done = cli("run", "Write about sagas", "--agents", "researcher,writer,reviewer")
    assert done.stdout == "[offline placeholder: text]\n"
    assert "researcher started" in done.stderr
    assert "reviewer finished" in done.stderr
    assert "total $0 for 3 model calls" in done.stderr
    assert "also in the result: findings, sources, review" in done.stderr


def test_agents_may_be_repeated_instead_of_listed(cli: Cli) -> None:
    done = cli("run", "x", "-a", "researcher", "-a", "writer", "--json")
    assert set(json.loads(done.stdout)["result"]) == {"findings", "sources", "text"}


def test_without_a_text_each_value_stands_under_its_name(cli: Cli) -> None:
    done = cli("run", "Lisbon", "--app", "app.py", "-a", "planner")
    assert "city: [offline placeholder: city]" in done.stdout
    assert '"nights": 3' in done.stdout


def test_json_is_one_document_and_nothing_else_on_stdout(cli: Cli) -> None:
    done = cli("run", "Lisbon", "--app", "app.py", "-a", "planner", "--json")
    document = json.loads(done.stdout)
    assert document["status"] == "success"
    assert document["result"]["details"] == {"nights": 3, "rooms": [1, 2]}
    assert document["usage"]["calls"] == 1
    assert document["cost_usd"] == 0
    assert document["run_id"] in cli("saga", "list").stdout


PRINTER = """
import subprocess

from agenthelm import Agent, tool

print("loading")


@tool
def book() -> str:
    print("booking")
    subprocess.run(["echo", "from another process"])
    return "B1"


class Chatty(Agent):
    def forward(self, context, task):
        print("at work")
        return {"booking": self.use("book")}
"""


@pytest.mark.parametrize("command", ["run x -a chatty", "saga run plan.json", "tools list", "list-agents"])
def test_json_stays_one_document_whatever_apps_and_tools_print(cli: Cli, command: str) -> None:
    cli.write("app.py", PRINTER)
    cli.write("plan.json", '[{"tool": "book"}]')
    for call in (cli, cli.process):
        done = call(*command.split(), "--app", "app.py", "--json")
        json.loads(done.stdout)
        assert "loading\n" in done.stderr
        assert ("booking\n" in done.stderr) == ("list" not in command)
    assert ("from another process\n" in done.stderr) == ("list" not in command)


def test_the_single_agent_of_an_app_needs_no_name(cli: Cli) -> None:
    cli.write("single.py", AGENTS[: AGENTS.index("class Teller")])
    assert "city" in cli("run", "Lisbon", "--app", "single.py").stdout


def test_several_agents_of_an_app_must_be_chosen(cli: Cli) -> None:
    done = cli("run", "Lisbon", "--app", "app.py", code=2)
    assert done.stderr == "error: say which agents to run: --agents NAME[,NAME…]; there are: planner, teller\n"


def test_the_app_can_be_a_module_or_come_from_the_settings(cli: Cli) -> None:
    assert "city" in cli("run", "Lisbon", "--app", "app", "-a", "planner").stdout
    cli.write("agenthelm.toml", 'app = "app.py"\n')
    assert "city" in cli("run", "Lisbon", "-a", "planner").stdout


def test_parallel_agents_give_their_results_by_name(cli: Cli) -> None:
    done = cli("run", "x", "-a", "researcher,writer", "--parallel", "--json")
    assert set(json.loads(done.stdout)["result"]) == {"researcher", "writer"}


def test_inputs_are_json_or_text(cli: Cli) -> None:
    done = cli("run", "x", "--app", "app.py", "-a", "planner", "-i", "fail=out of coffee", "-i", "badly=false", code=1)
    assert "RuntimeError: out of coffee" in done.stderr


def test_an_input_of_the_wrong_type_or_given_twice_and_a_second_task_are_usage_errors(cli: Cli) -> None:
    run = ("run", "x", "--app", "app.py", "-a", "planner")
    done = cli(*run, "-i", "mail=perhaps", code=2)
    assert done.stderr == "error: 'planner' takes 'mail' as bool, not 'perhaps'\n"
    for pair in ("task=y", "task=1"):
        done = cli(*run, "-i", pair, code=2)
        assert done.stderr == "error: the task is given as TASK; --input is for further inputs\n"
    done = cli(*run, "-i", "mail=true", "-i", "mail=false", code=2)
    assert done.stderr == "error: --input mail is given twice\n"
    assert world(cli) == {}


def test_an_input_that_is_too_deep_for_json_is_text(cli: Cli) -> None:
    brackets = "[" * 60_000
    done = cli("run", "x", "--app", "app.py", "-a", "planner", "-i", f"fail={brackets}{']' * 60_000}", code=1)
    assert f"RuntimeError: {brackets[:100]}" in done.stderr


def test_a_number_is_a_text_where_a_text_is_wanted(cli: Cli) -> None:
    done = cli("run", "x", "--app", "app.py", "-a", "planner", "-i", "fail=42", code=1)
    assert "RuntimeError: 42" in done.stderr


def test_the_task_can_come_from_stdin(cli: Cli) -> None:
    done = cli("run", "-", "-a", "writer", stdin="Write about sagas\n")
    assert done.stdout == "[offline placeholder: text]\n"


def test_quiet_leaves_the_result_alone(cli: Cli) -> None:
    done = cli("run", "x", "-a", "writer", "--quiet")
    assert done.stdout == "[offline placeholder: text]\n"
    assert done.stderr == ""


def test_a_session_goes_on_over_calls(cli: Cli) -> None:
    cli("run", "Lisbon", "--app", "app.py", "-a", "planner", "--session", "trip")
    assert cli("memory", "get", "city", "--session", "trip").stdout == "[offline placeholder: city]\n"
    cli("run", "Porto", "--app", "app.py", "-a", "planner", "--session", "trip")
    assert len(json.loads(cli("traces", "filter", "--session", "trip", "--tool", "book", "--json").stdout)) == 2


def test_namespaces_do_not_see_each_other(cli: Cli) -> None:
    cli("run", "x", "--app", "app.py", "-a", "planner", "--session", "trip", "--namespace", "acme")
    cli("memory", "get", "city", "--session", "trip", "--namespace", "acme")
    assert "no value under 'city'" in cli("memory", "get", "city", "--session", "trip", code=1).stderr


def test_what_a_failed_run_did_is_undone_and_said(cli: Cli) -> None:
    done = cli("run", "Lisbon", "--app", "app.py", "-a", "planner", "-i", "fail=[/bold] no", code=1)
    assert list(world(cli).values()) == ["cancelled"]
    (error,) = [line for line in done.lines if line.startswith("error: ")]
    assert error.startswith("error: RuntimeError: [/bold] no (app.py:")
    assert "undone: book" in done.lines
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(cli: Cli) -> None:
    done = cli("run", "Lisbon", "--app", "app.py", "-a", "planner", "-i", "fail=no", "--debug", code=1)
    assert "Traceback" in done.stderr
    before = cli("--debug", "run", "Lisbon", "--app", "app.py", "-a", "planner", "-i", "fail=no", code=1)
    assert "Traceback" in before.stderr


def test_a_failed_run_is_a_json_document_too(cli: Cli) -> None:
    done = cli("run", "Lisbon", "--app", "app.py", "-a", "planner", "-i", "fail=no", "--json", code=1)
    document = json.loads(done.stdout)
    assert document["status"] == "rolled_back"
    assert document["error"]["type"] == "RuntimeError"
    assert document["run_id"]
    assert (document["cost_usd"], document["priced_usd"]) == (0, 0)
    assert (document["usage"]["calls"], document["usage"]["tool_calls"]) == (1, 2)  # with its undo


def test_a_run_that_never_began_has_spent_nothing(cli: Cli) -> None:
    done = cli("run", "x", "--app", "app.py", "-a", "planner,planner", "--json", code=2)
    document = json.loads(done.stdout)
    assert (document["run_id"], document["cost_usd"], document["usage"]) == (None, 0, None)


def test_what_could_not_be_undone_ends_with_3(cli: Cli) -> None:
    done = cli("run", "x", "--app", "app.py", "-a", "planner", "-i", "badly=true", "-i", "fail=no", code=3)
    assert "could not be undone: book_badly" in done.stderr
    assert "the desk is closed" in done.stderr
    assert list(world(cli).values()) == ["cancelled"]


def test_no_rollback_leaves_things_and_says_so(cli: Cli) -> None:
    done = cli("run", "x", "--app", "app.py", "-a", "planner", "-i", "fail=no", "--no-rollback", code=1)
    assert list(world(cli).values()) == ["[offline placeholder: city]"]
    assert "nothing was undone, as asked" in done.stderr
    cli("saga", "undo", "last", "--app", "app.py", "--yes")
    assert list(world(cli).values()) == ["cancelled"]


def test_approvals_are_denied_without_a_terminal(cli: Cli) -> None:
    done = cli("run", "x", "--app", "app.py", "-a", "planner", "-i", "mail=true", code=1)
    assert "'send_mail' was not approved" in done.stderr
    assert list(world(cli).values()) == ["cancelled"]


def test_approvals_can_be_given_beforehand(cli: Cli) -> None:
    done = cli("run", "x", "--app", "app.py", "-a", "planner", "-i", "mail=true", "--approve", "allow")
    assert world(cli)["mail"] == "ada@example.org"
    assert "can't be taken back: send_mail" in done.stderr
    document = json.loads(
        cli("run", "x", "--app", "app.py", "-a", "planner", "-i", "mail=true", "--approve", "allow", "--json").stdout
    )
    assert [effect["tool"] for effect in document["irreversible"]] == ["send_mail"]


def test_approvals_can_be_refused_beforehand(cli: Cli) -> None:
    done = cli("run", "x", "--app", "app.py", "-a", "planner", "-i", "mail=true", "--approve", "deny", code=1)
    assert "everything is denied (--approve deny)" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--max-calls", "1"), "budget of run is 1 call; 1 spent"),
        (("--max-tokens-total", "10"), "budget of run is 10 tokens"),
    ],
)
def test_a_budget_stops_the_run_and_undoes_it(cli: Cli, options: tuple[str, ...], words: str) -> None:
    done = cli("run", "x", "--app", "app.py", "-a", "planner,teller", *options, code=1)
    assert words in done.stderr
    assert set(world(cli).values()) <= {"cancelled"}


def test_a_budget_in_dollars_holds_for_priced_models(cli: Cli) -> None:
    cli.write("agenthelm.toml", "[pricing.offline]\ninput = 100.0\noutput = 100.0\n")
    done = cli("run", "x", "-a", "writer", "--budget", "0.01", code=1)
    assert "budget of run is 0.01 usd" in done.stderr


def test_a_folder_that_is_there_keeps_its_mode(cli: Cli) -> None:
    home = cli.folder / "team"
    home.mkdir()
    home.chmod(0o2775)
    cli("run", "Lisbon", "--app", "app.py", "-a", "planner", AGENTHELM_HOME="team")
    assert stat.S_IMODE(home.stat().st_mode) == 0o2775
    assert stat.S_IMODE((home / "agenthelm.db").stat().st_mode) == 0o600


def test_everything_lies_in_one_folder_that_only_its_owner_reads(cli: Cli) -> None:
    cli("run", "Lisbon", "--app", "app.py", "-a", "planner", "--session", "trip")
    home = cli.folder / ".agenthelm"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert {"agenthelm.db", "memory.db"} <= {path.name for path in home.iterdir()}
    assert stat.S_IMODE((home / "agenthelm.db").stat().st_mode) == 0o600


def test_the_storage_can_be_json_lines(cli: Cli) -> None:
    cli("run", "x", "--app", "app.py", "-a", "planner", AGENTHELM_STORAGE="log/events.jsonl")
    assert "book" in cli("traces", "list", AGENTHELM_STORAGE="log/events.jsonl").stdout


def test_a_storage_in_memory_leaves_nothing(cli: Cli) -> None:
    cli("run", "x", "-a", "writer", AGENTHELM_STORAGE="memory://", AGENTHELM_MEMORY_URL="memory://",
        AGENTHELM_VECTORS="memory://")  # fmt: skip
    assert not (cli.folder / ".agenthelm").exists()
