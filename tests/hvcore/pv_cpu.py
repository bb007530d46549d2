"""A domain of 64 pages with the real engine, page tables and Xen mappings; its kernel is a few bytes of code.

Page N is at virtual address N << 12; pages 0 to 3 are its page tables and read-only. Code goes to `CODE`,
runs in the guest kernel's ring unless told otherwise, and ends at its `int3` or at the first fault that is
the guest's.
"""

from __future__ import annotations

import struct
from typing import Any

from hvcore import abi as abi_module
from hvcore.abi import Abi
from hvcore.clock import Clock
from hvcore.cpu.engine import Engine
from hvcore.cpu.processor import DS, ES, FS, GS, RAX, RBX, RCX, RDX, RIP, RSP
from hvcore.errors import GuestError, GuestFault
from hvcore.machine_memory import MachineMemory
from hvcore.page_info import FrameTable
from hvcore.pv.cpuid import pv_cpuid
from hvcore.pv.descriptor_tables import (
    pv_map_ldt_shadow_page,
    pv_set_gdt,
)
from hvcore.pv.emul_inv_op import pv_emulate_invalid_op
from hvcore.pv.emul_priv_op import pv_emulate_privileged_op
from hvcore.pv.engine_faults import general_protection, invalid_opcode, undo_call
from hvcore.pv.gate_op import pv_emulate_gate_op
from hvcore.pv.segments import load_cs_ss, load_data
from hvcore.wiring import connect_domains, connect_processor, create_domain
from hvcore.x86 import TRAP_HAVE_EC, TRAP_gp_fault, TRAP_invalid_op, TRAP_page_fault
from tests.hvcore.opened import note

NR_PAGES = 64
CODE = 0x10000
STACK = 0x12000
DATA = 0x14000
HOLE = 0x30000  # the first virtual address that is not mapped
GDT_PAGE = 8
INT3 = (3, None, None)

Event = tuple[int, int | None, int | None]


