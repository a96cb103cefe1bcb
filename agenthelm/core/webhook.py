"""Approvals by a signed HTTP request: whoever answers must know the shared secret and have seen this very call."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import math
import secrets
import ssl
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import anyio
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from agenthelm.core.decisions import ApprovalHandler, ApprovalRequest, Decision
from agenthelm.core.redaction import scrub
from agenthelm.exceptions import ConfigError
from agenthelm.telling import behind
from agenthelm.tracing.context import inject

if TYPE_CHECKING:
    import httpx

__all__ = ["WebhookHandler", "sign"]

TIMESTAMP_HEADER: Final = "X-AgentHelm-Timestamp"
"""Seconds since the epoch, as decimal digits."""
SIGNATURE_HEADER: Final = "X-AgentHelm-Signature"
"""``v1=`` and the hex digest of `sign`."""

_SHORTEST_SECRET: Final = 16
_LONGEST_TEXT: Final = 1000
"""Characters of a reason, and of an approver's name, that are passed on; an agent's prompt is no place for a peer's essay."""
_TOLERANCE: Final = 300.0
"""Seconds by which the clocks of both sides may differ."""


def sign(secret: bytes, timestamp: str, body: bytes) -> str:
    """HMAC-SHA256 over ``timestamp``, a dot and ``body``, as both sides compute it.

    Args:
        secret: The shared secret.
        timestamp: The value of the timestamp header.
        body: The body as sent.

    Returns:
        The value of the signature header.
    """
    return "v1=" + hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    id: str
    nonce: str
    digest: str
    approved: bool
    reason: str = ""
    approver: str = ""


class _RefusedError(Exception):
    """The answer does not count, and why."""


