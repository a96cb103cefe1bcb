"""Ctrl-C once, twice, and kill -9, against real processes: what is undone, what is said, and with which code it ends."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.apps import HANGING, WORLD
from tests.support.cli import Cli, environment

RUN = ("run", "a hotel", "--app", "hanging.py", "-a", "waiter", "--model", "offline")
PLAN = ("saga", "run", "plan.yaml", "--app", "hanging.py")


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    cli = Cli(tmp_path)
    cli.write("world.py", WORLD)
    cli.write("hanging.py", HANGING)
    return cli


def world(cli: Cli) -> list[str]:
    return list(json.loads((cli.folder / "world.json").read_text()).values())


@contextmanager
def waiting(cli: Cli, *more: str, command: Sequence[str] = RUN) -> Iterator[subprocess.Popen[str]]:
    """A run that has booked and now waits in its tool."""
    process = cli.start(*command, *more)
    try:
        while not (cli.folder / "waiting").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_interrupted_run_unwinds_and_says_so(cli: Cli, number: signal.Signals, code: int) -> None:
    with waiting(cli) as process:
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == code
    assert stdout == ""
    assert "\ninterrupted: undoing what was done" in stderr
    assert "undone: book" in stderr
    assert "Traceback" not in stderr
    assert world(cli) == ["cancelled"]
    assert json.loads(cli("saga", "list", "--json").stdout)[0]["status"] == "rolled_back"


@pytest.mark.parametrize("as_document", [False, True])
def test_a_second_interrupt_ends_a_run_whose_thread_hangs_and_recover_finishes_it(cli: Cli, as_document: bool) -> None:
    more = ("--json",) if as_document else ()
    with waiting(cli, "-i", "tool=hang_in_thread", *more) as process:
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = ""
        while "interrupted" not in said:
            said += process.stderr.readline()
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "`agenthelm saga recover` finishes it" in stderr
    assert world(cli) == ["a hotel"]
    listed = json.loads(cli("saga", "list", "--json").stdout)
    assert listed[0]["open"] is True
    assert "its process is gone" in listed[0]["status"]
    if as_document:
        document = json.loads(stdout)
        assert (document["run_id"], document["status"]) == (listed[0]["run_id"], "open")
        assert (document["error"]["type"], document["exit_code"]) == ("Interrupted", 130)
    else:
        assert stdout == ""
    cli("saga", "recover", "--app", "hanging.py", code=3)  # nobody knows what the hanging tool did
    assert world(cli) == ["cancelled"]
    shown = json.loads(cli("saga", "show", "last", "--json").stdout)
    assert [(effect["tool"], effect["status"]) for effect in shown["effects"]] == [
        ("book", "undone"),
        ("hang_in_thread", "stuck"),
    ]


ENDS_AS_IT_IS_STOPPED = """
import os, signal
import anyio
from agenthelm.cli import _loop

async def work():
    stopping, told = anyio.Event(), anyio.Event()

    async def flush():
        stopping.set()
        await told.wait()

    _loop.watch().flush = flush
    _loop.watch().document = lambda code: print("another document")
    try:
        os.kill(os.getpid(), signal.SIGINT)
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            os.kill(os.getpid(), signal.SIGINT)
            await stopping.wait()
        print("the document")
        told.set()

try:
    _loop.run(work)
except _loop.Interrupted as interrupted:
    print(interrupted.code)
