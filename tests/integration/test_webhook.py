"""Approvals over real HTTP: only an answer that is signed, fresh and about this very call counts."""

from __future__ import annotations

import json
import math
import re
import socket
import ssl
import threading
import time
from pathlib import Path
from types import MappingProxyType

import anyio
import anyio.to_thread
import pytest
from pydantic import SecretStr

from agenthelm.core.handlers import Decision, WebhookHandler
from agenthelm.exceptions import ConfigError
from agenthelm.testing.approvals import approval_contract, approval_request
from tests.support.redis_server import free_port
from tests.support.webhook_server import (
    SECRET,
    Asked,
    Peer,
    Reply,
    WebhookServer,
    certificate,
    signature,
    webhook_server,
)


async def _ask(peer: Peer, *, timeout: float = 10.0, clock=time.time, **changes: object) -> Decision:
    with webhook_server(peer) as server:
        handler = WebhookHandler(server.url, secret=SECRET, timeout=timeout, max_bytes=2000, clock=clock)
        return await handler.request_approval(approval_request(**changes))


async def test_a_signed_yes_approves_and_is_bound_to_the_call() -> None:
    decision = await _ask(lambda server, asked: Reply())
    assert decision == Decision(True, reason="fine", approver="ann", digest=approval_request().digest)


async def test_a_signed_no_denies_with_its_reason() -> None:
    decision = await _ask(lambda server, asked: Reply({"approved": False, "reason": "too dear"}))
    assert (decision.approved, decision.reason, decision.approver) == (False, "too dear", "ann")


async def test_an_answer_without_words_still_has_them() -> None:
    decision = await _ask(lambda server, asked: Reply({"approved": False, "reason": ..., "approver": ...}))
    assert (decision.reason, decision.approver) == ("no reason given", "webhook 127.0.0.1")


async def test_the_request_is_signed_and_says_everything() -> None:
    with webhook_server() as server:
        handler = WebhookHandler(server.url, secret=SecretStr(SECRET.decode()))
        request = approval_request(arguments=MappingProxyType({"city": "Évora"}), expires_at=time.time() + 60)
        await handler.request_approval(request)
        await handler.request_approval(request)
    first, second = server.asked
    timestamp = first.headers["X-AgentHelm-Timestamp"]
    assert first.headers["X-AgentHelm-Signature"] == signature(timestamp, first.body)
    assert abs(time.time() - int(timestamp)) < 30
    body = first.json
    assert body["nonce"] != second.json["nonce"]
    del body["nonce"]
    assert body == {
        "version": 1, "id": request.id, "tool_name": "book_hotel", "arguments": {"city": "Évora"},
        "digest": request.digest, "agent": "planner", "run_id": "run-1", "session_id": "session-1",
        "namespace": "default", "reason": "Book a hotel.", "side_effects": ["booking:write"], "tags": ["travel"],
        "compensating_tool": "cancel_hotel", "irreversible": False, "max_cost": 0.05, "expires_at": request.expires_at,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("timeout", "own", "told"),
    [(20.0, None, 1020.0), (20.0, 1005.0, 1005.0), (20.0, 1900.0, 1020.0), (math.inf, None, None)],
)
async def test_the_request_says_until_when_an_answer_is_waited_for(
    timeout: float, own: float | None, told: float | None
) -> None:
    with webhook_server() as server:
        handler = WebhookHandler(server.url, secret=SECRET, timeout=timeout, clock=lambda: 1000.0)
        await handler.request_approval(approval_request(expires_at=own))
    assert server.asked[0].json["expires_at"] == told


async def test_the_webhook_keeps_the_contract() -> None:
    with webhook_server() as server:
        tests = approval_contract(lambda: WebhookHandler(server.url, secret=SECRET))()
        for name in [name for name in dir(tests) if name.startswith("test_")]:
            await getattr(tests, name)()


def _old(server: WebhookServer, asked: Asked) -> Reply:
    return Reply(timestamp=str(int(time.time()) - 301))


def _resigned(server: WebhookServer, asked: Asked) -> Reply:
    """A fresh timestamp on an old signature."""
    body = asked.body
    return Reply(body=body, signature=signature("1000000000", body))


def _reflected(server: WebhookServer, asked: Asked) -> Reply:
    """Our own request, with our own signature."""
    headers = asked.headers
    return Reply(
        body=asked.body, timestamp=headers["X-AgentHelm-Timestamp"], signature=headers["X-AgentHelm-Signature"]
    )


