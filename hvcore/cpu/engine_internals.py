"""Functions of the Unicorn library beyond its documented API, used where a build exports them.

The wheels export all of QEMU's functions. Three of them give what the API lacks: a flush of one page, the
dropping of code by physical address, and hardware breakpoints. One is needed for correctness: Unicorn lets
every ring do port I/O, and only an exception raised from inside the library can turn that into the #GP that
a PV guest must get. Others make it faster by leaving out what this engine does not need. Every one of them
is looked up by name and may be missing.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

from hvcore.cpu import native
from hvcore.cpu.process_memory import address_of, function, jump_slot


class Internals:
    """`cpu` and `env` are the addresses of the library's CPUState and CPUX86State (0: not found)."""

    def __init__(self, lib: ctypes.CDLL, uc: ctypes.c_void_p, cpu: int, env: int) -> None:
        self._lib = lib
        self._uc = uc
        self._code: list[native.NativeCode] = []
        self._lean: _LeanTranslation | None = None
        self._cpu = ctypes.c_void_p(cpu)
        self._env = ctypes.c_void_p(env)
        self._flush_page = function(lib, "tlb_flush_page") if cpu else None
        self._drop_code = function(lib, "tb_invalidate_phys_range")
        self._update_dr7 = function(lib, "cpu_x86_update_dr7") if env else None
        self._raise = function(lib, "raise_exception_err") if env else None
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

    def io_callbacks(self) -> tuple[int, int] | None:
        """Native callbacks for the `in` and `out` hooks (native.port_callback()); None without the means.

        They are native because the exception leaves by longjmp, which no Python frame may be under.
        """
        if self._raise is None:
            return None
        target = address_of(self._raise)
        code = self._native(*(native.port_callback(target, out=out) for out in (False, True)))
        return None if code is None else (code[0], code[1])

    def syscall_callback(self, eflags: int, rip: int, callback: object) -> int | None:
        """A native hook that does what `syscall` does to RCX and R11, then calls the hook `callback`.

        `eflags` and `rip` are as native.syscall_callback() wants them. None without the means.
        """
        if not self._env:
            return None
        target = ctypes.cast(callback, ctypes.c_void_p).value or 0  # type: ignore[arg-type]
        regs = self._env.value or 0
        code = self._native(
            native.syscall_callback(address_of(self._lib.uc_reg_read), eflags, regs, rip, target)
        )
        return None if code is None else code[0]

    def pacing_callback(self) -> int | None:
        """A native block hook (native.pacing_callback()); None where the host has none."""
        self._lean = _lean_translation(self._lib)
        if self._lean is not None:
            return self._lean.pacing
        code = self._native(native.pacing_callback(address_of(self._lib.uc_emu_stop)))
        return None if code is None else code[0]

    def close(self) -> None:
        """Before the engine goes: its translator's address may become another's."""
        if self._lean is not None:
            self._lean.context.value = 0

    def _native(self, *routines: bytes) -> list[int] | None:
        """Addresses of routines that live as long as this object; None where the host has none."""
        code = native.native_code(*routines)
        if code is None:
            return None
        self._code.append(code)
        return code.addresses


@dataclass(frozen=True)
class _LeanTranslation:
    """`pacing` is the block hook for it, `context` the translator at work if it is to leave checks out."""

    pacing: int
    context: ctypes.c_uint64
    code: tuple[native.NativeCode, ...]


@cache
def _lean_translation(lib: ctypes.CDLL) -> _LeanTranslation | None:
    """Make the translators of this process generate no check_exit_request in blocks that pace themselves.

    Unicorn has them call it at the head of each block and after each access to memory, so that registers do
    not stay in registers. The way from the translator to tcg_gen_callN is one jump slot; what is put there
    drops those calls. None where the library or the host does not allow it.
    """
    check, generate = function(lib, "helper_check_exit_request"), function(lib, "tcg_gen_callN")
    slot = jump_slot(lib, address_of(generate)) if check and generate else 0
    if not check or not generate or not slot:
        return None
    context = ctypes.c_uint64()
    stop, ask = address_of(lib.uc_emu_stop), address_of(check)
    leave = native.native_code(native.leaving_pacing_callback(stop, ask))
    if leave is None:
        return None
    pacing = leave.addresses[0]
    drop = native.native_code(
        native.call_filter(pacing, ask, ctypes.addressof(context), address_of(generate))
    )
    if drop is None:
        return None
    ctypes.c_uint64.from_address(slot).value = drop.addresses[0]
    return _LeanTranslation(pacing, context, (leave, drop))