"""


def test_a_command_that_ends_while_a_second_interrupt_is_about_to_stop_it_prints_one_document() -> None:
    command = [sys.executable, "-c", ENDS_AS_IT_IS_STOPPED]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.stdout.split("\n"), ended.returncode) == (["the document", "130", ""], 0), ended.stderr


@pytest.mark.parametrize("command", [(*RUN, "-i", "badly=true"), PLAN])
def test_an_interrupted_run_that_can_not_be_undone_says_so_and_ends_with_3(cli: Cli, command: tuple[str, ...]) -> None:
    cli.write(
        "plan.yaml",
        "- {tool: book, arguments: {what: x}}\n- {tool: book_badly, arguments: {what: x}}\n- {tool: wait_for_ever}\n",
    )
    with waiting(cli, "--json", command=command) as process:
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=120)
    run = json.loads(cli("saga", "list", "--json").stdout)[0]
    assert run["status"] == "failed"
    assert process.returncode == 3, stderr
    assert "undone: book" in stderr
    assert re.search(r"could not be undone: book_badly \(.*the desk is closed\)", stderr)
    assert f"run {run['run_id']}" in stderr
    document = json.loads(stdout)
    assert (document["run_id"], document["status"], document["exit_code"]) == (run["run_id"], "failed", 3)
    assert [effect["tool"] for effect in document["stuck"]] == ["book_badly"]
    assert document["error"] == {"type": "Interrupted", "message": "interrupted"}


def test_an_interrupted_plan_says_what_was_undone_and_which_run_it_was(cli: Cli) -> None:
    cli.write("plan.yaml", "- {tool: book, arguments: {what: x}}\n- {tool: wait_for_ever}\n")
    with waiting(cli, command=PLAN) as process:
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 143
    assert stderr.splitlines()[-2] == "undone: book"
    assert stderr.splitlines()[-1] == f"run {json.loads(cli('saga', 'list', '--json').stdout)[0]['run_id']}"


def test_an_interrupt_while_the_command_line_is_still_being_imported_ends_it_quietly(cli: Cli) -> None:
    program = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'typer': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from agenthelm.cli.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(cli.folder), capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
    done = subprocess.run(
        [sys.executable, "-m", "agenthelm.cli", "--version"],
        env=environment(cli.folder),
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout[:10]) == (0, b"agenthelm ")


def test_a_killed_run_is_found_and_recovered(cli: Cli) -> None:
    with waiting(cli) as process:
        process.kill()
        process.wait(timeout=120)
        assert "interrupted: its process is gone" in cli("saga", "list").stdout
        done = cli("saga", "recover", "--app", "hanging.py")
    assert "undone: book" in done.stderr
    assert world(cli) == ["cancelled"]
    assert "nothing to recover" in cli("saga", "recover", "--app", "hanging.py").stderr


def test_a_killed_run_whose_process_can_not_be_seen_is_left_alone_for_now_and_that_is_said(cli: Cli) -> None:
    """As from another container."""
    with waiting(cli) as process:
        process.kill()
        process.wait(timeout=120)
    journal = sqlite3.connect(cli.folder / ".agenthelm" / "agenthelm.db")
    soon = time.time() + 3600  # however slow this machine is, that is less than a lease ago
    journal.execute("UPDATE records SET data = json_replace(data, '$.at', ?, '$.owner.boot_id', '')", (soon,))
    journal.commit()
    journal.close()
    done = cli("saga", "recover", "--app", "hanging.py")
    assert "left alone for now: 1 open run" in done.stderr
    assert "nothing to recover" not in done.stderr
    assert world(cli) == ["a hotel"]


def test_a_living_run_is_neither_recovered_nor_undone(cli: Cli) -> None:
    with waiting(cli) as process:
        assert "nothing to recover" in cli("saga", "recover", "--app", "hanging.py").stderr
        run = json.loads(cli("saga", "list", "--json").stdout)[0]["run_id"]
        done = cli("saga", "undo", run, "--app", "hanging.py", "--yes", code=1)
        assert f"is held by process {process.pid}" in done.stderr
    assert world(cli) == ["a hotel"]


def test_a_thread_that_was_let_go_does_not_keep_the_shell_waiting(cli: Cli) -> None:
    cli.write(
        "lazy.py",
        "import threading\nfrom agenthelm import tool\n\n"
        "@tool(timeout=0.1, abandonable=True)\ndef look() -> None:\n    threading.Event().wait()\n",
    )
    cli.write("look.yaml", "- {tool: look}\n")
    done = cli.process("saga", "run", "look.yaml", "--app", "lazy.py", code=1)
    assert "did not finish within its deadline of 0.1 s" in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(cli: Cli) -> None:
    cli.write("many.yaml", "\n".join(f"- {{tool: book, id: s{n}, arguments: {{what: x}}}}" for n in range(60)))
    cli("saga", "run", "many.yaml", "--app", "world.py")
    listing = cli.start("traces", "export")
    assert listing.stdout is not None
    listing.stdout.read(10)
    listing.stdout.close()
    assert listing.stderr is not None
    assert listing.stderr.read() == ""
    listing.wait(timeout=120)
    listing.stderr.close()


def test_streams_and_codes_are_those_of_a_real_process(cli: Cli) -> None:
    cli.write("trip.yaml", "- {tool: book, arguments: {what: hotel}}\n- {tool: explode}\n")
    done = cli.process("saga", "run", "trip.yaml", "--app", "world.py", "--json", code=1)
    assert json.loads(done.stdout)["status"] == "rolled_back"
    done = cli.process("run", "x", "-a", "wirter", code=2)
    assert done.stdout == ""
    assert done.stderr.startswith("error: no agent named 'wirter'")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("command", [RUN, ("tools", "list", "--app", "hanging.py")])
def test_an_interrupt_ends_a_command_whose_app_hangs_as_it_is_loaded(
    cli: Cli, command: Sequence[str], number: signal.Signals, code: int
) -> None:
    cli.write("hanging.py", "from pathlib import Path\nimport time\nPath('waiting').touch()\ntime.sleep(300)\n")
    with waiting(cli, command=command) as process:
        process.send_signal(number)
        assert process.communicate(timeout=120) == ("", "")
    assert process.returncode == code


RECOVERED = """

