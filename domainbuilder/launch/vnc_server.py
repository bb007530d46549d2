"""People who see a domain's framebuffer by VNC, and use its keyboard and pointer.

    with launch("vmlinuz", memory_mib=128, cmdline="console=tty0", vfb="vncdisplay=5") as dom:
        dom.wait()                  # meanwhile: vncviewer 127.0.0.1:5

Viewers are served while the domain runs or is idle. Who comes, looks or leaves changes nothing for the guest.
What is typed and pointed is input: it arrives where the guest stands, and is recorded. While somebody looks,
an idle guest's time passes as people's does.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from domainbuilder.display.keysyms import Keyboard
from domainbuilder.display.rfb import KeyEvent, PointerEvent, Session
from domainbuilder.errors import BuildError
from domainbuilder.launch.unix_socket import Peer, listen_at
from domainbuilder.launch.waiting import Ends
from domainbuilder.xl.vfb import tcp_address
from hvcore.debug.periodic import Periodic
from hvcore.given import Key, Pointer

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from hvcore.backends.vfb import Vfb
    from hvcore.machine import Machine

_FIRST_PORT = 5900
_MOST_DISPLAYS = 99  # so many are tried: libxl asks QEMU for `to=99`
_POLL_NS = 10_000_000  # of the guest's time: how often a running domain looks for viewers
_PICTURE_SECONDS = 1 / 30  # between two pictures for one viewer
_MOST_CLIENTS = 8
_MOST_PENDING = 4096  # bytes of input that wait for the guest: viewers are not heard beyond
_CHUNK = 4096
_EMPTY = (640, 480)  # what is shown before the guest has drawn anything
_BUTTONS = ((1, 0x110), (2, 0x112), (4, 0x111))  # bits of VNC's, and BTN_LEFT, BTN_MIDDLE, BTN_RIGHT
_WHEEL = ((8, -1), (16, 1))  # up is away from the user


class Shown(Protocol):
    """What the server wants of a domain's holder, which is RunningDomain."""

    machine: Machine

    @property
    def shares_host(self) -> bool:
        """Whether there are others on its host."""

    def watching(self, timer: Periodic) -> AbstractContextManager[None]:
        """Let `timer` look while the block lasts."""

    def serve_viewers(self, server: VncServer | None) -> None:
        """Have viewers heard while the domain is idle."""


def _listen(vfb: Vfb) -> tuple[socket.socket, str, str]:
    """The socket that viewers come to, its address for people, and its path if it has one. BuildError."""
    if vfb.vnclisten.startswith("unix:"):
        path = vfb.vnclisten.removeprefix("unix:")
        try:
            return listen_at(path), vfb.vnclisten, path
        except (OSError, UnicodeError, ValueError) as error:
            raise BuildError(f"VNC's viewers cannot be listened for at {path}: {error}") from error
    try:
        host, first = tcp_address(vfb)
    except ValueError as error:
        raise BuildError(f"VNC's viewers cannot be listened for at {vfb.vnclisten}: {error}") from None
    last = max(first, _MOST_DISPLAYS) if vfb.vncunused else first
    reason = ""
    for display in range(first, last + 1):
        try:
            return _bound(host, _FIRST_PORT + display), _address(host, display), ""
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            if getattr(error, "errno", None) != errno.EADDRINUSE:
                break
    raise BuildError(f"VNC's viewers cannot be listened for at {_address(host, first)}: {reason}")


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(8)
    except BaseException:
        listener.close()
        raise
    return listener


def _address(host: str, display: int) -> str:
    """As viewers take it: with a display's number up to 99, and with the port's from there on."""
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{display}" if display <= _MOST_DISPLAYS else f"{shown}::{_FIRST_PORT + display}"


class _Viewer(Peer):
    """Somebody who is connected: his session, his keyboard, and what of a picture is still to be sent."""

    def __init__(self, sock: socket.socket, session: Session) -> None:
        super().__init__(sock)
        self.session = session
        self.keyboard = Keyboard()
        self.buttons = 0
        self.pieces: Iterator[bytes] | None = None
        self.drawn = 0.0  # when he was sent a picture
        self.seen_updates = -1  # of the guest's, when he was

    def flush(self) -> None:
        """Send what he takes now."""
        out = self.session.out
        while not self.is_gone:
            if not out and self.pieces is not None:
                piece = next(self.pieces, None)
                if piece is None:
                    self.pieces = None
                else:
                    out += piece
            taken = self.give(out) if out else 0
            if not taken:
                break
            del out[:taken]
        if self.session.is_over and not out and not self.is_gone:
            self.close()


