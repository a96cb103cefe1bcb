"""Bad input and bad peers, through the real command line: one clear line, the right exit code, nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.apps import AGENTS
from tests.support.cli import Cli, environment
from tests.support.full_disk import full_disk
from tests.support.openai_server import Behaviour, OpenAIServer
from tests.support.redis_server import free_port

COUNTER = """
from agenthelm import Agent

class Counter(Agent):
    async def aforward(self, context, count: int) -> dict:
        return {"count": count + 1}
"""


ENDINGS = """
import asyncio, sys
from agenthelm import Agent, tool

class Gone(BaseException):
    pass

@tool(side_effects=["booking:write"], compensating_tool="cancel")
def book(idempotency_key: str) -> None: ...

@tool(idempotent=True)
def cancel(idempotency_key: str) -> None: ...

class Ends(Agent):
    async def aforward(self, context, task: str) -> dict:
        await self.ause("book")
        if task == "exit":
            sys.exit(7)
        if task == "gone":
            raise Gone("away")
        other = asyncio.get_running_loop().create_future()
        other.cancel()
        await other

class EndsInThread(Agent):
    def forward(self, context, task: str) -> dict:
        self.use("book")
        sys.exit(7)
"""


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    cli = Cli(tmp_path)
    cli.write("app.py", AGENTS)
    cli.write("counter.py", COUNTER)
    cli.write("endings.py", ENDINGS)
    return cli


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        yield server


def error_of(done: object) -> str:
    """The one line that begins with ``error:``."""
    (line,) = [line for line in done.lines if line.startswith("error: ")]  # type: ignore[attr-defined]
    assert "Traceback" not in done.stderr  # type: ignore[attr-defined]
    return str(line)


def run_with(cli: Cli, server: OpenAIServer, *more: str, code: int = 0) -> object:
    return cli("run", "x", "-a", "writer", "--model", "gpt-test", "--api-base", server.base_url, *more, code=code)


# -- before anything runs -----------------------------------------------------------------------------------------------


def test_neither_model_nor_key_is_said_in_three_lines(cli: Cli) -> None:
    done = cli("run", "x", "-a", "writer", code=2)
    assert len(done.lines) == 3
    assert done.lines[0].startswith("error: no language model is configured")
    assert "OPENAI_API_KEY" in done.lines[1]
    assert "--model offline" in done.lines[2]
    assert not (cli.folder / ".agenthelm").exists()


def test_a_missing_key_is_named(cli: Cli) -> None:
    done = cli("run", "x", "-a", "writer", "--model", "openai/gpt-4o-mini", code=2)
    assert "Set it: export OPENAI_API_KEY=<your key>, or point --api-base" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "x", "-a", "reseacher"), ["no agent named 'reseacher'", "Did you mean 'researcher'"]),
        (("describe", "wirter"), ["no agent named 'wirter'", "'writer'"]),
        (("run", "   ", "-a", "writer"), ["the task is empty"]),
        (("run", "", "-a", "writer"), ["the task is empty"]),
        (("run", "x"), ["say which agents", "researcher, reviewer, writer"]),
        (("run", "x", "-a", ","), ["say which agents"]),
        (("run", "x", "-a", "writer", "-i", "novalue"), ["--input takes key=value, not 'novalue'"]),
        (("run", "x", "-a", "writer", "-i", "colour=red"), ["'colour'"]),
        (("run", "x", "-a", "planner", "--app", "app.py", "-i", "mial=true"), ["'mial'", "Did you mean 'mail'"]),
        (("run", "x", "-a", "writer,counter", "--app", "counter.py"), ["counter", "'count'"]),
        (("run", "x", "-a", "writer", "--timeout", "0"), ["--timeout must be above 0"]),
        (("run", "x", "-a", "writer", "--namespace", ""), ["--namespace", "it is empty"]),
        (("run", "x", "-a", "writer", "--session", " "), ["--session", "it is empty"]),
        (("memory", "list", "--namespace", ""), ["--namespace", "it is empty"]),
        (("run", "x", "-a", "writer", "--merge", "flat"), ["--merge needs --parallel"]),
        (("run", "x", "-a", "writer", "--approve", "maybe"), ["approve must be ask, allow, deny", "maybe"]),
        (("run", "x", "-a", "writer", "--approve", "nowhere.toml"), ["nowhere.toml"]),
        (("run", "x", "-a", "writer", "--trace", "consle"), ["'consle'", "'console'"]),
        (("run", "x", "--app", "nowhere.py"), ["there is no file nowhere.py"]),
        (("run", "x", "--app", "no_such_module"), ["no_such_module"]),
        (("run", "x", "--app", "app.py:plnner"), ["app.py:plnner", "no 'plnner'"]),
        (("tools", "list", "--app", "app.py:plnner"), ["no 'plnner'"]),
        (("run", "x", "--app", "app.txt"), ["there is no module 'app.txt'"]),
        (
            ("run", "x", "-a", "writer", "--api-base", "localhost:8000"),
            ["api_base must begin with http://", "localhost"],
        ),
        (("init", "~nosuchuser/x"), ["~nosuchuser/x", "home folder"]),
        (("saga", "run", "~nosuchuser/x.yaml"), ["~nosuchuser/x.yaml", "home folder"]),
        (("traces", "export", "-o", "~nosuchuser/x.json"), ["~nosuchuser/x.json", "home folder"]),
        (("run", "x", "--app", "~nosuchuser/x.py"), ["~nosuchuser/x.py", "home folder"]),
    ],
)
def test_wrong_input_is_refused_before_anything_runs(cli: Cli, arguments: tuple[str, ...], words: list[str]) -> None:
    done = cli(*arguments, code=2, AGENTHELM_MODEL="offline")
    message = error_of(done)
    for word in words:
        assert word in message
    assert done.stdout == ""
    assert json.loads(cli("traces", "list", "--json").stdout) == []
    assert json.loads(cli("saga", "list", "--json").stdout) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import agenthelm\n\nx = 1 / 0\n", ["broken.py:3", "ZeroDivisionError: division by zero"]),
        ("def f(:\n", ["broken.py:1", "SyntaxError"]),
        ("import no_such_thing\n", ["broken.py:1", "no_such_thing"]),
        ("from agenthelm import tool\n\n@tool(retries=-1)\ndef f() -> None: ...\n", ["broken.py", "retries"]),
        ("x = 1\n", ["broken.py holds no agents"]),
    ],
)
def test_an_app_that_does_not_load_names_its_file_and_line(cli: Cli, text: str, words: list[str]) -> None:
    cli.write("broken.py", text)
    message = error_of(cli("run", "x", "--app", "broken.py", code=2, AGENTHELM_MODEL="offline"))
    for word in words:
        assert word in message


@pytest.mark.parametrize("command", ["list-agents", "describe app", "tools list", "saga recover", "run x -a app"])
def test_no_command_performs_a_program_that_runs_itself_when_it_is_loaded(cli: Cli, command: str) -> None:
    cli.write(
        "app.py",
        "from pathlib import Path\n\nimport anyio\n\n\nasync def main() -> None:\n    Path('booked').touch()\n\n\nanyio.run(main)\n",
    )
    message = error_of(cli(*command.split(), "--app", "app.py", code=2, AGENTHELM_MODEL="offline"))
    assert "app.py:10" in message
    assert "if __name__ == '__main__':" in message
    assert not (cli.folder / "booked").exists()


def test_an_app_of_tools_only_leaves_the_built_in_agents(cli: Cli) -> None:
    cli.write("app.py", "from agenthelm import tool\n\n\n@tool\ndef book() -> None: ...\n")
    assert "writer" in cli("list-agents", "--app", "app.py").stdout
    assert "writer" in cli("describe", "writer", "--app", "app.py").stdout
    message = error_of(cli("run", "x", "--app", "app.py", code=2, AGENTHELM_MODEL="offline"))
    assert message.startswith("error: say which agents to run")


def test_an_unknown_setting_is_refused_everywhere(cli: Cli) -> None:
    cli.write("agenthelm.toml", 'modle = "x"\n')
    for command in ("list-agents", "traces list", "doctor", "memory stats"):
        message = error_of(cli(*command.split(), code=2))
        assert message == "error: unknown setting 'modle' in agenthelm.toml. Did you mean 'model'?"
    (cli.folder / "agenthelm.toml").unlink()
    message = error_of(cli("list-agents", code=2, AGENTHELM_MODLE="x"))
    assert message == "error: unknown setting AGENTHELM_MODLE in the environment. Did you mean 'AGENTHELM_MODEL'?"


def test_a_way_of_merging_that_there_is_not_is_named_as_it_was_typed(cli: Cli) -> None:
    run = ("run", "x", "-a", "writer,researcher", "--parallel", "--model", "offline", "--merge", "flta")
    message = error_of(cli(*run, code=2))
    assert message == "error: --merge must be one of dict, flat, list, not 'flta'. Did you mean 'flat'?"


def test_a_folder_that_can_not_be_made_is_one_line(cli: Cli) -> None:
    cli.write("file", "")
    done = cli("run", "x", "-a", "writer", "--model", "offline", code=1, AGENTHELM_HOME="file/helm")
    assert "can't make the folder file/helm: Not a directory" in error_of(done)
    assert "disk" in cli("doctor", "--model", "offline", code=1, AGENTHELM_HOME="file/helm").stdout


def test_a_storage_that_is_something_else_is_one_line(cli: Cli) -> None:
    cli.write("notes.db", "these are my notes, not a database, whatever their name says\n" * 20)
    done = cli(
        "run", "x", "--app", "app.py", "-a", "planner", "--model", "offline", code=1, AGENTHELM_STORAGE="notes.db"
    )
    assert "notes.db" in error_of(done)
    assert not (cli.folder / "world.json").exists()
    assert (cli.folder / "notes.db").read_text().startswith("these are my notes")


def test_a_folder_and_nothing_are_no_storage(cli: Cli) -> None:
    (cli.folder / "logs").mkdir()
    assert "logs: it is a folder; name a file" in error_of(cli("saga", "list", code=1, AGENTHELM_STORAGE="logs"))
    assert "'sqlite:///' names no file" in error_of(cli("saga", "list", code=2, AGENTHELM_STORAGE="sqlite:///"))


def test_an_address_says_what_a_storage_is_whatever_the_file_s_suffix(cli: Cli) -> None:
    run = ("run", "x", "--app", "app.py", "-a", "planner", "--model", "offline")
    cli(*run, AGENTHELM_STORAGE="sqlite:///log.jsonl")
    cli(*run, AGENTHELM_STORAGE="json:///log.db")
    assert (cli.folder / "log.jsonl").read_bytes().startswith(b"SQLite format 3")
    assert (cli.folder / "log.db").read_bytes().startswith(b"{")


def test_unknown_storage_and_memory_addresses_are_refused(cli: Cli) -> None:
    run = ("run", "x", "-a", "writer", "--model", "offline")
    assert "postgres://x" in error_of(cli(*run, code=2, AGENTHELM_STORAGE="postgres://x"))
    assert "mongodb://x" in error_of(cli(*run, code=2, AGENTHELM_MEMORY_URL="mongodb://x"))


def test_unreadable_lines_of_a_log_are_left_out_and_counted(cli: Cli) -> None:
    storage = {"AGENTHELM_STORAGE": "events.jsonl"}
    cli("run", "x", "--app", "app.py", "-a", "planner", "--model", "offline", **storage)
    before = json.loads(cli("traces", "list", "--json", **storage).stdout)
    (events,) = [
        path
        for path in cli.folder.rglob("*")
        if path.is_file() and '"tool_name"' in path.read_text(errors="replace") and path.suffix != ".py"
    ]
    lines = events.read_text().splitlines()
    events.write_text("\n".join([lines[0], "{not json", *lines[1:]]) + "\n")
    done = cli("traces", "list", "--json", **storage)
    assert len(json.loads(done.stdout)) == len(before)
    assert "left out: 1 unreadable record\n" in done.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        '"execution_time": "abc"', '"execution_time": 1e999', '"execution_time": NaN', '"estimated_cost_usd": [1]',
        '"inputs": "none"', '"outputs": [1]', '"token_usage": 5',
    ],
)  # fmt: skip
def test_an_event_of_a_wrong_shape_is_left_out_and_counted(cli: Cli, wrong: str) -> None:
    storage = {"AGENTHELM_STORAGE": "events.jsonl"}
    cli("run", "x", "--app", "app.py", "-a", "planner", "--model", "offline", **storage)
    calls = json.loads(cli("traces", "list", "--json", **storage).stdout)
    log = cli.folder / "events.jsonl"
    lines = log.read_text().splitlines()
    number, event = next((n, line) for n, line in enumerate(lines) if '"tool_name"' in line)
    name = wrong.partition(":")[0]
    assert name in event
    at = event.index(name)
    wrong_event = event[:at] + wrong + ', "was' + event[at + 1 :]
    log.write_text("\n".join([*lines[:number], wrong_event, *lines[number + 1 :]]) + "\n")
    for command in ("list", "stats", "export", "show last"):
        done = cli("traces", *command.split(), **storage)
        assert "left out: 1 unreadable record\n" in done.stderr, command
        assert done.stdout
    assert "left out: 1 unreadable record\n" in cli("cost", "report", **storage).stderr
    assert len(json.loads(cli("traces", "list", "--json", **storage).stdout)) == len(calls) - 1


# -- the terminal -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_of_any_encoding_is_printed_to(cli: Cli, encoding: str) -> None:
    cli.write("trip.yaml", "- {tool: book, arguments: {what: größer 漢字 🎉}}\n")
    cli("saga", "run", "trip.yaml", "--app", "app.py")
    for command in ("traces show last", "traces list", "traces list --json", "traces export -f csv", "saga show last"):
        done = subprocess.run(
            [sys.executable, "-m", "agenthelm.cli.main", *command.split()],
            check=False,
            cwd=cli.folder,
            env=environment(cli.folder, {"PYTHONIOENCODING": encoding}),
            capture_output=True,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, b""), command
        printed = done.stdout.decode(encoding)
        if command in ("traces show last", "traces list --json"):
            assert ("漢字" if encoding == "utf-8" else "\\u6f22\\u5b57") in printed


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize(
    "command", ["traces list --json", "traces export", "memory get k --json", "memory list --json"]
)
def test_json_is_json_in_every_encoding(cli: Cli, encoding: str, command: str) -> None:
    said = "größer 漢字 🎉"
    cli.write("trip.yaml", f"- {{tool: book, arguments: {{what: {said}}}}}\n")
    cli("saga", "run", "trip.yaml", "--app", "app.py")
    cli("memory", "set", "k", said)
    done = subprocess.run(
        [sys.executable, "-m", "agenthelm.cli.main", *command.split()],
        check=True,
        cwd=cli.folder,
        env=environment(cli.folder, {"PYTHONIOENCODING": encoding}),
        capture_output=True,
        timeout=120,
    )
    assert said in json.dumps(json.loads(done.stdout.decode(encoding)), ensure_ascii=False)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_is_not_printed_to(cli: Cli, closed: str) -> None:
    cli.write("trip.yaml", "- {tool: book, arguments: {what: x}}\n")
    cli("saga", "run", "trip.yaml", "--app", "app.py")
    for command, code in (("traces list", 0), ("saga list --json", 0), ("traces show nowhere", 2)):
        done = subprocess.run(
            ["sh", "-c", f"exec {sys.executable} -m agenthelm.cli.main {command} {closed}"],
            check=False,
            cwd=cli.folder,
            env=environment(cli.folder),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, command
        assert "Traceback" not in done.stderr
        assert bool(done.stdout) is (code == 0 and closed.split()[0] != ">&-" and " >&-" not in closed)


@pytest.mark.parametrize("command", ["list-agents --json", "doctor --json", "list-agents", "doctor"])
def test_a_result_that_finds_no_room_is_one_line(cli: Cli, command: str) -> None:
    with full_disk().open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "agenthelm.cli.main", *command.split()],
            check=False,
            cwd=cli.folder,
            env=environment(cli.folder),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    assert (done.returncode, done.stderr) == (1, "error: OSError: [Errno 28] No space left on device\n")


# -- the model's endpoint -----------------------------------------------------------------------------------------------


def test_a_real_server_is_asked_by_its_own_name(cli: Cli, server: OpenAIServer) -> None:
    done = cli(
        "run", "x", "-a", "researcher,writer,reviewer", "--model", "gpt-test", "--api-base", server.base_url, "--json"
    )
    usage = json.loads(done.stdout)["usage"]
    assert [seen.model for seen in server.seen] == ["gpt-test"] * 3
    assert usage["calls"] == 3
    assert usage["input_tokens"] == sum(seen.input_tokens for seen in server.seen)
    assert usage["output_tokens"] == sum(seen.output_tokens for seen in server.seen)


@pytest.mark.parametrize("status", [429, 500])
def test_a_server_that_recovers_is_asked_again(cli: Cli, server: OpenAIServer, status: int) -> None:
    server.script = [Behaviour("status", status=status, retry_after=0.01)]
    done = run_with(cli, server, "--json")
    assert server.asked == 2
    assert json.loads(done.stdout)["usage"]["failed_calls"] == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("status", [429, 500])
def test_a_server_that_stays_down_is_one_line_after_its_retries(cli: Cli, server: OpenAIServer, status: int) -> None:
    server.script = lambda number, body: Behaviour("status", status=status, retry_after=0.01)
    done = run_with(cli, server, code=1)
    message = error_of(done)
    assert "after 3 attempts" in message
    assert f"HTTP {status}" in message
    assert server.asked == 3


def test_a_dead_endpoint_is_one_line(cli: Cli) -> None:
    port = free_port()
    done = cli("run", "x", "-a", "writer", "--model", "m", "--api-base", f"http://127.0.0.1:{port}/v1", code=1)
    assert "failed to connect to 127.0.0.1" in error_of(done)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (Behaviour("prose"), "can't be read as"),
        (Behaviour("not_json"), "is not JSON"),
        (Behaviour("refuse_key"), "HTTP 401"),
    ],
)
def test_answers_that_are_none_are_one_line(cli: Cli, server: OpenAIServer, how: Behaviour, words: str) -> None:
    server.script = lambda number, body: how
    assert words in error_of(run_with(cli, server, code=1))


def test_a_model_that_does_not_answer_meets_the_runs_deadline(cli: Cli, server: OpenAIServer) -> None:
    server.script = lambda number, body: Behaviour("hang")
    done = run_with(cli, server, "--timeout", "0.3", code=1)
    assert "the run did not finish within 0.3 s" in error_of(done)


def test_a_model_that_does_not_answer_meets_its_own_deadline(cli: Cli, server: OpenAIServer) -> None:
    server.script = lambda number, body: Behaviour("hang")
    cli.write("agenthelm.toml", "lm_timeout = 0.2\n")
    message = error_of(run_with(cli, server, code=1))
    assert "gpt-test" in message


def test_a_key_is_never_printed(cli: Cli, server: OpenAIServer) -> None:
    server.script = lambda number, body: Behaviour("refuse_key")
    done = cli(
        "run", "x", "-a", "writer", "--model", "openai/gpt-test", "--api-base", server.base_url, "-vv", "--debug",
        code=1, OPENAI_API_KEY="sk-secret-0123456789abcdef",
    )  # fmt: skip
    assert "0123456789abcdef" not in done.stdout + done.stderr


def test_a_model_that_a_key_picks_is_named(cli: Cli, server: OpenAIServer) -> None:
    done = cli("run", "x", "-a", "writer", "--api-base", server.base_url, OPENAI_API_KEY="sk-test")
    assert "picked by OPENAI_API_KEY" in done.stderr
    assert server.asked == 1


# -- secrets -----------------------------------------------------------------------------------------------------------

GUARDED = """
from typing import Annotated