@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        (lambda s, a: Reply(signed=False), "not signed"),
        (lambda s, a: Reply(secret=b"some other shared secret"), "signature of the webhook's answer is wrong"),
        (lambda s, a: Reply(signature="v1="), "signature of the webhook's answer is wrong"),
        (lambda s, a: Reply(signature="v1=é"), "signature of the webhook's answer is wrong"),
        (lambda s, a: Reply(signature=signature("1", b"")), "signature of the webhook's answer is wrong"),
        (_resigned, "signature of the webhook's answer is wrong"),
        (_old, "too old"),
        (lambda s, a: Reply(timestamp=str(int(time.time()) + 301)), "too old"),
        (
            lambda s, a: Reply(timestamp="soon"),
            "timestamp of the webhook's answer is malformed; it takes whole seconds",
        ),
        (lambda s, a: Reply(timestamp=str(time.time())), "it takes whole seconds"),
        (lambda s, a: Reply(timestamp="9" * 5000), "timestamp|could not be asked"),
        (_reflected, "not a decision: approved"),
        (lambda s, a: Reply({"id": "other"}), "another request"),
        (lambda s, a: Reply({"nonce": "0" * 32}), "another request"),
        (lambda s, a: Reply({"nonce": "é"}), "another request"),
        (lambda s, a: Reply({"digest": "0" * 64}), "other arguments"),
        (lambda s, a: Reply({"approved": "yes"}), "not a decision: approved"),
        (lambda s, a: Reply({"approved": 1}), "not a decision: approved"),
        (lambda s, a: Reply({"approved": ...}), "not a decision: approved"),
        (lambda s, a: Reply({"digest": ...}), "not a decision: digest"),
        (lambda s, a: Reply(body=b"yes"), "not a decision"),
        (lambda s, a: Reply(body=b""), "not a decision"),
        (lambda s, a: Reply(body=b"[" * 1999), "not a decision"),
        (lambda s, a: Reply(body=b"\xff\xfe"), "not a decision"),
        (lambda s, a: Reply(body=b"x" * 2001), "longer than 2000 bytes"),
        (lambda s, a: Reply(status=201), "HTTP status 201"),
        (lambda s, a: Reply(status=204, body=b""), "HTTP status 204"),
        (lambda s, a: Reply(status=403), "HTTP status 403"),
        (lambda s, a: Reply(status=500), "HTTP status 500"),
        (lambda s, a: None, "could not be asked"),
    ],
)
async def test_a_lying_or_broken_peer_is_a_denial_with_the_reason(peer: Peer, reason: str) -> None:
    decision = await _ask(peer)
    assert decision.approved is False
    assert re.search(reason, decision.reason), decision.reason
    assert decision.approver == "webhook 127.0.0.1"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(status: int) -> None:
    with webhook_server() as elsewhere:
        decision = await _ask(lambda s, a: Reply(status=status, headers={"Location": elsewhere.url}))
    assert "redirects" in decision.reason
    assert not elsewhere.asked


async def test_a_replayed_answer_is_refused_even_for_the_same_call() -> None:
    first: list[bytes] = []

    def peer(server: WebhookServer, asked: Asked) -> Reply:
        request = asked.json
        first.append(
            json.dumps(
                {"id": request["id"], "nonce": request["nonce"], "digest": request["digest"], "approved": True}
            ).encode()
        )
        return Reply(body=first[0])

    with webhook_server(peer) as server:
        handler = WebhookHandler(server.url, secret=SECRET)
        request = approval_request()
        assert (await handler.request_approval(request)).approved
        again = await handler.request_approval(request)
    assert (again.approved, again.reason) == (False, "the webhook's answer belongs to another request")


def _silent(server: WebhookServer, asked: Asked) -> Reply:
    server.released.wait(300)
    return Reply()


async def test_a_slow_peer_is_a_denial_at_the_time_limit() -> None:
    decision = await _ask(_silent, timeout=0.1)
    assert (decision.approved, decision.reason) == (False, "the webhook did not answer within 0.1 s")


async def test_the_request_s_expiry_limits_the_wait_too() -> None:
    decision = await _ask(_silent, clock=lambda: 1000.0, expires_at=1000.1)
    assert "did not answer within" in decision.reason


async def test_an_expired_request_is_not_sent() -> None:
    with webhook_server() as server:
        decision = await WebhookHandler(server.url, secret=SECRET).request_approval(
            approval_request(expires_at=time.time() - 1)
        )
    assert "expired before it was sent" in decision.reason
    assert not server.asked


