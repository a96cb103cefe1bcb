"""Lets a process of root be told what it may not do, as everybody else is."""

from __future__ import annotations

import os
import sys

__all__ = ["obeying"]

_OBEY = """
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(24, 1, 0, 0, 0) == 0  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE
os.execv(sys.argv[1], sys.argv[1:])
"""


def obeying(command: list[str]) -> list[str]:
    """A command whose process writes only where permissions say that it may, also when it is root's.

    It stays root otherwise, so that it reads where the interpreter and the test's files lie.
    """
    return [sys.executable, "-c", _OBEY, *command] if os.geteuid() == 0 else command
