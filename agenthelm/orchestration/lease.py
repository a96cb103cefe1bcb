"""The lease of a run while its own code runs: renewed beside that code, which is stopped when the run is lost."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
from anyio import CancelScope
from anyio.abc import TaskGroup

from agenthelm._runtime.context import StopMark
from agenthelm._runtime.wake import later
from agenthelm.exceptions import LeaseLostError, StorageError
from agenthelm.orchestration.journal import Journal

__all__ = ["Lease"]


@dataclass(slots=True, weakref_slot=True)
class Lease:
    """Keeps a run ours from `begin` to `end`, which belong around the run's code, in one task.

    Where the event loop has timers, it knows of the lease by a weak reference only, and a task is there for no longer than
    a renewal takes: what is renewed is not kept. So a generator that was dropped in the middle of a saga is collected, and
    the saga undone, even if the task that dropped it has failed, and all that it had refers to each other.

    Attributes:
        journal: The run's journal.
        stop: Marked when the run is somebody else's now, or the lease can't be renewed.
    """

    journal: Journal
    stop: StopMark
    _over: anyio.Event = field(init=False, default_factory=anyio.Event)
    _group: TaskGroup = field(init=False, default_factory=anyio.create_task_group)
    _call_off: Callable[[], object] | None = field(init=False, default=None)
    _task: int = field(init=False, default=0)

    async def begin(self) -> None:
        """Have the lease renewed whenever the journal has been silent for long; most runs are over before that."""
        self.journal.on_lost = self._lost
        await self._group.__aenter__()
        self._task = anyio.get_current_task().id
        if not self._set_timer():
            self._group.start_soon(self._heartbeat, name="agenthelm lease")

    @property
    def here(self) -> bool:
        """Whether this is the task in which it began; the group keeps that one, so no other has its id."""
        return anyio.get_current_task().id == self._task

    def _set_timer(self) -> bool:
        """Have it renewed by the event loop's clock; False if the loop has no timers."""
        reference = weakref.ref(self)

        async def due() -> None:
            lease = reference()
            if lease is not None and not lease._over.is_set():
                lease._group.start_soon(lease._renew, name="agenthelm lease")

        self._call_off = later(self.journal.due(), due)
        return self._call_off is not None

    async def _renew(self) -> None:
        """One renewal; shielded, because unwinding needs the lease as well."""
        with CancelScope(shield=True):
            if await self._keep() and not self._over.is_set():
                self._set_timer()

    async def end(self, error: BaseException | None, *, elsewhere: bool = False) -> None:
        """Stop renewing, and keep back the cancellation by which the run's code was stopped.

        Args:
            error: What the code ended with.
            elsewhere: Whether this is not the task in which it began.
        """
        if self._call_off is not None:
            self._call_off()
        self._over.set()
        self.journal.on_lost = None  # it refers back to the run's scope, and nobody is left to stop
        if elsewhere:
            return  # only the task that has entered the group can leave it; the heartbeat ends all the same
        if self.journal.lost is not None and error is not None and not isinstance(error, Exception):
            await self._group.__aexit__(type(error), error, error.__traceback__)
        else:
            await self._group.__aexit__(None, None, None)

    async def _heartbeat(self) -> None:
        """Renew in a task that sleeps, where there are no timers."""
        with CancelScope(shield=True):
            while True:
                with anyio.move_on_after(self.journal.due()):
                    await self._over.wait()
                    return
                if not await self._keep():
                    return

    async def _keep(self) -> bool:
        """Renew if that is due; False when there is nothing left to keep."""
        try:
            await self.journal.renew()
        except LeaseLostError:
            return False
        except StorageError as error:
            self.stop.set(error)
            return False
        return True

    def _lost(self, error: LeaseLostError) -> None:
        """Somebody else undoes this run now: stop at once and undo nothing."""
        self.stop.set(error)
        self._group.cancel_scope.cancel()
