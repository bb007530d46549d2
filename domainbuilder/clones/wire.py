"""Messages between a clone and who holds it: frames over a socket, JSON but for what the guest prints.

A frame is its length (32 bits, little-endian), its kind (8 bits) and so many bytes. Requests are
[number, name, domain, arguments], answers [number, value, seconds of the processor's time], failures
[number, kind of error, message]. Output is a byte that says which domain printed it, and what it printed; it
comes before the answer to the request that made the guest run. A pause ends a request that is under way, and
has no answer of its own.
"""

from __future__ import annotations

import json
import socket
import struct
from enum import IntEnum
from typing import Any

_HEADER = struct.Struct("<IB")
MOST_BYTES = 256 << 20  # of a frame: a transcript in hexadecimal fits many times


class Kind(IntEnum):
    """What a frame is."""

    REQUEST = 1
    ANSWER = 2
    FAILURE = 3
    OUTPUT = 4
    PAUSE = 5


_KINDS = {int(kind): kind for kind in Kind}
_encode = json.JSONEncoder(separators=(",", ":")).encode  # once, as each function on the way costs a clone
decode = json.JSONDecoder().decode  # three pages or four


class Closed(Exception):
    """There is nobody at the other end any more."""


def send(sock: socket.socket, kind: Kind, value: Any = None, raw: bytes | None = None) -> None:
    """Send one frame: `value` as JSON, or `raw`. Raises Closed."""
    data = _encode(value).encode() if raw is None else raw
    try:
        sock.sendall(_HEADER.pack(len(data), kind) + data)
    except OSError as error:
        raise Closed from error


def receive(sock: socket.socket) -> tuple[Kind, bytes]:
    """The next frame. Raises Closed."""
    size, kind = _HEADER.unpack(_exactly(sock, _HEADER.size))
    if size > MOST_BYTES or kind not in _KINDS:
        raise Closed(f"a frame of kind {kind} and {size} bytes")
    return _KINDS[kind], _exactly(sock, size)


def _exactly(sock: socket.socket, size: int) -> bytes:
    try:
        data = sock.recv(size, socket.MSG_WAITALL) if size else b""
        while len(data) < size:  # a signal came between
            more = sock.recv(size - len(data), socket.MSG_WAITALL)
            if not more:
                raise Closed
            data += more
    except OSError as error:
        raise Closed from error
    return data
