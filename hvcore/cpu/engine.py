"""The CPU: Unicorn in long mode, behind exits and plain integers. Knows x86, never Xen.

The engine runs guest code at CPL 1 or 3 through its own MMU: guest page tables hold machine addresses, and a
machine address is a physical address here. Whatever leaves the guest (every exception and `int n`, `syscall`,
`cpuid`, `rdtsc`) calls one of the handlers, which read and write the state window and return; the guest goes
on from there without the engine being left. Pacing is synchronous: at the head of each block of code a native
callback either leaves, where the horizon is reached, or takes the block's size from what is left until then
(clock.CELL_*). So runs are exactly repeatable, however often they are stopped.
docs/engine.md tells what each oddity below is for.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import unicorn.unicorn_py3.unicorn as _binding

from hvcore.clock import CELL_LEFT, CELL_LIMIT, CELL_WORDS, OUT
from hvcore.cpu import state_window as sw
from hvcore.cpu.code_pages import CodePages
from hvcore.cpu.compiled import address_of_routine, core
from hvcore.cpu.division import guard_division
from hvcore.cpu.engine_internals import Internals
from hvcore.cpu.patches import PATCHES
from hvcore.cpu.words import NO_RING, EngineWords
from hvcore.errors import EngineError

PLAIN_VARIABLE = "DOMAINBUILDER_PLAIN"  # "1": only what Unicorn documents
_UC_ARCH_X86, _UC_MODE_64 = 4, 8
_UC_PROT_ALL = 7
_UC_HOOK_INTR, _UC_HOOK_INSN, _UC_HOOK_BLOCK, _UC_HOOK_INSN_INVALID = 1, 2, 8, 1 << 14
_INS_CPUID, _INS_RDTSC, _INS_RDTSCP, _INS_SYSCALL, _INS_SYSENTER = 113, 608, 609, 699, 700
_INS_IN, _INS_OUT = 218, 500
_REG_EFLAGS, _REG_FPCW, _REG_FPTAG, _REG_MSR, _REG_MXCSR = 25, 246, 247, 248, 249
_REG_FPSW, _REG_ST0, _REG_XMM0 = 31, 114, 122
_IO_WRITE = 1 << 30
_CTL_USE_EXITS = 4 | 1 << 26 | _IO_WRITE
_CTL_TB_FLUSH = 10 | _IO_WRITE
_CTL_TLB_FLUSH = 11 | _IO_WRITE
_CTL_TLB_TYPE = 12 | 1 << 26 | _IO_WRITE
_TLB_CPU = 0
_CTL_CPU_MODEL = 7 | 1 << 26 | _IO_WRITE
_CTL_TCG_BUFFER_SIZE = 13 | 1 << 26 | _IO_WRITE
_TCG_BUFFER_SIZE = 256 << 20
_TCG_SLACK = 8 << 20  # what else Unicorn maps on that occasion
_CPU_MODEL_EPYC = 35  # SSE4.2, AES, FSGSBASE instructions; what the guest sees is decided by cpuid

_REASONS = {6: "read from unmapped memory", 7: "write to unmapped memory", 8: "fetch from unmapped memory"}

# Indices in the window's 32-bit words.
_OLD_EXCEPTION = sw.OLD_EXCEPTION // 4
_ERROR_CODE = sw.ERROR_CODE // 4
_HFLAGS = sw.HFLAGS // 4
_RIP = sw.RIP // 8
_EFLAGS = sw.EFLAGS // 8
_DEBUG, _TF, _RF = 1, 0x100, 0x10000
_ARITHMETIC = 0x8D5  # OF SF ZF AF PF CF
_CC_OP_EFLAGS = 1  # they are in cc_src
_NO_AVX = bytes(sw.XMM_STRIDE - sw.XMM_SIZE)

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
R11 = 11
RIP = _RIP
ES, CS, SS, DS, FS, GS = range(6)

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

# Instructions whose results nobody could repeat.
_CPUID_EXT_RDRAND, _CPUID_7_0_EBX_RDSEED = 1 << 30, 1 << 18

_DR6_DEFAULT = 0xFFFF0FF0
_DR7_DEFAULT = 0x400

_INTR_CB = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)
_INSN_CB = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_IN_CB = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_void_p)
_OUT_CB = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p
)
_BLOCK_CB = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_void_p)


class Handlers(Protocol):
    """What the hypervisor does at each exit. All run inside the engine; `engine.stop()` ends the run."""

    def interrupt(self, vector: int) -> None:
        """Exception or `int n`; RIP is past an `int`, at the instruction of a fault. #UD too."""

    def syscall(self) -> None:
        """`syscall`, RCX and R11 set: RIP is at the instruction, the handler leaves the RIP to go on at."""

    def cpuid(self) -> None:
        """`cpuid`: leaf in RAX and RCX, answer in RAX..RDX."""

    def rdtsc(self) -> int:
        """`rdtsc` and `rdtscp`: the time stamp counter."""


