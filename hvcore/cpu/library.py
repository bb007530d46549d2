"""Unicorn's C API as the engine calls it: the one module that knows where the library is.

The calls go by ctypes, without the binding: its hooks cost a microsecond more each, and swallow exceptions,
and importing it takes as long as all of hvcore, for the names of eight other processors. Numbers and types
are those of include/unicorn/unicorn.h and x86.h of Unicorn 2.1.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

from hvcore.errors import EngineError

_NAMES = {"linux": "libunicorn.so.2", "darwin": "libunicorn.2.dylib"}

UC_ARCH_X86, UC_MODE_64 = 4, 8
UC_PROT_READ, UC_PROT_ALL = 1, 7
UC_HOOK_INTR, UC_HOOK_INSN, UC_HOOK_CODE, UC_HOOK_BLOCK, UC_HOOK_INSN_INVALID = 1, 2, 4, 8, 1 << 14
INS_CPUID, INS_RDTSC, INS_RDTSCP, INS_SYSCALL, INS_SYSENTER = 113, 608, 609, 699, 700
INS_IN, INS_OUT = 218, 500
REG_EFLAGS, REG_FPCW, REG_FPTAG, REG_MSR, REG_MXCSR = 25, 246, 247, 248, 249
REG_FPSW, REG_ST0, REG_XMM0 = 31, 114, 122
IO_WRITE = 1 << 30
CTL_USE_EXITS = 4 | 1 << 26 | IO_WRITE
CTL_TB_FLUSH = 10 | IO_WRITE
CTL_TLB_FLUSH = 11 | IO_WRITE
CTL_TLB_TYPE = 12 | 1 << 26 | IO_WRITE
TLB_CPU = 0
CTL_CPU_MODEL = 7 | 1 << 26 | IO_WRITE
CTL_TCG_BUFFER_SIZE = 13 | 1 << 26 | IO_WRITE
TCG_BUFFER_SIZE = 256 << 20
TCG_SLACK = 8 << 20  # what else Unicorn maps on that occasion
CPU_MODEL_EPYC = 35  # SSE4.2, AES, FSGSBASE instructions; what the guest sees is decided by cpuid


INTR_CB = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
INSN_CB = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
IN_CB = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_void_p)
OUT_CB = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p
)
CODE_CB = BLOCK_CB = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p
)


def _path() -> str:
    """The unicorn package's; where that has none, or another is asked for, the one that its binding finds."""
    package = None if "LIBUNICORN_PATH" in os.environ else PathFinder.find_spec("unicorn")
    for folder in package.submodule_search_locations or () if package is not None else ():
        path = Path(folder, "lib", _NAMES.get(sys.platform, ""))
        if path.is_file():
            return str(path)
    from unicorn.unicorn_py3 import unicorn as binding

    return str(binding.uclib._name)  # noqa: SLF001 (dlopen()'s)


@cache
def unicorn() -> ctypes.CDLL:
    """The library."""
    lib = ctypes.CDLL(_path())
    lib.uc_version.restype = ctypes.c_uint32
    lib.uc_context_size.restype = ctypes.c_size_t
    return lib


def identity() -> str:
    """Which file the library is, for who has to know whether it is another."""
    lib = unicorn()
    state = Path(lib._name).stat()  # noqa: SLF001 (dlopen()'s)
    return f"{lib.uc_version(None, None):#x} {state.st_size} {state.st_mtime_ns}"


class Msr(ctypes.Structure):
    """uc_x86_msr."""

    _fields_ = (("rid", ctypes.c_uint32), ("value", ctypes.c_uint64))


class Library:
    """One open instance of Unicorn: `uc` is its handle, `lib` the library."""

    def __init__(self) -> None:
        self.lib = unicorn()
        self.uc = ctypes.c_void_p()
        err = self.lib.uc_open(UC_ARCH_X86, UC_MODE_64, ctypes.byref(self.uc))
        if err:
            raise EngineError(f"uc_open failed with Unicorn error {err}")

    def call(self, name: str, *args: object) -> None:
        """Call a function of the API on the instance. Raises EngineError where it fails."""
        err = getattr(self.lib, name)(self.uc, *args)
        if err:
            raise EngineError(f"{name} failed with Unicorn error {err}")

    def close(self) -> None:
        """Free the instance; once."""
        self.lib.uc_close(self.uc)
        self.uc = ctypes.c_void_p()
