"""Servers that are not trusted: endless answers, bombs, redirects; connections and addresses."""

from __future__ import annotations

import base64
import gzip
import json
import shutil
import socket
import ssl
import subprocess
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import (
    Behaviour,
    ChatServer,
    Handler,
    chat_server,
    completion,
    drips,
    drips_headers,
    fails,
    floods,
)

from agents.backends import transport
from agents.backends.openai import KEY_VARIABLE, OpenAIBackend
from agents.backends.retry import Patience
from agents.base import BackendError, ChatMessage, Completion, RunStopped, Sampling
from agents.options import AgentOptions
from toolwoz_gym.types import Usage, UsageError

PROMPT: list[ChatMessage] = [{"role": "user", "content": "Hi."}]

HELLO = Completion("Hello!", Usage(10, 2), "stop")

ONCE = Patience(tries=1)

QUICK = Patience(tries=2, first=0.001, longest=0.01)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with chat_server() as server:
        yield server


def ask(server: ChatServer, url: str | None = None, **options: Any) -> Completion:
    options = {"patience": QUICK, **options}
    with OpenAIBackend.connect("m", url or server.url, **options) as backend:
        return backend.complete(PROMPT, Sampling())


def packed(body: bytes, packing: str) -> Behaviour:
    return lambda handler: handler.send(body, headers={"Content-Encoding": packing})


# Bytes.

GOOD = json.dumps(completion()).encode()


def padded(size: int) -> bytes:
    return GOOD + b" " * size


