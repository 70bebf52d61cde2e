"""A server of chat completions that misbehaves as it is told to, for the tests of endpoints."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

Behaviour: TypeAlias = Callable[["Handler"], None]
"""Answers one request."""


@dataclass(slots=True)
class ChatServer:
    """What a running server is to do next, and what it has seen."""

    url: str
    script: list[Behaviour] = field(default_factory=list)
    """What becomes of the next requests, in order; later ones are answered well."""
    default: Behaviour = field(default_factory=lambda: says("Hello!"))
    requests: list[dict[str, Any]] = field(default_factory=list)
    """The bodies of all requests."""
    headers: list[Message] = field(default_factory=list)
    """Their headers, by names in any case."""
    connections: set[Any] = field(default_factory=set)
    in_flight: int = 0
    peak: int = 0
    """Most requests that were in flight at a time."""
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Handler(BaseHTTPRequestHandler):
    """One connection, which takes any number of requests."""

    protocol_version = "HTTP/1.1"
    state: ChatServer

    def handle(self) -> None:
        with suppress(ConnectionError):  # whoever asked has had enough
            super().handle()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        state = self.state
        with state.lock:
            state.requests.append(body)
            state.headers.append(self.headers)
            state.connections.add(self.client_address)
            state.in_flight += 1
            state.peak = max(state.peak, state.in_flight)
            behaviour = state.script.pop(0) if state.script else state.default
        try:
            behaviour(self)
        finally:
            with state.lock:
                state.in_flight -= 1

    def send(
        self,
        body: bytes,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        """Send an answer; ``length`` is what its header claims, if that is not the truth."""
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Write no log."""


def completion(**parts: Any) -> dict[str, Any]:
    """Return a good answer, but for ``parts``."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello!"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
        **parts,
    }


def says(text: str | None, **choice: Any) -> Behaviour:
    """Answer well."""
    message = {"role": "assistant", "content": text, **choice.pop("message", {})}
    whole = {"index": 0, "message": message, "finish_reason": "stop", **choice}
    return answers(completion(choices=[whole]))


def answers(body: Any) -> Behaviour:
    """Answer with any JSON value."""
    return lambda handler: handler.send(json.dumps(body).encode())


def writes(body: bytes, content_type: str = "application/json") -> Behaviour:
    """Answer with any bytes."""
    return lambda handler: handler.send(body, headers={"Content-Type": content_type})


def fails(
    status: int, message: str = "no", headers: Mapping[str, str] | None = None, **error: Any
) -> Behaviour:
    """Answer with an error."""
    body = json.dumps({"error": {"message": message, **error}}).encode()
    return lambda handler: handler.send(body, status, headers)


def hangs(handler: Handler) -> None:
    """Do not answer while the server runs."""
    handler.state.closing.wait()
    handler.close_connection = True


def drops(handler: Handler) -> None:
    """Close the connection without a word."""
    handler.close_connection = True


def breaks_off(handler: Handler) -> None:
    """Close the connection in the middle of the answer."""
    body = json.dumps(completion()).encode()
    handler.send(body[: len(body) // 2], length=len(body))
    handler.close_connection = True


def breaks_off_a_chunk(handler: Handler) -> None:
    """Close the connection in the middle of an answer whose length was not told beforehand."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b'40\r\n{"choices": [')
    handler.close_connection = True


def breaks_off_a_stream(handler: Handler) -> None:
    """Send the beginning of a stream of events, which nobody asked for."""
    event = {"object": "chat.completion.chunk", "choices": [{"delta": {"content": "Hel"}}]}
    body = f"data: {json.dumps(event)}\n\n".encode()
    handler.send(body, headers={"Content-Type": "text/event-stream"})


def drips(handler: Handler) -> None:
    """Send an answer that never ends, byte by byte."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    _for_ever(handler, b" ", pause=0.02)


def floods(handler: Handler) -> None:
    """Send an answer that never ends, as fast as it is read."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    _for_ever(handler, b" " * (1 << 16))


def drips_headers(handler: Handler) -> None:
    """Begin an answer that never gets beyond its headers."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    _for_ever(handler, b"x", pause=0.02, in_headers=True)


def _for_ever(
    handler: Handler, piece: bytes, *, pause: float = 0.0, in_headers: bool = False
) -> None:
    handler.close_connection = True
    if not in_headers:
        handler.end_headers()
    while not handler.state.closing.wait(pause):
        handler.wfile.write(piece)


@contextmanager
def chat_server(encrypted: ssl.SSLContext | None = None) -> Iterator[ChatServer]:
    """Run a server on a free port of this machine."""
    handler = type("Bound", (Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    state = handler.state = ChatServer(f"http://127.0.0.1:{server.server_port}/v1")
    if encrypted:
        server.socket = encrypted.wrap_socket(server.socket, server_side=True)
        state.url = state.url.replace("http", "https", 1)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield state
    finally:
        state.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
