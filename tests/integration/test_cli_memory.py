"""Memory through the command line where it takes more than files: a Redis server, and an embedder to be downloaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.apps import AGENTS
from tests.support.cli import Cli
from tests.support.minilm import served
from tests.support.redis_server import RedisServer

REMEMBERING = (
    AGENTS
    + '''

class Rememberer(Agent):
    """Knows what the session asked before."""

    async def aforward(self, context, task: str) -> dict:
        before = await context.read("before", [])
        await context.write("before", [*before, task])
        await context.set_shared("last", task)
        await context.remember(task)
        return {"text": f"before {task}: {before}"}
'''
)


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    cli = Cli(tmp_path)
    cli.env.update(AGENTHELM_MODEL="offline", AGENTHELM_APP="app.py")
    cli.write("app.py", REMEMBERING)
    return cli


@pytest.fixture
def server() -> Iterator[RedisServer]:
    server = RedisServer(durable=False)
    server.start()
    yield server
    server.close()


def test_sessions_continue_over_processes_on_redis_under_our_keys_only(cli: Cli, server: RedisServer) -> None:
    cli.env["AGENTHELM_MEMORY_URL"] = server.url
    run = ("-a", "rememberer", "--quiet", "--session")
    assert cli.process("run", "Lisbon", *run, "trip").stdout == "before Lisbon: []\n"
    assert cli.process("run", "Porto", *run, "trip").stdout == "before Porto: ['Lisbon']\n"
    assert cli("run", "Faro", *run, "other").stdout == "before Faro: []\n"
    assert cli("run", "Evora", *run, "trip", "--namespace", "acme").stdout == "before Evora: []\n"
    assert json.loads(cli("memory", "get", "before", "--session", "trip").stdout) == ["Lisbon", "Porto"]
    assert cli("memory", "get", "last").stdout == "Faro\n"
    assert json.loads(cli("memory", "stats", "--json").stdout)["sessions"] == {"other": 1, "trip": 1}
    with redis.Redis.from_url(server.url) as client:
        keys = {key.decode() for key in client.scan_iter("*")}
    assert keys == {
        "agenthelm:s:default:trip:before",
        "agenthelm:s:default:other:before",
        "agenthelm:s:acme:trip:before",
        "agenthelm:n:default:last",
        "agenthelm:n:acme:last",
    }


def test_the_researchers_findings_are_in_redis_and_a_dead_redis_is_one_line(cli: Cli, server: RedisServer) -> None:
    cli.env["AGENTHELM_MEMORY_URL"] = server.url
    run = ("run", "Research quantum computing", "--agents", "researcher", "--quiet", "--session", "s")
    cli(*run)
    with redis.Redis.from_url(server.url) as client:
        assert list(client.scan_iter("agenthelm:*")) == [b"agenthelm:s:default:s:latest_research"]
    assert cli("memory", "get", "latest_research", "--session", "s").stdout == "[offline placeholder: findings]\n"
    server.kill()
    done = cli(*run, code=1)
    (line,) = [line for line in done.lines if line.startswith("error: ")]
    assert str(server.port) in line
    assert "Traceback" not in done.stderr


def test_minilm_is_downloaded_once_with_its_progress_shown(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.env["AGENTHELM_EMBEDDER"] = "minilm"
    with served(monkeypatch, cli.folder) as asked:
        told = cli("memory", "remember", "the hotel in lisbon has a pool", "--id", "hotel").stderr
        assert told.startswith("downloading the embedder all-MiniLM-L6-v2: 0.0 of 0.1 MB")
        assert told.endswith("0.1 of 0.1 MB (100%)\n")
        assert len(told.splitlines()) == 11
        assert cli("memory", "remember", "trains to porto leave").stderr == ""
        found = json.loads(cli("memory", "search", "a pool in a hotel", "--json").stdout)
        assert len(asked) == 1
    assert found[0]["id"] == "hotel"
    assert found[0]["score"] > 0.5 > found[1]["score"]
    assert json.loads(cli("memory", "stats", "--json").stdout)["embedder"] == "minilm"
    assert "was made with the embedder minilm" in cli(
        "memory", "search", "pool", code=1, AGENTHELM_EMBEDDER="lexical"
    ).stderr.replace("\n", " ")


def test_a_quiet_run_downloads_in_silence(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.env["AGENTHELM_EMBEDDER"] = "minilm"
    with served(monkeypatch, cli.folder) as asked:
        assert cli("run", "Lisbon", "-a", "rememberer", "--quiet").stderr == ""
        assert len(asked) == 1


def test_minilm_offline_is_one_line_that_says_what_to_do(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from chromadb.utils.embedding_functions import ONNXMiniLM_L6_V2

    monkeypatch.setattr(ONNXMiniLM_L6_V2, "MODEL_DOWNLOAD_URL", "http://127.0.0.1:1/onnx.tar.gz")
    monkeypatch.setattr(ONNXMiniLM_L6_V2, "DOWNLOAD_PATH", cli.folder / "minilm")
    (line,) = cli("memory", "remember", "a text", code=1, AGENTHELM_EMBEDDER="minilm").lines
    assert line.startswith("error: the MiniLM embedder failed: it could not be downloaded; go online, or use")
    assert "embedder='lexical'" in line
    done = cli("run", "Lisbon", "-a", "rememberer", code=1, AGENTHELM_EMBEDDER="minilm")
    assert "error: the MiniLM embedder failed: it could not be downloaded" in done.stderr
