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

from hvcore import native
from hvcore.process_memory import find_word, jump_slot

_SUFFIX = "_x86_64"
_HANDLE_SCAN = 0x1000


class Internals:
    """`cpu` and `env` are the addresses of the library's CPUState and CPUX86State (0: not found)."""

    def __init__(self, lib: ctypes.CDLL, uc: ctypes.c_void_p, cpu: int, env: int) -> None:
        self._lib = lib
        self._uc = uc
        self._code: list[native.NativeCode] = []
        self._lean: _LeanTranslation | None = None
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

    def io_callbacks(self) -> tuple[int, int] | None:
        """Native callbacks for the `in` and `out` hooks (native.port_callback()); None without the means.

        They are native because the exception leaves by longjmp, which no Python frame may be under.
        """
        if self._raise is None:
            return None
        target = _address(self._raise)
        code = self._native(*(native.port_callback(target, out=out) for out in (False, True)))
        return None if code is None else (code[0], code[1])

    def pacing_callback(self) -> int | None:
        """A native block hook that counts the budget down; None where the host has none."""
        self._lean = _lean_translation(self._lib)
        if self._lean is not None:
            return self._lean.pacing
        code = self._native(native.pacing_callback(_address(self._lib.uc_emu_stop)))
        return None if code is None else code[0]

    def answer_memory_mapping(self, base: int, size: int) -> None:
        """Tell the library natively which memory region an address is in: there is one, [base, base + size).

        It asks at each store to a page that may hold code, and its own way to the answer is long.
        """
        find = _function(self._lib, "find_memory_mapping")
        if find is None:
            return
        find.restype = ctypes.c_uint64
        region = find(self._uc, ctypes.c_uint64(base))
        slot = find_word(self._uc.value or 0, _HANDLE_SCAN, _address(find))
        code = self._native(native.memory_mapping(base, size, region)) if slot and region else None
        if code is not None:
            ctypes.c_uint64.from_address(slot).value = code[0]

    def close(self) -> None:
        """Before the engine goes: its translator's address may become another's."""
        if self._lean is not None:
            self._lean.context.value = 0

    def _native(self, *routines: bytes) -> list[int] | None:
        """Addresses of routines that live as long as this object; None where the host has none."""
        try:
            code = native.NativeCode(*routines)
        except OSError:
            return None
        self._code.append(code)
        return code.addresses


def _function(lib: ctypes.CDLL, name: str) -> ctypes._NamedFuncPointer | None:
    function = getattr(lib, name + _SUFFIX, None)
    if function is not None:
        function.restype = None
    return function


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
    check, generate = _function(lib, "helper_check_exit_request"), _function(lib, "tcg_gen_callN")
    slot = jump_slot(lib, _address(generate)) if check and generate else 0
    if not check or not generate or not slot:
        return None
    context = ctypes.c_uint64()
    try:
        leave = native.NativeCode(native.leaving_pacing_callback(_address(lib.uc_emu_stop), _address(check)))
        pacing = leave.addresses[0]
        drop = native.NativeCode(
            native.call_filter(pacing, _address(check), ctypes.addressof(context), _address(generate))
        )
    except OSError:
        return None
    ctypes.c_uint64.from_address(slot).value = drop.addresses[0]
    return _LeanTranslation(pacing, context, (leave, drop))


def _address(function: ctypes._NamedFuncPointer) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
