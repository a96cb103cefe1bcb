"""Tells how far a download is: a line that is rewritten on a terminal of its own, a line for each tenth elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable

from agenthelm.cli._ending import to_stderr

__all__ = ["told"]

_MB = 1_000_000


def told(what: str) -> Callable[[int, int], None]:
    """What a download reports to: how many bytes of how many are here. Writes to stderr, from any thread."""
    last = -1

    def tell(done: int, total: int) -> None:
        nonlocal last
        # A live view stands between us and the terminal, and only takes whole lines.
        rewritten = sys.stderr.isatty() and sys.stderr is sys.__stderr__
        step = done * 100 // total // (1 if rewritten else 10) if total else done // (5 * _MB)
        if step == last:
            return
        last = step
        here = (
            f"{done / _MB:.1f} MB"
            if not total
            else f"{done / _MB:.1f} of {total / _MB:.1f} MB ({done * 100 // total}%)"
        )
        end = "\r" if rewritten and done < total else "\n"
        to_stderr(f"downloading {what}: {here}{end}")

    return tell
