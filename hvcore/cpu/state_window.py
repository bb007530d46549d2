"""The one module that knows where Unicorn keeps the CPU state, and how to see it from Python.

Unicorn's register calls cost microseconds and leave out the page-fault error code. Its CPU state
(`CPUX86State`) is one block of memory; seen as a memoryview, a register costs what a list element costs. The
block is found through the engine's handle, and every offset below is checked against the public API and
against known faults before it is trusted. Where a check fails (another build of the library), the public
`uc_context_save`/`uc_context_restore` pair serves instead: a copy of the same block, refreshed at each exit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

from hvcore.cpu.process_memory import ranges
from hvcore.errors import EngineError

# Offsets in CPUX86State, in bytes from regs[0] (target/i386/cpu.h of QEMU 5.0.1 as Unicorn 2.1 carries it).
RIP = 128
EFLAGS = 136
CC_DST = 144
CC_SRC = 152
CC_SRC2 = 160
CC_OP = 168
DF = 172
HFLAGS = 176
SEGS = 184  # ES CS SS DS FS GS, 24 bytes each: u32 selector, u64 base at +8, u32 limit +16, u32 flags +20
LDT = SEGS + 6 * 24
TR = LDT + 24
GDT = TR + 24
IDT = GDT + 24
CR = 424  # cr[0..8]
XMM = 824  # 32 of 64 bytes, of which the first 16 are a register of SSE; then scratch of the same size and 8
XMM_STRIDE, XMM_SIZE, NR_XMM, XMM_SCRATCH = 64, 16, 32, 64 + 8
FPSTT, FPUS, FPUC, FPTAGS, FPREGS = 604, 608, 610, 612, 624
FPOP, FPIP, FPDP, FP_STATUS, FT0, MMX_STATUS, SSE_STATUS, MXCSR = 752, 760, 768, 776, 784, 800, 808, 816
FPREG_STRIDE, FPREG_SIZE, NR_FPREGS = 16, 10, 8
ERROR_CODE = 5384
DR = 5400
OLD_EXCEPTION = 5496
WINDOW_SIZE = 5504

# How far behind a pointer in the engine handle the state was seen to lie, and where that pointer was.
_CPU_POINTER_HINT = 0x1B8
_STATE_HINT = 0x8A50
_HANDLE_SCAN = 0x1000
_FEATURES_SCAN = 0x400
_VENDOR = b"AuthenticAMD"
_CPU_SCAN = 0x10000

_UC_X86_GPRS = (35, 38, 40, 37, 44, 36, 43, 39)  # UC_X86_REG_RAX RCX RDX RBX RSP RBP RSI RDI
_MARKERS = tuple(0x5AFE_C0DE_0000_0001 + 0x0101_0101 * i for i in range(8))


class StateWindow:
    """A view of the CPU state: `q` and `d` are its 64-bit and 32-bit words, from regs[0] on.

    `live` says whether it is the state itself. If it is not, `load()` must be called before the window is
    read in an exit and `store()` after it was written.
    """

    def __init__(self, lib: ctypes.CDLL, uc: ctypes.c_void_p, *, allow_live: bool = True) -> None:
        self._lib = lib
        self._uc = uc
        self._context = ctypes.c_void_p()
        self.cpu_address, self.env_address = _find_live(lib, uc)
        self.live = allow_live and self.env_address != 0
        base = self.env_address if self.live else self._find_in_context()
        raw = (ctypes.c_char * WINDOW_SIZE).from_address(base)
        self.bytes = memoryview(raw).cast("B")
        self.q = self.bytes.cast("Q")
        self.d = self.bytes.cast("I")
        if not self.live:
            self.load()

    def hide_features(self, ecx_1: int, ebx_7: int) -> bool:
        """Take features from the processor model: bits of CPUID leaf 1 ECX and leaf 7 EBX.

        The feature words follow the model's vendor string and version. False where they are not found.
        """
        if not self.env_address:
            return False
        start = self.env_address + WINDOW_SIZE
        at = ctypes.string_at(start, _FEATURES_SCAN).find(_VENDOR)
        if at < 0:
            return False
        words = (ctypes.c_uint64 * 3).from_address(start + at + len(_VENDOR) + 4)  # 1 EDX, 1 ECX, 7 EBX
        words[1] &= ~ecx_1
        words[2] &= ~ebx_7
        return True

    def load(self) -> None:
        """Refresh a window that is a copy."""
        self._lib.uc_context_save(self._uc, self._context)

    def store(self) -> None:
        """Write a window that is a copy back into the engine."""
        self._lib.uc_context_restore(self._uc, self._context)

    def close(self) -> None:
        """Free the copy, if there is one."""
        if self._context:
            self._lib.uc_context_free(self._context)
            self._context = ctypes.c_void_p()

    def _find_in_context(self) -> int:
        lib, uc = self._lib, self._uc
        _check(lib.uc_context_alloc(uc, ctypes.byref(self._context)), "uc_context_alloc")
        with _Markers(lib, uc):
            _check(lib.uc_context_save(uc, self._context), "uc_context_save")
            start = self._context.value or 0
            size = lib.uc_context_size(uc)
            found = ctypes.string_at(start, size).find(_marker_bytes())
        if found < 0:
            raise EngineError("this build of the Unicorn library keeps its registers in an unknown order")
        return start + found


class _Markers:
    """Known values in the general registers while the state is looked for."""

    def __init__(self, lib: ctypes.CDLL, uc: ctypes.c_void_p) -> None:
        self._lib, self._uc = lib, uc

    def _write(self, values: tuple[int, ...]) -> None:
        for reg, value in zip(_UC_X86_GPRS, values, strict=True):
            cell = ctypes.c_uint64(value)
            _check(self._lib.uc_reg_write(self._uc, reg, ctypes.byref(cell)), "uc_reg_write")

    def __enter__(self) -> None:
        self._write(_MARKERS)

    def __exit__(self, *_: object) -> None:
        self._write((0,) * len(_UC_X86_GPRS))


def _marker_bytes() -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in _MARKERS)


def _check(err: int, call: str) -> None:
    if err:
        raise EngineError(f"{call} failed with Unicorn error {err}")


def _candidates(handle: int, readable: Callable[[int, int], int]) -> Iterator[int]:
    """Addresses that may be the CPU object: the hinted pointer first, then every pointer in the handle."""
    words = memoryview(ctypes.string_at(handle, readable(handle, _HANDLE_SCAN))).cast("Q")
    if len(words) > _CPU_POINTER_HINT // 8:
        yield words[_CPU_POINTER_HINT // 8]
    yield from words


def _find_live(lib: ctypes.CDLL, uc: ctypes.c_void_p) -> tuple[int, int]:
    """The addresses of the CPU object and of the state in it; zeros where they are not found."""
    readable_ranges = ranges("r")

    def readable(address: int, want: int) -> int:
        """How many of `want` bytes can be read at `address`."""
        return next((min(want, high - address) for low, high in readable_ranges if low <= address < high), 0)

    markers = _marker_bytes()
    handle = uc.value or 0
    with _Markers(lib, uc):
        for cpu in _candidates(handle, readable):
            if cpu % 8 or not (size := readable(cpu, _CPU_SCAN) & ~7):
                continue
            if (
                size > _STATE_HINT + len(markers)
                and ctypes.string_at(cpu + _STATE_HINT, len(markers)) == markers
            ):
                found = _STATE_HINT
            else:
                found = ctypes.string_at(cpu, size).find(markers)
            base = cpu + found
            if found >= 0 and readable(base, WINDOW_SIZE) == WINDOW_SIZE and _agrees(lib, uc, base):
                return cpu, base
    return 0, 0


def _agrees(lib: ctypes.CDLL, uc: ctypes.c_void_p, base: int) -> bool:
    """Whether the block at `base` is the live state: a write through the API shows in it, and back."""
    probe = ctypes.c_uint64(0x1122_3344_5566_7788)
    seen = ctypes.c_uint64.from_address(base)
    before = seen.value
    _check(lib.uc_reg_write(uc, _UC_X86_GPRS[0], ctypes.byref(probe)), "uc_reg_write")
    forward = seen.value == probe.value
    seen.value = before
    _check(lib.uc_reg_read(uc, _UC_X86_GPRS[0], ctypes.byref(probe)), "uc_reg_read")
    return forward and probe.value == before
