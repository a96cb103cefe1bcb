"""How the process begins to print, and how it ends, even when a thread does not."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import typer

__all__ = ["USAGE_ERROR", "end_process", "open_streams", "to_stderr"]

USAGE_ERROR: type[Any] = typer.BadParameter.__mro__[1]
"""What stands for wrong usage in whichever copy of Click this Typer stands on."""


def open_streams() -> None:
    """See to it that there are streams to print to, and that they take any text, whatever the terminal's encoding."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell, as ``>&-`` does
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - the process closes it
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def to_stderr(text: str) -> None:
    """Write to stderr, without secrets. Where nobody reads it any more, the text is lost and what it is about goes on."""
    from agenthelm.tracing.scrub import scrub

    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(scrub(text))
        sys.stderr.flush()


def end_process(code: int, *, force: bool = False) -> NoReturn:
    """Leave the interpreter, without joining threads that will not end.

    A tool that was let go at its deadline may still sit in its thread; joining it would keep the shell waiting.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            force = True  # a closed pipe: the interpreter would complain about it on its way out
    if not force:
        main = threading.main_thread()
        lingering = [thread for thread in threading.enumerate() if thread is not main and not thread.daemon]
        for thread in lingering:
            thread.join(0.5)
        force = any(thread.is_alive() for thread in lingering)
    if force:
        os._exit(code)
    sys.exit(code)
