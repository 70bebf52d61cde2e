"""HTTP requests to servers that are not trusted: an answer is bounded in bytes and in seconds.

Python's own client does the talking. It follows no redirects, which would take the prompt to
another host, and unpacks nothing, so that what is unpacked can be bounded, too.
"""

from __future__ import annotations

import ssl
import time
import zlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, IncompleteRead
from io import BufferedReader, RawIOBase
from socket import socket
from threading import Lock
from typing import Any
from urllib.parse import SplitResult, urlsplit

LARGEST = 16 << 20
"""Bytes: no answer is larger."""

_PIECE = 1 << 16

_TO_CONNECT = 10.0
"""Seconds: the longest that is waited until somebody listens."""

_INFLATED = {"gzip", "x-gzip", "deflate"}


class BrokenAnswer(Exception):
    """An answer that arrived, but is not what was asked for."""


class Unreached(Exception):
    """There was no answer: nobody listens, the connection broke, or the time was up."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered."""

    status: int
    headers: Message
    """By names in any case."""
    body: bytes


class Connections:
    """Connections to servers, kept for the next request. Safe to use from many threads."""

    def __init__(self) -> None:
        self._idle: defaultdict[tuple[str, ...], list[_Line]] = defaultdict(list)  # by origin
        self._closed = False
        self._lock = Lock()

    def exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        *,
        seconds: float,
        largest: int,
    ) -> Reply:
        """Send a request, and return what is answered.

        Args:
            method: ``POST``, mostly.
            url: The address, ``http`` or ``https``.
            headers: The request's.
            body: What is sent.
            seconds: How long all of it may take.
            largest: So many bytes the answer's body may have, when it is unpacked.

        Raises:
            Unreached: There was no answer.
            BrokenAnswer: It is too large, or packed in a way that is not known.
        """
        address = urlsplit(url)
        deadline = time.monotonic() + seconds
        try:
            line = self._line(address, deadline)
            try:
                reply = line.exchange(method, address, headers, body, largest)
            except BaseException:
                line.close()
                raise
        except TimeoutError:
            raise Unreached("the request timed out") from None
        except (OSError, HTTPException) as error:
            raise Unreached(f"connection error ({str(error) or repr(error)})") from error
        with self._lock:
            if line.is_open and not self._closed:
                self._idle[address[:2]].append(line)
            else:
                line.close()
        return reply

    def close(self) -> None:
        """Close the connections that no request uses; the others are closed after it."""
        with self._lock:
            self._closed = True
            for line in sum(self._idle.values(), []):
                line.close()
            self._idle.clear()

    def _line(self, address: SplitResult, deadline: float) -> _Line:
        """Return a connection, an idle one if there is one that still stands."""
        while True:
            with self._lock:
                idle = self._idle[address[:2]]
                line = idle.pop() if idle else None
            if line is None:
                return _Line(address, deadline)
            if line.stands():
                line.deadline = deadline
                return line
            line.close()


class _Line:
    """A connection that is never waited for beyond the deadline of the request under way."""

    def __init__(self, address: SplitResult, deadline: float) -> None:
        self.deadline = deadline
        wait = min(self.left(), _TO_CONNECT)
        host = address.hostname or ""
        if address.scheme == "https":
            context = _certificates()
            http: HTTPConnection = HTTPSConnection(
                host, address.port, timeout=wait, context=context
            )
        else:
            http = HTTPConnection(host, address.port, timeout=wait)
        http.connect()
        self._socket: socket = http.sock
        http.sock = _Clocked(self)
        self._http = http

    @property
    def is_open(self) -> bool:
        """Whether it can take another request."""
        return self._http.sock is not None

    def left(self) -> float:
        """Return the seconds that are left.

        Raises:
            TimeoutError: There are none.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def stands(self) -> bool:
        """Return whether an idle connection can be used: nobody has closed it, or said anything."""
        self._socket.settimeout(0)
        try:
            self._socket.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            pass
        return False

    def exchange(
        self,
        method: str,
        address: SplitResult,
        headers: Mapping[str, str],
        body: bytes,
        largest: int,
    ) -> Reply:
        """Send a request and read the answer."""
        query = f"?{address.query}" if address.query else ""
        self._http.request(method, f"{address.path or '/'}{query}", body, dict(headers))
        with self._http.getresponse() as response:
            return Reply(response.status, response.headers, _read(response, largest))

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self._socket.settimeout(self.left())
        self._socket.sendall(data)

    def receive_into(self, buffer: Any) -> int:
        """Receive bytes; 0: there are no more."""
        self._socket.settimeout(self.left())
        return self._socket.recv_into(buffer)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class _Clocked(RawIOBase):
    """As much of a socket as ``http.client`` uses."""

    def __init__(self, line: _Line) -> None:
        self._line = line

    def sendall(self, data: bytes) -> None:
        self._line.send(data)

    def makefile(self, mode: str) -> BufferedReader:
        return BufferedReader(_Clocked(self._line))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._line.receive_into(buffer)


def _read(response: HTTPResponse, largest: int) -> bytes:
    """Read a body and unpack it.

    Raises:
        BrokenAnswer: It is too large, or packed in a way that is not known.
    """
    packing = response.headers.get("Content-Encoding", "identity").strip().lower()
    if packing not in (*_INFLATED, "identity", ""):
        raise BrokenAnswer(f"the answer is packed in a way that nobody asked for ({packing})")
    # Either form of deflate and gzip is recognised by its beginning.
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32) if packing in _INFLATED else None
    body, received = bytearray(), 0
    while piece := response.read(_PIECE):
        received += len(piece)
        try:
            body += unpack.decompress(piece, largest + 1 - len(body)) if unpack else piece
        except zlib.error:
            raise BrokenAnswer(f"the answer is no {packing}") from None
        if max(received, len(body)) > largest:
            raise BrokenAnswer(f"the answer is larger than {largest:,} bytes")
    if response.length:
        raise IncompleteRead(b"", response.length)
    return bytes(body)


def _certificates() -> ssl.SSLContext:
    """Return whose signatures are believed: those that this machine lists."""
    from truststore import SSLContext

    return SSLContext(ssl.PROTOCOL_TLS_CLIENT)
