"""Keysyms, against Linux's own names of its keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from domainbuilder.display.keysyms import SHIFT, Keyboard
from tests.needs import missing

HEADER = Path("/usr/include/linux/input-event-codes.h")
# What a key of each name prints on an American keyboard, and with shift.
NAMED = {
    "GRAVE": "`~", "MINUS": "-_", "EQUAL": "=+", "LEFTBRACE": "[{", "RIGHTBRACE": "]}", "BACKSLASH": "\\|",
    "SEMICOLON": ";:", "APOSTROPHE": "'\"", "COMMA": ",<", "DOT": ".>", "SLASH": "/?", "SPACE": " ",
    **{letter.upper(): letter + letter.upper() for letter in "abcdefghijklmnopqrstuvwxyz"},
    **{plain: plain + shifted for plain, shifted in zip("1234567890", "!@#$%^&*()", strict=True)},
}  # fmt: skip
# keysymdef.h's values of the keys that print nothing.
OTHERS = {
    "BACKSPACE": 0xFF08, "TAB": 0xFF09, "ENTER": 0xFF0D, "ESC": 0xFF1B, "DELETE": 0xFFFF, "HOME": 0xFF50,
    "LEFT": 0xFF51, "UP": 0xFF52, "RIGHT": 0xFF53, "DOWN": 0xFF54, "PAGEUP": 0xFF55, "PAGEDOWN": 0xFF56,
    "END": 0xFF57, "INSERT": 0xFF63, "NUMLOCK": 0xFF7F, "CAPSLOCK": 0xFFE5, "SCROLLLOCK": 0xFF14,
    "PAUSE": 0xFF13,
    "LEFTSHIFT": 0xFFE1, "RIGHTSHIFT": 0xFFE2, "LEFTCTRL": 0xFFE3, "RIGHTCTRL": 0xFFE4, "LEFTALT": 0xFFE9,
    "RIGHTALT": 0xFFEA, "LEFTMETA": 0xFFEB, "RIGHTMETA": 0xFFEC, "SYSRQ": 0xFF61, "COMPOSE": 0xFF67,
    "KPENTER": 0xFF8D, "KPASTERISK": 0xFFAA, "KPPLUS": 0xFFAB, "KPCOMMA": 0xFFAC, "KPMINUS": 0xFFAD,
    "KPDOT": 0xFFAE,
    "KPSLASH": 0xFFAF, "KPEQUAL": 0xFFBD, **{f"KP{i}": 0xFFB0 + i for i in range(10)},
    **{f"F{i}": 0xFFBD + i for i in range(1, 25)},
}  # fmt: skip


@pytest.fixture(scope="module")
def codes() -> dict[str, int]:
    if not HEADER.exists():
        missing("needs linux-libc-dev")
    return {
        name: int(value) for name, value in re.findall(r"#define KEY_(\w+)\s+(\d+)\b", HEADER.read_text())
    }


def down(keyboard: Keyboard, keysym: int) -> list[int]:
    return [code for code, pressed in keyboard.key(keysym, pressed=True) if pressed]


def test_every_key_is_linuxs(codes: dict[str, int]) -> None:
    for name, prints in NAMED.items():
        assert down(Keyboard(), ord(prints[0])) == [codes[name]], name
        if len(prints) > 1:
            assert down(Keyboard(), ord(prints[1])) == [codes["LEFTSHIFT"], codes[name]], name
    for name, keysym in OTHERS.items():
        assert down(Keyboard(), keysym) == [codes[name]], name
    assert down(Keyboard(), 0x20AC) == []  # a euro, which it has not


def test_shift_is_added_where_nobody_holds_it() -> None:
    keyboard = Keyboard()
    assert keyboard.key(ord("A"), pressed=True) == [(SHIFT, True), (30, True)]
    assert keyboard.key(ord("A"), pressed=True) == [(SHIFT, True), (30, True)]  # it repeats itself
    assert keyboard.key(ord("A"), pressed=False) == [(30, False), (SHIFT, False)]
    assert keyboard.key(0xFFE2, pressed=True) == [(54, True)]
    assert keyboard.key(ord("A"), pressed=True) == [(30, True)]
    assert keyboard.key(0xFFE2, pressed=False) == [(54, False)]
    assert keyboard.key(ord("A"), pressed=False) == [(30, False)]
    assert keyboard.key(ord("b"), pressed=False) == [(48, False)]
    keyboard.key(ord("?"), pressed=True)
    assert keyboard.release() == [(53, False), (SHIFT, False)]
    assert keyboard.release() == []
