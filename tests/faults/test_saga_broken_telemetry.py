"""Telemetry is never a source of truth: what breaks in it changes neither what a run does nor what is undone."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.metrics import Meter, NoOpHistogram, NoOpMeter, NoOpMeterProvider
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler, SamplingResult

from agenthelm.core.tool import ToolRegistry
from agenthelm.orchestration.orchestrator import Orchestrator
from agenthelm.orchestration.saga import Step
from agenthelm.tracing import names, site
from agenthelm.tracing.providers import use_providers
from tests.support.apps import WORLD
from tests.support.cli import Cli, environment
from tests.support.full_disk import full_disk
from tests.support.making import making_and_failing

MOMENTS = [
    (when, span)
    for when in ("start", "end", "sample", "measure")
    for span in ("execute_tool make", "execute_tool unmake", "execute_tool fail", "invoke_workflow")
]


class Broken(SpanProcessor, Sampler):
    """Fails at one moment of the spans with one name."""

    def __init__(self, when: str, span: str) -> None:
        self.when, self.span = when, span

    def fail(self, when: str, name: str) -> None:
        if when == self.when and name.startswith(self.span):
            raise RuntimeError(f"broken at the {when} of {name}")

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.fail("start", span.name)

    def on_end(self, span: Any) -> None:
        self.fail("end", span.name)

    def should_sample(self, parent_context: Any, trace_id: int, name: str, *args: Any, **kwargs: Any) -> SamplingResult:
        self.fail("sample", name)
        return ALWAYS_ON.should_sample(parent_context, trace_id, name, *args, **kwargs)

    def get_description(self) -> str:
        return "broken"


class BrokenMeters(NoOpMeterProvider):
    """Measurements that fail at the same moment."""

    def __init__(self, fault: Broken) -> None:
        self.fault = fault

    def get_meter(self, name: str, *args: Any, **kwargs: Any) -> Meter:
        fault = self.fault

        class Histogram(NoOpHistogram):
            def record(self, amount: float, attributes: Any = None, context: Any = None) -> None:
                fault.fail("measure", f"{attributes[names.OPERATION_NAME]} {attributes.get(names.TOOL_NAME)}")

        class BrokenMeter(NoOpMeter):
            def create_histogram(self, name: str, *args: Any, **kwargs: Any) -> Histogram:
                return Histogram(name)

        return BrokenMeter(name)


@contextmanager
def broken(when: str, span: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fault = Broken(when, span)
    tracers = TracerProvider(sampler=fault, shutdown_on_exit=False)
    tracers.add_span_processor(fault)
    monkeypatch.setattr(site, "_lost_some", False)
    use_providers(tracers, BrokenMeters(fault))
    try:
        yield
    finally:
        use_providers()


@pytest.fixture
def world() -> list[str]:
    return []


@pytest.fixture
def tools(world: list[str]) -> ToolRegistry:
    return making_and_failing(world)


@pytest.mark.parametrize(("when", "span"), MOMENTS)
async def test_a_run_is_undone_though_its_telemetry_fails(
    tools: ToolRegistry, world: list[str], monkeypatch: pytest.MonkeyPatch, when: str, span: str
) -> None:
    with broken(when, span, monkeypatch):
        result = await Orchestrator(tools=tools).run_saga([Step("make", {"name": "a"}), Step("fail")])
    assert (result.status, result.error, result.stuck, world) == ("rolled_back", "ValueError: no", (), [])


@pytest.mark.parametrize(("when", "span"), MOMENTS)
async def test_a_run_that_went_well_stands_though_its_telemetry_fails(
    tools: ToolRegistry,
    world: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    when: str,
    span: str,
) -> None:
    caplog.set_level(logging.WARNING, "agenthelm")
    with broken(when, span, monkeypatch):
        steps = [Step("make", {"name": name}, id=name) for name in "ab"]
        result = await Orchestrator(tools=tools).run_saga(steps)
    assert (result.status, result.error, world) == ("success", None, ["a", "b"])
    heard = span in ("execute_tool make", "invoke_workflow")
    assert [record.getMessage().partition(" of ")[0] for record in caplog.records] == (
        [f"telemetry failed and is lost, the run is not affected: RuntimeError: broken at the {when}"] if heard else []
    )


# -- the command line ---------------------------------------------------------------------------------------------------


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    cli = Cli(tmp_path)
    cli.write("world.py", WORLD)
    cli.write("plan.yaml", "- {tool: book, arguments: {what: flight}}\n")
    cli.write("failing.yaml", "- {tool: book, arguments: {what: flight}}\n- {tool: explode}\n")
    return cli


def _unheard(cli: Cli, *arguments: str, **env: str) -> tuple[int, str]:
    """Run a command whose standard error nobody reads."""
    reader, stderr = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "agenthelm.cli.main", *arguments],
            check=False, cwd=cli.folder, env=environment(cli.folder, env), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=120,
        )  # fmt: skip
    finally:
        os.close(stderr)
    return done.returncode, done.stdout


@pytest.mark.parametrize("trace", ["", "console"])
def test_a_command_whose_stderr_nobody_reads_does_what_it_does(cli: Cli, trace: str) -> None:
    env = {"AGENTHELM_TRACE": trace} if trace else {}
    code, stdout = _unheard(cli, "saga", "run", "plan.yaml", "--app", "world.py", "--json", **env)
    run = json.loads(stdout)
    assert (code, run["status"]) == (0, "success")
    code, stdout = _unheard(cli, "saga", "run", "plan.yaml", "--app", "world.py", **env)
    assert (code, stdout) == (0, 'book: {"what": "flight"}\n')
    code, stdout = _unheard(cli, "saga", "undo", run["run_id"], "--app", "world.py", "--json", "--yes", **env)
    assert (code, json.loads(stdout)["status"]) == (0, "rolled_back")
    code, stdout = _unheard(cli, "saga", "run", "failing.yaml", "--app", "world.py", "--json", **env)
    assert (code, json.loads(stdout)["status"]) == (1, "rolled_back")
    assert _unheard(cli, "saga", "show", "nowhere", **env) == (2, "")
    assert _unheard(cli, "saga", "no-such-command", **env) == (2, "")


def test_a_trace_that_the_disk_has_no_room_for_costs_one_warning(cli: Cli) -> None:
    (cli.folder / "full.jsonl").symlink_to(full_disk())
    done = cli.process("saga", "run", "plan.yaml", "--app", "world.py", "--json", "--trace", "full.jsonl")
    assert json.loads(done.stdout)["status"] == "success"
    assert [line for line in done.lines if not line.strip()[0].isdigit() and not line.startswith("run ")] == [
        "warning: traces can't be written to full.jsonl any more; the run is not affected: No space left on device"
    ]
