"""Scripts that a test runs in processes of their own, and how it opens a storage by name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from agenthelm.core.storage import BaseStorage, JsonStorage, SqliteStorage
from tests.support.permissions import obeying

KINDS = ("sqlite", "json")

PROLOGUE = """
import os, sys, resource, anyio
from pathlib import Path
from agenthelm.core.storage import *
from agenthelm.exceptions import *
kind, path = sys.argv[1], Path(sys.argv[2])
storage = SqliteStorage(path) if kind == "sqlite" else JsonStorage(path)
"""


def opened(kind: str, path: Path) -> BaseStorage:
    return SqliteStorage(path) if kind == "sqlite" else JsonStorage(path)


def start(script: str, kind: str, path: Path, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROLOGUE + script, kind, str(path), *map(str, args)]
    return subprocess.Popen(obeying(command), stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return out
