"""Back-off delays and the clock they are waited on."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from typing import Protocol

import anyio

__all__ = ["Backoff", "Clock", "SystemClock", "asked_delay"]


class Clock(Protocol):
    """Time as the package sees it; tests bring their own."""

    def monotonic(self) -> float:
        """Seconds on a clock that never steps back."""
        ...

    def wall(self) -> float:
        """Seconds since the epoch, UTC."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait; a cancellation point."""
        ...


class SystemClock:
    """The machine's clocks; waits on the running event loop."""

    def monotonic(self) -> float:
        """Seconds on the machine's monotonic clock."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since the epoch by the machine's clock."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Wait on the running event loop."""
        await anyio.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential back-off with full jitter.

    The delay before retry ``n`` (from 1) is drawn evenly from 0 to ``min(maximum, initial * factor ** (n - 1))``, which
    keeps many callers that failed together from coming back together.

    Source:
        Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

    Attributes:
        initial: The first delay's upper bound in seconds.
        factor: What each further bound is multiplied by.
        maximum: No delay is longer, in seconds, except one that a peer asked for.
        jitter: Whether to draw the delay; without it the bound itself is waited.
        longest_wait: A peer that asks to be left alone for longer than this, in seconds, is not asked again.
    """

    initial: float = 0.5
    factor: float = 2.0
    maximum: float = 30.0
    jitter: bool = True
    longest_wait: float = 300.0

    def __post_init__(self) -> None:
        numbers = (self.initial, self.factor, self.maximum, self.longest_wait)
        if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers) or not (
            self.initial >= 0 and self.factor >= 1 and self.maximum >= 0 and self.longest_wait >= 0
        ):
            raise ValueError(
                f"a back-off needs finite numbers with initial >= 0, factor >= 1, maximum >= 0 and longest_wait >= 0, "
                f"not {', '.join(map(repr, numbers))}"
            )

    def delay(self, retry: int, *, error: BaseException | None = None, now: float | None = None) -> float:
        """Seconds to wait before a retry.

        Args:
            retry: Which retry, from 1.
            error: What failed. What its peer asked for, by a ``retry_after`` attribute or a ``Retry-After`` header, is the
                least that is waited.
            now: Seconds since the epoch, for peers that name a date; the machine's clock by default.
        """
        try:
            bound = min(self.maximum, self.initial * float(self.factor) ** (retry - 1))
        except OverflowError:
            bound = self.maximum if self.initial else 0.0
        # The module's own generator is another one in each fork of a process; one kept here would draw the same for all.
        drawn = random.uniform(0.0, bound) if self.jitter else bound  # noqa: S311 - no secret is made of it
        return max(drawn, asked_delay(error, now=time.time() if now is None else now))

    def too_long(self, delay: float) -> bool:
        """Whether a delay is one that a peer asked for, and longer than anybody waits: then there is no retry."""
        return delay > max(self.maximum, self.longest_wait)


def asked_delay(error: BaseException | None, *, now: float) -> float:
    """Seconds that a peer wants to be left alone, 0 if it did not say so.

    Read from a ``retry_after`` attribute of the exception (seconds), or from the ``Retry-After`` header of its
    ``response``, which is seconds or a date, as the exceptions of httpx, requests, aiohttp and the model clients
    carry it. In a group it is the most that any of them asks for.

    Args:
        error: What failed.
        now: Seconds since the epoch.
    """
    if isinstance(error, BaseExceptionGroup):
        return max(asked_delay(inner, now=now) for inner in error.exceptions)
    try:
        asked: object = getattr(error, "retry_after", None)
        if not isinstance(asked, (int, float)):
            headers = getattr(getattr(error, "response", None), "headers", None) or getattr(error, "headers", None)
            asked = _header(headers, now)
        return float(asked) if math.isfinite(asked) and asked > 0 else 0.0
    except Exception:  # noqa: BLE001 - somebody else's attributes, which must not take the place of the error itself
        return 0.0


def _header(headers: object, now: float) -> float:
    get = getattr(headers, "get", None)
    text = get("Retry-After") or get("retry-after") if callable(get) else None
    if not isinstance(text, str):
        return 0.0
    try:
        return float(text)
    except ValueError:
        pass  # then it is a date
    from email.utils import parsedate_to_datetime

    return parsedate_to_datetime(text).timestamp() - now
