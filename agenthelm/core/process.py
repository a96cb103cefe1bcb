"""A tool in a worker process: it gets there, and how it ended comes back, whatever it returned or raised or charged."""

from __future__ import annotations

import importlib.util
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

from agenthelm.core.effects import LostResult
from agenthelm.core.ledger import Ledger
from agenthelm.exceptions import OutcomeUnknown
from agenthelm.telling import describe, message_of

__all__ = ["carried", "charged_here", "module_of_file", "received", "reported"]

_files: dict[str, Path] = {}
"""Modules that were made of a file, by name: no other process finds them by that."""

_books: Ledger | None = None
"""What the function that runs in this worker process spends; a worker runs one at a time."""


class Report(NamedTuple):
    """How a function ended, in a form that every pipe can carry.

    Attributes:
        outcome: Whether it returned, raised, or returned what does not pickle.
        content: The value or the exception, pickled; for what does not pickle, why.
        charged_usd: What it spent, by `charge`.
    """

    outcome: Literal["returned", "raised", "lost"]
    content: bytes
    charged_usd: float


def reported(function: Callable[[], Any]) -> Report:
    """Run a function in this worker process and say how it ended; never raises."""
    global _books
    books = _books = Ledger("worker")
    outcome: Literal["returned", "raised", "lost"] = "raised"
    try:
        value = function()
    except BaseException as error:  # noqa: BLE001 - raised again where the call is awaited
        content = _portable(error)
    else:
        try:
            outcome, content = "returned", pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # noqa: BLE001 - somebody else's class; the function has run all the same
            outcome, content = "lost", describe(error).encode("utf-8", "replace")
    finally:
        _books = None
    return Report(outcome, content, books.priced_usd)


def module_of_file(name: str, path: Path) -> ModuleType | None:
    """Make a module of a file, here and in the worker processes that what is in it is sent to.

    Returns:
        The module; None if it is no Python file.

    Raises:
        Exception: Whatever the file raises.
    """
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic and pickle look a class's module up while it is being defined
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    _files[name] = path
    return module


class _Carried:
    """A value on its way to a worker process, which makes modules of the files that it is from first."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Mapping[str, Path], bytes]]:
        content = pickle.dumps(self._value, pickle.HIGHEST_PROTOCOL)
        return _arrived, ({name: path for name, path in _files.items() if name.encode() in content}, content)


def carried(value: Any) -> Any:
    """A value as it is sent to a worker process, where it arrives as it is."""
    return _Carried(value) if _files else value


def _arrived(files: Mapping[str, Path], content: bytes) -> Any:
    for name, path in files.items():
        if name not in sys.modules:
            if str(path.parent) not in sys.path:  # it may import what lies beside it
                sys.path.insert(0, str(path.parent))
            module_of_file(name, path)
    return pickle.loads(content)  # noqa: S301 - from the process that this one works for


def received(report: Report) -> Any:
    """What the function returned, or a `LostResult` if that can't be had here.

    Raises:
        BaseException: What it raised; where that does not pickle, the nearest of its classes that does, with its message.
        OutcomeUnknown: It raised what can't be read here.
    """
    # Classes of the program's own main module have this name in a worker, as they have with multiprocessing.
    sys.modules.setdefault("__mp_main__", sys.modules["__main__"])
    if report.outcome == "lost":
        return LostResult(report.content.decode())
    try:
        content = pickle.loads(report.content)  # noqa: S301 - from a process of our own
        if report.outcome == "raised":
            content = _read(content)
    except Exception as error:
        if report.outcome == "raised":
            raise OutcomeUnknown(f"it raised what can't be read outside of its process ({describe(error)})") from error
        return LostResult(describe(error))
    if report.outcome == "raised":
        raise content
    return content


def charged_here(usd: float) -> bool:
    """Book money in a worker process; False elsewhere, where it is nobody's."""
    if _books is None:
        return False
    _books.charge(usd)
    return True


def _portable(error: BaseException) -> bytes:
    """An exception, pickled; where that can't be read again, a class, a message and members to make it from."""
    try:
        content = pickle.dumps(error, pickle.HIGHEST_PROTOCOL)
        if type(pickle.loads(content)) is type(error):  # noqa: S301 - it was made one line above
            return content
    except Exception:  # noqa: BLE001, S110 - somebody else's class; the next ones are tried
        pass
    if isinstance(error, BaseExceptionGroup):  # what is in it says whether the effect is in doubt
        members = [_portable(one) for one in error.exceptions]
        return pickle.dumps((BaseExceptionGroup, error.message, members), pickle.HIGHEST_PROTOCOL)
    for kind in type(error).__mro__:
        message = (message_of(error) or "") if kind is type(error) else describe(error)
        try:
            _made(kind, message)
            return pickle.dumps((kind, message, ()), pickle.HIGHEST_PROTOCOL)
        except Exception:  # noqa: BLE001, S112 - a local class, or one that can't be made so
            continue
    raise AssertionError("every exception is an Exception or a BaseException")


def _read(content: Any) -> BaseException:
    """The exception that `_portable` made portable."""
    if isinstance(content, BaseException):
        return content
    kind, message, members = content
    if not members:
        return _made(kind, message)
    return BaseExceptionGroup(message, [_read(pickle.loads(one)) for one in members])  # noqa: S301 - as above


def _made(kind: type[BaseException], message: str) -> BaseException:
    """An exception of a class whose constructor may want something else."""
    error = kind.__new__(kind, message)
    error.args = (message,)
    return error
