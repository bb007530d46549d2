"""Frames as tshark reads them: a pcapng file (draft-ietf-opsawg-pcapng), an interface a port.

Times are the guests', in nanoseconds from the wall clock that they were started with; those of two guests may
be a turn apart. Checksums that were left blank between domains are filled in, as they would be on a wire.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from hvcore.backends.net_frame import Frame, filled

_U32 = struct.Struct("<I")
_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_MAGIC, _ETHERNET = 0x1A2B3C4D, 1
_IF_NAME, _IF_TSRESOL, _INBOUND = 2, 9, 1
_NANOSECONDS = 9


def _block(kind: int, body: bytes) -> bytes:
    size = _U32.pack(len(body) + 12)
    return _U32.pack(kind) + size + body + size


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


class PcapngWriter:
    """A capture into a binary file, which stays the caller's; a tap for Switch.taps."""

    def __init__(self, file: BinaryIO, epoch_ns: int = 0) -> None:
        self._file = file
        self._epoch = epoch_ns
        self._interfaces: dict[str, int] = {}
        file.write(_block(_SECTION, struct.pack("<IHHq", _MAGIC, 1, 0, -1)))

    def frame(self, when: int, port: str, frame: Frame) -> None:
        """Write a frame that came in at a port. Raises OSError."""
        number = self._interfaces.get(port)
        if number is None:
            number = self._interfaces[port] = len(self._interfaces)
            options = _option(_IF_NAME, port.encode()) + _option(_IF_TSRESOL, bytes((_NANOSECONDS,)))
            head = struct.pack("<HHI", _ETHERNET, 0, 0)
            self._file.write(_block(_INTERFACE, head + options + bytes(4)))
        data, time = filled(frame).data, when + self._epoch
        head = struct.pack("<IIIII", number, time >> 32, time & 0xFFFFFFFF, len(data), len(data))
        options = _option(2, _U32.pack(_INBOUND)) + bytes(4)
        self._file.write(_block(_PACKET, head + data + bytes(-len(data) % 4) + options))
