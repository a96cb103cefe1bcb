"""A lock on a file between processes, with a time limit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from agenthelm.core.storage.writer import UnavailableError

__all__ = ["can_lock", "locked"]


def can_lock() -> bool:
    """Whether this system has such locks."""
    return find_spec("fcntl") is not None


@contextmanager
def locked(descriptor: int, path: Path, *, exclusive: bool, timeout: float) -> Iterator[None]:
    """Hold ``flock`` on an open file; the system releases it when the process dies.

    Raises:
        StorageError: Somebody else held it for longer than ``timeout`` seconds.
    """
    import fcntl  # here, because Windows has none, and the other storages can be used there

    mode = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    deadline = time.monotonic() + timeout
    pause = 0.0002
    while True:
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UnavailableError(f"can't lock {path}: another process has held it for {timeout:g} s") from None
            time.sleep(pause)
            pause = min(pause * 2, 0.01)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
