"""The one division of a guest's that would end this process: -2**63 by -1.

`idivl` with EDX:EAX = 0x8000000000000000 and a divisor of -1 is #DE to the guest. The library's
helper_idivl_EAX() looks for a zero divisor before it divides and for overflow afterwards, but an x86-64 host
has raised its own #DE by then, which comes as SIGFPE. The compiled core has a handler that steps over it;
RAX still holds the dividend, which the helper takes for the overflow that it is. Without the core such a
guest ends the process.
"""

from __future__ import annotations

import ctypes
from functools import cache

from hvcore.cpu.patches import PATCHES
from hvcore.cpu.process_memory import address_of, function

_HELPER = "helper_idivl_EAX"
_HELPER_SIZE = 64  # of it as far as the division
_IDIV = (b"\x48\xf7", b"\x49\xf7")  # with a register behind: F8 to FF
_IDIV_SIZE = 3


@cache
def guard_division(lib: ctypes.CDLL, core: ctypes.CDLL) -> bool:
    """Install the handler, once for this process; False where there is nothing to guard or no means to."""
    at = division_of(lib)

    def guard() -> bool:
        return bool(at and core.hv_guard_division(ctypes.c_void_p(at), ctypes.c_size_t(_IDIV_SIZE)))

    return PATCHES.call(guard, core.hv_unguard_division)


def division_of(lib: ctypes.CDLL) -> int:
    """Where the library divides EDX:EAX; 0 if it does not do so by one 64-bit `idiv` of a register."""
    helper = function(lib, _HELPER)
    if helper is None:
        return 0
    start = address_of(helper)
    code = ctypes.string_at(start, _HELPER_SIZE)
    found = [i for i in range(_HELPER_SIZE - 2) if code[i : i + 2] in _IDIV and code[i + 2] & 0xF8 == 0xF8]
    return start + found[0] if len(found) == 1 else 0
