"""kill -9 before and after every record, effect and undo of a run: after recovery the world is as it began, or says why not.

`tests/support/saga_crash.py` does it, in processes that never ran an event loop before they fork.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLANS = ("sequence", "sequence, fails", "DAG", "DAG, fails")
OTHERS = ("groups", "groups, fail", "agents", "agents, fail", "agents, a branch fails")


def matrix(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.saga_crash", *options],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finished(process: subprocess.Popen[str]) -> None:
    out, _ = process.communicate()
    print(out)
    assert process.returncode == 0, out


def test_a_run_killed_at_any_point_is_undone_or_resumed_or_says_what_is_in_doubt() -> None:
    for process in [matrix(*PLANS, "--once", "--every=150"), matrix(*OTHERS, "--once", "--every=150")]:
        finished(process)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_same_with_every_recovery_killed_at_every_point(backend: str) -> None:
    for process in [matrix(*PLANS, "--backend", backend), matrix(*OTHERS, "--backend", backend)]:
        finished(process)
