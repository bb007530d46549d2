"""The one division of a guest's that would end this process: -2**63 by -1.

`idivl` with EDX:EAX = 0x8000000000000000 and a divisor of -1 is #DE to the guest. The library's
helper_idivl_EAX() looks for a zero divisor before it divides and for overflow afterwards, but an x86-64 host
has raised its own #DE by then, which comes as SIGFPE. A handler of native code steps over that instruction;
RAX still holds the dividend, which the helper takes for the overflow that it is.
"""

from __future__ import annotations

import ctypes
import platform
import signal
import sys

from hvcore.cpu import native
from hvcore.cpu.process_memory import address_of, function

_HELPER = "helper_idivl_EAX"
_HELPER_SIZE = 64  # of it as far as the division
_IDIV = (b"\x48\xf7", b"\x49\xf7")  # with a register behind: F8 to FF
_IDIV_SIZE = 3
_SA_SIGINFO, _SA_ONSTACK = 4, 0x08000000
_MASK_WORDS = 16


class _SigAction(ctypes.Structure):
    """struct sigaction of glibc and musl on x86-64."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint64 * _MASK_WORDS),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_installed: list[native.NativeCode] = []


def guard_division(lib: ctypes.CDLL) -> bool:
    """Install the handler, once for this process; False where there is nothing to guard or no means to."""
    if _installed:
        return True
    at = division_of(lib)
    if not at or sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    libc = ctypes.CDLL(None)
    before = _SigAction()
    libc.sigaction(signal.SIGFPE, None, ctypes.byref(before))
    code = native.native_code(
        native.division_handler(
            at, _IDIV_SIZE, before.handler or 0, address_of(libc.signal), address_of(libc["raise"])
        )
    )
    if code is None:
        return False
    action = _SigAction(handler=code.addresses[0], flags=_SA_SIGINFO | _SA_ONSTACK)
    if libc.sigaction(signal.SIGFPE, ctypes.byref(action), None):
        return False
    _installed.append(code)
    return True


def division_of(lib: ctypes.CDLL) -> int:
    """Where the library divides EDX:EAX; 0 if it does not do so by one 64-bit `idiv` of a register."""
    helper = function(lib, _HELPER)
    if helper is None:
        return 0
    start = address_of(helper)
    code = ctypes.string_at(start, _HELPER_SIZE)
    found = [i for i in range(_HELPER_SIZE - 2) if code[i : i + 2] in _IDIV and code[i + 2] & 0xF8 == 0xF8]
    return start + found[0] if len(found) == 1 else 0
