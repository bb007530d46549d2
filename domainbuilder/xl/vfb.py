"""xl's syntax of framebuffers (`vfb` in xl.cfg(5)): `vnc=1, vnclisten=127.0.0.1, vncdisplay=5`.

Each setting is optional, as in tools/xl/xl_parse.c of Xen 4.17. What asks for a window of X is refused by its
name: a framebuffer is seen by VNC, or as a file.
"""

from __future__ import annotations

import re

from domainbuilder.xl.device_settings import Check, DeviceSettings
from hvcore.backends.vfb import VNC_LISTEN, Vfb

MOST_DISPLAY = 59635  # whose port is the last one there is
_UNIX = re.compile(r"unix:[^\0]{1,100}")
_ADDRESS = re.compile(
    r"(?:\[(?P<v6>[0-9a-fA-F:.%a-z]+)\]|(?P<host>[A-Za-z0-9.-]+))?(?::(?P<display>[0-9]{1,5}))?"
)
_KEYMAPS = ("", "en-us", "us")
_IDLE = frozenset(("display", "xauthority"))  # of the window that is not opened
_WINDOWS = frozenset(("sdl", "opengl"))


def _is_display(text: str) -> bool:
    return text.isascii() and text.isdecimal() and int(text[:6]) <= MOST_DISPLAY


def _is_listen(text: str) -> bool:
    found = _ADDRESS.fullmatch(text)
    return _UNIX.fullmatch(text) is not None or (found is not None and _is_display(found["display"] or "0"))


def tcp_address(vfb: Vfb) -> tuple[str, int]:
    """The host where viewers come, without brackets, and the display. Raises ValueError for a wrong one."""
    found = _ADDRESS.fullmatch(vfb.vnclisten)
    if found is None:
        raise ValueError("no address")
    host = found["v6"] or found["host"] or VNC_LISTEN
    return host, vfb.vncdisplay if found["display"] is None else int(found["display"])


_FLAG: Check = (lambda text: text in ("0", "1"), "0 or 1")
_CHECKS: dict[str, Check] = {
    "vnc": _FLAG,
    "vnclisten": (_is_listen, "an address, ADDRESS:DISPLAY, or unix:PATH"),
    "vncpasswd": (lambda text: text.isprintable() and len(text) <= 255, "text, of which VNC takes 8 bytes"),
    "vncdisplay": (_is_display, f"0 to {MOST_DISPLAY}"),
    "vncunused": _FLAG,
    "keymap": (lambda text: text in _KEYMAPS, "en-us: viewers' keys are those of an American keyboard"),
}


def parse_vfb(text: str) -> Vfb:
    """The framebuffer that `text` describes. Raises BuildError, with the word that is wrong."""
    settings = DeviceSettings("vfb", text, _CHECKS, _IDLE | _WINDOWS)

    def refuse(name: str, value: str, part: str) -> None:
        if name in _WINDOWS and value != "0":
            raise settings.fail(f"{name}: no window is opened here; a framebuffer is seen by VNC", part)

    chosen = settings.chosen(refuse)
    has_vnc = chosen.get("vnc", "1") == "1"
    return Vfb(
        vnc=has_vnc,
        vnclisten=chosen.get("vnclisten") or VNC_LISTEN,
        vncpasswd=chosen.get("vncpasswd", ""),
        vncdisplay=int(chosen.get("vncdisplay", "0")),
        vncunused=has_vnc and chosen.get("vncunused", "1") == "1",
        keymap=chosen.get("keymap", ""),
    )


def vfb_text(vfb: Vfb) -> str:
    """A framebuffer as parse_vfb() reads it, without what nobody asked for."""
    plain = Vfb()
    words = [
        f"{name}={int(value) if isinstance(value, bool) else value}"
        for name in Vfb.__dataclass_fields__
        if (value := getattr(vfb, name)) != getattr(plain, name) and (vfb.vnc or name != "vncunused")
    ]
    return ",".join(words)