class VncServer:
    """A socket for viewers of a domain's framebuffer, as long as the domain lasts. `address` is for people.

    `hears`: what viewers do reaches the guest. Raises BuildError where nobody can listen there.
    """

    def __init__(self, dom: Shown, vfb: Vfb, *, hears: bool) -> None:
        if dom.shares_host:
            raise BuildError("domains that share a host are not seen by VNC: vnc=0 is for pictures alone")
        self._dom = dom
        self._hears = hears
        self._password = vfb.vncpasswd
        self._listener, self.address, self._path = _listen(vfb)
        self._listener.setblocking(False)
        self._viewers: list[_Viewer] = []
        self._watching = ExitStack()
        key = f"vnc{dom.machine.domain.domain_id}"
        periodic = Periodic(dom.machine, key, _POLL_NS, self.poll, before_idle=True)
        self._watching.enter_context(dom.watching(periodic))
        dom.serve_viewers(self)

    @property
    def is_local(self) -> bool:
        """Whether only users of this machine can come."""
        if self._path:
            return True
        return ip_address(self._listener.getsockname()[0].partition("%")[0]).is_loopback

    def close(self) -> None:
        """Nobody is served any more, and the socket is gone."""
        if self._listener.fileno() >= 0:
            self.forsake()
            if self._path:
                with suppress(OSError):
                    Path(self._path).unlink()

    def forsake(self) -> None:
        """Let go of the socket, which is another process's too."""
        self._watching.close()
        self._dom.serve_viewers(None)
        self._listener.close()
        for viewer in self._viewers:
            viewer.close()
        self._viewers.clear()

    @property
    def has_viewers(self) -> bool:
        """Whether somebody is connected."""
        return bool(self._viewers)

    def ends(self) -> Ends[socket.socket | _Viewer]:
        """See Source: where viewers come, do something, and take what is for them."""
        return Ends([self._listener, *self._heard()], [one for one in self._viewers if self._has_more(one)])

    def _heard(self) -> list[_Viewer]:
        full = self._dom.machine.pending_input >= _MOST_PENDING
        return [] if full else [one for one in self._viewers if not one.session.is_over]

    @staticmethod
    def _has_more(viewer: _Viewer) -> bool:
        return bool(viewer.session.out) or viewer.pieces is not None

    def poll(self) -> None:
        """Look who has come, what was done, and what is to be shown."""
        self._accept()
        for viewer in self._heard():
            data = viewer.take(_CHUNK)
            if data:
                self._do(viewer, data)
        now = time.monotonic()
        for viewer in self._viewers:
            self._draw(viewer, now)
            viewer.flush()
        for viewer in [one for one in self._viewers if one.is_gone]:
            self._viewers.remove(viewer)
            self._give([Key(code, pressed) for code, pressed in viewer.keyboard.release()])
            self._press(viewer, 0)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # nobody, or gone again
                return
            if len(self._viewers) >= _MOST_CLIENTS:
                sock.close()
                continue
            picture = self._picture()
            size = picture[:2] if picture is not None else _EMPTY
            self._viewers.append(_Viewer(sock, Session(self._dom.machine.name, *size, self._password)))

    # -- what is shown

    def _picture(self) -> tuple[int, int, int, bytes] | None:
        screen = self._dom.machine.devices.screen
        return screen.picture() if screen is not None else None

    def _draw(self, viewer: _Viewer, now: float) -> None:
        """Begin an update, where one is wanted and there is something new."""
        session, screen = viewer.session, self._dom.machine.devices.screen
        is_early = now - viewer.drawn < _PICTURE_SECONDS and not self._dom.machine.waits()
        if not session.waits or self._has_more(viewer) or is_early:
            return
        updates = screen.updates if screen is not None and screen.tells_updates else -1
        if updates >= 0 and updates == viewer.seen_updates and not session.is_blank:
            return
        picture = self._picture() or (*_EMPTY, 8, bytes(_EMPTY[0] * _EMPTY[1]))
        viewer.pieces = session.update(*picture)
        viewer.drawn, viewer.seen_updates = now, updates

    # -- what viewers do

    def _do(self, viewer: _Viewer, data: bytes) -> None:
        for event in viewer.session.feed(data):
            if isinstance(event, KeyEvent):
                keys = viewer.keyboard.key(event.keysym, pressed=event.pressed)
                self._give([Key(code, pressed) for code, pressed in keys])
            else:
                self._point(viewer, event)

    def _point(self, viewer: _Viewer, event: PointerEvent) -> None:
        pressed = event.buttons & ~viewer.buttons
        wheel = sum(step for bit, step in _WHEEL if pressed & bit)
        self._give([Pointer(event.x, event.y, wheel)])
        self._press(viewer, event.buttons)

    def _press(self, viewer: _Viewer, buttons: int) -> None:
        """The viewer's buttons are these now."""
        changed, viewer.buttons = viewer.buttons ^ buttons, buttons
        self._give([Key(code, bool(buttons & bit)) for bit, code in _BUTTONS if changed & bit])

    def _give(self, given: list[Key] | list[Pointer]) -> None:
        if self._hears:
            for one in given:
                self._dom.machine.input(one)
