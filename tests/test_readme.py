"""The README's two commands: said once, the same everywhere, and true."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.test_examples import environment

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text("utf-8")
COMMANDS = re.findall(r"^pip install uv && (uv run .+)$", TEXT, re.MULTILINE)


def test_two_commands_are_all_a_fresh_machine_needs() -> None:
    main, tests = (shlex.split(command) for command in COMMANDS)
    assert (main[2], tests[-1]) == ("agenthelm", "pytest")
    first_screen = TEXT[: TEXT.index("\n## ")]
    assert all(command in first_screen for command in COMMANDS)


def test_continuous_integration_runs_the_readmes_test_command() -> None:
    assert f"pip install uv && {COMMANDS[1]}" in (ROOT / ".ci" / "run").read_text("utf-8")


def test_the_main_command_runs_three_agents_without_key_or_network(tmp_path: Path) -> None:
    command = shlex.split(COMMANDS[0].removeprefix("uv run "))
    assert command[0] == "agenthelm"
    done = subprocess.run(
        [sys.executable, "-m", "agenthelm.cli.main", *command[1:]],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert all(agent in done.stderr for agent in ("researcher", "writer", "reviewer"))


def test_links_to_files_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", TEXT)
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_agent_on_the_front_page_is_under_fifty_lines() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(program.splitlines()) < 50
