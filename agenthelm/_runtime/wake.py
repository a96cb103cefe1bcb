"""How a thread that anyio did not start wakes an event loop, without waiting for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anyio.lowlevel import EventLoopToken

__all__ = ["wake"]


def wake(token: EventLoopToken, function: Callable[..., object], *args: Any) -> bool:
    """Have an event loop call ``function`` soon, and return at once.

    ``anyio.from_thread.run_sync`` would hold the calling thread until the loop got round to it. Nothing happens when
    the loop has ended: then nobody waits there any more.

    Args:
        token: What ``anyio.lowlevel.current_token()`` returned in that loop.
        function: Called in the loop's thread; must not raise.
        *args: Its arguments.

    Returns:
        Whether the loop may still get round to it; not if it has ended.
    """
    native: Any = token.native_token
    # asyncio's loop object has the one, trio's token the other; anyio has no public call that does not wait.
    soon = getattr(native, "call_soon_threadsafe", None) or native.run_sync_soon
    try:
        soon(function, *args)
    except RuntimeError:  # "event loop is closed", or trio's RunFinishedError
        return False
    return True
