"""Structured concurrency in the forms the package needs, proof against native cancellation.

anyio's shielded scopes do not hold against ``task.cancel()``, ``asyncio.wait_for`` or a Ctrl-C on asyncio: those cancel
the *task*. What they can't reach is a child task: the host task is interrupted while it waits for its task group, the
group turns that into structured cancellation, and waits on.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from typing import Any, Protocol, TypeVar

import anyio
from anyio import CancelScope

from agenthelm.telling import chain, describe

__all__ = ["beside", "cut_short", "in_child", "named", "shielded", "wait_through"]

T = TypeVar("T")


class _Waitable(Protocol):
    async def wait(self) -> Any: ...


async def in_child(function: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Run ``function`` in a child task; return its value or raise its error, bare.

    Cancellation of the caller, native or structured, arrives inside as structured cancellation, so the shields in
    there hold. The caller resumes when the child has ended, with its cancellation if it had one.
    """
    value: list[T] = []
    error: list[Exception | SystemExit] = []
    cancelled: list[BaseException] = []

    async def body() -> None:
        try:
            value.append(await function(*args))
        # asyncio ends at once, with nothing undone, when a SystemExit leaves a task.
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - raised bare below, outside of the task group
            error.append(exc)
        except anyio.get_cancelled_exc_class() as exc:
            cancelled.append(exc)
            raise

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(body)
    except BaseExceptionGroup as interrupted:
        # Trio raises a Ctrl-C inside the waiting task, and its task groups wrap whatever they raise.
        raise interrupted.exceptions[0] from None
    if error:
        try:
            raise error[0]
        finally:
            error.clear()  # the frame must not keep its own exception alive
    if not value:  # cancelled by nobody who was waited for: by a future, say, that somebody else had cancelled
        try:
            raise cancelled[0]
        finally:
            cancelled.clear()
    return value[0]


async def shielded(function: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Run ``function`` to its end, whatever is cancelled; a pending cancellation is raised afterwards."""
    value: list[T] = []

    async def body() -> None:
        with CancelScope(shield=True):
            value.append(await function(*args))

    await in_child(body)
    return value[0]


async def beside(background: Callable[[], Awaitable[None]], function: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Run ``function`` while ``background`` runs beside it, until the function has ended, whatever is cancelled before.

    Must run in a child task already: no native cancellation is held off here.
    """
    value: list[T] = []
    error: list[Exception | SystemExit] = []
    scope = CancelScope(shield=True)

    async def behind() -> None:
        with scope:
            await background()

    async with anyio.create_task_group() as group:
        group.start_soon(behind)
        try:
            value.append(await function(*args))
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - raised bare below, outside of the task group
            error.append(exc)
        finally:
            scope.cancel()
    if error:
        try:
            raise error[0]
        finally:
            error.clear()
    return value[0]


async def wait_through(event: _Waitable) -> None:
    """Wait for an event that another thread sets, through any cancellation.

    A native cancellation is raised afterwards. A scope's comes again by itself, at the caller's next checkpoint.

    For events whose setting is certain: a commit on the storage's writer thread, for one.
    """
    pending: BaseException | None = None
    try:
        await event.wait()
    except anyio.get_cancelled_exc_class() as exc:
        pending = exc
    else:
        return  # without the price of a scope
    if _comes_again(pending):
        pending = None
    with CancelScope(shield=True):
        while True:
            try:
                await event.wait()
                break
            except anyio.get_cancelled_exc_class() as exc:
                pending = exc
    if pending is not None:
        try:
            raise pending
        finally:
            pending = None


def cut_short(error: Exception) -> bool:
    """Whether what an awaited function raised may be its clean-up's, because it was cancelled; asked where it is caught.

    A time limit of its own is none of ours: what it made of that ``TimeoutError`` is its answer.
    """
    if anyio.current_effective_deadline() == -math.inf:
        return True
    for before in chain(error):  # no scope knows of a native cancellation, but what took its place does
        if isinstance(before, TimeoutError):
            break
        if isinstance(before, anyio.get_cancelled_exc_class()):
            return not _comes_again(before)
    return False


def _comes_again(cancellation: BaseException) -> bool:
    """Whether a cancel scope has sent it, and not ``task.cancel()``; by the mark by which anyio itself knows.

    Should anyio mark it otherwise one day, it is raised as if it were native, which is as safe.
    """
    return type(cancellation).__module__.startswith("trio") or str(cancellation).startswith(
        "Cancelled via cancel scope"
    )


async def named(
    tasks: Mapping[str, Callable[[], Awaitable[T]]],
    *,
    max_concurrency: int | None = None,
    collect: bool = False,
) -> tuple[dict[str, T], dict[str, Exception]]:
    """Run named tasks at once and wait for all of them.

    Args:
        tasks: What to run, by name.
        max_concurrency: How many may run at the same time; None for all.
        collect: Let the others go on when one fails. Otherwise the first failure cancels them.

    Returns:
        The results and the errors by name, each in the order of ``tasks``. Without ``collect`` there are no errors.

    Raises:
        Exception: Without ``collect``, the first failure, bare; the failures of siblings are notes on it.
        SystemExit: A task raised it, which cancels the others; with ``collect`` as well.
        BaseException: A task's cancellation that nobody had sent to it, which cancels the others; with ``collect`` as well.
    """
    results: dict[str, T] = {}
    errors: dict[str, Exception] = {}
    exits: list[SystemExit] = []
    cancelled: list[BaseException] = []
    limiter = anyio.Semaphore(max_concurrency) if max_concurrency else nullcontext()

    try:
        async with anyio.create_task_group() as group:

            async def one(name: str, task: Callable[[], Awaitable[T]]) -> None:
                try:
                    async with limiter:
                        results[name] = await task()
                except Exception as exc:  # noqa: BLE001 - raised or returned below
                    errors[name] = exc
                    if not collect:
                        group.cancel_scope.cancel()
                except SystemExit as exc:  # asyncio ends at once, with nothing undone, when one leaves a task
                    exits.append(exc)
                    group.cancel_scope.cancel()
                except anyio.get_cancelled_exc_class() as exc:
                    cancelled.append(exc)
                    raise

            for name, task in tasks.items():
                group.start_soon(one, name, task, name=name)

        failed = not collect and bool(errors)
        if failed:
            _note_others(errors)
        if exits or failed or cancelled:  # cancelled by nobody who was waited for: see `in_child`
            raise [*exits, *(errors.values() if failed else ()), *cancelled][0]
        return {name: results[name] for name in tasks if name in results}, {
            name: errors[name] for name in tasks if name in errors
        }
    finally:
        for kept in (exits, errors, cancelled):
            kept.clear()  # the frame must not keep its own exception alive


def _note_others(errors: Mapping[str, Exception]) -> None:
    """Name the other failures in the first one."""
    first = next(iter(errors.values()))
    for name, other in errors.items():
        if other is not first:
            first.add_note(f"{name} failed too: {describe(other)}")
