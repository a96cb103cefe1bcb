"""The whole way of a new user, with real parts only: processes, an HTTP model, Redis, Chroma, files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.apps import AGENTS
from tests.support.cli import Cli, environment
from tests.support.openai_server import Behaviour, OpenAIServer
from tests.support.redis_server import RedisServer


def test_a_new_project_runs_passes_its_test_and_is_taken_back(tmp_path: Path) -> None:
    Cli(tmp_path).process("init", "todo")
    project = Cli(tmp_path / "todo")
    assert "[offline placeholder: title]" in project.process("run", "buy milk", "--model", "offline").stdout
    todos = project.folder / "todos.json"
    assert list(json.loads(todos.read_text()).values()) == ["[offline placeholder: title]"]
    assert "add_todo" in project.process("traces", "show", "last").stdout
    assert "remove_todo" in project.process("describe", "secretary").stdout
    project.process("saga", "undo", "last", "--yes")
    assert json.loads(todos.read_text()) == {}
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=project.folder, env=environment(project.folder), capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert tests.returncode == 0, tests.stdout + tests.stderr
    assert "1 passed" in tests.stdout
    refused = project.process("init", code=2)
    assert "is there already, so nothing was written" in refused.stderr


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    server = RedisServer(durable=False)
    server.start()
    yield server
    server.close()


def test_a_pipeline_with_a_tool_and_memory_over_http_redis_and_chroma(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    cli = Cli(tmp_path)
    cli.write("app.py", AGENTS)
    with OpenAIServer(lambda number, body: Behaviour(fields={"findings": "Lisbon lies on the Tagus"})) as server:
        cli.write(
            "agenthelm.toml",
            f'app = "app.py"\nmodel = "gpt-test"\napi_base = "{server.base_url}"\nmemory_url = "{redis_server.url}"\n'
            '[pricing."openai/gpt-test"]\ninput = 0.001\noutput = 0.002\n',
        )
        run = (
            "run",
            "Lisbon",
            "-a",
            "researcher,planner,teller",
            "--session",
            "trip",
            "--trace",
            "spans.jsonl",
            "--json",
        )
        first = json.loads(cli.process(*run).stdout)
        again = json.loads(cli.process(*run).stdout)
        seen = server.seen
    assert set(first["result"]) >= {"findings", "sources", "city", "text"}
    assert first["usage"]["calls"] == again["usage"]["calls"] == 3
    assert [request.model for request in seen] == ["gpt-test"] * 6
    assert first["result"]["findings"] in seen[3].prompt  # the second run recalls what the first one remembered
    told = sum(request.input_tokens for request in seen), sum(request.output_tokens for request in seen)
    report = json.loads(cli.process("cost", "report", "--json").stdout)["groups"]
    assert [(g["calls"], g["input_tokens"], g["output_tokens"]) for g in report] == [(6, *told)]
    assert report[0]["cost_usd"] == round((told[0] + 2 * told[1]) / 1e6, 12)
    with redis.Redis.from_url(redis_server.url) as client:
        keys = [key.decode() for key in client.scan_iter("agenthelm:*")]
        assert len(keys) == client.dbsize() > 0
    spans = [json.loads(line) for line in (cli.folder / "spans.jsonl").read_text().splitlines()]
    names = {span["name"] for span in spans}
    assert {"invoke_agent researcher", "invoke_agent planner", "execute_tool book"} <= names
    assert first["trace_id"] in cli.process("traces", "show", first["run_id"]).stdout
    assert list((cli.folder / ".agenthelm" / "vectors").iterdir())
    cli.process("saga", "undo", first["run_id"], "--yes")
    world = list(json.loads((cli.folder / "world.json").read_text()).values())
    assert len(world) == 2
    assert world.count("cancelled") == 1
