"""A real HTTP server that speaks the OpenAI chat protocol, counts what it was asked, and fails on demand.

In tests: ``with OpenAIServer() as server: resolve_model("gpt-4o-mini", api_base=server.base_url)``.
By hand: ``python -m tests.support.openai_server --port 8085`` prints one line per request.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal, Self

from agenthelm.agent.placeholder import fill_prompt, render

Mode = Literal["answer", "status", "not_json", "prose", "hang", "drop", "cut", "refuse_key", "no_usage", "half_usage"]


@dataclass(frozen=True)
class Behaviour:
    """How one request is answered.

    Attributes:
        mode: ``answer`` with the fields that the prompt asks for; ``status`` with an error status; ``not_json``: HTML
            with status 200; ``prose``: an answer without the fields; ``hang``: headers and never a body; ``drop``: close
            the connection without a byte; ``cut``: half of the answer; ``refuse_key``: 401; ``no_usage``: an answer that
            does not say what it took; ``half_usage``: one that says it of its input only.
        status: For ``status``.
        retry_after: Seconds, sent as a header with ``status``.
        delay: Seconds before anything is sent.
        fields: Values by output field, in place of placeholders.
        text: The whole text of the answer, in place of fields.
        input_tokens: None for an estimate of the prompt's.
        output_tokens: None for an estimate of the answer's.
        cached_tokens: How many of the input tokens the prompt cache held.
        reasoning_tokens: How many of the output tokens were thinking.
        started: Set when the request has arrived, for tests that act while it is open.
    """

    mode: Mode = "answer"
    status: int = 500
    retry_after: float | None = None
    delay: float = 0.0
    fields: dict[str, Any] = field(default_factory=dict)
    text: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    started: threading.Event = field(default_factory=threading.Event)


ANSWER = Behaviour()


@dataclass(frozen=True)
class Seen:
    """One request as the server saw it.

    Attributes:
        number: Counted from 1.
        body: The request.
        streamed: Whether a stream was asked for.
        status: The status that was sent; None when nothing was.
        answered: Whether the whole answer went out.
        counted: Whether it said what it took.
        input_tokens: What the answer said it took; 0 when there was none.
        output_tokens: Likewise.
        cached_tokens: Likewise.
        reasoning_tokens: Likewise.
    """

    number: int
    body: dict[str, Any]
    streamed: bool
    status: int | None
    answered: bool
    counted: bool = True
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def model(self) -> str:
        """The model that was asked for."""
        return str(self.body.get("model"))

    @property
    def prompt(self) -> str:
        """All text of the request."""
        return "\n".join(_content(message) for message in self.body.get("messages", []))

    def line(self) -> str:
        """One line of the request log."""
        what = f"{self.status or 'no answer'}{' stream' if self.streamed else ''}"
        tokens = f"{self.input_tokens} in, {self.output_tokens} out" if self.answered else "nothing answered"
        return f"#{self.number} POST /v1/chat/completions {self.model} -> {what} | {tokens}"


class OpenAIServer:
    """The server, in a thread of its own; a context manager.

    Args:
        script: How requests are answered, in order; or a function of request number (from 1) and body. What the script
            does not cover is answered.
        port: 0 for a free one.
        log: Called with one line per request.
        jitter: With a seed, token counts vary from answer to answer as a real model's do.
    """

    def __init__(
        self,
        script: Sequence[Behaviour] | Callable[[int, dict[str, Any]], Behaviour] = (),
        *,
        port: int = 0,
        log: Callable[[str], None] | None = None,
        jitter: int | None = None,
    ) -> None:
        self.script = script
        self.log = log
        self._random = None if jitter is None else random.Random(jitter)
        self._lock = threading.Lock()
        self._count = 0
        self._hanging = 0
        self._seen: list[Seen] = []
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.owner = self
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="openai-server", daemon=True
        )

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    @property
    def base_url(self) -> str:
        """What goes into ``api_base``."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def seen(self) -> list[Seen]:
        """The requests that are over, in the order in which they ended, as a copy.

        A client has its answer a moment before the server has written the request down, so that is waited for.
        """
        self.wait_idle()
        with self._lock:
            return list(self._seen)

    @property
    def asked(self) -> int:
        """How many requests arrived, those that are still open included."""
        with self._lock:
            return self._count

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def connections(self) -> int:
        """How many connections were made."""
        return self._server.accepted

    @property
    def open_connections(self) -> int:
        """How many of them are still open at both ends."""
        return self._server.open_clients

    def close(self) -> None:
        """Let open requests go, and stop listening."""
        self.closing.set()
        self._server.shutdown()
        self._server.close_clients()
        self._server.server_close()
        self._thread.join()

    def wait_idle(self, timeout: float = 60.0) -> None:
        """Wait until every request that arrived has ended, but for those that hang on purpose."""
        deadline = time.monotonic() + timeout
        while True:
            with self._lock:
                if len(self._seen) + self._hanging == self._count:
                    return
            if time.monotonic() > deadline:
                raise TimeoutError("a request is still open")
            time.sleep(0.002)

    def arrive(self, body: dict[str, Any]) -> tuple[int, Behaviour]:
        """Count a request and decide how it is answered."""
        with self._lock:
            self._count += 1
            number = self._count
        if callable(self.script):
            return number, self.script(number, body)
        return number, self.script[number - 1] if number <= len(self.script) else ANSWER

    def hang(self) -> None:
        """Wait for the end of the server."""
        with self._lock:
            self._hanging += 1
        self.closing.wait()
        with self._lock:
            self._hanging -= 1

    def finish(self, seen: Seen) -> None:
        """Put a request into the log."""
        with self._lock:
            self._seen.append(seen)
        if self.log is not None:
            self.log(seen.line())

    def tokens(self, prompt: str, answer: str) -> tuple[int, int]:
        """What an answer says it took: an estimate by length, the same for the same text unless there is jitter."""
        inputs, outputs = len(prompt) // 4 + 1, len(answer) // 4 + 1
        if self._random is not None:
            with self._lock:
                outputs += self._random.randrange(40)
        return inputs, outputs


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    owner: OpenAIServer

    def __init__(self, *args: Any) -> None:
        self.accepted = 0
        super().__init__(*args)
        self._clients: set[socket.socket] = set()
        self._clients_lock = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.accepted += 1
        with self._clients_lock:
            self._clients.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._clients_lock:
            self._clients.discard(request)
        super().shutdown_request(request)

    @property
    def open_clients(self) -> int:
        with self._clients_lock:
            return sum(not _closed_by_peer(client) for client in self._clients)

    def close_clients(self) -> None:
        with self._clients_lock:
            clients = list(self._clients)
        for client in clients:
            try:
                client.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """The owner keeps the log."""

    def do_GET(self) -> None:
        if self.path.rstrip("/") == "/v1/models":
            self._json(200, {"object": "list", "data": [{"id": "gpt-4o-mini", "object": "model"}]})
        else:
            self._json(404, {"error": {"message": f"no such path: {self.path}"}})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.path.endswith("/chat/completions"):
            self._json(404, {"error": {"message": f"no such path: {self.path}"}})
            return
        body = json.loads(raw)
        owner = self.server.owner
        number, how = owner.arrive(body)
        how.started.set()
        outcome: dict[str, Any] = {"status": None, "answered": False}
        try:
            if how.delay:
                owner.closing.wait(how.delay)
            self._behave(how, body, number, outcome)
        except OSError:
            self.close_connection = True
        finally:
            owner.finish(Seen(number, body, bool(body.get("stream")), **outcome))

    def _behave(self, how: Behaviour, body: dict[str, Any], number: int, outcome: dict[str, Any]) -> None:
        if how.mode == "drop":
            self._hang_up()
        elif how.mode == "hang":
            self._head(200, "application/json", 1000)
            outcome["status"] = 200
            self.server.owner.hang()
            self._hang_up()
        elif how.mode in ("status", "refuse_key"):
            status = 401 if how.mode == "refuse_key" else how.status
            outcome["status"] = status
            error = {"message": f"scripted {status}", "type": "scripted", "code": None}
            self._json(status, {"error": error}, retry_after=how.retry_after)
        elif how.mode == "not_json":
            outcome["status"] = 200
            self._bytes(200, "text/html", b"<html>This is not the API you are looking for.</html>")
        else:
            self._answer(how, body, number, outcome)

    def _answer(self, how: Behaviour, body: dict[str, Any], number: int, outcome: dict[str, Any]) -> None:
        messages = body.get("messages", [])
        text = self._text(how, body, messages)
        prompt = "\n".join(_content(message) for message in messages)
        inputs, outputs = self.server.owner.tokens(prompt, text)
        inputs = inputs if how.input_tokens is None else how.input_tokens
        outputs = outputs if how.output_tokens is None else how.output_tokens
        limit = body.get("max_tokens") or body.get("max_completion_tokens")
        outputs = outputs if limit is None else min(outputs, int(limit))
        usage: dict[str, Any] | None = {
            "prompt_tokens": inputs,
            "completion_tokens": outputs,
            "total_tokens": inputs + outputs,
            "prompt_tokens_details": {"cached_tokens": how.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": how.reasoning_tokens},
        }
        if how.mode == "no_usage":
            usage = None
        elif how.mode == "half_usage":
            usage = {"prompt_tokens": inputs}
        head = {"id": f"chatcmpl-{number}", "created": int(time.time()), "model": body.get("model")}
        outcome["status"] = 200
        if body.get("stream"):
            self._stream(head, text, usage, cut=how.mode == "cut", include=_wants_usage(body))
        else:
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            reply = {**head, "object": "chat.completion", "choices": [choice]}
            data = json.dumps(reply if usage is None else {**reply, "usage": usage}).encode()
            if how.mode == "cut":
                self._head(200, "application/json", len(data))
                self.wfile.write(data[: len(data) // 2])
                self._hang_up()
            else:
                self._bytes(200, "application/json", data)
        if how.mode != "cut":
            outcome.update(
                answered=True,
                counted="usage" not in how.mode and (not body.get("stream") or _wants_usage(body)),
                input_tokens=inputs,
                output_tokens=outputs,
                cached_tokens=how.cached_tokens,
                reasoning_tokens=how.reasoning_tokens,
            )

    def _text(self, how: Behaviour, body: dict[str, Any], messages: list[dict[str, Any]]) -> str:
        if how.mode == "prose":
            return "I would rather talk about the weather than fill in fields."
        if how.text is not None:
            return how.text
        system = "\n".join(_content(message) for message in messages if message.get("role") in ("system", "developer"))
        format_ = body.get("response_format")
        if isinstance(format_, dict) and format_.get("type") == "json_schema":
            format_ = {"schema": format_["json_schema"]["schema"]}
        values = {**fill_prompt(system, format_), **how.fields}
        if values:
            return render(values, system, format_)
        digest = hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:8]
        return f"answer {digest}"

    def _stream(
        self, head: dict[str, Any], text: str, usage: dict[str, Any] | None, *, cut: bool, include: bool
    ) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        head = {**head, "object": "chat.completion.chunk"}
        pieces = [text[start : start + 24] for start in range(0, len(text), 24)]
        for index, piece in enumerate(pieces[: len(pieces) // 2] if cut else pieces):
            delta = {"content": piece, **({"role": "assistant"} if index == 0 else {})}
            self._event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        if cut:
            self._hang_up()
            return
        self._event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if usage is not None and include:
            self._event({**head, "choices": [], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, data: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(data).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _head(self, status: int, kind: str, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _bytes(self, status: int, kind: str, data: bytes) -> None:
        self._head(status, kind, len(data))
        self.wfile.write(data)

    def _json(self, status: int, data: dict[str, Any], *, retry_after: float | None = None) -> None:
        payload = json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        if retry_after is not None:
            self.send_header("Retry-After", f"{retry_after:g}")
        self.end_headers()
        self.wfile.write(payload)

    def _hang_up(self) -> None:
        self.close_connection = True
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def _closed_by_peer(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _wants_usage(body: dict[str, Any]) -> bool:
    return bool((body.get("stream_options") or {}).get("include_usage"))


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content or "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until interrupted, one line per request."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.openai_server", description=__doc__)
    parser.add_argument("--port", type=int, default=8085)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--status", type=int, help="answer everything with this error status")
    parser.add_argument("--fail-every", type=int, help="answer every N-th request with status 503")
    parser.add_argument("--mode", default="answer", choices=Mode.__args__)  # type: ignore[attr-defined]
    options = parser.parse_args(arguments)

    def script(number: int, body: dict[str, Any]) -> Behaviour:
        if options.status or (options.fail_every and number % options.fail_every == 0):
            return Behaviour("status", status=options.status or 503, delay=options.delay)
        return Behaviour(options.mode, delay=options.delay)

    with OpenAIServer(script, port=options.port, log=lambda line: print(line, flush=True)) as server:
        print(f"listening on {server.base_url} (any key will do); Ctrl-C to stop", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            done = server.seen
            tokens = sum(seen.input_tokens for seen in done), sum(seen.output_tokens for seen in done)
            print(f"\n{server.asked} requests, {tokens[0]} input and {tokens[1]} output tokens", flush=True)


if __name__ == "__main__":
    sys.exit(main())
