"""Keysyms of X, which VNC's viewers send, as keys of Linux on an American keyboard.

Sources: the names of X11's keysymdef.h and of Linux's input-event-codes.h, as far as there are such keys.
"""

from __future__ import annotations

SHIFT = 42  # KEY_LEFTSHIFT
_SHIFTS = frozenset((0xFFE1, 0xFFE2))  # XK_Shift_L, XK_Shift_R

# The keys that print: what each row prints, and with shift, from which keycode on.
_ROWS = (
    (2, "1234567890-=", "!@#$%^&*()_+"),
    (16, "qwertyuiop[]", "QWERTYUIOP{}"),
    (30, "asdfghjkl;'`", 'ASDFGHJKL:"~'),
    (43, "\\zxcvbnm,./", "|ZXCVBNM<>?"),
    (57, " ", ""),
)
_PLAIN = {ord(letter): first + i for first, plain, _ in _ROWS for i, letter in enumerate(plain)}
_SHIFTED = {ord(letter): first + i for first, _, shifted in _ROWS for i, letter in enumerate(shifted)}

_OTHERS = {
    0xFF08: 14, 0xFF09: 15, 0xFF0D: 28, 0xFF1B: 1, 0xFFFF: 111,  # BackSpace, Tab, Return, Escape, Delete
    0xFF13: 119, 0xFF14: 70, 0xFF15: 99, 0xFF61: 99,  # Pause, Scroll_Lock, Sys_Req, Print
    0xFF50: 102, 0xFF51: 105, 0xFF52: 103, 0xFF53: 106, 0xFF54: 108,  # Home, Left, Up, Right, Down
    0xFF55: 104, 0xFF56: 109, 0xFF57: 107, 0xFF63: 110, 0xFF67: 127,  # Page_Up, Page_Down, End, Insert, Menu
    0xFF7F: 69, 0xFFE5: 58, 0xFFE1: SHIFT, 0xFFE2: 54,  # Num_Lock, Caps_Lock, Shift_L, Shift_R
    0xFFE3: 29, 0xFFE4: 97, 0xFFE9: 56, 0xFFEA: 100, 0xFE03: 100,  # Control, Alt, ISO_Level3_Shift
    0xFFE7: 125, 0xFFE8: 126, 0xFFEB: 125, 0xFFEC: 126, 0xFE20: 15,  # Meta, Super, ISO_Left_Tab
    0xFF8D: 96, 0xFFAA: 55, 0xFFAB: 78, 0xFFAC: 121, 0xFFAD: 74,  # KP_Enter, * + , -
    0xFFAE: 83, 0xFFAF: 98, 0xFFBD: 117,  # KP_Decimal, KP_Divide, KP_Equal
    0xFF95: 71, 0xFF96: 75, 0xFF97: 72, 0xFF98: 77, 0xFF99: 80,  # KP_Home, Left, Up, Right, Down
    0xFF9A: 73, 0xFF9B: 81, 0xFF9C: 79, 0xFF9D: 76, 0xFF9E: 82, 0xFF9F: 83,  # and the rest of those
    **{0xFFB0 + i: code for i, code in enumerate((82, 79, 80, 81, 75, 76, 77, 71, 72, 73))},  # KP_0 to KP_9
    **{0xFFBE + i: 59 + i for i in range(10)},  # F1 to F10
    0xFFC8: 87, 0xFFC9: 88,  # F11, F12
    **{0xFFCA + i: 183 + i for i in range(12)},  # F13 to F24
}  # fmt: skip
_KEYS = _OTHERS | _PLAIN | _SHIFTED


class Keyboard:
    """What one viewer holds down. A letter that wants shift gets it, where the viewer does not hold it."""

    def __init__(self) -> None:
        self._down: dict[int, tuple[int, ...]] = {}  # keysym -> keycodes that went down for it

    def key(self, keysym: int, *, pressed: bool) -> list[tuple[int, bool]]:
        """The keys that go down or up, as (keycode, pressed); none where such a keyboard has none."""
        code = _KEYS.get(keysym)
        if code is None:
            return []
        if not pressed:
            return [(one, False) for one in reversed(self._down.pop(keysym, (code,)))]
        if keysym not in self._down:  # else it repeats itself
            needs_shift = keysym in _SHIFTED and not _SHIFTS & self._down.keys()
            self._down[keysym] = (SHIFT, code) if needs_shift else (code,)
        return [(one, True) for one in self._down[keysym]]

    def release(self) -> list[tuple[int, bool]]:
        """The viewer is gone: nothing stays down."""
        codes = [code for codes in self._down.values() for code in reversed(codes)]
        self._down.clear()
        return [(code, False) for code in codes]
