"""Functions of the Unicorn library beyond its documented API, used where a build exports them.

The wheels export all of QEMU's functions. Three of them give what the API lacks: a flush of one page, the
dropping of code by physical address, and hardware breakpoints. One is needed for correctness: Unicorn lets
every ring do port I/O, and only an exception raised from inside the library can turn that into the #GP that
a PV guest must get. Every one of them is looked up by name and may be missing.
"""

from __future__ import annotations

import ctypes
import mmap
import platform

_SUFFIX = "_x86_64"
_GP_FAULT = 13


class Internals:
    """`cpu` and `env` are the addresses of the library's CPUState and CPUX86State (0: not found)."""

    def __init__(self, lib: ctypes.CDLL, uc: ctypes.c_void_p, cpu: int, env: int) -> None:
        self._uc = uc
        self._cpu = ctypes.c_void_p(cpu)
        self._env = ctypes.c_void_p(env)
        self._flush_page = _function(lib, "tlb_flush_page") if cpu else None
        self._drop_code = _function(lib, "tb_invalidate_phys_range")
        self._update_dr7 = _function(lib, "cpu_x86_update_dr7") if env else None
        self._raise = _function(lib, "raise_exception_err") if env else None
        self.has_flush_page = self._flush_page is not None
        self.has_update_dr7 = self._update_dr7 is not None

    def flush_page(self, address: int) -> None:
        """Drop the translation of one page."""
        if self._flush_page is not None:
            self._flush_page(self._cpu, ctypes.c_uint64(address))

    def drop_code(self, start: int, end: int) -> bool:
        """Drop what was translated from physical [start, end); False if this build cannot."""
        if self._drop_code is None:
            return False
        self._drop_code(self._uc, ctypes.c_uint64(start), ctypes.c_uint64(end))
        return True

    def update_dr7(self, value: int) -> None:
        """Set DR7 and arm the breakpoints that it enables."""
        if self._update_dr7 is not None:
            self._update_dr7(self._env, ctypes.c_uint32(value))

    def io_fault_callbacks(self) -> tuple[mmap.mmap, int, int] | None:
        """Native callbacks for the `in` and `out` hooks that raise #GP(0); (their page, in, out).

        They are native because the exception leaves by longjmp, which no Python frame may be under.
        """
        if self._raise is None:
            return None
        target = ctypes.cast(self._raise, ctypes.c_void_p).value or 0
        page = native_code(
            # in(uc, port, size, env), out(uc, port, size, value, env): raise_exception_err(env, 13, 0)
            b"".join(
                (move_env + _mov_esi(_GP_FAULT) + b"\x31\xd2" + _jump(target)).ljust(64, b"\xcc")
                for move_env in (b"\x48\x89\xcf", b"\x4c\x89\xc7")
            )
        )
        return None if page is None else (page[0], page[1], page[1] + 64)


def _mov_esi(value: int) -> bytes:
    return b"\xbe" + value.to_bytes(4, "little")


def _jump(target: int) -> bytes:
    return b"\xff\x25\x00\x00\x00\x00" + target.to_bytes(8, "little")


def _function(lib: ctypes.CDLL, name: str) -> ctypes._NamedFuncPointer | None:
    function = getattr(lib, name + _SUFFIX, None)
    if function is not None:
        function.restype = None
    return function


def native_code(code: bytes) -> tuple[mmap.mmap, int] | None:
    """x86-64 machine code in executable memory: (the page, its address); None where that cannot be had."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except (OSError, ValueError):
        return None
    page[: len(code)] = code
    return page, ctypes.addressof(ctypes.c_char.from_buffer(page))


def pacing_callback(uc_emu_stop: int) -> tuple[mmap.mmap, int] | None:
    """UC_HOOK_BLOCK(uc, address, size, cell): `cell -= size; if (cell < 0) uc_emu_stop(uc)`."""
    if not uc_emu_stop:
        return None
    return native_code(b"\x89\xd2\x48\x29\x11\x78\x01\xc3" + _jump(uc_emu_stop))
