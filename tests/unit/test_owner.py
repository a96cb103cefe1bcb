"""Who holds a run: what of another process can be known from here."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agenthelm.orchestration import owner
from agenthelm.orchestration.owner import Owner
from agenthelm.orchestration.state import RunState


@pytest.fixture
def fresh() -> Iterator[None]:
    owner._here.cache_clear()
    yield
    owner._here.cache_clear()


def test_a_process_is_told_from_another_that_got_its_pid_later() -> None:
    here = Owner.here()
    assert here.fate() == "alive"
    assert replace(here, start_time="1").fate() == "dead"


@pytest.mark.parametrize("changes", [{"boot_id": "another boot"}, {"pid_namespace": "pid:[1]"}, {"start_time": ""}])
def test_of_a_process_elsewhere_nothing_is_known_so_only_its_silence_counts(changes: dict[str, str]) -> None:
    elsewhere = replace(Owner.here(), **changes)
    assert elsewhere.fate() == "unknown"
    run = RunState("r", owner=elsewhere, last_at=1000.0)
    assert (run.claimable(1030.0), run.claimable(1030.1)) == (False, True)


def test_an_owner_that_can_not_be_read_is_nobody_known() -> None:
    for data in (None, "garbled", {"host": "h", "pid": None}):
        nobody = Owner.from_data(data)
        assert (nobody.pid, nobody.fate()) == (0, "unknown")
    assert str(Owner("", 7)) == "process 7 on an unknown host"


@pytest.mark.usefixtures("fresh")
def test_where_there_is_no_proc_nobody_is_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""

    def missing(*_: Any, **__: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(owner, "_MACOS", False)
    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(os, "readlink", missing)
    here = Owner.here()
    assert (here.pid, here.boot_id, here.pid_namespace, here.start_time) == (os.getpid(), "", "", "")
    assert here.fate() == "unknown"
    assert Owner.from_data(here.data()) == here


def test_who_can_not_be_looked_at_is_not_taken_for_dead() -> None:
    """With no descriptor left, say in a service that recovers runs at its start."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        held = replace(Owner.here(), pid=living.pid, start_time=owner._start_time(living.pid))
        assert held.fate() == "alive"
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            fate = held.fate()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert fate == "unknown"
        assert living.stdin is not None
        living.stdin.close()
        os.waitid(os.P_PID, living.pid, os.WEXITED | os.WNOWAIT)
        assert held.fate() == "dead"  # though nobody has asked yet how it ended
    assert held.fate() == "dead"


@pytest.mark.usefixtures("fresh")
def test_where_no_start_times_can_be_read_a_process_that_is_not_there_is_dead_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on macOS."""
    monkeypatch.setattr(owner, "_MACOS", True)
    monkeypatch.setattr(owner, "_sysctl", lambda name: "5F0B" if name == b"kern.bootsessionuuid" else "")
    monkeypatch.setattr(owner, "_start_time", lambda pid: "")
    here = Owner.here()
    assert here.boot_id == "5F0B"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as living:
        held = Owner.from_data(replace(here, pid=living.pid).data())
        assert held.fate() == "unknown"  # it may be another one with its pid
    assert held.fate() == "dead"
    assert replace(held, boot_id="another boot").fate() == "unknown"


def test_what_the_kernel_does_not_tell_is_not_known() -> None:
    assert owner._sysctl(b"no.such.name") == ""  # on Linux it tells nothing at all by this way


def test_who_is_only_hidden_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where /proc is mounted with hidepid, and another user's processes are not in it."""
    here = Owner.here()

    def hidden(*_: Any, **__: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", hidden)
    assert here.fate() == "unknown"
    for no_such in (2**22 + 1, 10**30):
        assert replace(here, pid=no_such).fate() == "dead"
