"""Forks of this process: what is held open stays on this side of them, and the child makes it anew.

No SQLite connection may be open while a process forks. SQLite's book of the locks it holds is copied with the process, so
a child that opened the same file would take its parent's locks for its own. And threads end at a fork, while the locks they
held stay taken in the child for ever.
"""

from __future__ import annotations

import os
import threading
from types import TracebackType
from weakref import WeakSet

__all__ = ["Forked", "between_forks"]


class _BetweenForks:
    """A fork waits for those who are inside, and they for the end of a fork."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._forking = False

    def __enter__(self) -> None:
        with self._changed:
            while self._forking:
                self._changed.wait()
            self._inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._changed:
            self._inside -= 1
            if self._forking:
                self._changed.notify_all()

    def shut(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._forking)
            self._forking = True
            self._changed.wait_for(lambda: not self._inside)

    def open(self) -> None:
        with self._changed:
            self._forking = False
            self._changed.notify_all()


between_forks = _BetweenForks()
"""``with between_forks:`` no fork of this process happens. For a short time only: whoever forks waits."""

_all: WeakSet[Forked] = WeakSet()


class Forked:
    """Something that has a part in every fork from the end of its construction on, as long as it lives."""

    def __init__(self) -> None:
        with between_forks:
            _all.add(self)

    def before_fork(self) -> None:
        """Let go of what must not be inherited; nobody is `between_forks`, or can be until the fork is over."""

    def in_parent(self) -> None:
        """Go on after a fork, on this side of it."""

    def in_child(self) -> None:
        """Make anew what can't be used as it was inherited; no other thread runs here yet."""


def _before() -> None:
    between_forks.shut()
    for each in list(_all):
        each.before_fork()


def _in_parent() -> None:
    for each in list(_all):
        each.in_parent()
    between_forks.open()


def _in_child() -> None:
    between_forks.renew()
    for each in list(_all):
        each.in_child()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
