"""The processor's registers, segments and tables as the hypervisor sets and reads them, by the state window.

Registers are words of the window: `q[RAX]`, `q[RIP]`. What the engine keeps in forms of its own (flags,
hidden parts of segments, the FPU) has a method.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence

from hvcore.cpu import state_window as sw
from hvcore.cpu.compiled import engine_words
from hvcore.cpu.engine_internals import Internals
from hvcore.cpu.library import (
    CTL_TB_FLUSH,
    CTL_TLB_FLUSH,
    REG_EFLAGS,
    REG_FPCW,
    REG_FPSW,
    REG_FPTAG,
    REG_MSR,
    REG_MXCSR,
    REG_ST0,
    REG_XMM0,
    Library,
    Msr,
)
from hvcore.cpu.words import EngineWords

# Indices in `q`, the window's 64-bit words.
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
R11 = 11
RIP = sw.RIP // 8
EFLAGS = sw.EFLAGS // 8  # arithmetic flags excepted: `read_eflags()` has all

# Segment registers, and where the selector of each is in `d`, the window's 32-bit words.
ES, CS, SS, DS, FS, GS = range(6)
SELECTOR_WORDS = tuple((sw.SEGS + 24 * index) // 4 for index in range(6))

# What `set_table()` loads.
LDTR, TR, GDTR, IDTR = sw.LDT, sw.TR, sw.GDT, sw.IDT

_ERROR_CODE = sw.ERROR_CODE // 4
_HFLAGS = sw.HFLAGS // 4
_TF = 0x100
_ARITHMETIC = 0x8D5  # OF SF ZF AF PF CF
_CC_OP_EFLAGS = 1  # they are in cc_src
_NO_AVX = bytes(sw.XMM_STRIDE - sw.XMM_SIZE)

# hflags
HF_CPL = 0x3
HF_CS32 = 1 << 4
HF_SS32 = 1 << 5
HF_ADDSEG = 1 << 6
HF_TS = 1 << 11
HF_LMA = 1 << 14
HF_CS64 = 1 << 15

# Segment cache flags are the high word of the descriptor.
DESC_B = 1 << 22
DESC_L = 1 << 21

MSR_EFER = 0xC0000080
EFER_SCE, EFER_LME, EFER_LMA, EFER_NXE = 1, 1 << 8, 1 << 10, 1 << 11

_DR6_DEFAULT = 0xFFFF0FF0
_DR7_DEFAULT = 0x400


class Processor:
    """The state of the CPU of one Unicorn instance.

    `q` and `d` are the state window: `q[RAX]` .. `q[15]` the general registers, `q[RIP]`.
    """

    def __init__(
        self, library: Library, window: sw.StateWindow, internals: Internals, core: ctypes.CDLL | None
    ) -> None:
        self._library = library
        self._lib = library.lib
        self._uc = library.uc
        self._call = library.call
        self._ctl = self._lib.uc_ctl
        self.window = window
        self.internals = internals
        self.q = window.q
        self.d = window.d
        self.registers = window.bytes[: 8 * RIP]  # the sixteen general ones
        self._core = core
        self.words = EngineWords() if core is None else engine_words(core, window.env_address)
        self._flag_cell = ctypes.c_uint64()
        self._flag_ref = ctypes.byref(self._flag_cell)
        self._running = False

    # -- translation caches

    @property
    def tlb_flushes(self) -> int:
        """How often every cached translation was dropped."""
        return self.words.tlb_flushes

    def flush_tlb(self) -> None:
        """Drop every cached address translation (there is no flush of one page); about 1 us."""
        self.words.tlb_flushes += 1
        self._ctl(self._uc, CTL_TLB_FLUSH)

    def drop_translations(self) -> None:
        """Drop every cached address translation, which is no flush that anybody asked for."""
        if self.words.spaces and self._core is not None:
            self._core.hv_drop_all(ctypes.byref(self.words))
        else:
            self._ctl(self._uc, CTL_TLB_FLUSH)

    def drop_entry(self, address: int) -> None:
        """The page-table entry at machine address `address`, of the last level, maps its page no more."""
        if self.words.spaces and self._core is not None:
            self._core.hv_drop_entry(ctypes.byref(self.words), ctypes.c_uint64(address))
        else:
            self._ctl(self._uc, CTL_TLB_FLUSH)

    def load_space(self, cr3: int, root: int) -> None:
        """Set CR3; its translations may have been kept since the address space `root` (not 0) was left."""
        if self.words.spaces and self._core is not None:
            self.q[sw.CR // 8 + 3] = cr3
            self.words.tlb_flushes += 1
            self._core.hv_load_space(ctypes.byref(self.words), ctypes.c_uint64(root))
        else:
            self.set_control(3, cr3)

    def flush_tlb_page(self, address: int) -> None:
        """Drop the translation of one page, or all of them where the library cannot do it alone."""
        if self.internals.has_flush_page:
            self.internals.flush_page(address)
        else:
            self._ctl(self._uc, CTL_TLB_FLUSH)

    def flush_code(self, start: int = 0, end: int = 0) -> None:
        """Drop code translated from physical [start, end), or all of it.

        Needed after the hypervisor itself wrote over instructions; the guest's own stores are seen.
        """
        if not end or not self.internals.drop_code(start, end):
            self._ctl(self._uc, CTL_TB_FLUSH)

    # -- flags, control and debug registers

    def read_eflags(self) -> int:
        """EFLAGS, with the lazily kept arithmetic flags worked out."""
        if not self.window.live:
            self.window.store()
        self._lib.uc_reg_read(self._uc, REG_EFLAGS, self._flag_ref)
        return self._flag_cell.value & 0x3F7FD7 | 2

    def write_eflags(self, value: int) -> None:
        """Set EFLAGS: arithmetic flags go to cc_src, the direction flag to df, as the engine keeps them.

        Between runs the engine keeps them in EFLAGS too, from where it takes them when it starts.
        """
        q, d = self.q, self.d
        q[sw.EFLAGS // 8] = (value & ~0xCD5 if self._running else value) | 2
        q[sw.CC_SRC // 8] = value & _ARITHMETIC
        d[sw.CC_OP // 4] = _CC_OP_EFLAGS
        d[sw.DF // 4] = 0xFFFFFFFF if value & 0x400 else 1

    @property
    def goes_down(self) -> bool:
        """The direction flag: whether string instructions go to lower addresses."""
        return self.d[sw.DF // 4] != 1

    @property
    def error_code(self) -> int:
        """The error code of the exception being handled."""
        return self.d[_ERROR_CODE]

    @property
    def is_software_interrupt(self) -> bool:
        """Whether the exit being handled is an `int n`, `int3` or `into`."""
        return bool(self.d[_ERROR_CODE + 1])

    def take_debug_status(self) -> int:
        """The causes (B0-B3, BD, BS, BT) that the engine put into DR6 since the last call."""
        status = self.q[sw.DR // 8 + 6]
        self.q[sw.DR // 8 + 6] = _DR6_DEFAULT
        return status & 0xE00F

    @property
    def cr2(self) -> int:
        """The faulting address of the last page fault."""
        return self.q[sw.CR // 8 + 2]

    @property
    def cpl(self) -> int:
        """Current privilege level."""
        return self.d[_HFLAGS] & HF_CPL

    def set_control(self, number: int, value: int) -> None:
        """Set CR0, CR3 or CR4 and drop translations."""
        self.q[sw.CR // 8 + number] = value
        self.flush_tlb()

    def control(self, number: int) -> int:
        """The value of a control register."""
        return self.q[sw.CR // 8 + number]

    def set_cr4_tsd(self, enabled: bool) -> None:
        """Set or clear CR4.TSD, which makes `rdtsc` #GP above ring 0."""
        cr4 = sw.CR // 8 + 4
        self.q[cr4] = self.q[cr4] | 4 if enabled else self.q[cr4] & ~4

    def set_cr0_ts(self, enabled: bool) -> None:
        """Set or clear CR0.TS (and what the engine keeps of it), which makes the next FPU instruction #NM."""
        cr0 = sw.CR // 8
        self.q[cr0] = self.q[cr0] | 8 if enabled else self.q[cr0] & ~8
        h = self.d[_HFLAGS] & ~HF_TS
        self.d[_HFLAGS] = h | HF_TS if enabled else h

    def set_long_mode(self, enabled: bool) -> None:
        """Enter or leave long mode: EFER and the engine's idea of it. CR4.PAE is the caller's."""
        self.write_msr(MSR_EFER, EFER_LME | EFER_LMA | EFER_NXE if enabled else 0)
        hflags = self.d[_HFLAGS] & ~(HF_LMA | HF_CS64)
        self.d[_HFLAGS] = hflags | HF_LMA if enabled else hflags

    def set_debug(self, number: int, value: int) -> None:
        """Set DR0..DR7; breakpoints that DR7 enables are armed."""
        dr = sw.DR // 8
        if number > 3 and number != 7:
            self.q[dr + number] = value
            return
        dr7 = value if number == 7 else self.q[dr + 7]
        armed = (dr7 | self.q[dr + 7]) & 0xFF and self.internals.has_update_dr7
        if not armed:
            self.q[dr + number] = value
            return
        self.internals.update_dr7(_DR7_DEFAULT)
        if number != 7:
            self.q[dr + number] = value
        self.internals.update_dr7(dr7)

    def write_msr(self, msr: int, value: int) -> None:
        """Write a model specific register of the engine itself."""
        self._write_register(REG_MSR, Msr(msr, value))

    def _write_register(
        self, register: int, cell: ctypes.c_uint32 | Msr | ctypes.Array[ctypes.c_char]
    ) -> None:
        """Write by the public API, whose effects a window that is a copy has to be told of."""
        if not self.window.live:
            self.window.store()
        self._call("uc_reg_write", register, ctypes.byref(cell))
        if not self.window.live:
            self.window.load()

    # -- FPU

    def init_fpu(self) -> None:
        """The FPU as `fninit` leaves it, with SSE exceptions masked."""
        for register, value in ((REG_FPCW, 0x37F), (REG_FPTAG, 0xFFFF), (REG_MXCSR, 0x1F80)):
            self._write_register(register, ctypes.c_uint32(value))

    def load_fpu(self, control: tuple[int, int, int, int], st: Sequence[bytes], xmm: Sequence[bytes]) -> None:
        """Load the FPU: FCW, FSW, `fxsave`'s FTW and MXCSR; ST(0) to ST(7), 10 bytes each; XMM0 to XMM15."""
        fcw, fsw, ftw, mxcsr = control
        tags = sum(3 << 2 * i for i in range(8) if not ftw >> i & 1)
        for register, value in (
            (REG_FPCW, fcw),
            (REG_FPSW, fsw),
            (REG_FPTAG, tags),
            (REG_MXCSR, mxcsr),
        ):
            self._write_register(register, ctypes.c_uint32(value))
        for first, values in ((REG_ST0, st), (REG_XMM0, xmm)):
            for i, raw in enumerate(values):
                self._write_register(first + i, ctypes.create_string_buffer(raw, len(raw)))

    # -- segments and tables

    def selector(self, index: int) -> int:
        """The selector in a segment register (ES CS SS DS FS GS)."""
        return self.d[(sw.SEGS + 24 * index) // 4]

    def set_selector(self, index: int, selector: int) -> None:
        """Change what a segment register's selector reads as, and nothing of the segment."""
        self.d[(sw.SEGS + 24 * index) // 4] = selector

    def advance(self, by: int) -> None:
        """Move RIP, wrapping around as the width of the code does."""
        q = self.q
        q[RIP] = q[RIP] + by & (0xFFFFFFFFFFFFFFFF if self.d[_HFLAGS] & HF_CS64 else 0xFFFFFFFF)

    @property
    def code_is_64bit(self) -> bool:
        """Whether the code segment is a 64-bit one."""
        return bool(self.d[_HFLAGS] & HF_CS64)

    @property
    def is_flat(self) -> bool:
        """Whether code, data and stack start at 0 and nothing traps the next instructions (TF, DR7)."""
        q = self.q
        if q[EFLAGS] & _TF or q[sw.DR // 8 + 7] & 0xFF:
            return False
        if self.code_is_64bit:
            return True
        return self.code_is_32_or_64bit and not any(self.segment_base(index) for index in (CS, SS, DS))

    @property
    def code_is_32_or_64bit(self) -> bool:
        """Whether the code segment's default operand size is 32 bits."""
        return bool(self.d[_HFLAGS] & (HF_CS32 | HF_CS64))

    def segment_base(self, index: int) -> int:
        """The cached base of a segment register."""
        return self.q[(sw.SEGS + 24 * index + 8) // 8]

    def segment_flags(self, index: int) -> int:
        """The cached attributes of a segment register: the descriptor's high word."""
        return self.d[(sw.SEGS + 24 * index + 20) // 4]

    def set_segment_base(self, index: int, base: int) -> None:
        """Set the cached base alone (FS and GS bases of 64-bit code)."""
        self.q[(sw.SEGS + 24 * index + 8) // 8] = base
        self._set_addseg()

    def set_segment(self, index: int, selector: int, base: int, limit: int, flags: int) -> None:
        """Load a segment register's cache; CS also sets CPL and the code size, SS the stack size."""
        at = sw.SEGS + 24 * index
        d = self.d
        d[at // 4] = selector
        self.q[at // 8 + 1] = base
        d[at // 4 + 4] = limit
        d[at // 4 + 5] = flags
        h = d[_HFLAGS]
        if index == CS:
            h &= ~(HF_CPL | HF_CS32 | HF_CS64)
            h |= selector & HF_CPL
            if flags & DESC_L and h & HF_LMA:
                h |= HF_CS32 | HF_CS64 | HF_SS32
            elif flags & DESC_B:
                h |= HF_CS32
            d[_HFLAGS] = h
        elif index == SS:
            h &= ~HF_SS32
            if flags & DESC_B or h & HF_CS64:
                h |= HF_SS32
            d[_HFLAGS] = h
        self._set_addseg()

    def _set_addseg(self) -> None:
        """HF_ADDSEG: whether DS, ES or SS have a base, as cpu_x86_load_seg_cache works it out."""
        q, d = self.q, self.d
        h = d[_HFLAGS] & ~HF_ADDSEG
        if not h & HF_CS64:
            bases = q[(sw.SEGS + 8) // 8] | q[(sw.SEGS + 56) // 8] | q[(sw.SEGS + 80) // 8]
            if bases or not h & HF_CS32:
                h |= HF_ADDSEG
        d[_HFLAGS] = h

    def set_table(self, table: int, base: int, limit: int, selector: int = 0, flags: int = 0) -> None:
        """Load LDTR, TR, GDTR or IDTR (LDTR, TR, GDTR, IDTR)."""
        d = self.d
        d[table // 4] = selector
        self.q[table // 8 + 1] = base
        d[table // 4 + 4] = limit
        d[table // 4 + 5] = flags

    # -- all of it

    def save_state(self) -> bytes:
        """Everything of the CPU state that belongs to a vCPU, FPU and debug registers included.

        Between runs. What is no state of a processor is always the same: the arithmetic flags can be kept in
        many ways, and the library leaves remains of its own stack behind the registers of SSE.
        """
        eflags = self.read_eflags()
        state = bytearray(self.window.bytes[: sw.DR + 64])
        words = memoryview(state).cast("Q")
        words[sw.EFLAGS // 8] = eflags
        words[sw.CC_SRC // 8] = eflags & _ARITHMETIC
        words[sw.CC_DST // 8] = words[sw.CC_SRC2 // 8] = 0
        memoryview(state).cast("I")[sw.CC_OP // 4] = _CC_OP_EFLAGS
        for at in range(sw.XMM, sw.XMM + sw.NR_XMM * sw.XMM_STRIDE, sw.XMM_STRIDE):
            state[at + sw.XMM_SIZE : at + sw.XMM_STRIDE] = _NO_AVX
        scratch = sw.XMM + sw.NR_XMM * sw.XMM_STRIDE
        state[scratch : scratch + sw.XMM_SCRATCH] = bytes(sw.XMM_SCRATCH)
        return bytes(state)

    def load_state(self, state: bytes, root: int = 0) -> None:
        """Put back what `save_state()` gave.

        Translations are dropped, but those that were kept since the address space `root` was left, if it says
        one, which has to be that of the state.
        """
        self.window.bytes[: sw.DR] = state[: sw.DR]
        for number, value in enumerate(memoryview(state)[sw.DR :].cast("Q")):
            if self.q[sw.DR // 8 + number] != value:
                self.set_debug(number, value)
        if root and self.words.spaces and self._core is not None:
            self._core.hv_load_space(ctypes.byref(self.words), ctypes.c_uint64(root))
        else:
            self.flush_tlb()


_U32 = struct.Struct("<I")
_FPU_WORDS = struct.Struct("<HH")
_FXSAVE = struct.Struct("<HHBxHQQ")  # fcw, fsw, ftw, fop, fip, fdp
_FXSAVE_REST = struct.Struct("<H6xQQ")
_FXSAVE_MXCSR = struct.Struct("<II")


class SavedState:
    """What `Processor.save_state()` gave, to be looked at; all zeros where `state` is empty."""

    def __init__(self, state: bytes) -> None:
        self._raw = state or bytes(sw.DR + 64)
        view = memoryview(self._raw)
        self.q, self._d = view.cast("Q"), view.cast("I")

    def selector(self, index: int) -> int:
        """The selector in a segment register."""
        return self._d[SELECTOR_WORDS[index]] & 0xFFFF

    def segment_base(self, index: int) -> int:
        """The cached base of a segment register."""
        return self.q[(sw.SEGS + 24 * index + 8) // 8]

    def control(self, number: int) -> int:
        """The value of a control register."""
        return self.q[sw.CR // 8 + number]

    @property
    def eflags(self) -> int:
        """EFLAGS, the arithmetic flags and DF with it."""
        return self.q[sw.EFLAGS // 8]

    def fxsave(self) -> bytes:
        """The FPU as `fxsave` stores it, in 512 bytes."""
        raw = self._raw
        image = bytearray(512)
        (top,), (status, control) = _U32.unpack_from(raw, sw.FPSTT), _FPU_WORDS.unpack_from(raw, sw.FPUS)
        tags = sum(1 << i for i in range(sw.NR_FPREGS) if not raw[sw.FPTAGS + i])
        status = status & ~0x3800 | (top & 7) << 11
        _FXSAVE.pack_into(image, 0, control, status, tags, *_FXSAVE_REST.unpack_from(raw, sw.FPOP))
        _FXSAVE_MXCSR.pack_into(image, 24, _U32.unpack_from(raw, sw.MXCSR)[0], 0xFFFF)
        for i in range(sw.NR_FPREGS):
            at = sw.FPREGS + sw.FPREG_STRIDE * ((top + i) & 7)
            image[32 + 16 * i : 32 + 16 * i + sw.FPREG_SIZE] = raw[at : at + sw.FPREG_SIZE]
        for i in range(16):
            at = sw.XMM + sw.XMM_STRIDE * i
            image[160 + 16 * i : 176 + 16 * i] = raw[at : at + sw.XMM_SIZE]
        return bytes(image)