def deflated(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


BOMBS: dict[str, Behaviour] = {
    "endless": floods,
    "large": lambda handler: handler.send(padded(8 << 20)),
    "a large text": lambda handler: handler.send(
        json.dumps(completion(choices=[{"message": {"content": "x" * (2 << 20)}}])).encode()
    ),
    "packed": packed(gzip.compress(padded(64 << 20)), "gzip"),
    "packed in zlib's form": packed(zlib.compress(padded(64 << 20)), "deflate"),
    "packed nothing without end": packed(
        gzip.compress(b"")[:10] + b"\x00\x00\x00\xff\xff" * (1 << 19), "gzip"
    ),
    "an endless error": lambda handler: handler.send(b"x" * (8 << 20), 500),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_answer_is_larger_than_it_can_be(server: ChatServer, bomb: str) -> None:
    server.default = BOMBS[bomb]
    tracemalloc.start()
    try:
        assert "larger than 1,572,864 bytes" in error_of(server)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 32 << 20, "what the server itself makes is in it"


def error_of(server: ChatServer, **options: Any) -> str:
    with pytest.raises(BackendError) as raised:
        ask(server, **options)
    return str(raised.value)


def test_long_messages_may_have_long_answers(server: ChatServer) -> None:
    server.default = lambda handler: handler.send(padded(4 << 20))
    with OpenAIBackend.connect("m", server.url, patience=ONCE) as backend:
        assert backend.complete(PROMPT, Sampling(max_tokens=1024)) == HELLO
        server.default = lambda handler: handler.send(padded(17 << 20))
        with pytest.raises(BackendError, match="larger than 16,777,216 bytes"):
            backend.complete(PROMPT, Sampling(max_tokens=100_000))


@pytest.mark.parametrize(
    ("packing", "body"),
    [
        ("gzip", gzip.compress(GOOD)),
        ("X-GZIP", gzip.compress(GOOD)),
        ("deflate", zlib.compress(GOOD)),
        ("identity", GOOD),
    ],
)
def test_packed_answers_are_read(server: ChatServer, packing: str, body: bytes) -> None:
    server.default = packed(body, packing)
    assert ask(server) == HELLO
    assert server.headers[0]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    ("packing", "body", "said"),
    [
        ("zstd", GOOD, r"packed in a way that nobody asked for \(zstd\)"),
        ("gzip, gzip", GOOD, "nobody asked for"),
        ("gzip", GOOD, "the answer is no gzip"),
        ("gzip", gzip.compress(GOOD)[:40], "not valid JSON"),
    ],
)
def test_packing_that_is_not_undone(
    server: ChatServer, packing: str, body: bytes, said: str
) -> None:
    server.script = [packed(body, packing)]
    assert ask(server).usage.retries == 1
    server.default = packed(body, packing)
    with pytest.raises(BackendError, match=said):
        ask(server)


# Seconds.


@pytest.mark.parametrize("trickle", [drips, drips_headers])
def test_no_answer_takes_longer_than_it_may(server: ChatServer, trickle: Behaviour) -> None:
    server.default = trickle
    began = time.monotonic()
    assert "timed out (2 tries)" in error_of(server, timeout=0.3)
    assert 0.6 <= time.monotonic() - began < 10


def test_a_server_that_takes_no_request() -> None:
    """It listens, and reads nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        with (
            OpenAIBackend.connect("m", url, timeout=0.3, patience=ONCE) as backend,
            pytest.raises(BackendError, match="timed out"),
        ):
            backend.complete([{"role": "user", "content": "x" * (16 << 20)}], Sampling())


# Redirects.


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_prompt_is_sent_elsewhere(server: ChatServer, status: int) -> None:
    with chat_server() as elsewhere:
        server.default = lambda handler: handler.send(b"", status, {"Location": elsewhere.url})
        with pytest.raises(RunStopped, match=f"points to {elsewhere.url}, where no prompt is sent"):
            ask(server)
        assert not elsewhere.requests
    assert len(server.requests) == 1


# Connections.


def says_goodbye(handler: Handler) -> None:
    """Answer, and close the connection without having said so."""
    handler.send(GOOD)
    handler.close_connection = True


def speaks_of_it(handler: Handler) -> None:
    handler.send(GOOD, headers={"Connection": "close"})


def chunked(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for start in range(0, len(GOOD), 40):
        piece = GOOD[start : start + 40]
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
    handler.wfile.write(b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("behaviour", "connections"),
    [(says_goodbye, 3), (speaks_of_it, 3), (chunked, 1)],
)
def test_only_good_connections_are_kept(
    server: ChatServer, behaviour: Behaviour, connections: int
) -> None:
    server.default = behaviour
    with OpenAIBackend.connect("m", server.url, patience=ONCE) as backend:
        for _ in range(3):
            assert backend.complete(PROMPT, Sampling()) == HELLO
            time.sleep(0.02)
    assert len(server.connections) == connections


def test_garbage_is_no_answer(server: ChatServer) -> None:
    for garbage in (b"\x00\x01\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"X" * 100_000):

        def answer(handler: Handler, garbage: bytes = garbage) -> None:
            handler.wfile.write(garbage)
            handler.close_connection = True

        server.script = [answer]
        assert ask(server).usage.retries == 1


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")
def test_encrypted_connections(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 9"
    names = "-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
    subprocess.run([*make.split(), *names.split()], cwd=tmp_path, check=True, capture_output=True)
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with chat_server(own) as encrypted:
        assert "certificate verify failed" in error_of(encrypted)
        trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        monkeypatch.setattr(transport, "_certificates", lambda: trusting)
        with OpenAIBackend.connect("m", encrypted.url, patience=ONCE) as backend:
            assert [backend.complete(PROMPT, Sampling()) for _ in range(3)] == [HELLO] * 3
        assert len(encrypted.connections) == 1
        encrypted.default = drips
        assert "timed out" in error_of(encrypted, timeout=0.3)


# Addresses.


def path_of(server: ChatServer, url: str) -> str:
    asked: list[str] = []

    def answer(handler: Handler) -> None:
        asked.append(handler.path)
        handler.send(GOOD)

    server.default = answer
    assert ask(server, url) == HELLO
    return asked[0]


@pytest.mark.parametrize(
    ("end", "path"),
    [
        ("", "/v1/chat/completions"),
        ("/", "/v1/chat/completions"),
        ("//", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/chat/completions/", "/v1/chat/completions"),
        ("?api-version=1", "/v1/chat/completions?api-version=1"),
        ("/?api-version=1&x=%20", "/v1/chat/completions?api-version=1&x=%20"),
        ("/chat/completions?api-version=1", "/v1/chat/completions?api-version=1"),
        (" \n", "/v1/chat/completions"),
    ],
)
def test_addresses_as_they_are_found(server: ChatServer, end: str, path: str) -> None:
    assert path_of(server, server.url + end) == path


def test_an_address_without_a_path(server: ChatServer) -> None:
    assert path_of(server, server.url.removesuffix("/v1")) == "/chat/completions"
    assert path_of(server, server.url.replace("http", "HTTP")) == "/v1/chat/completions"


def test_user_info_is_sent_as_such(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    ask(server, server.url.replace("http://", "http://me:p%40ss@"))
    secret = base64.b64encode(b"me:p@ss").decode()
    assert server.headers[0]["Authorization"] == f"Basic {secret}"
    server.default = fails(404)
    with pytest.raises(RunStopped) as raised:
        ask(server, server.url.replace("http://", "http://me:p%40ss@") + "?key=hidden")
    assert not any(secret in str(raised.value) for secret in ("p%40ss", "p@ss", "hidden"))


@pytest.mark.parametrize(
    "url",
    [
        *(
            "localhost:8000",
            "localhost",
            "127.0.0.1:8000/v1",
            "//localhost:8000",
            "http:/localhost",
        ),
        *("http://localhost:port/v1", "http://localhost:99999/v1", "http://[::1/v1", "http://:80"),
        *("http://local host/v1", "http://localhost/v1#models", "http://lo\ncalhost/v\u00e9"),
        *("file:///v1", "http://localhost:0/v1", "http://localhost/v\x001", "   "),
    ],
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match="is no address of a server: give one like http") as raised:
        OpenAIBackend.connect("m", url)
    assert "\n" not in str(raised.value)


def test_openais_address_may_end_as_it_likes() -> None:
    """There, tools are called in the protocol's own form."""
    for end in ("", "/", "/chat/completions"):
        options = AgentOptions(backend="openai", base_url=f"https://api.openai.com/v1{end}")
        assert options.resolved_format() == "native"
