"""What anyio has no call for: to wake an event loop from any thread without waiting for it, and its timers."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from anyio.lowlevel import EventLoopToken, current_token

__all__ = ["later", "wake"]


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


def later(seconds: float, function: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], object] | None:
    """Have the running event loop run a coroutine function some time from now, in a task of its own.

    Far cheaper than a task that sleeps, for what is nearly always called off again. A task, because a loop's bare
    callback does not tell anyio which event loop it is on.

    Args:
        seconds: How long from now.
        function: Must not raise, and must not suspend: nobody waits for it.

    Returns:
        Calls it off; None if this event loop has no timers (trio's), and then nothing will be run.
    """
    native: Any = current_token().native_token
    if not hasattr(native, "call_later"):
        return None
    return native.call_later(seconds, lambda: native.create_task(function())).cancel  # type: ignore[no-any-return]
