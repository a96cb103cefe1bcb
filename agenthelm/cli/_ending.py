"""How the process ends, even when a thread does not."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any, NoReturn

import typer

__all__ = ["USAGE_ERROR", "end_process"]

USAGE_ERROR: type[Any] = typer.BadParameter.__mro__[1]
"""What stands for wrong usage in whichever copy of Click this Typer stands on."""


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
