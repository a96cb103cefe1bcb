"""A real Chroma server for tests, on a free port."""

from __future__ import annotations

import atexit
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.redis_server import free_port, wait_for_port


class ChromaServer:
    """``chroma run`` on a folder of its own."""

    def __init__(self) -> None:
        self.port = free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="chroma-", ignore_cleanup_errors=True)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it listens."""
        command = [str(Path(sys.executable).parent / "chroma"), "run", "--path", self._folder.name]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "ANONYMIZED_TELEMETRY": "False"},
        )
        wait_for_port(self.port, process=self._process)

    def kill(self) -> None:
        """Kill it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Kill it and remove its data."""
        self.kill()
        self._folder.cleanup()


@functools.cache
def shared_chroma() -> ChromaServer:
    """One server for all tests of this process that do not kill it."""
    server = ChromaServer()
    server.start()
    atexit.register(server.close)
    return server
