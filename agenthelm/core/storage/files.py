"""Which file a path names just now, and that what was written to it lasts."""

from __future__ import annotations

import os
from pathlib import Path

from agenthelm.core.storage.writer import UnavailableError

__all__ = ["FileId", "file_id", "sync"]

FileId = tuple[int, int]
"""What tells a file from one that was put in its place."""


def file_id(path: Path) -> FileId | None:
    """Which file a path names just now; None when there is none.

    Raises:
        StorageError: The system does not say.
    """
    try:
        found = os.stat(path)  # noqa: PTH116 - asked before every commit, and half the price
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise UnavailableError(f"can't open {path}: {exc.strerror}") from None
    return found.st_dev, found.st_ino


def sync(descriptor: int) -> None:
    """Make what was written to a file outlast a power cut."""
    import fcntl  # here, because Windows has none

    everywhere = getattr(fcntl, "F_FULLFSYNC", None)  # on macOS, where `fsync` leaves it in the drive's cache
    if everywhere is not None:
        try:
            fcntl.fcntl(descriptor, everywhere)
            return
        except OSError:
            pass  # not every file system knows it
    os.fsync(descriptor)