async def test_an_answer_after_the_expiry_does_not_count() -> None:
    now = [time.time()]

    def late(server: WebhookServer, asked: Asked) -> Reply:
        now[0] += 61
        return Reply()

    decision = await _ask(late, clock=lambda: now[0], expires_at=now[0] + 60)
    assert "after the request had expired" in decision.reason


async def test_cancelling_ends_the_wait_at_once() -> None:
    with webhook_server(_silent) as server:
        handler = WebhookHandler(server.url, secret=SECRET)
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(handler.request_approval, approval_request())
                await anyio.to_thread.run_sync(server.arrived.wait, 60)
                group.cancel_scope.cancel()


async def test_nobody_listening_is_a_denial() -> None:
    port = free_port()
    decision = await WebhookHandler(f"http://127.0.0.1:{port}/", secret=SECRET).request_approval(approval_request())
    assert not decision.approved
    assert "could not be asked (ConnectError" in decision.reason


async def test_a_peer_that_drips_its_answer_is_a_denial_at_the_time_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = threading.Event()

        def drip() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                while not done.wait(0.01):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            handler = WebhookHandler(f"http://localhost:{listener.getsockname()[1]}", secret=SECRET, timeout=0.2)
            decision = await handler.request_approval(approval_request())
        finally:
            done.set()
            # On a busy machine nobody may have come within the time limit, and the thread would wait for ever.
            socket.create_connection(listener.getsockname()).close()
            thread.join()
    assert "did not answer within 0.2 s" in decision.reason


async def test_an_answer_without_end_is_cut_off() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pour() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                try:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                    while True:
                        connection.sendall(b"3e8\r\n" + b" " * 1000 + b"\r\n")
                except OSError:
                    return

        thread = threading.Thread(target=pour)
        thread.start()
        handler = WebhookHandler(f"http://127.0.0.1:{listener.getsockname()[1]}", secret=SECRET, max_bytes=5000)
        decision = await handler.request_approval(approval_request())
        thread.join()
    assert "longer than 5000 bytes" in decision.reason


@pytest.mark.parametrize("scheme", ["https", "HTTPS", "Https"])
async def test_https_is_verified(tmp_path: Path, scheme: str) -> None:
    pem = certificate(tmp_path)
    with webhook_server(certificate=pem) as server:
        url = f"{scheme}://localhost:{server.server_address[1]}/"
        trusting = WebhookHandler(url, secret=SECRET, ssl_context=ssl.create_default_context(cafile=str(pem)))
        assert (await trusting.request_approval(approval_request())).approved
        stranger = await WebhookHandler(url, secret=SECRET).request_approval(approval_request())
    assert not stranger.approved
    assert "CERTIFICATE_VERIFY_FAILED" in stranger.reason
    assert len(server.asked) == 1


async def test_a_peer_s_essay_is_cut() -> None:
    decision = await _ask(lambda s, a: Reply({"approved": False, "reason": "no " * 600, "approver": "ann"}))
    assert len(decision.reason) == 1000


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with webhook_server(lambda s, a: Reply({"approver": "the proxy"})) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        assert (await _ask(lambda s, a: Reply())).approver == "ann"
    # An exporter that another test left to its retries reads the environment, too: only our own requests count.
    assert not [asked for asked in proxy.asked if "otlp" not in asked.headers.get("user-agent", "").lower()]


async def test_secrets_in_an_answer_are_not_passed_on() -> None:
    said = "password=correct-horse"
    decision = await _ask(lambda s, a: Reply({"approved": False, "reason": said, "approver": f"bot {said}"}))
    assert (decision.reason, decision.approver) == ("password=***", "bot password=***")


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/", "http://10.0.0.1/", "http://0.0.0.0/", "http://localhost.example.org/", "ftp://localhost/",
        "example.org", "", "https://", "https://user:password@example.org/", "http://[::1", "https://h:port/",
        "http://127.0.0.1.example.org/",
    ],
)  # fmt: skip
def test_addresses_that_approvals_must_not_go_to_are_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        WebhookHandler(url, secret=SECRET)
    assert "password@" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "http://127.1.2.3:80/", "http://[::1]:8/x", "http://localhost"])
def test_plain_http_goes_to_this_machine_only(url: str) -> None:
    assert SECRET.decode() not in repr(WebhookHandler(url, secret=SECRET))


@pytest.mark.parametrize(
    "settings", [{"secret": "short"}, {"secret": SECRET, "timeout": 0.0}, {"secret": SECRET, "timeout": float("nan")}]
)
def test_settings_that_protect_nothing_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        WebhookHandler("https://example.org/", **settings)  # type: ignore[arg-type]