class PvCpu:
    """One vCPU. `events` are the exceptions that reached the guest: (vector, error code, CR2)."""

    def __init__(self, abi: Abi) -> None:
        mem = MachineMemory(NR_PAGES)
        frames = FrameTable(mem.base_mfn, mem.end_mfn - mem.base_mfn)
        self.abi, self.mem, self.base = abi, mem, mem.first_mfn
        self.engine = engine = Engine(mem.buffer, mem.base_mfn << 12)
        note(engine, mem)
        engine.cell[0] = 1 << 40
        self.d = d = create_domain(
            abi, mem, frames, Clock(engine.cell), {},
            domain_id=1, first_mfn=self.base, nr_pages=NR_PAGES, vcpus=1, reschedule=engine.stop,
        )  # fmt: skip
        self.v = v = d.vcpus[0]
        connect_processor(d, engine)
        connect_domains(d)
        engine.install(self)
        self._make_page_tables()
        assert d.mm.new_guest_cr3(self.base) == 0
        d.mm.xen.load_descriptor_tables(v)
        self.ring = abi.kernel_cpl
        self.events: list[Event] = []

    def _make_page_tables(self) -> None:
        first = self.base
        if self.abi.pt_levels == 3:
            self.set_entry(0, 0, (first + 1) << 12 | 1)
            self.set_entry(0, 3, (first + 2) << 12 | 1)
            self.set_entry(1, 0, (first + 3) << 12 | 0x67)
        else:
            for level in range(3):
                self.set_entry(level, 0, (first + level + 1) << 12 | 0x67)
        for page in range(HOLE >> 12):
            self.set_entry(3, page, (first + page) << 12 | (0x25 if page < 4 else 0x27))

    def set_entry(self, page: int, slot: int, value: int) -> None:
        self.mem.q[((self.base + page - self.mem.base_mfn) << 9) + slot] = value

    def map(self, page: int, flags: int) -> None:
        """Change the mapping of a page."""
        at = ((self.base + 3 - self.mem.base_mfn) << 9) + page
        assert self.d.mm.mod_l1_entry(at, (self.base + page) << 12 | flags) == 0
        self.d.mm.flush_tlb()

    def put(self, va: int, data: bytes) -> None:
        """Store bytes at a virtual address below HOLE, whatever it is mapped as."""
        at = (self.base - self.mem.base_mfn << 12) + va
        self.mem.view[at : at + len(data)] = data

    def get(self, va: int, fmt: str) -> tuple[Any, ...]:
        return struct.unpack_from("<" + fmt, self.mem.view, (self.base - self.mem.base_mfn << 12) + va)

    def set_gdt(self, descriptors: dict[int, int]) -> None:
        """Make page GDT_PAGE, with these descriptors by selector, the guest's GDT."""
        self.map(GDT_PAGE, 0x25)
        for selector, descriptor in descriptors.items():
            self.put((GDT_PAGE << 12) + (selector & 0xFF8), struct.pack("<Q", descriptor))
        assert pv_set_gdt(self.v, [self.base + GDT_PAGE], 512) == 0
        self.d.mm.flush_tlb()

    def user_selectors(self) -> tuple[int, int]:
        return self.abi.flat_user_cs, self.abi.flat_user_ss

    def run(self, code: bytes | str, *, user: bool = False, flags: int = 0x202, **regs: int) -> list[Event]:
        """Run `code` (bytes, or hexadecimal) and an int3 behind it; the exceptions that the guest sees."""
        data = bytes.fromhex(code) if isinstance(code, str) else code
        self.put(CODE, data + b"\xcc")
        engine, v = self.engine, self.v
        cs, ss = self.user_selectors() if user else (self.abi.flat_kernel_cs, self.abi.flat_kernel_ss)
        load_cs_ss(v, cs, ss)
        for register in (DS, ES, FS, GS):
            assert load_data(v, register, ss)
        names = {"ax": RAX, "bx": RBX, "cx": RCX, "dx": RDX, "si": 6, "di": 7, "bp": 5, "sp": RSP}
        for name, value in {"sp": STACK, **regs}.items():
            engine.q[names[name]] = value
        engine.write_eflags(flags)
        engine.flush_code()
        engine.q[RIP] = CODE
        self.events = []
        engine.run()
        return self.events

    @property
    def rip(self) -> int:
        """Where the guest stands, from the start of the code."""
        return self.engine.q[RIP] - CODE

    def eax(self) -> int:
        return self.engine.q[RAX]

    # -- engine.Handlers

    def interrupt(self, vector: int) -> None:
        engine = self.engine
        error_code = engine.error_code if TRAP_HAVE_EC >> vector & 1 else None
        cr2 = engine.cr2 if vector == TRAP_page_fault else None
        try:
            if vector == TRAP_gp_fault and engine.code_is_64bit:
                undo_call(self.v)
            if vector == TRAP_gp_fault and not error_code and pv_emulate_privileged_op(self.v):
                return
            if vector == TRAP_gp_fault and error_code and self.abi.is_32bit and pv_emulate_gate_op(self.v):
                return
            if vector == TRAP_invalid_op and pv_emulate_invalid_op(self.v):
                return
            if vector == TRAP_invalid_op:
                vector, error_code = invalid_opcode(self.v)
            elif vector == TRAP_gp_fault and engine.code_is_64bit:
                vector, error_code = general_protection(self.v, error_code or 0)
            ldt = self.d.mm.xen.ldt_virt_start(self.v)
            if (
                vector == TRAP_page_fault
                and ldt <= engine.cr2 < ldt + 0x10000
                and pv_map_ldt_shadow_page(self.v, engine.cr2 - ldt)
            ):
                return
        except GuestFault as fault:
            vector, error_code, cr2 = fault.vector, fault.error_code, fault.cr2
        self.events.append((vector, error_code, cr2))
        engine.stop()

    def syscall(self) -> None:
        self.engine.q[RIP] += 2

    def cpuid(self) -> None:
        q = self.engine.q
        q[RAX], q[RBX], q[RCX], q[RDX] = pv_cpuid(self.v, q[RAX] & 0xFFFFFFFF, q[RCX] & 0xFFFFFFFF)

    def rdtsc(self) -> int:
        return self.d.clock.now() * 2


def call(handler: object, *args: object) -> int:
    """A hypercall as the dispatcher makes it."""
    assert callable(handler)
    try:
        return int(handler(*args))
    except GuestError as error:
        return -error.errno


PV32, PV64 = abi_module.PV32_PAE, abi_module.PV64
