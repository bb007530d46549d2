"""VNC's protocol from its server's side: RFC 6143, versions 3.3, 3.7 and 3.8, without a socket.

    session = Session("guest", 800, 600)
    session.feed(bytes that came)        # -> what the viewer did
    session.out                          # what is to be sent
    session.update(800, 600, 32, rows)   # pieces of the update that it waits for, if anything changed

A viewer asks for each update, so one that does not read gets none. What it sends is read piece by piece, none
of which is long, and what no viewer sends ends the session.
"""

from __future__ import annotations

import hmac
import os
import re
import struct
import zlib
from collections.abc import Generator, Iterator
from typing import NamedTuple

from domainbuilder.display.pixel_format import OURS, SIZE, PixelFormat, formatted
from domainbuilder.display.pixels import Planes, planes
from domainbuilder.display.vnc_auth import response

_VERSION = re.compile(rb"RFB ([0-9]{3})\.([0-9]{3})\n")
_NONE, _VNC_AUTH = 1, 2  # security types
_WRONG = b"not the password"
_RAW, _ZRLE, _DESKTOP_SIZE = 0, 16, -223
_RECT = struct.Struct(">HHHHi")
_STRIPE = 16  # lines that are compared, and sent, together: one of text
_TILE = 64
_CHUNK = 1024


class KeyEvent(NamedTuple):
    """A key of the viewer's went down or up."""

    keysym: int
    pressed: bool


class PointerEvent(NamedTuple):
    """Its pointer is there, with these buttons down: bit 0 for the left one, 3 and 4 for the wheel."""

    x: int
    y: int
    buttons: int


class _Area(NamedTuple):
    """What an update is asked for."""

    x: int
    y: int
    right: int
    bottom: int


Event = KeyEvent | PointerEvent