class WebhookHandler(ApprovalHandler):
    """Asks an HTTP endpoint and waits for its answer, which may take as long as a human takes.

    The request is a POST of JSON: the fields of `ApprovalRequest` and a fresh ``nonce``, signed with the shared secret
    (see `sign`); its ``expires_at`` says until when an answer is waited for. The answer is a 200 with JSON
    ``{"id", "nonce", "digest", "approved", "reason", "approver"}``, signed the same way; id, nonce and digest must be those
    of the request. Anything else, from a refused connection to a signature that does not fit, is a denial with the reason.

    Args:
        url: Where to ask. ``https://``; plain ``http://`` only to this machine.
        secret: The shared secret, at least 16 bytes.
        timeout: Seconds to wait for an answer; the request's own expiry counts too.
        max_bytes: Longer answers are refused.
        ssl_context: For certificates the system does not know.
        clock: Seconds since the epoch.

    Raises:
        ConfigError: The address is not one to send approvals to, or the secret is too short.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: str | bytes | SecretStr,
        timeout: float = 300.0,
        max_bytes: int = 65_536,
        ssl_context: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        text = secret.get_secret_value() if isinstance(secret, SecretStr) else secret
        self._secret = text.encode() if isinstance(text, str) else text
        if len(self._secret) < _SHORTEST_SECRET:
            raise ConfigError(f"the webhook's secret needs at least {_SHORTEST_SECRET} bytes", setting="secret")
        if not timeout > 0:  # NaN neither
            raise ConfigError(f"the webhook's timeout must be above 0 s, not {timeout:g}", setting="timeout")
        self._host, self._encrypted = _checked(url)
        self._url = url
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._ssl = ssl_context
        self._clock = clock

    def __repr__(self) -> str:
        return f"WebhookHandler({self._host!r})"

    async def request_approval(self, request: ApprovalRequest) -> Decision:
        """Send the request, verify the answer. Never raises but for cancellation."""
        now = self._clock()
        until = now + self._timeout
        if request.expires_at is not None:
            until = min(until, request.expires_at)
        wait = until - now
        if wait <= 0:
            return self._denied("the request had expired before it was sent")
        with anyio.move_on_after(wait) as scope:
            try:
                return await self._ask(request, until)
            except _RefusedError as exc:
                return self._denied(str(exc))
            except Exception as exc:  # noqa: BLE001 - whatever a peer does to us, it has not said yes
                return self._denied(scrub(f"the webhook could not be asked ({_why(exc)})"))
        assert scope.cancelled_caught
        return self._denied(f"the webhook did not answer within {wait:.3g} s")

    async def _ask(self, request: ApprovalRequest, until: float) -> Decision:
        nonce = secrets.token_hex(16)
        # Whoever is asked can't know how long this side waits, and a yes that comes later would count for nothing.
        fields = {**_fields(request), "expires_at": until if math.isfinite(until) else None}
        body = json.dumps({**fields, "nonce": nonce}, separators=(",", ":")).encode()
        headers, answer = await self._post(body)
        self._verify(headers, answer)
        try:
            decision = _Answer.model_validate_json(answer)
        except ValidationError as exc:
            raise _RefusedError(f"the webhook's answer is not a decision: {_first(exc)}") from exc
        if not hmac.compare_digest(decision.nonce.encode(), nonce.encode()) or decision.id != request.id:
            raise _RefusedError("the webhook's answer belongs to another request")
        if decision.digest != request.digest:
            raise _RefusedError("the webhook's answer is for other arguments")
        if request.expires_at is not None and self._clock() > request.expires_at:
            raise _RefusedError("the webhook's answer came after the request had expired")
        approver = decision.approver or f"webhook {self._host}"
        reason = decision.reason or ("approved" if decision.approved else "no reason given")
        return Decision(
            decision.approved,
            reason=scrub(reason)[:_LONGEST_TEXT],
            approver=scrub(approver)[:_LONGEST_TEXT],
            digest=decision.digest,
        )

    async def _post(self, body: bytes) -> tuple[Mapping[str, str], bytes]:
        import httpx

        timestamp = str(int(self._clock()))
        headers = {
            **inject(),
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            TIMESTAMP_HEADER: timestamp,
            SIGNATURE_HEADER: sign(self._secret, timestamp, body),
        }
        # No proxies, no .netrc: the request goes where it was told to, with nothing added.
        async with (
            httpx.AsyncClient(
                verify=self._verification(), trust_env=False, follow_redirects=False, timeout=httpx.Timeout(None)
            ) as client,
            client.stream("POST", self._url, content=body, headers=headers) as response,
        ):
            if response.is_redirect or 300 <= response.status_code < 400:
                raise _RefusedError("the webhook redirects, which is not followed")
            if response.status_code != 200:
                raise _RefusedError(f"the webhook answered with HTTP status {response.status_code}")
            return response.headers, await self._read(response)

    async def _read(self, response: httpx.Response) -> bytes:
        answer = bytearray()
        # Leaving the loop would leave httpx's nested generators to the garbage collector, which trio reports; a
        # cancellation runs through them.
        with anyio.CancelScope() as scope:
            async for chunk in response.aiter_raw():
                if len(answer) + len(chunk) > self._max_bytes:
                    scope.cancel()
                else:
                    answer += chunk
        if scope.cancel_called:
            raise _RefusedError(f"the webhook's answer is longer than {self._max_bytes} bytes")
        return bytes(answer)

    def _verify(self, headers: Mapping[str, str], body: bytes) -> None:
        timestamp, signature = headers.get(TIMESTAMP_HEADER, ""), headers.get(SIGNATURE_HEADER, "")
        if not timestamp or not signature:
            raise _RefusedError("the webhook's answer is not signed")
        if not hmac.compare_digest(sign(self._secret, timestamp, body).encode(), signature.encode()):
            raise _RefusedError("the signature of the webhook's answer is wrong")
        if not timestamp.isascii() or not timestamp.isdecimal() or len(timestamp) > 12:
            raise _RefusedError("the timestamp of the webhook's answer is malformed; it takes whole seconds")
        if abs(self._clock() - int(timestamp)) > _TOLERANCE:
            raise _RefusedError("the webhook's answer is too old, or the clocks differ")

    def _verification(self) -> ssl.SSLContext | bool:
        if not self._encrypted:
            return False  # loopback; spares the certificates
        if self._ssl is None:
            self._ssl = ssl.create_default_context()
        return self._ssl

    def _denied(self, reason: str) -> Decision:
        return Decision(False, reason=reason, approver=f"webhook {self._host}")


def _checked(url: str) -> tuple[str, bool]:
    """The host of an address that approvals may be sent to, and whether it is an https one."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as exc:
        raise ConfigError(f"the webhook's address is malformed: {exc}", setting="url") from exc
    if not host or parts.scheme not in {"http", "https"}:
        raise ConfigError("the webhook's address must begin with https:// and name a host", setting="url")
    if parts.username is not None or parts.password is not None:
        raise ConfigError("the webhook's address must not carry credentials; requests are signed", setting="url")
    if parts.scheme == "http" and not _is_loopback(host):
        raise ConfigError(f"the webhook at {host} must be https; plain http is for this machine only", setting="url")
    return host, parts.scheme == "https"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _why(error: BaseException) -> str:
    """An error by its name and the first message along its causes; on trio the outermost one is often empty."""
    said = next(filter(None, map(str, [error, *behind(error)])), "")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _fields(request: ApprovalRequest) -> dict[str, Any]:
    return {
        "version": 1,
        "id": request.id,
        "tool_name": request.tool_name,
        "arguments": dict(request.arguments),
        "digest": request.digest,
        "agent": request.agent,
        "run_id": request.run_id,
        "session_id": request.session_id,
        "namespace": request.namespace,
        "reason": request.reason,
        "side_effects": list(request.side_effects),
        "tags": list(request.tags),
        "compensating_tool": request.compensating_tool,
        "irreversible": request.irreversible,
        "max_cost": request.max_cost,
    }


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the body'}: {first['msg']}"
