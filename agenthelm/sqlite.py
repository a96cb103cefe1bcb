"""What everybody who opens a SQLite file needs to know: how it is made, and how write-ahead logging is entered."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["enter_wal", "make_private"]


def make_private(path: Path) -> None:
    """Make a file that only its owner may read, and its folder, where they are missing; SQLite's would be readable by all.

    A file that is there is not opened: closing it again would end every lock that this process has on it, and another
    process, taking the file for unused, would remove the log that connections of this one still write to.

    Raises:
        OSError: That is not possible.
    """
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Exclusively, because another thread may have made and opened it meanwhile; by its real path, because a link to
    # nothing counts as being there.
    with suppress(FileExistsError):
        os.close(os.open(os.path.realpath(path), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def enter_wal(connection: sqlite3.Connection, *, timeout: float) -> None:
    """Switch a file to write-ahead logging, which may take ``timeout`` seconds while others do so at once.

    SQLite does not wait for its own time-out here when two processes create one file.

    Raises:
        sqlite3.Error: Another process has locked it for too long, or it can't be written.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").close()
            return
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