@tool(side_effects=["slow:write"], compensating_tool="unbook_slowly")
def book_slowly(what: str) -> dict:
    \"\"\"Book what takes its time to be cancelled.\"\"\"
    return {"what": what}


@tool
async def unbook_slowly(what: str) -> None:
    \"\"\"Takes until somebody lets it go.\"\"\"
    import anyio

    Path("waiting").touch()
    while not Path("go").exists():
        await anyio.sleep(0.01)


@tool
def die() -> None:
    \"\"\"Die at once.\"\"\"
    import os

    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("as_document", [False, True])
def test_interrupted_between_several_runs_it_ends_with_what_tells_the_worst_of_them(
    cli: Cli, as_document: bool
) -> None:
    cli.write("world.py", WORLD + RECOVERED)
    runs = []
    for name in ("book_slowly", "book_badly"):  # the latest one is recovered first
        cli.write(f"{name}.yaml", f"- {{tool: {name}, arguments: {{what: desk}}}}\n- {{tool: die}}\n")
        cli.process("saga", "run", f"{name}.yaml", "--app", "world.py", code=-9)
        runs.append(json.loads(cli("saga", "list", "--json").stdout)[0]["run_id"])
    more = ("--json",) if as_document else ()
    with waiting(cli, "--app", "world.py", *more, command=("saga", "recover")) as process:
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = ""
        while "interrupted" not in said:
            said += process.stderr.readline()
        cli.write("go", "")
        stdout, stderr = process.communicate(timeout=120)
    listed = {run["run_id"]: run["status"] for run in json.loads(cli("saga", "list", "--json").stdout)}
    assert (process.returncode, listed) == (3, {runs[0]: "rolled_back", runs[1]: "failed"})
    assert "could not be undone: book_badly (unbook failed: RuntimeError: the desk is closed)" in stderr
    assert f"`agenthelm saga show {runs[1]}` says more" in stderr
    if as_document:
        document = json.loads(stdout)
        assert (document["run_id"], document["exit_code"], len(document["stuck"])) == (runs[1], 3, 1)


def test_a_hangup_that_is_told_twice_does_not_stop_the_unwinding(cli: Cli) -> None:
    cli.write("world.py", WORLD + RECOVERED)
    cli.write("plan.yaml", "- {tool: book_slowly, arguments: {what: desk}}\n- {tool: wait_for_ever}\n")
    with waiting(cli, command=PLAN) as process:
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        said = ""
        while "interrupted" not in said:
            said += process.stderr.readline()
        process.send_signal(signal.SIGHUP)  # the kernel and the shell both do so when a terminal is closed
        cli.write("go", "")
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 129
    assert "undone: book_slowly" in stderr


def test_a_run_that_is_to_outlive_its_terminal_does(cli: Cli) -> None:
    cli.write("world.py", WORLD + RECOVERED)
    app = HANGING.replace("await anyio.sleep_forever()", "await unbook_slowly('')")
    cli.write("hanging.py", app.replace("import book,", "import unbook_slowly, book,"))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with waiting(cli) as process:
            process.send_signal(signal.SIGHUP)
            cli.write("go", "")
            _, stderr = process.communicate(timeout=120)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (process.returncode, "interrupted" in stderr) == (0, False)
    assert world(cli) == ["a hotel"]
