"""Sends the traces of real runs to a real Arize Phoenix and asks its API what arrived.

Run it: ``python tests/peers/phoenix_check.py PATH/TO/phoenix``, or ``nox -s telemetry``, which installs Phoenix first.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.support.apps import AGENTS
from tests.support.cli import Cli
from tests.support.openai_server import OpenAIServer

PROJECT = "trips"
PATIENCE = 300.0
"""Seconds for Phoenix to start: it migrates its database first."""

QUERY = """{ projects { edges { node { name traceCount tokenCountTotal costSummary { total { cost } }
             spans(first: 100) { edges { node { name spanKind statusCode tokenCountTotal costSummary { total { cost } } } } }
         } } } }"""


@contextmanager
def phoenix(binary: str, folder: Path) -> Iterator[str]:
    """A Phoenix of our own; yields its address."""
    port, grpc = _free_port(), _free_port()
    environment = {
        **os.environ, "PHOENIX_WORKING_DIR": str(folder), "PHOENIX_HOST": "127.0.0.1", "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(grpc), "PHOENIX_TELEMETRY_ENABLED": "false",
    }  # fmt: skip
    with (folder / "phoenix.log").open("w") as log:
        process = subprocess.Popen([binary, "serve"], env=environment, stdout=log, stderr=log)
        try:
            _wait_for(f"http://127.0.0.1:{port}/healthz", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError("Phoenix did not start")


def run_agents(folder: Path, endpoint: str) -> list[str]:
    """One run that goes well and one that fails and is undone; returns their trace ids."""
    cli = Cli(folder)
    cli.write("app.py", AGENTS)
    cli.env = {
        "AGENTHELM_TRACE": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OPENAI_API_KEY": "sk-of-nobody",
        "OTEL_METRICS_EXPORTER": "none", "OTEL_RESOURCE_ATTRIBUTES": f"openinference.project.name={PROJECT}",
    }  # fmt: skip
    with OpenAIServer() as model:
        cli.write("agenthelm.toml", f'app = "app.py"\nmodel = "gpt-4o-mini"\napi_base = "{model.base_url}"\n')
        good = cli.process("run", "Lisbon", "-a", "planner,teller", "--json")
        bad = cli.process("run", "Porto", "-a", "planner", "-i", "fail=no wind", "--json", code=1)
    assert "warning" not in good.stderr + bad.stderr, good.stderr + bad.stderr
    (failed,) = json.loads(cli.process("saga", "list", "--state", "rolled_back", "--json").stdout)
    told = json.loads(cli.process("saga", "show", failed["run_id"], "--json").stdout)
    return [json.loads(good.stdout)["trace_id"], told["trace_id"]]


def ask(endpoint: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """One question to Phoenix's API."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{endpoint}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def arrived(endpoint: str) -> dict[str, Any]:
    """The project as Phoenix shows it, when both traces are in it and their cost has been reckoned."""
    deadline = time.monotonic() + 20
    while True:
        answer = ask(endpoint, "/graphql", {"query": QUERY})
        found = [edge["node"] for edge in answer["data"]["projects"]["edges"] if edge["node"]["name"] == PROJECT]
        if found and found[0]["traceCount"] == 2 and found[0]["costSummary"]["total"]["cost"]:
            return dict(found[0])
        if time.monotonic() > deadline:
            raise AssertionError(f"Phoenix shows {found}")
        time.sleep(0.3)


def check(endpoint: str, traces: list[str]) -> None:
    """Compare what Phoenix shows with what was sent."""
    project = arrived(endpoint)
    spans = ask(endpoint, f"/v1/projects/{PROJECT}/spans?limit=100")["data"]
    assert {span["context"]["trace_id"] for span in spans} == set(traces)
    kinds = {(edge["node"]["spanKind"], edge["node"]["name"]) for edge in project["spans"]["edges"]}
    for kind, name in (("agent", "invoke_agent planner"), ("agent", "invoke_agent teller"),
                       ("tool", "execute_tool book"), ("tool", "execute_tool cancel"),
                       ("llm", "chat openai/gpt-4o-mini")):  # fmt: skip
        assert (kind, name) in kinds, f"{kind} {name} is not among {sorted(kinds)}"
    chats = [span["attributes"] for span in spans if span["span_kind"] == "LLM"]
    tokens = sum(chat["llm.token_count.prompt"] + chat["llm.token_count.completion"] for chat in chats)
    ours = sum(chat["agenthelm.cost.usd"] for chat in chats)
    theirs = project["costSummary"]["total"]["cost"]
    assert len(chats) == 3
    assert tokens == project["tokenCountTotal"] > 0
    assert abs(ours - theirs) < 1e-9, f"our cost {ours}, Phoenix's own {theirs}"
    statuses = {span["attributes"].get("agenthelm.saga.status") for span in spans if span["parent_id"] is None}
    assert statuses == {"success", "rolled_back"}
    for node in sorted((edge["node"] for edge in project["spans"]["edges"]), key=lambda node: node["name"]):
        cost = (node["costSummary"] or {"total": {"cost": None}})["total"]["cost"]
        print(
            f"  {node['spanKind']:8} {node['name']:34} {node['statusCode']:6} {node['tokenCountTotal'] or '':>5}",
            "" if cost is None else f"${cost:.6f}",
        )
    print(f"Phoenix has {len(spans)} spans in 2 traces, {tokens} tokens, ${theirs:.6f}; we said ${ours:.6f}")


def main() -> None:
    """Start Phoenix, run, ask."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with phoenix(sys.argv[1], folder) as endpoint:
            check(endpoint, run_agents(folder, endpoint))


if __name__ == "__main__":
    main()
