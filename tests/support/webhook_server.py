"""A real HTTP server that answers approval requests: honestly, slowly, with lies, or not at all."""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

SECRET = b"a shared secret of the test"


def signature(timestamp: str, body: bytes, secret: bytes = SECRET) -> str:
    """What both sides compute, written down independently of the package."""
    return "v1=" + hmac.new(secret, f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


@dataclass
class Asked:
    """One request as it came."""

    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)


@dataclass
class Reply:
    """One answer; what is None is filled in honestly."""

    changes: dict[str, Any] = field(default_factory=dict)
    body: bytes | None = None
    status: int = 200
    timestamp: str | None = None
    signature: str | None = None
    secret: bytes = SECRET
    headers: dict[str, str] = field(default_factory=dict)
    signed: bool = True


Peer = Callable[["WebhookServer", Asked], "Reply | None"]


def honest(server: WebhookServer, asked: Asked) -> Reply:
    """Approves."""
    return Reply()


class WebhookServer(ThreadingHTTPServer):
    """Listens on a free port of this machine; ``peer`` decides how it behaves."""

    daemon_threads = True

    def __init__(self, peer: Peer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.peer = peer
        self.asked: list[Asked] = []
        self.arrived = threading.Event()
        self.released = threading.Event()
        """Set at the end of a test; slow peers wait for it, so that no test waits for them."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/approve"


class _Handler(BaseHTTPRequestHandler):
    server: WebhookServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = Asked(dict(self.headers.items()), self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        self.server.arrived.set()
        try:
            reply = self.server.peer(self.server, asked)
            if reply is None:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self._send(asked, reply)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has given up, as it should

    def _send(self, asked: Asked, reply: Reply) -> None:
        body = reply.body
        if body is None:
            request = asked.json
            answer = {
                "id": request["id"], "nonce": request["nonce"], "digest": request["digest"], "approved": True,
                "reason": "fine", "approver": "ann", **reply.changes,
            }  # fmt: skip
            body = json.dumps({key: value for key, value in answer.items() if value is not ...}).encode()
        timestamp = str(int(time.time())) if reply.timestamp is None else reply.timestamp
        self.send_response(reply.status)
        self.send_header("Content-Length", str(len(body)))
        if reply.signed:
            self.send_header("X-AgentHelm-Timestamp", timestamp)
            self.send_header("X-AgentHelm-Signature", reply.signature or signature(timestamp, body, reply.secret))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.do_POST()

    def handle(self) -> None:
        try:
            super().handle()
        except (ssl.SSLError, ConnectionResetError):
            pass  # a client that does not trust us has gone

    def log_message(self, *args: object) -> None:
        pass


def certificate(folder: Path) -> Path:
    """A self-signed certificate for this machine, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "webhook.pem"
    path.write_bytes(
        made.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return path


@contextmanager
def webhook_server(peer: Peer = honest, *, certificate: Path | None = None) -> Iterator[WebhookServer]:
    """A server for the time of a ``with`` block; with a certificate it speaks TLS."""
    server = WebhookServer(peer)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