class _Msr(ctypes.Structure):
    _fields_ = (("rid", ctypes.c_uint32), ("value", ctypes.c_uint64))


def _require_room() -> None:
    """Raise EngineError where there is no address space for translations: Unicorn ends the process then."""
    try:
        mmap.mmap(-1, _TCG_BUFFER_SIZE + _TCG_SLACK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as error:
        raise EngineError(f"no address space for translated code: {error.strerror}") from error


class EngineContext(NamedTuple):
    """What a domain leaves in the engine: the processor's state, and the words that are not the clock's."""

    state: bytes
    step_deferred: bool
    port_ring: int
    port_cost: int
    port_reads: int
    port_writes: int
    tlb_flushes: int
    step_rechecked: int
    vcpu: int
    journal: int
    lane_counts: int
    multicall_done: int


_CONTEXT_WORDS = EngineContext._fields[2:]


class Engine:
    """One Unicorn instance over `memory`, which is physical memory from `phys_base` on.

    `q` and `d` are the state window: `q[RAX]` .. `q[15]` the general registers, `q[RIP]`. `cell` is
    the clock's block of words (clock.CELL_*), of which pacing uses LEFT and LIMIT; it begins `words`, which
    the compiled core shares. `live_window=False` forces the portable fallback, `use_core=False` Python alone.
    `plain` is both, and nothing of the library but its documented API; None: as PLAIN_VARIABLE says.
    """

    def __init__(
        self,
        memory: mmap.mmap,
        phys_base: int,
        *,
        live_window: bool = True,
        use_core: bool = True,
        plain: bool | None = None,
    ) -> None:
        self.plain = plain if plain is not None else os.environ.get(PLAIN_VARIABLE) == "1"
        _require_room()
        self._lib: ctypes.CDLL = _binding.uclib
        self._uc = ctypes.c_void_p()
        self._call("uc_open", _UC_ARCH_X86, _UC_MODE_64, ctypes.byref(self._uc), handle=False)
        self._ctl = self._lib.uc_ctl
        self._call("uc_ctl", _CTL_CPU_MODEL, ctypes.c_int(_CPU_MODEL_EPYC))
        self._call("uc_ctl", _CTL_TCG_BUFFER_SIZE, ctypes.c_uint32(_TCG_BUFFER_SIZE))
        self._call("uc_ctl", _CTL_TLB_TYPE, ctypes.c_int(_TLB_CPU))
        self._call("uc_ctl", _CTL_USE_EXITS, ctypes.c_int(1))
        ram = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._call(
            "uc_mem_map_ptr",
            ctypes.c_uint64(phys_base),
            ctypes.c_size_t(len(memory)),
            _UC_PROT_ALL,
            ctypes.c_void_p(ram),
        )
        plain = self.plain
        self.window = sw.StateWindow(self._lib, self._uc, allow_live=live_window and not plain)
        self.has_no_random = not plain and self.window.hide_features(_CPUID_EXT_RDRAND, _CPUID_7_0_EBX_RDSEED)
        cpu, env = self.window.cpu_address, self.window.env_address
        self.internals = Internals(self._lib, self._uc, cpu, env, plain=plain)
        self.q = self.window.q
        self.d = self.window.d
        self.words = EngineWords()
        self.cell = memoryview(self.words).cast("B")[: 8 * CELL_WORDS].cast("q")
        self._core = core() if use_core and not plain else None
        self._end_patches: Callable[[], object] = lambda: None
        if self._core is not None:
            PATCHES.acquire()
            self._end_patches = weakref.finalize(self, PATCHES.release)
            guard_division(self._lib, self._core)
            self.internals.use_core(self._core, self.words)
        self.code_pages = CodePages(self._lib, self._core, self.words, phys_base, len(memory), ram)
        self.close_ports()
        self._flag_cell = ctypes.c_uint64()
        self._flag_ref = ctypes.byref(self._flag_cell)
        self._pending: BaseException | None = None
        self._running = False
        self._step_deferred = False
        self._keep: list[object] = []
        self._stop = self._lib.uc_emu_stop
        self.native_pacing = False
        self.set_handlers: Callable[[Handlers], None] = self.install

    def _call(self, name: str, *args: object, handle: bool = True) -> None:
        err = getattr(self._lib, name)(*((self._uc,) if handle else ()), *args)
        if err:
            raise EngineError(f"{name} failed with Unicorn error {err}")

    # -- hooks

    def install(self, handlers: Handlers) -> None:
        """Connect the exits; once, before the first run."""
        interrupt, syscall, cpuid, rdtsc = (
            handlers.interrupt,
            handlers.syscall,
            handlers.cpuid,
            handlers.rdtsc,
        )

        def set_handlers(other: Handlers) -> None:
            nonlocal interrupt, syscall, cpuid, rdtsc
            interrupt, syscall, cpuid, rdtsc = other.interrupt, other.syscall, other.cpuid, other.rdtsc

        self.set_handlers = set_handlers
        q, d, words = self.q, self.d, self.words
        saved_by_core = self._core_sees_exits  # what `syscall` does to RCX and R11
        enter, leave = self._enter_leave()

        def on_interrupt(vector: int) -> None:
            d[_OLD_EXCEPTION] = 0xFFFFFFFF
            if vector == _DEBUG and words.step_rechecked:
                words.step_rechecked = 0
                self.take_debug_status()
            else:
                interrupt(vector)

        def on_syscall() -> int:
            if not saved_by_core:
                q[RCX] = q[_RIP] + 2 & 0xFFFFFFFFFFFFFFFF
                q[R11] = self.read_eflags() & ~_RF
            syscall()
            q[_RIP] = (q[_RIP] - 2) & 0xFFFFFFFFFFFFFFFF  # the instruction's length is added on return
            # The engine looks at TF once more behind it, and so does a processor that comes back by `sysret`.
            # One that comes back by `iret` executes an instruction first.
            words.step_rechecked = self._step_deferred and bool(q[_EFLAGS] & _TF)
            self._step_deferred = False
            return 0

        def on_cpuid() -> int:
            cpuid()
            return 1

        def on_rdtsc() -> int:
            tsc = rdtsc()
            q[RAX] = tsc & 0xFFFFFFFF
            q[RDX] = tsc >> 32
            return 1

        def on_rdtscp() -> int:
            q[RCX] = 0
            return on_rdtsc()

        def on_sysenter() -> int:  # which AMD's have not in long mode, and `cpuid` shows none
            d[_ERROR_CODE + 1] = 0  # not by `int`
            on_interrupt(6)
            q[_RIP] = (q[_RIP] - 2) & 0xFFFFFFFFFFFFFFFF
            return 0

        def on_invalid() -> int:
            on_interrupt(6)
            return 1

        guard = self._guard
        interrupt_callback = _INTR_CB(self._interrupt_callback(on_interrupt, enter, leave))
        self._hook_exit(_UC_HOOK_INTR, "interrupt", interrupt_callback)
        self._hook(_UC_HOOK_INSN_INVALID, _INSN_CB(guard(on_invalid, enter, leave)))
        for number, name, call in (
            (_INS_CPUID, "", on_cpuid),
            (_INS_RDTSC, "rdtsc", on_rdtsc),
            (_INS_RDTSCP, "rdtscp", on_rdtscp),
            (_INS_SYSCALL, "syscall", on_syscall),
            (_INS_SYSENTER, "", on_sysenter),
        ):
            self._hook_exit(_UC_HOOK_INSN, name, _INSN_CB(guard(call, enter, leave)), number)
        self._install_io_faults()
        self._install_pacing()

    def _enter_leave(self) -> tuple[Callable[[], None] | None, Callable[[], None] | None]:
        return (None, None) if self.window.live else (self.window.load, self.window.store)

    def _interrupt_callback(
        self,
        call: Callable[[int], None],
        enter: Callable[[], None] | None,
        leave: Callable[[], None] | None,
    ) -> Callable[[int, int, int], None]:
        def live(_uc: int, vector: int, _data: int) -> None:
            try:
                call(vector)
            except BaseException as caught:  # ctypes would swallow it
                self._fail(caught)

        def copied(_uc: int, vector: int, _data: int) -> None:
            try:
                if enter and leave:
                    enter()
                    call(vector)
                    leave()
            except BaseException as caught:
                self._fail(caught)

        return live if enter is None else copied

    def _guard(
        self, call: Callable[[], int], enter: Callable[[], None] | None, leave: Callable[[], None] | None
    ) -> Callable[[int, int], int]:
        def run(_uc: int, _data: int) -> int:
            try:
                if enter is None or leave is None:
                    return call()
                enter()
                result = call()
                leave()
                return result
            except BaseException as caught:
                self._fail(caught)
                return 1

        return run

    def _fail(self, caught: BaseException) -> None:
        self._pending = caught
        self.stop()

    def _hook(self, kind: int, callback: object, *extra: int, data: object = None) -> None:
        self._keep.append(callback)
        handle = ctypes.c_size_t()
        self._keep.append(handle)
        self._call(
            "uc_hook_add",
            ctypes.byref(handle),
            ctypes.c_int(kind),
            callback,
            ctypes.c_void_p() if data is None else data,
            ctypes.c_uint64(1),
            ctypes.c_uint64(0),
            *(ctypes.c_int(number) for number in extra),
        )

    def _hook_core(self, kind: int, routine: str, *extra: int) -> None:
        """Hook a function of the compiled core, which is given the engine's words."""
        assert self._core is not None
        address = ctypes.c_void_p(address_of_routine(self._core, routine))
        self._hook(kind, address, *extra, data=ctypes.c_void_p(ctypes.addressof(self.words)))

    def _hook_exit(self, kind: int, name: str, callback: Any, *extra: int) -> None:
        """Hook an exit: through the core's `hv_NAME`, which may know what to do, where there is one."""
        if not name or not self._core_sees_exits:
            self._hook(kind, callback, *extra)
            return
        self._keep.append(callback)
        setattr(self.words, f"python_{name}", ctypes.cast(callback, ctypes.c_void_p).value)
        self._hook_core(kind, f"hv_{name}", *extra)

    @property
    def _core_sees_exits(self) -> bool:
        return self._core is not None and self.window.live

    @property
    def has_lanes(self) -> bool:
        """Whether the compiled core sees the exits and can do what a lane needs."""
        words = self.words
        return self._core_sees_exits and bool(words.tlb_flush and words.tlb_flush_page)

    def _install_io_faults(self) -> None:
        """Make port I/O raise #GP, as it does in a ring above IOPL with no I/O bitmap."""
        found = self.internals.io_callbacks()
        if found is None:
            self._install_io_refusal()
            return
        for routine, instruction in zip(found, (_INS_IN, _INS_OUT), strict=True):
            self._hook_core(_UC_HOOK_INSN, routine, instruction)

    def _install_io_refusal(self) -> None:
        """A build that cannot raise #GP from here: better to stop than to let the guest reach a port."""

        def refuse(_uc: int, port: int, *_rest: int) -> int:
            self._fail(EngineError(f"port I/O (port {port:#x}) cannot be trapped with this Unicorn library"))
            return 0

        self._hook(_UC_HOOK_INSN, _IN_CB(refuse), _INS_IN)
        self._hook(_UC_HOOK_INSN, _OUT_CB(refuse), _INS_OUT)

    def _install_pacing(self) -> None:
        routine = self.internals.pacing_callback()
        if routine is not None:
            self.native_pacing = True
            self._hook_core(_UC_HOOK_BLOCK, routine)
            return
        cell, stop, uc = self.cell, self._stop, self._uc

        def count(_uc: int, _address: int, size: int, _data: int) -> None:
            left = cell[CELL_LEFT]
            if left <= cell[CELL_LIMIT]:
                stop(uc)
            else:
                cell[CELL_LEFT] = left - size

        self._hook(_UC_HOOK_BLOCK, _BLOCK_CB(count))

    # -- running

    def run(self) -> None:
        """Run the guest from the window's state until nothing is left or somebody wants the engine out.

        Raises what a handler raised, and EngineError for what no guest can be allowed to cause.
        """
        if not self.window.live:
            self.window.store()
        self._running = True
        rip = ctypes.c_uint64(self.q[_RIP])
        if self._core is not None:
            err = self._core.hv_run(ctypes.byref(self.words), self._lib.uc_emu_start, rip)
        else:
            zero = ctypes.c_uint64(0)
            err = self._lib.uc_emu_start(self._uc, rip, zero, zero, ctypes.c_size_t(0))
        self._running = False
        self.cell[CELL_LIMIT] = 0
        if not self.window.live:
            self.window.load()
        if self._pending is not None:
            caught, self._pending = self._pending, None
            raise caught
        if err:
            reason = _REASONS.get(err, f"Unicorn error {err}")
            raise EngineError(f"the engine stopped at {self.q[_RIP]:#x}: {reason}")

    @property
    def port_accesses(self) -> tuple[int, int]:
        """How many reads and writes of ports were no exits."""
        return self.words.port_reads, self.words.port_writes

    def stop(self) -> None:
        """In a handler: end the run when it returns."""
        self.cell[CELL_LIMIT] = OUT  # which may be all that is looked at
        self._stop(self._uc)

    def want_out(self) -> None:
        """For signal handlers and other threads: end this run, or the next, at a block of code."""
        self.cell[CELL_LIMIT] = OUT

    def close(self) -> None:
        """Free the engine."""
        if self._uc:
            self.window.close()
            self.internals.close()
            self._lib.uc_close(self._uc)
            self._uc = ctypes.c_void_p()
            self._keep.clear()
            self._end_patches()

    # -- translation caches

    @property
    def tlb_flushes(self) -> int:
        """How often every cached translation was dropped."""
        return self.words.tlb_flushes

    def flush_tlb(self) -> None:
        """Drop every cached address translation (there is no flush of one page); about 1 us."""
        self.words.tlb_flushes += 1
        self._ctl(self._uc, _CTL_TLB_FLUSH)

    def flush_tlb_page(self, address: int) -> None:
        """Drop the translation of one page, or all of them where the library cannot do it alone."""
        if self.internals.has_flush_page:
            self.internals.flush_page(address)
        else:
            self._ctl(self._uc, _CTL_TLB_FLUSH)

    def flush_code(self, start: int = 0, end: int = 0) -> None:
        """Drop code translated from physical [start, end), or all of it.

        Needed after the hypervisor itself wrote over instructions; the guest's own stores are seen.
        """
        if not end or not self.internals.drop_code(start, end):
            self._ctl(self._uc, _CTL_TB_FLUSH)

    # -- state beyond the general registers

    def read_eflags(self) -> int:
        """EFLAGS, with the lazily kept arithmetic flags worked out."""
        if not self.window.live:
            self.window.store()
        self._lib.uc_reg_read(self._uc, _REG_EFLAGS, self._flag_ref)
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

    def defer_step(self) -> None:
        """In the `syscall` handler: go back as `iret` does, with no trap by TF before an instruction."""
        self._step_deferred = True

    @property
    def cr2(self) -> int:
        """The faulting address of the last page fault."""
        return self.q[sw.CR // 8 + 2]

    @property
    def cpl(self) -> int:
        """Current privilege level."""
        return self.d[_HFLAGS] & HF_CPL

    @property
    def hflags(self) -> int:
        """The engine's hidden flags (HF_*)."""
        return self.d[_HFLAGS]

    def set_control(self, number: int, value: int) -> None:
        """Set CR0, CR3 or CR4 and drop translations."""
        self.q[sw.CR // 8 + number] = value
        self.flush_tlb()

    def control(self, number: int) -> int:
        """The value of a control register."""
        return self.q[sw.CR // 8 + number]

    def init_fpu(self) -> None:
        """The FPU as `fninit` leaves it, with SSE exceptions masked."""
        for register, value in ((_REG_FPCW, 0x37F), (_REG_FPTAG, 0xFFFF), (_REG_MXCSR, 0x1F80)):
            self._write_register(register, ctypes.c_uint32(value))

    def load_fpu(self, control: tuple[int, int, int, int], st: Sequence[bytes], xmm: Sequence[bytes]) -> None:
        """Load the FPU: FCW, FSW, `fxsave`'s FTW and MXCSR; ST(0) to ST(7), 10 bytes each; XMM0 to XMM15."""
        fcw, fsw, ftw, mxcsr = control
        tags = sum(3 << 2 * i for i in range(8) if not ftw >> i & 1)
        for register, value in (
            (_REG_FPCW, fcw),
            (_REG_FPSW, fsw),
            (_REG_FPTAG, tags),
            (_REG_MXCSR, mxcsr),
        ):
            self._write_register(register, ctypes.c_uint32(value))
        for first, values in ((_REG_ST0, st), (_REG_XMM0, xmm)):
            for i, raw in enumerate(values):
                self._write_register(first + i, ctypes.create_string_buffer(raw, len(raw)))

    def open_ports(self, cost: int) -> None:
        """Let code in the present ring do port I/O with nothing behind it, for `cost` ns each.

        Until `close_ports()`; without it, and for the ports that Xen keeps, port I/O is a #GP.
        """
        self.words.port_cost = cost
        self.words.port_ring = self.cpl

    def close_ports(self) -> None:
        """Make all port I/O a #GP again."""
        self.words.port_ring = NO_RING

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
        self._write_register(_REG_MSR, _Msr(msr, value))

    def _write_register(
        self, register: int, cell: ctypes.c_uint32 | _Msr | ctypes.Array[ctypes.c_char]
    ) -> None:
        """Write by the public API, whose effects a window that is a copy has to be told of."""
        if not self.window.live:
            self.window.store()
        self._call("uc_reg_write", register, ctypes.byref(cell))
        if not self.window.live:
            self.window.load()

    def read_msr(self, msr: int) -> int:
        """Read a model specific register of the engine itself."""
        cell = _Msr(msr, 0)
        self._call("uc_reg_read", _REG_MSR, ctypes.byref(cell))
        return int(cell.value)

    def selector(self, index: int) -> int:
        """The selector in a segment register (ES CS SS DS FS GS)."""
        return self.d[(sw.SEGS + 24 * index) // 4]

    def set_selector(self, index: int, selector: int) -> None:
        """Change what a segment register's selector reads as, and nothing of the segment."""
        self.d[(sw.SEGS + 24 * index) // 4] = selector

    def advance(self, by: int) -> None:
        """Move RIP, wrapping around as the width of the code does."""
        q = self.q
        q[_RIP] = q[_RIP] + by & (0xFFFFFFFFFFFFFFFF if self.d[_HFLAGS] & HF_CS64 else 0xFFFFFFFF)

    @property
    def code_is_64bit(self) -> bool:
        """Whether the code segment is a 64-bit one."""
        return bool(self.d[_HFLAGS] & HF_CS64)

    @property
    def is_flat(self) -> bool:
        """Whether code, data and stack start at 0 and nothing traps the next instructions (TF, DR7)."""
        q = self.q
        if q[_EFLAGS] & _TF or q[sw.DR // 8 + 7] & 0xFF:
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
        """Load LDTR, TR, GDTR or IDTR (`sw.LDT`, `sw.TR`, `sw.GDT`, `sw.IDT`)."""
        d = self.d
        d[table // 4] = selector
        self.q[table // 8 + 1] = base
        d[table // 4 + 4] = limit
        d[table // 4 + 5] = flags

    # -- a vCPU's whole state

    def save_context(self) -> EngineContext:
        """All that another domain must find untouched when its turn comes again, but the clock's words."""
        words = self.words
        return EngineContext(
            self.save_state(), self._step_deferred, *(getattr(words, name) for name in _CONTEXT_WORDS)
        )

    def load_context(self, context: EngineContext) -> None:
        """Put back what `save_context()` gave."""
        self.load_state(context.state)
        self._step_deferred = context.step_deferred
        for name in _CONTEXT_WORDS:
            setattr(self.words, name, getattr(context, name))

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

    def load_state(self, state: bytes) -> None:
        """Put back what `save_state()` gave, and drop translations."""
        self.window.bytes[: sw.DR] = state[: sw.DR]
        for number, value in enumerate(memoryview(state)[sw.DR :].cast("Q")):
            if self.q[sw.DR // 8 + number] != value:
                self.set_debug(number, value)
        self.flush_tlb()