from pydantic import AfterValidator, SecretStr

from agenthelm import Agent, Redacted, tool

PASSWORD = "correct horse battery staple"


def check(value):
    raise ValueError(f"{value} is too weak")


@tool
def validated(password: Annotated[str, Redacted, AfterValidator(check)]) -> None: ...


@tool
def noted(password: SecretStr) -> None:
    error = ValueError("denied")
    error.add_note(f"sent {password.get_secret_value()}")
    raise error


@tool
def quoted(password: SecretStr) -> None:
    raise ExceptionGroup(f"with {password.get_secret_value()}", [ValueError(password.get_secret_value()), OSError("b")])


class Caller(Agent):
    async def aforward(self, context, task: str) -> dict:
        await self.ause(task, password=PASSWORD)
        return {}
"""


@pytest.mark.parametrize("json", [(), ("--json",)])
@pytest.mark.parametrize(
    ("tool", "words"),
    [("validated", "*** is too weak"), ("noted", "sent ***"), ("quoted", "with ***: ValueError: ***")],
)
def test_an_error_is_printed_without_the_secret_that_it_quotes(
    cli: Cli, tool: str, words: str, json: tuple[str, ...]
) -> None:
    cli.write("guarded.py", GUARDED)
    done = cli("run", tool, "-a", "caller", "--app", "guarded.py", "--model", "offline", *json, code=1)
    assert "correct horse" not in done.stdout + done.stderr
    assert words in (done.stderr if not json or tool == "noted" else done.stdout)


QUOTING = """
from agenthelm import Agent, tool

