"""A console whose reader may go away. Rich's own would then end the process, and turn its standard output off."""

from __future__ import annotations

import errno
import os

from rich.console import Console

__all__ = ["Screen"]


class Screen(Console):
    """A console that leaves it to those who print what becomes of a pipe that nobody reads."""

    def on_broken_pipe(self) -> None:
        """Print nothing from now on.

        Raises:
            BrokenPipeError: Always.
        """
        self.quiet = True
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
