"""Who holds a run: a process, told apart from every other that ever had its pid."""

from __future__ import annotations

import functools
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

__all__ = ["Owner"]


@dataclass(frozen=True, slots=True)
class Owner:
    """A process on a host.

    A pid alone is soon reused, and means nothing in another container or after a reboot. So it counts only together
    with the boot, the pid namespace and the start time. What can't be read is empty. On macOS that is the start time,
    without which nobody whose pid is taken can be told.
    """

    host: str
    pid: int
    boot_id: str = ""
    pid_namespace: str = ""
    start_time: str = ""

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        return _here(os.getpid())

    @classmethod
    def from_data(cls, data: Any) -> Self:
        """From its journal form; unreadable parts become empty, and so unknown."""
        known = data if isinstance(data, dict) else {}
        return cls(
            host=str(known.get("host", "")),
            pid=int(known.get("pid", 0) or 0),
            boot_id=str(known.get("boot_id", "")),
            pid_namespace=str(known.get("pid_namespace", "")),
            start_time=str(known.get("start_time", "")),
        )

    def data(self) -> dict[str, Any]:
        """Its journal form."""
        return {name: getattr(self, name) for name in self.__slots__}

    def fate(self) -> Literal["alive", "dead", "unknown"]:
        """Whether the process still runs, as far as this host can tell."""
        here = Owner.here()
        if not (self.boot_id and self.pid_namespace):
            return "unknown"
        if (self.boot_id, self.pid_namespace) != (here.boot_id, here.pid_namespace):
            return "unknown"
        started = _start_time(self.pid) if self.start_time else ""
        if started and started == self.start_time:
            return "alive"
        return "dead" if started or _is_gone(self.pid) else "unknown"

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host or 'an unknown host'}"


_MACOS = sys.platform == "darwin"


@functools.lru_cache(maxsize=2)
def _here(pid: int) -> Owner:  # by pid, because a fork is another process
    return Owner(socket.gethostname(), pid, _boot_id(), _pid_namespace(), _start_time(pid))


def _boot_id() -> str:
    if _MACOS:
        return _sysctl(b"kern.bootsessionuuid")
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    if _MACOS:
        return "the only one"
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        return ""


def _sysctl(name: bytes) -> str:
    """A text that the kernel of macOS tells; ``""`` where it does not."""
    import ctypes  # here, because elsewhere nobody needs it

    text, size = ctypes.create_string_buffer(64), ctypes.c_size_t(64)
    try:
        failed = ctypes.CDLL(None).sysctlbyname(name, text, ctypes.byref(size), None, ctypes.c_size_t(0))
    except (OSError, AttributeError):  # no such library, or it has no such function
        return ""
    return "" if failed else text.value.decode("ascii", "replace")


def _start_time(pid: int) -> str:
    """Clock ticks between boot and the process's start; field 22 of ``/proc/PID/stat`` (see proc(5))."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = stat[stat.rfind(")") + 2 :].split()
    # A zombie has ended: it only waits for its parent to ask how.
    return "" if len(fields) < 20 else "ended" if fields[0] in ("Z", "X") else fields[19]


def _is_gone(pid: int) -> bool:
    """Whether a process of this host that can't be looked at is not there at all.

    It may be hidden (``/proc`` mounted with ``hidepid``), or there may be no descriptor left to look with. Who is
    alive must not be taken for dead: its run would be undone while it goes on.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        pass
    return False
