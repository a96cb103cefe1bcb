"""Runs the command line for tests: in this process where that is enough, as a real process where it is not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[2]
KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "MISTRAL_API_KEY")


@dataclass(frozen=True)
class Outcome:
    """What a command came to."""

    code: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[str]:
        return self.stderr.splitlines()


def environment(home: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a real process: no keys, no settings, this checkout."""
    kept = ("PATH", "LANG", "LC_ALL", "TMPDIR", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")
    return {
        **{name: value for name, value in os.environ.items() if name in kept},
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error::RuntimeWarning",
        "PYTHONFAULTHANDLER": "1",
        "HOME": str(home),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        **(more or {}),
    }


class Cli:
    """The command line in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env: dict[str, str] = {}

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        return path

    def __call__(self, *arguments: str, code: int = 0, stdin: str | None = None, **env: str) -> Outcome:
        """Run a command in this process."""
        from agenthelm.cli.main import app

        with _in_folder(self.folder, {**self.env, **env}), _own_registries():
            result = CliRunner().invoke(app, list(arguments), input=stdin, prog_name="agenthelm")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        outcome = Outcome(result.exit_code, result.stdout, result.stderr)
        assert outcome.code == code, f"exit code {outcome.code}\n{outcome.stdout}\n{outcome.stderr}"
        return outcome

    def process(self, *arguments: str, code: int = 0, stdin: str | None = None, **env: str) -> Outcome:
        """Run a command as a process of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "agenthelm", *arguments],
            cwd=self.folder,
            env=environment(self.folder, {**self.env, **env}),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return Outcome(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        """Start a command as a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "agenthelm", *arguments],
            cwd=self.folder,
            env=environment(self.folder, {**self.env, **env}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@contextmanager
def _in_folder(folder: Path, env: Mapping[str, str]) -> Iterator[None]:
    cwd, before, path = Path.cwd(), dict(os.environ), list(sys.path)
    for name in list(os.environ):
        if name.startswith(("AGENTHELM_", "NEXUS_TRACE", "OTEL_")) or name in (*KEYS, "COLUMNS"):
            del os.environ[name]
    os.environ.update({"HOME": str(folder), "LITELLM_LOCAL_MODEL_COST_MAP": "True", **env})
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(before)
        sys.path[:] = path


@contextmanager
def _own_registries() -> Iterator[None]:
    """Agents, tools, prices and modules that a command loads are forgotten after it, as if its process had ended."""
    from agenthelm.agent.registry import AGENT_REGISTRY
    from agenthelm.core.cost import MODEL_PRICING
    from agenthelm.core.tool import TOOL_REGISTRY

    modules, agents, prices = set(sys.modules), dict(AGENT_REGISTRY._agents), dict(MODEL_PRICING)
    with TOOL_REGISTRY.isolated():
        try:
            yield
        finally:
            AGENT_REGISTRY._agents.clear()
            AGENT_REGISTRY._agents.update(agents)
            MODEL_PRICING.clear()
            MODEL_PRICING.update(prices)
            for name in set(sys.modules) - modules:
                file = getattr(sys.modules[name], "__file__", None) or ""
                if not file.startswith((sys.prefix, sys.base_prefix, str(ROOT))):
                    del sys.modules[name]
