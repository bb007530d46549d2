"""Packets of GDB's remote protocol: bytes from a socket become packets, and replies become bytes. Pure.

What comes may be anything. A packet longer than PACKET_SIZE is thrown away as it comes, one with a wrong
checksum is told apart, and bytes between packets are ignored, so memory is bounded whatever a client sends.
Source: "Overview" of "GDB Remote Serial Protocol" in GDB's manual.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

PACKET_SIZE = 0x4000
INTERRUPT = 3  # what Ctrl-C sends, between packets
_ESCAPE, _FLIP = 0x7D, 0x20
_SPECIAL = frozenset(b"#$}*")


@dataclass(frozen=True, slots=True)
class Packet:
    """What a packet says, unescaped."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Damaged:
    """A packet that is to be sent again: it was too long, or its checksum is wrong."""


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The last reply came through, or is to be sent again."""

    good: bool


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Ctrl-C."""


Item = Packet | Damaged | Acknowledged | Interrupted


class PacketReader:
    """Cuts a stream of bytes into items; what is not whole yet waits for more."""

    def __init__(self) -> None:
        self._body: bytearray | None = None  # of a packet that has begun
        self._too_long = False
        self._checksum: bytes | None = None  # of a packet whose body is whole

    def feed(self, data: bytes) -> Iterator[Item]:
        """The items that `data` completes."""
        for byte in data:
            item = self._take(byte)
            if item is not None:
                yield item

    def _take(self, byte: int) -> Item | None:
        if self._checksum is not None:
            self._checksum += bytes((byte,))
            return self._end() if len(self._checksum) == 2 else None
        if self._body is None:
            return self._between(byte)
        if byte == ord("#"):
            self._checksum = b""
        elif byte == ord("$"):  # the one before was cut off
            self._begin()
        elif len(self._body) < PACKET_SIZE:
            self._body.append(byte)
        else:
            self._too_long = True
        return None

    def _between(self, byte: int) -> Item | None:
        if byte == ord("$"):
            self._begin()
        elif byte == INTERRUPT:
            return Interrupted()
        elif byte in b"+-":
            return Acknowledged(byte == ord("+"))
        return None

    def _begin(self) -> None:
        self._body, self._too_long = bytearray(), False

    def _end(self) -> Item:
        body, checksum = bytes(self._body or b""), self._checksum
        self._body = self._checksum = None
        if self._too_long or checksum is None or checksum.lower() != b"%02x" % (sum(body) & 0xFF):
            return Damaged()
        return Packet(unescape(body))


def unescape(data: bytes) -> bytes:
    """Binary data as it was before it was escaped."""
    if _ESCAPE not in data:
        return data
    out, flip = bytearray(), False
    for byte in data:
        if byte == _ESCAPE and not flip:
            flip = True
            continue
        out.append(byte ^ _FLIP if flip else byte)
        flip = False
    return bytes(out)


def escape(data: bytes) -> bytes:
    """Binary data as a packet can have it."""
    if not _SPECIAL.intersection(data):
        return data
    return b"".join(bytes((_ESCAPE, byte ^ _FLIP)) if byte in _SPECIAL else bytes((byte,)) for byte in data)


def packet(data: bytes) -> bytes:
    """A reply as it goes over the line."""
    return b"$%b#%02x" % (data, sum(data) & 0xFF)
