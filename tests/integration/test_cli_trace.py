"""``--trace``, ``AGENTHELM_TRACE`` and ``-v``: what a person sees, and that nothing is lost however the command ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.apps import AGENTS, HANGING, WORLD
from tests.support.cli import Cli
from tests.support.otlp_collector import Collector, attributes_of, otlp_collector

RUN = ("run", "Lisbon", "--app", "app.py", "-a", "planner", "--model", "offline", "-q")
HANG = ("run", "a hotel", "--app", "hanging.py", "-a", "waiter", "--model", "offline")


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    cli = Cli(tmp_path)
    cli.write("app.py", AGENTS)
    cli.write("world.py", WORLD)
    cli.write("hanging.py", HANGING)
    return cli


@pytest.fixture
def collector() -> Iterator[Collector]:
    with otlp_collector() as server:
        yield server


@pytest.mark.parametrize("setting", [{"NEXUS_TRACE": "true"}, {"AGENTHELM_TRACE": "console"}])
def test_a_run_is_a_tree_on_stderr_and_the_result_alone_on_stdout(cli: Cli, setting: dict[str, str]) -> None:
    done = cli(*RUN, "--json", **setting)
    run = json.loads(done.stdout)
    tree = re.sub(r"[\d.]+ (µs|ms|s)\b", "TIME", done.stderr)
    assert [line.strip().split("  ")[0] for line in tree.splitlines() if "invoke" in line or "──" in line] == [
        "invoke_workflow planner", "└── invoke_agent planner", "├── chat offline", "├── execute_tool book", "└── upsert_memory",
    ]  # fmt: skip
    assert f"trace {run['trace_id']}  run {run['run_id']}" in done.stderr
    assert run["trace_id"] in cli("traces", "show", run["run_id"]).stdout
    assert run["trace_id"] in cli("saga", "show", run["run_id"]).stdout


def test_a_long_line_is_not_wrapped_where_there_is_no_terminal(cli: Cli) -> None:
    done = cli.process(*RUN, "-i", f"fail=no wind in the sails {'x' * 100}", "--trace", "console", code=1)
    (failed,) = [line for line in done.stderr.splitlines() if "invoke_agent" in line]
    assert failed.endswith("xxx")
    assert "RuntimeError: no wind in the sails" in failed
    (run,) = [line for line in done.stderr.splitlines() if line.startswith("invoke_workflow")]
    assert "rolled_back" in run


def test_the_command_line_goes_over_the_environment(cli: Cli) -> None:
    done = cli(*RUN, "--trace", "spans.jsonl", AGENTHELM_TRACE="console")
    assert "invoke_agent" not in done.stderr
    assert "invoke_agent planner" in (cli.folder / "spans.jsonl").read_text()


def test_a_failed_run_s_trace_is_delivered(cli: Cli, collector: Collector) -> None:
    cli.process(*RUN, "-i", "fail=no wind", code=1, AGENTHELM_TRACE="otlp", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    run = attributes_of(collector.spans()["invoke_workflow planner"])
    assert (run["agenthelm.saga.status"], run["error.type"]) == ("rolled_back", "RuntimeError")
    assert collector.spans()["execute_tool cancel"].links[0].span_id == collector.spans()["execute_tool book"].span_id


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_delivers_what_there_is(cli: Cli, collector: Collector, times: int) -> None:
    tool = () if times == 1 else ("-i", "tool=hang_in_thread")
    process = cli.start(*HANG, *tool, AGENTHELM_TRACE="otlp", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    try:
        while not (cli.folder / "waiting").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        if times == 2:
            assert process.stderr is not None
            while "interrupted" not in process.stderr.readline():
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert "execute_tool book" in collector.spans()
    if times == 1:
        assert attributes_of(collector.spans()["invoke_workflow waiter"])["agenthelm.saga.status"] == "rolled_back"


def test_an_unreachable_collector_is_one_warning_of_a_run_that_is_fine(cli: Cli) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
        done = cli.process(*RUN, "--trace", "otlp", OTEL_EXPORTER_OTLP_ENDPOINT=nowhere)
    assert [line for line in done.stderr.splitlines() if "warning" in line] == [
        f"warning: telemetry could not be delivered to {nowhere}/v1/traces and is lost; the run is not affected"
    ]


def test_v_tells_of_runs_and_vv_of_every_call(cli: Cli) -> None:
    quiet, verbose, chatty = (cli.process(*RUN, *more).stderr for more in ((), ("-v",), ("-vv",)))
    assert "agenthelm." not in quiet
    assert re.search(r"^info: agenthelm\.orchestration\.scope: run \S+ ended: success$", verbose, re.MULTILINE)
    assert "debug" not in verbose
    assert re.search(r"^debug: agenthelm\.core\.executor: tool book: success \(call \S+\)$", chatty, re.MULTILINE)
    assert re.search(
        r"^debug: agenthelm\.agent\.lm_call: model offline\S*: success \(call \S+\)$", chatty, re.MULTILINE
    )
