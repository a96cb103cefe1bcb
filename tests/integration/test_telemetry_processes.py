"""What another process undoes or resumes links to the trace of the run it continues; both are read from files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import os, signal, sys
import anyio
from agenthelm import AgentHelmTracer, Orchestrator, SqliteStorage, Step, ToolRegistry, saga, tool
from agenthelm.tracing.setup import configure

tools = ToolRegistry()

@tool(compensating_tool="cancel", side_effects=["booking:write"], idempotent=True, registry=tools)
async def book(what: str, idempotency_key: str) -> str:
    if what == "hotel" and sys.argv[1] in ("die", "block"):
        os.kill(os.getpid(), signal.SIGKILL)
    return what

@tool(idempotent=True, registry=tools)
async def cancel(idempotency_key: str) -> None:
    pass

async def main():
    if sys.argv[1] == "block":
        with AgentHelmTracer().trace_agent("host"):
            async with saga("trip", tools=tools, storage=SqliteStorage("log.db")) as scope:
                await scope.use("book", what="flight")
                await scope.use("book", what="hotel")
    async with Orchestrator(tools=tools, storage=SqliteStorage("log.db")) as orchestrator:
        if sys.argv[1] == "die":
            await orchestrator.run_saga([Step("book", {"what": what}, id=what) for what in ("flight", "hotel")], name="trip")
        else:
            print([result.status for result in await orchestrator.recover(resume=sys.argv[1] == "resume")])

with configure(f"{sys.argv[1]}.jsonl"):
    anyio.run(main)
"""


def _spans(folder: Path, what: str, code: int = 0) -> list[dict[str, Any]]:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, what],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == code, ran.stderr
    return [json.loads(line) for line in (folder / f"{what}.jsonl").read_text("utf-8").splitlines()]


def _links(span: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (link["context"]["trace_id"], link["context"]["span_id"], link["attributes"]["agenthelm.link"])
        for link in span["links"]
    ]


@pytest.fixture
def booked(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a run that was killed, and the one span that it finished."""
    (flight,) = _spans(tmp_path, "die", code=-signal.SIGKILL)
    assert flight["name"] == "execute_tool book"
    return tmp_path, flight


def test_an_undo_in_another_process_links_to_the_run_and_each_compensation_to_its_call(
    booked: tuple[Path, dict[str, Any]],
) -> None:
    folder, flight = booked
    first, second, undo = _spans(folder, "undo")
    assert undo["name"] == "invoke_workflow undo trip"
    assert undo["attributes"]["agenthelm.saga.status"] == "rolled_back"
    assert undo["context"]["trace_id"] != flight["context"]["trace_id"]
    assert _links(undo) == [(flight["context"]["trace_id"], flight["parent_id"], "continues")]
    assert {span["name"] for span in (first, second)} == {"execute_tool cancel"}
    assert {span["parent_id"] for span in (first, second)} == {undo["context"]["span_id"]}
    # Last first: the hotel's call was cut off by the kill, its span is known from the journal alone.
    assert _links(second) == [(flight["context"]["trace_id"], flight["context"]["span_id"], "undoes")]
    ((trace, _, kind),) = _links(first)
    assert (trace, kind) == (flight["context"]["trace_id"], "undoes")


def test_an_undo_of_a_saga_block_links_to_the_span_that_the_block_stood_in(tmp_path: Path) -> None:
    (flight,) = _spans(tmp_path, "block", code=-signal.SIGKILL)
    host = (flight["context"]["trace_id"], flight["parent_id"])
    assert host[1] is not None
    *cancels, undo = _spans(tmp_path, "undo")
    assert _links(undo) == [(*host, "continues")]
    assert _links(cancels[-1]) == [(flight["context"]["trace_id"], flight["context"]["span_id"], "undoes")]


def test_a_run_that_is_resumed_in_another_process_links_to_its_first_trace(
    booked: tuple[Path, dict[str, Any]],
) -> None:
    folder, flight = booked
    hotel, resumed = _spans(folder, "resume")
    assert (hotel["name"], resumed["name"]) == ("execute_tool book", "invoke_workflow trip")
    assert hotel["parent_id"] == resumed["context"]["span_id"]
    assert resumed["attributes"]["agenthelm.saga.status"] == "success"
    assert resumed["attributes"]["agenthelm.run.id"] == flight["attributes"]["agenthelm.run.id"]
    assert _links(resumed) == [(flight["context"]["trace_id"], flight["parent_id"], "continues")]
