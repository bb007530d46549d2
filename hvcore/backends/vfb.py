"""A framebuffer as data, what struct libxl_device_vfb is to tools/libs/light/libxl_console.c."""

from __future__ import annotations

from dataclasses import dataclass

VFB, VKBD = "vfb", "vkbd"  # the kinds of device of a framebuffer, and of the keyboard and pointer beside it
VNC_LISTEN = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Vfb:
    """A framebuffer, with a keyboard and a pointer.

    `vnc`: people may see it, at `vnclisten` (an address, ADDRESS:DISPLAY, or unix:PATH), as display
    `vncdisplay`, or as the first from there on that is free (`vncunused`). `vncpasswd`: what they must know.
    """

    vnc: bool = True
    vnclisten: str = VNC_LISTEN
    vncpasswd: str = ""
    vncdisplay: int = 0
    vncunused: bool = True
    keymap: str = ""
