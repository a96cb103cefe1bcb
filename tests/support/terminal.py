"""A real terminal for a real process: types answers when their question appears, and collects what is shown."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.cli import environment

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def at_terminal(
    arguments: Sequence[str], *, folder: Path, answers: Mapping[str | Path, str], env: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Run the command line at a terminal of 100 columns.

    Args:
        arguments: Of the command line.
        folder: Its working directory.
        answers: What is typed, by the text after whose first appearance it is typed, or the file that the program makes
            when it is there; the terminal is closed for "".
        env: Further environment.

    Returns:
        The exit code, what was shown without escape sequences, and what was shown with them.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        os.chdir(folder)
        os.execve(
            sys.executable,
            [sys.executable, "-m", "agenthelm.cli.main", *arguments],
            environment(folder, {"TERM": "xterm-256color", **(env or {})}),
        )
    left = dict(answers)
    raw, shown = b"", ""
    deadline = time.monotonic() + 300
    closed = False
    try:
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    more = os.read(terminal, 65536)
                except OSError:  # the process has ended
                    break
                if not more:
                    break
                raw += more
                shown = _ESCAPES.sub("", raw.decode(errors="replace"))
            for question in [q for q in left if (q.exists() if isinstance(q, Path) else q in shown)]:
                answer = left.pop(question)
                os.write(terminal, answer.encode())
                closed = not answer
            if closed:
                break
        else:
            os.kill(pid, signal.SIGKILL)
        if closed:
            os.close(terminal)
    finally:
        _, status = os.waitpid(pid, 0)
        if not closed:
            os.close(terminal)
    text = raw.decode(errors="replace")
    return os.waitstatus_to_exitcode(status), _ESCAPES.sub("", text), text
