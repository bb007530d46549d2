"""What is said to a domain's process and what it answers: JSON, a line each. A request has at most 64 KiB.

A request is {"do": VERB, ...}; the answer is {"ok": value} or {"error": text}. Behind the answer to `console`
both directions are the console's bytes.
"""

from __future__ import annotations

import json
import socket
from typing import Any

from domainbuilder.errors import BuildError

MOST_BYTES = 1 << 16  # of a request
_MOST_ANSWERED = 1 << 26


def line(value: Any) -> bytes:
    """A message."""
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def read_line(sock: socket.socket, most: int = _MOST_ANSWERED) -> tuple[dict[str, Any], bytes]:
    """The next message, and what came behind it. Raises BuildError where there is none."""
    data = bytearray()
    while b"\n" not in data:
        try:
            piece = sock.recv(1 << 16) if len(data) <= most else b""
        except TimeoutError:
            raise BuildError("the domain's process does not answer") from None
        except OSError:
            piece = b""
        if not piece:
            raise BuildError("the domain has ended")
        data += piece
    text, _, rest = bytes(data).partition(b"\n")
    told = json.loads(text)
    assert isinstance(told, dict)
    return told, rest


def answer_to(sock: socket.socket, request: dict[str, Any]) -> tuple[Any, bytes]:
    """What the domain answers, and what came behind that. Raises BuildError: it is gone, or refuses."""
    try:
        sock.sendall(line(request))
    except OSError:
        raise BuildError("the domain has ended") from None
    told, rest = read_line(sock)
    if "error" in told:
        raise BuildError(told["error"])
    return told["ok"], rest
