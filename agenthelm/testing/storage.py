"""For authors of storages and users of them: a storage that fails on purpose, and the contract every storage keeps."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import anyio

from agenthelm._runtime.groups import wait_through
from agenthelm.core.storage.base import BaseStorage, Record, StoredRecord, StreamInfo, Where
from agenthelm.exceptions import StorageError
from agenthelm.testing.storage_tests import StorageTests

__all__ = ["FaultyStorage", "SimulatedCrash", "storage_contract"]


class SimulatedCrash(BaseException):
    """The process "died" here; nothing that runs after it reaches the storage any more."""


class FaultyStorage(BaseStorage):
    """A storage that works until a chosen append, and then fails, hangs or crashes.

    ```python
    storage = FaultyStorage(InMemoryStorage(), at=3)  # the third append raises StorageError, nothing is written
    storage = FaultyStorage(inner, matching=lambda record: record.data.get("type") == "finish", moment="after")
    ```

    Args:
        inner: What is written to otherwise.
        at: The appends that fail, counted from 1; None for every one.
        matching: Only appends with a record of which this is true; they alone are counted.
        do: ``"fail"`` raises ``error``; ``"hang"`` waits for `release`, through any cancellation, as a commit on a
            stuck disk would; ``"crash"`` raises `SimulatedCrash` here and on every later use, so that no clean-up of
            the "dead" process is recorded; ``"kill"`` ends the process for real, with SIGKILL.
        moment: Before anything is written, or after it was.
        times: How often, from ``at`` on; None for ever.
        error: What ``"fail"`` raises.
    """

    def __init__(
        self,
        inner: BaseStorage,
        *,
        at: int | None = None,
        matching: Callable[[Record], bool] | None = None,
        do: Literal["fail", "hang", "crash", "kill"] = "fail",
        moment: Literal["before", "after"] = "before",
        times: int | None = 1,
        error: Exception | None = None,
    ) -> None:
        self.inner = inner
        self.durable: bool = inner.durable
        self.count: int = 0
        """How many appends were counted so far."""
        self.crashed: bool = False
        self.hanging: anyio.Event = anyio.Event()
        """Set once an append hangs."""
        self._at = at
        self._matching = matching
        self._do = do
        self._moment = moment
        self._left = times
        self._error = error or StorageError("can't write: this storage was told to fail")
        self._released = anyio.Event()

    def release(self) -> None:
        """Let a hanging append go on."""
        self._released.set()

    async def append(self, records: Sequence[Record], expected: Mapping[str, int] | None = None) -> dict[str, int]:
        """Append, or do what was asked for."""
        self._check_alive()
        due = self._is_due(records)
        if due and self._moment == "before":
            await self._misbehave()
        positions = await self.inner.append(records, expected)
        if due and self._moment == "after":
            await self._misbehave()
        return positions

    async def read(
        self,
        stream: str,
        *,
        where: Where | None = None,
        limit: int | None = None,
        newest_first: bool = False,
        after: int | None = None,
    ) -> list[StoredRecord]:
        """Read from the inner storage."""
        self._check_alive()
        return await self.inner.read(stream, where=where, limit=limit, newest_first=newest_first, after=after)

    async def streams(
        self,
        *,
        where: Mapping[str, str] | None = None,
        prefix: str = "",
        limit: int | None = None,
        newest_first: bool = True,
    ) -> list[StreamInfo]:
        """List the streams of the inner storage."""
        self._check_alive()
        return await self.inner.streams(where=where, prefix=prefix, limit=limit, newest_first=newest_first)

    async def drop(self, stream: str) -> None:
        """Drop a stream of the inner storage."""
        self._check_alive()
        await self.inner.drop(stream)

    async def aclose(self) -> None:
        """Close the inner storage, unless the process "died": then a test opens it again."""
        if not self.crashed:
            await self.inner.aclose()

    @property
    def skipped(self) -> int:
        """What the inner storage skipped."""
        return self.inner.skipped

    def _check_alive(self) -> None:
        if self.crashed:
            raise SimulatedCrash("this process is dead")

    def _is_due(self, records: Sequence[Record]) -> bool:
        if self._matching is not None and not any(map(self._matching, records)):
            return False
        self.count += 1
        if self._left == 0 or (self._at is not None and self.count < self._at):
            return False
        if self._left is not None:
            self._left -= 1
        return True

    async def _misbehave(self) -> None:
        match self._do:
            case "fail":
                raise self._error
            case "hang":
                self.hanging.set()
                await wait_through(self._released)
            case "crash":
                self.crashed = True
                raise SimulatedCrash("the process died here")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)


def storage_contract(factory: Callable[[Path], BaseStorage]) -> type:
    """Make a class of tests that hold a storage to its promises (see `BaseStorage`).

    Assign the class to a name that pytest collects. The tests are coroutines; anyio's pytest plugin (its ``auto``
    mode) runs them on the backends of the ``anyio_backend`` fixture.

    ```python
    TestMyStorage = storage_contract(lambda folder: MyStorage(folder / "log"))
    ```

    Args:
        factory: Opens a storage in a folder that exists. A durable storage opened twice in one folder is one log.
    """
    return type("StorageContract", (StorageTests,), {"factory": staticmethod(factory)})
