"""VNC's protocol, by a small viewer of the tests' own, and by what no viewer sends."""

from __future__ import annotations

import struct
import zlib

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from domainbuilder.display.pixel_format import OURS, PixelFormat
from domainbuilder.display.pixels import planes
from domainbuilder.display.rfb import KeyEvent, PointerEvent, Session
from domainbuilder.display.vnc_auth import des, response

WIDTH, HEIGHT = 100, 40
RAW, ZRLE, DESKTOP_SIZE = 0, 16, -223


class Viewer:
    """The other end: it keeps a screen of (red, green, blue), and reads what comes strictly."""

    def __init__(self, session: Session, version: bytes = b"RFB 003.008\n") -> None:
        self.session = session
        self.unpacker = zlib.decompressobj()
        self.form = OURS
        assert self.take(12) == b"RFB 003.008\n"
        self.send(version)
        if version == b"RFB 003.003\n":
            assert self.take(4) == b"\0\0\0\1"
        else:
            assert self.take(2) == b"\1\1"
            self.send(b"\1")
            if version >= b"RFB 003.008\n":
                assert self.take(4) == bytes(4)
        self.send(b"\1")
        self.width, self.height = struct.unpack(">HH", self.take(4))
        assert PixelFormat.from_bytes(self.take(16)) == OURS
        (size,) = struct.unpack(">I", self.take(4))
        assert self.take(size) == b"guest"
        self.screen: dict[tuple[int, int], tuple[int, ...]] = {}

    def send(self, data: bytes) -> None:
        assert self.session.feed(data) == []

    def take(self, size: int) -> bytes:
        data = bytes(self.session.out[:size])
        assert len(data) == size
        del self.session.out[:size]
        return data

    def want(self, form: PixelFormat) -> None:
        self.send(b"\0\0\0\0" + form.to_bytes())
        self.form = form

    def encodings(self, *encodings: int) -> None:
        self.send(struct.pack(f">BxH{len(encodings)}i", 2, len(encodings), *encodings))

    def ask(self, *, incremental: bool, area: tuple[int, int, int, int] | None = None) -> None:
        self.send(struct.pack(">BBHHHH", 3, incremental, *(area or (0, 0, self.width, self.height))))

    def see(self, pieces: list[bytes]) -> list[tuple[int, int, int, int]]:
        """Take an update; its rectangles."""
        self.session.out += b"".join(pieces)
        kind, count = struct.unpack(">BxH", self.take(4))
        assert kind == 0
        rects = []
        for _ in range(count):
            x, y, width, height, encoding = struct.unpack(">HHHHi", self.take(12))
            rects.append((x, y, width, height))
            if encoding == DESKTOP_SIZE:
                self.width, self.height = width, height
            elif encoding == RAW:
                self._place(x, y, width, height, self.take(width * height * self.form.bits // 8))
            else:
                assert encoding == ZRLE
                self._zrle(x, y, width, height)
        assert not self.session.out
        return rects

    def _place(self, left: int, top: int, width: int, height: int, data: bytes, size: int = 0) -> None:
        size = size or self.form.bits // 8
        assert left + width <= self.width
        assert top + height <= self.height
        order = "big" if self.form.big_endian else "little"
        for i in range(width * height):
            pixel = int.from_bytes(data[i * size : (i + 1) * size], order)  # type: ignore[arg-type]
            if size == 3 and min(self.form.shifts) >= 8:  # the upper three bytes
                pixel <<= 8
            colours = zip(self.form.maxima, self.form.shifts, strict=True)
            self.screen[left + i % width, top + i // width] = tuple(pixel >> s & most for most, s in colours)

    def _zrle(self, left: int, top: int, width: int, height: int) -> None:
        (length,) = struct.unpack(">I", self.take(4))
        data = self.unpacker.decompress(self.take(length))
        size = 3 if self.form.bits == 32 and self.form.depth <= 24 else self.form.bits // 8
        for y in range(0, height, 64):
            for x in range(0, width, 64):
                across, down = min(64, width - x), min(64, height - y)
                kind, count = data[0], 1 if data[0] else across * down
                assert kind in (0, 1)
                pixels, data = data[1 : 1 + count * size], data[1 + count * size :]
                pixels *= across * down // count
                self._place(left + x, top + y, across, down, pixels, size)
        assert not data


def picture(seed: int = 1, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    """Rows of 32-bit pixels, all of one line alike but for a corner."""
    rows = bytearray()
    for y in range(height):
        rows += bytes((y * seed & 255, y * 3 & 255, y * 7 & 255, 0)) * width
    rows[: 4 * 8] = bytes(range(32))
    return bytes(rows)


def shown(
    rows: bytes, form: PixelFormat = OURS, width: int = WIDTH
) -> dict[tuple[int, int], tuple[int, ...]]:
    """What a viewer with these pixels is to have of them."""
    found = planes(width, len(rows) // 4 // width, 32, rows)
    colours = zip(found.red, found.green, found.blue, strict=True)
    return {
        (i % width, i // width): tuple(
            value * most // 255 for value, most in zip(rgb, form.maxima, strict=True)
        )
        for i, rgb in enumerate(colours)
    }


def pieces(session: Session, rows: bytes, width: int = WIDTH) -> list[bytes] | None:
    update = session.update(width, len(rows) // 4 // width, 32, rows)
    return None if update is None else list(update)


def seen(viewer: Viewer, rows: bytes, width: int = WIDTH) -> list[tuple[int, int, int, int]]:
    update = pieces(viewer.session, rows, width)
    assert update is not None
    return viewer.see(update)


@pytest.mark.parametrize(
    "version", [b"RFB 003.003\n", b"RFB 003.005\n", b"RFB 003.007\n", b"RFB 003.008\n", b"RFB 003.889\n"]
)
def test_versions(version: bytes) -> None:
    if version == b"RFB 003.005\n":  # which is served as 3.3
        session = Session("guest", WIDTH, HEIGHT)
        session.feed(version)
        assert bytes(session.out[12:]) == b"\0\0\0\1"
        return
    viewer = Viewer(Session("guest", WIDTH, HEIGHT), version)
    viewer.ask(incremental=False)
    seen(viewer, picture())
    assert viewer.screen == shown(picture())


FORMS = [
    OURS,
    OURS._replace(big_endian=True),
    OURS._replace(shifts=(0, 8, 16)),
    OURS._replace(shifts=(8, 16, 24)),
    PixelFormat(32, 32, big_endian=False, true_colour=True, maxima=(1023, 1023, 1023), shifts=(20, 10, 0)),
    PixelFormat(16, 16, big_endian=False, true_colour=True, maxima=(31, 63, 31), shifts=(11, 5, 0)),
    PixelFormat(16, 15, big_endian=True, true_colour=True, maxima=(31, 31, 31), shifts=(10, 5, 0)),
    PixelFormat(8, 8, big_endian=False, true_colour=True, maxima=(7, 7, 3), shifts=(0, 3, 6)),
]


@pytest.mark.parametrize("encoding", [RAW, ZRLE])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_pixels_arrive_in_every_format(form: PixelFormat, encoding: int) -> None:
    viewer = Viewer(Session("guest", WIDTH, HEIGHT))
    viewer.want(form)
    viewer.encodings(99, encoding, RAW)
    viewer.ask(incremental=False)
    seen(viewer, picture())
    assert viewer.screen == shown(picture(), form)
    viewer.ask(incremental=True)
    seen(viewer, picture(5))
    assert viewer.screen == shown(picture(5), form)


def test_what_has_not_changed_is_not_sent() -> None:
    viewer = Viewer(Session("guest", WIDTH, HEIGHT))
    assert pieces(viewer.session, picture()) is None  # it has not asked
    viewer.ask(incremental=True)
    assert seen(viewer, picture()) == [(0, y, WIDTH, min(16, HEIGHT - y)) for y in (0, 16, 32)]
    viewer.ask(incremental=True)
    assert pieces(viewer.session, picture()) is None
    changed = bytearray(picture())
    changed[4 * WIDTH * 17] ^= 1
    assert seen(viewer, bytes(changed)) == [(0, 16, WIDTH, 16)]
    assert viewer.screen == shown(bytes(changed))
    viewer.ask(incremental=False, area=(90, 30, 50, 50))
    assert seen(viewer, bytes(changed)) == [(90, 30, 10, 2), (90, 32, 10, 8)]
    assert viewer.screen == shown(bytes(changed))
    viewer.ask(incremental=True, area=(200, 0, 5, 5))
    assert not viewer.session.waits


def test_the_picture_changes_its_size() -> None:
    small = picture(3, 40, 20)
    viewer = Viewer(Session("guest", WIDTH, HEIGHT))
    viewer.encodings(RAW, DESKTOP_SIZE)
    viewer.ask(incremental=True)
    assert seen(viewer, small, 40) == [(0, 0, 40, 20)]
    assert (viewer.width, viewer.height) == (40, 20)
    viewer.ask(incremental=False)
    seen(viewer, small, 40)
    assert viewer.screen == shown(small, width=40)
    old = Viewer(Session("guest", WIDTH, HEIGHT))  # which knows of one size alone
    old.ask(incremental=True)
    seen(old, small, 40)
    assert {at: pixel for at, pixel in old.screen.items() if at[0] < 40 and at[1] < 20} == viewer.screen
    assert {pixel for at, pixel in old.screen.items() if at[0] >= 40 or at[1] >= 20} == {(0, 0, 0)}
    old.ask(incremental=True)
    large = picture(2, 120, 50)
    seen(old, large, 120)
    assert old.screen == {
        at: p for at, p in shown(large, width=120).items() if at[0] < WIDTH and at[1] < HEIGHT
    }


@pytest.mark.parametrize("version", [b"RFB 003.003\n", b"RFB 003.007\n", b"RFB 003.008\n"])
@pytest.mark.parametrize("knows", [True, False])
def test_a_password(version: bytes, knows: bool) -> None:
    session = Session("guest", WIDTH, HEIGHT, "secret: longer than eight")
    session.feed(version)
    offered = b"\0\0\0\2" if version == b"RFB 003.003\n" else b"\1\2"
    assert bytes(session.out[12:]).startswith(offered)
    if len(offered) == 2:
        session.feed(b"\2")
    challenge = bytes(session.out[12 + len(offered) :])
    assert len(challenge) == 16
    session.out.clear()
    session.feed(response("secret: " if knows else "Secret: ", challenge))
    assert bytes(session.out[:4]) == (b"\0\0\0\0" if knows else b"\0\0\0\1")
    assert (len(session.out) > 4) == (not knows and version == b"RFB 003.008\n")
    assert session.is_over != knows
    session.feed(b"\1")
    assert (b"guest" in session.out) == knows
    again = Session("guest", WIDTH, HEIGHT, "secret")
    again.feed(version + b"\2" * (len(offered) == 2))
    assert bytes(again.out[-16:]) != challenge
    none = Session("guest", WIDTH, HEIGHT, "secret")
    none.feed(b"RFB 003.008\n\1\1")  # a viewer that chooses to need none
    assert none.is_over


@pytest.mark.parametrize(
    ("key", "plain", "cipher"),
    [  # NBS special publication 500-20, and the example that textbooks have
        ("133457799bbcdff1", "0123456789abcdef", "85e813540f0ab405"),
        ("0000000000000000", "0000000000000000", "8ca64de9c1b123a7"),
        ("ffffffffffffffff", "ffffffffffffffff", "7359b2163e4edc58"),
        ("0101010101010101", "95f8a5e5dd31d900", "8000000000000000"),
        ("8001010101010101", "0000000000000000", "95a8d72813daa94d"),
        ("7ca110454a1a6e57", "01a1d6d039776742", "690f5b0d9a26939b"),
    ],
)
def test_des(key: str, plain: str, cipher: str) -> None:
    assert des(bytes.fromhex(key), bytes.fromhex(plain)).hex() == cipher


def test_what_a_viewer_does_is_told() -> None:
    session = Viewer(Session("guest", WIDTH, HEIGHT)).session
    cut = struct.pack(">B3xI", 6, 5000) + b"x" * 5000
    key, point = struct.pack(">BBxxI", 4, 1, 0xFF0D), struct.pack(">BBHH", 5, 3, 7, 9)
    events = []
    for byte in cut + key + point:  # however they arrive
        events += session.feed(bytes((byte,)))
    assert events == [KeyEvent(0xFF0D, pressed=True), PointerEvent(7, 9, 3)]
    assert not session.is_over


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n", b"RFB 004.000\n", b"RFB 003.008\n\2", b"RFB 003.008\n\1\1\xff",
     b"RFB 003.008\n\1\1\0\0\0\0" + bytes(16),
     b"RFB 003.008\n\1\1\0\0\0\0" + OURS._replace(bits=24).to_bytes(),
     b"RFB 003.008\n\1\1\0\0\0\0" + OURS._replace(shifts=(32, 0, 0)).to_bytes(),
     b"RFB 003.008\n\1\1\0\0\0\0" + OURS._replace(maxima=(0, 1, 1)).to_bytes()],
)  # fmt: skip
def test_what_no_viewer_sends_ends_it(data: bytes) -> None:
    session = Session("guest", WIDTH, HEIGHT)
    assert session.feed(data) == []
    assert session.is_over
    assert session.feed(b"more") == []


MESSAGES = st.binary(max_size=60) | st.builds(
    lambda kind, rest: bytes((kind,)) + rest, st.integers(0, 6), st.binary(max_size=40)
)


@settings(max_examples=200, deadline=None)
@given(st.lists(MESSAGES, max_size=20))
def test_no_bytes_are_too_much(chunks: list[bytes]) -> None:
    session = Session("guest", WIDTH, HEIGHT)
    session.feed(b"RFB 003.008\n\1\1")
    for data in chunks:
        session.feed(data)
        assert len(session._in) < 4096 + len(data)
        if session.waits:
            for piece in session.update(WIDTH, HEIGHT, 32, picture()) or ():
                assert len(piece) < 4 * WIDTH * HEIGHT + 100