SPOKEN = "POST https://ann:hunter2-a@api.pay/v1?api_key=hunter2-b with Bearer hunter2-c by app:hunter2-d@db:5432"


@tool(side_effects=["desk:write"], compensating_tool="close")
def open_desk() -> None: ...


@tool(idempotent=True)
def close() -> None:
    raise OSError(SPOKEN)


@tool
def pay() -> None:
    raise ValueError(SPOKEN)


class Payer(Agent):
    async def aforward(self, context, task: str) -> dict:
        await self.ause("open_desk")
        await self.ause("pay")
        return {}
"""


@pytest.mark.parametrize("as_json", [(), ("--json",)])
@pytest.mark.parametrize("debug", [(), ("--debug",)])
def test_a_secret_in_an_error_s_own_words_is_printed_nowhere(
    cli: Cli, as_json: tuple[str, ...], debug: tuple[str, ...]
) -> None:
    cli.write("quoting.py", QUOTING)
    cli.write("plan.yaml", "- {tool: open_desk}\n- {tool: pay}\n")
    cli.write("going_on.yaml", "- {tool: pay}\n")
    app = ("--app", "quoting.py", *as_json, *debug)
    said = [
        cli("run", "x", "-a", "payer", "--model", "offline", *app, code=3),
        cli("saga", "run", "plan.yaml", *app, code=3),
        cli("saga", "run", "going_on.yaml", "--on-error", "continue", *app),
        *(cli("saga", "show", run, *as_json) for run in runs(cli)[1:]),
        *(cli("saga", "retry", run, *app, code=3) for run in runs(cli)[1:]),
    ]
    for done in said:
        assert "hunter2" not in done.stdout + done.stderr
    assert sum("Bearer ***" in done.stdout + done.stderr for done in said) == len(said)


def runs(cli: Cli) -> list[str]:
    return [run["run_id"] for run in json.loads(cli("saga", "list", "--json").stdout)]


@pytest.mark.parametrize(
    ("agent", "task", "kind", "said"),
    [
        ("ends", "exit", "SystemExit", "SystemExit: 7 (endings.py:18)"),
        ("ends_in_thread", "exit", "SystemExit", "SystemExit: 7 (endings.py:28)"),
        ("ends", "gone", "Gone", "Gone: away (endings.py:20)"),
        ("ends", "cancelled", "CancelledError", "cancelled (endings.py:23)"),
    ],
)
def test_an_agent_that_ends_by_no_ordinary_error_fails_in_one_line_too(
    cli: Cli, agent: str, task: str, kind: str, said: str
) -> None:
    run = ("run", task, "--app", "endings.py", "-a", agent, "--model", "offline")
    done = cli.process(*run, code=1)
    assert error_of(done) == f"error: {said}"
    assert "undone: book" in done.lines
    done = cli.process(*run, "--json", code=1)
    document = json.loads(done.stdout)
    assert (document["error"], document["exit_code"]) == ({"type": kind, "message": said}, 1)
    assert document["run_id"]
    assert document["status"] == "rolled_back"