class Session:
    """One viewer, who has to know the password, if there is one.

    `is_over`: nothing more is to be read from it, nor sent but what is in `out`.
    """

    def __init__(self, name: str, width: int, height: int, password: str = "") -> None:
        self.out = bytearray(b"RFB 003.008\n")
        self.is_over = False
        self._name = name.encode()
        self._password = password
        self.width, self.height = width, height
        self._in = bytearray()
        self._events: list[Event] = []
        self._form = OURS
        self._zlib = zlib.compressobj(1)
        self._encoding = _RAW
        self._knows_sizes = False
        self._wanted: _Area | None = None
        self._seen: tuple[int, bytes] | None = None  # the depth and the rows that it has
        self._talk = self._talking()
        self._need = next(self._talk)

    # -- what comes

    def feed(self, data: bytes) -> list[Event]:
        """Take what came; what the viewer did."""
        self._in += data
        while not self.is_over and len(self._in) >= self._need:
            piece = bytes(self._in[: self._need])
            del self._in[: self._need]
            try:
                self._need = self._talk.send(piece)
            except (StopIteration, ValueError):
                self.is_over = True
        events, self._events = self._events, []
        return events

    def _talking(self) -> Generator[int, bytes, None]:
        """Says how many bytes are wanted next, and is given them."""
        found = _VERSION.fullmatch((yield 12))
        if found is None or int(found[1]) != 3:
            return
        if not (yield from self._may_look(int(found[2]))):
            return
        yield 1  # whether others may look, too: they may
        head = struct.pack(">HH", self.width, self.height)
        self.out += head + OURS.to_bytes() + struct.pack(">I", len(self._name)) + self._name
        while True:
            kind = (yield 1)[0]
            if kind == 0:
                self._form = PixelFormat.from_bytes((yield 3 + SIZE)[3:])
                self._seen = None
            elif kind == 2:
                yield from self._set_encodings()
            elif kind == 3:
                self._ask(*struct.unpack(">BHHHH", (yield 9)))
            elif kind == 4:
                pressed, keysym = struct.unpack(">B2xI", (yield 7))
                self._events.append(KeyEvent(keysym, bool(pressed)))
            elif kind == 5:
                buttons, x, y = struct.unpack(">BHH", (yield 5))
                self._events.append(PointerEvent(x, y, buttons))
            elif kind == 6:
                yield from self._skip(struct.unpack(">3xI", (yield 7))[0])
            else:
                return

    def _may_look(self, minor: int) -> Generator[int, bytes, bool]:
        """Whether the viewer is one who may: of protocol version 3, `minor`."""
        security = _VNC_AUTH if self._password else _NONE
        if minor < 7:
            self.out += struct.pack(">I", security)
        else:
            self.out += bytes((1, security))
            if (yield 1)[0] != security:
                return False
        if security == _NONE:
            self.out += struct.pack(">I", 0) if minor > 7 else b""
            return True
        challenge = os.urandom(16)  # of this host: no guest learns of it
        self.out += challenge
        knows = hmac.compare_digest((yield 16), response(self._password, challenge))
        self.out += struct.pack(">I", not knows)
        if not knows and minor > 7:
            self.out += struct.pack(">I", len(_WRONG)) + _WRONG
        return knows

    def _skip(self, size: int) -> Generator[int, bytes, None]:
        """Text that was cut, of which the guest knows nothing."""
        while size:
            size -= len((yield min(size, _CHUNK)))

    def _set_encodings(self) -> Generator[int, bytes, None]:
        (count,) = struct.unpack(">xH", (yield 3))
        self._encoding, self._knows_sizes = _RAW, False
        is_chosen = False
        while count:
            some = min(count, _CHUNK // 4)
            for encoding in struct.unpack(f">{some}i", (yield 4 * some)):
                if encoding in (_RAW, _ZRLE) and not is_chosen:
                    self._encoding, is_chosen = encoding, True
                self._knows_sizes |= encoding == _DESKTOP_SIZE
            count -= some

    def _ask(self, incremental: int, x: int, y: int, width: int, height: int) -> None:
        right, bottom = min(x + width, self.width), min(y + height, self.height)
        if not incremental:
            self._seen = None
        if x < right and y < bottom:
            self._wanted = _Area(x, y, right, bottom)

    # -- what goes

    @property
    def waits(self) -> bool:
        """Whether it asked for an update that it has not got."""
        return self._wanted is not None and not self.is_over

    @property
    def is_blank(self) -> bool:
        """Whether it wants all of a picture, changed or not."""
        return self._seen is None

    def update(self, width: int, height: int, depth: int, rows: bytes) -> Iterator[bytes] | None:
        """The pieces of the update for a picture, made as they are taken; None where nothing has changed."""
        if (width, height) != (self.width, self.height):
            if self._knows_sizes:
                return self._resize(width, height)
            rows = _fitted(width, height, depth, rows, self.width, self.height)
        area = self._wanted
        if area is None:
            return None
        line = self.width * depth // 8
        before = self._seen[1] if self._seen is not None and self._seen[0] == depth else b""
        stripes = [
            (top, bottom)
            for top in range(area.y - area.y % _STRIPE, area.bottom, _STRIPE)
            for bottom in [min(top + _STRIPE, self.height)]
            if rows[top * line : bottom * line] != before[top * line : bottom * line]
        ]
        if not stripes:
            return None
        self._wanted = None
        if area == (0, 0, self.width, self.height):
            self._seen = depth, rows
        else:  # what else has changed is sent when it is asked for
            self._seen = None
        return self._pieces(area, depth, rows, stripes)

    def _resize(self, width: int, height: int) -> Iterator[bytes]:
        self.width, self.height, self._wanted, self._seen = width, height, None, None
        yield struct.pack(">BxH", 0, 1) + _RECT.pack(0, 0, width, height, _DESKTOP_SIZE)

    def _pieces(
        self, area: _Area, depth: int, rows: bytes, stripes: list[tuple[int, int]]
    ) -> Iterator[bytes]:
        yield struct.pack(">BxH", 0, len(stripes))
        size, line, width = depth // 8, self.width * depth // 8, area.right - area.x
        for top, bottom in stripes:
            first, last = max(top, area.y), min(bottom, area.bottom)
            cut = b"".join(
                [rows[y * line + area.x * size : y * line + area.right * size] for y in range(first, last)]
            )
            picture = planes(width, last - first, depth, cut)
            head = _RECT.pack(area.x, first, width, last - first, self._encoding)
            yield head + (self._zrle(picture) if self._encoding == _ZRLE else self._raw(picture))

    def _raw(self, picture: Planes) -> bytes:
        return formatted(picture, self._form, self._form.places)

    def _zrle(self, picture: Planes) -> bytes:
        """Tiles of one colour, or as they are; the zlib stream does the rest."""
        places = self._form.short_places
        size, line = len(places), len(places) * picture.width
        pixels = formatted(picture, self._form, places)
        packed = []
        for left in range(0, picture.width, _TILE):
            end = min(left + _TILE, picture.width) * size
            rows = range(0, len(pixels), line)
            tile = b"".join([pixels[at + left * size : at + end] for at in rows])
            is_plain = tile == tile[:size] * (len(tile) // size)
            packed.append(self._zlib.compress(b"\1" + tile[:size] if is_plain else b"\0" + tile))
        data = b"".join([*packed, self._zlib.flush(zlib.Z_SYNC_FLUSH)])
        return struct.pack(">I", len(data)) + data


def _fitted(width: int, height: int, depth: int, rows: bytes, new_width: int, new_height: int) -> bytes:
    """A picture cut, or with black beside and below it, for a viewer that knows of one size alone."""
    size = depth // 8
    line, common = width * size, min(width, new_width) * size
    beside = bytes(new_width * size - common)
    lines = [rows[y * line : y * line + common] + beside for y in range(min(height, new_height))]
    return b"".join(lines) + bytes(new_width * size * max(new_height - height, 0))
