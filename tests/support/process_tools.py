"""Functions for worker processes, which import them from here."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import anyio

from agenthelm import charge, saga


class PeculiarError(Exception):
    """One that pickles, and can't be read again."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


def _note(path: str) -> None:
    with Path(path).open("a") as file:
        file.write("x")


def die(path: str) -> None:
    _note(path)
    os._exit(9)


def give_what_does_not_pickle(path: str) -> Any:
    _note(path)
    return lambda: None


class Unreadable:
    def __reduce__(self) -> Any:
        return _only_in, (os.getpid(),)


def _only_in(pid: int) -> Unreadable:
    if pid != os.getpid():
        raise ValueError("not here")
    return Unreadable()


class UnreadableError(Exception):
    def __reduce__(self) -> Any:
        return _raised_only_in, (os.getpid(),)


def _raised_only_in(pid: int) -> UnreadableError:
    if pid != os.getpid():
        raise ValueError("not here")
    return UnreadableError()


def give_what_is_unreadable_elsewhere(path: str) -> Any:
    _note(path)
    return Unreadable()


def raise_what_is_unreadable_elsewhere(path: str) -> None:
    _note(path)
    raise UnreadableError


def raise_peculiar(path: str) -> None:
    _note(path)
    raise PeculiarError("a", "b")


def raise_local(path: str) -> None:
    class LineWentDeadError(ConnectionError):
        """Nobody else knows this class."""

    _note(path)
    raise LineWentDeadError("at once")


def raise_peculiar_and_others(path: str) -> None:
    _note(path)
    peers = ExceptionGroup("peers", [PeculiarError("a", "b"), ConnectionError("after it was sent")])
    raise ExceptionGroup("all", [peers, KeyError("plain")])


def raise_plain(path: str) -> None:
    _note(path)
    raise KeyError("plain")


def leave(path: str) -> None:
    _note(path)
    sys.exit(4)


def spend(usd: float, fails: bool = False) -> None:
    charge(usd)
    if fails:
        raise ValueError("after it had spent")


def spend_and_die(usd: float) -> None:
    charge(usd)
    os._exit(9)


def spend_and_hang(usd: float) -> None:
    charge(usd)
    time.sleep(60)


def spend_and_die_once(path: str, usd: float) -> None:
    charge(usd)
    if not Path(path).exists():
        _note(path)
        os._exit(9)


def go_on_after_ctrl_c(path: str) -> int:
    os.kill(os.getpid(), signal.SIGINT)  # as the terminal does to every process of the program
    _note(path)
    return 7


def run_a_saga() -> str:
    async def work() -> str:
        async with saga("inside") as scope:
            pass
        assert scope.result is not None
        return scope.result.status

    return anyio.run(work)
