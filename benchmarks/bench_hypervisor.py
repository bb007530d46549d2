"""What the hypervisor's services cost a guest: `python -m benchmarks.bench_hypervisor [--json]`.

Each figure is a loop in a 32-bit guest of a few instructions, which calls the service again and again; the
loop runs several times on a machine of its own, and the best and the median are told, in microseconds of CPU
time for one operation. Real Xen 4.17 under QEMU takes 1.4 us for an empty hypercall, 3.4 us for
update_va_mapping and 0.5 us for an entry of a multicall.
"""

from __future__ import annotations

import argparse
import json
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from domainbuilder.build.domain_image import build
from domainbuilder.plan.domain_plan import plan
from hvcore.host import Host
from hvcore.machine import Stop
from hvcore.machine_memory import MachineMemory
from hvcore.public.xen import Hypercall
from hvcore.pv.mmu_update import do_update_va_mapping
from hvcore.pv.mmuext_op import pin_table

BASE, CODE = 0xC0000000, 0xC0100000
DATA, TARGET, SPARE, STACK_TOP = CODE + 0x1000, CODE + 0x2000, CODE + 0x3000, CODE + 0x8000
MEMORY_MIB = 8
OPERATIONS = 20_000
REPEAT = 7
DOMID_SELF = 0x7FF0
NEW_BASEPTR = 5
H = Hypercall


# --- a small assembler --------------------------------------------------------------------------------------

_REGISTERS = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")


def mov(register: str, value: int) -> bytes:
    """`mov register, imm32`."""
    return bytes([0xB8 + _REGISTERS.index(register)]) + struct.pack("<I", value & 0xFFFFFFFF)


def store(address: int, value: int) -> bytes:
    """`mov dword [address], imm32`."""
    return b"\xc7\x05" + struct.pack("<II", address, value & 0xFFFFFFFF)


def hypercall(number: int, *arguments: int) -> bytes:
    """A hypercall by int 0x82."""
    registers = ("eax", "ebx", "ecx", "edx", "esi", "edi")
    return b"".join(map(mov, registers, (number, *arguments))) + b"\xcd\x82"


def loop(body: bytes, times: int) -> bytes:
    """`body` so often, counted in memory, since hypercalls take every register."""
    counter = STACK_TOP - 4096
    decrement = b"\xff\x0d" + struct.pack("<I", counter)
    back = -(len(body) + len(decrement) + 6)
    return store(counter, times) + body + decrement + b"\x0f\x85" + struct.pack("<i", back)


def program(body: bytes, times: int, before: bytes = b"") -> bytes:
    """Set up, loop, and power off."""
    end = hypercall(H.sched_op, 2, DATA)  # the first word of DATA is SHUTDOWN_poweroff
    return mov("esp", STACK_TOP - 4096) + before + loop(body, times) + end


# --- the machine --------------------------------------------------------------------------------------------


@cache
def _kernel() -> bytes:
    """A PAE kernel with eight pages at CODE that hold nothing yet."""

    def note(kind: int, desc: bytes) -> bytes:
        return struct.pack("<III4s", 4, len(desc), kind, b"Xen") + desc + bytes(-len(desc) % 4)

    notes = b"".join(note(kind, struct.pack("<I", value)) for kind, value in {1: CODE, 3: BASE, 4: 0}.items())
    texts = {5: b"xen-3.0\0", 6: b"bench\0", 8: b"generic\0", 9: b"yes\0"}
    notes += b"".join(note(kind, text) for kind, text in texts.items())
    ehdr = struct.pack("<16sHHIIIIIHHHHHH", b"\x7fELF\1\1\1", 2, 3, 1, CODE, 52, 0, 0, 52, 32, 2, 40, 0, 0)
    load = struct.pack("<IIIIIIII", 1, 4096, CODE, 0x100000, 4096, 0x8000, 7, 4096)
    note_header = struct.pack("<IIIIIIII", 4, 116, 0, 0, len(notes), len(notes), 4, 4)
    return (ehdr + load + note_header + notes).ljust(4096, b"\0") + b"\xcc" * 4096


class Bench:
    """A machine whose guest is about to run `code`, and access to its memory."""

    def __init__(self, folder: Path) -> None:
        path = folder / "bench.elf"
        if not path.exists():
            path.write_bytes(_kernel())
        planned = plan(path, memory_mib=MEMORY_MIB)
        memory = MachineMemory(planned.nr_pages)
        image = build(planned, ram=memory.ram, shared_info_mfn=memory.first_mfn - 1)
        self.p2m = image.p2m
        self.machine = Host(memory).create(image.boot_image())
        self.mm = self.machine.domain.mm
        self.v = self.machine.domain.vcpus[0]

    def frame(self, va: int) -> int:
        """The machine frame of a page of the kernel."""
        return self.p2m[(va - BASE) >> 12]

    def write(self, va: int, data: bytes) -> None:
        """Put bytes into a page of the kernel."""
        page = self.machine.mem.frame(self.frame(va))
        page[va & 4095 : (va & 4095) + len(data)] = data

    def entry_address(self, va: int) -> int:
        """Where the guest sees the leaf entry of `va`: its page tables are mapped, read-only."""
        at = self.mm.l1_entry_of(self.v.cr3_mfn, va)
        pfn = self.p2m.index((at >> 9) + self.mm.base)
        return BASE + (pfn << 12) + 8 * (at & 511)

    def table_copy(self, va: int, mfn: int, changes: dict[int, int], keep: int) -> int:
        """Fill the page at `va` with the first `keep` entries of table `mfn`, read-only; its frame."""
        start = (mfn - self.mm.base) << 9
        entries = [e & ~0x1E6 if keep == 4 else e for e in self.mm.e[start : start + keep]]
        for slot, entry in changes.items():
            entries[slot] = entry
        own = self.frame(va)
        self.write(va, struct.pack(f"<{keep}Q", *entries).ljust(4096, b"\0"))
        if do_update_va_mapping(self.v, va, own << 12 | 0x21, 2):
            raise RuntimeError(f"{va:#x} cannot be made read-only")
        return own

    def run(self) -> float:
        """Run to the end; seconds of this process's time."""
        started = time.process_time()
        stop = self.machine.run()
        seconds = time.process_time() - started
        if stop is not Stop.SHUTDOWN or self.machine.shutdown_reason != "poweroff":
            raise RuntimeError(f"the guest ended with {stop}: {self.machine.crash}")
        return seconds


# --- what is measured ---------------------------------------------------------------------------------------


def empty_hypercall(_bench: Bench, times: int) -> bytes:
    """xen_version(XENVER_version)"""
    return program(hypercall(H.xen_version, 0, 0), times)


def _mappings(bench: Bench) -> tuple[int, int]:
    """The entry of TARGET, read-only and writable."""
    entry = bench.frame(TARGET) << 12
    return entry | 0x61, entry | 0x63


def update_va_mapping(bench: Bench, times: int) -> bytes:
    """A page made read-only and writable in turn, each change a real one, with INVLPG"""
    body = b"".join(hypercall(H.update_va_mapping, TARGET, entry, 0, 2) for entry in _mappings(bench))
    return program(body, times // 2)


def multicall(bench: Bench, times: int) -> bytes:
    """Lists of 32: the same changes without flushes"""
    calls = [struct.pack("<8I", H.update_va_mapping, 0, TARGET, e, 0, 0, 0, 0) for e in _mappings(bench)]
    bench.write(DATA + 64, b"".join(calls) * 16)
    return program(hypercall(H.multicall, DATA + 64, 32), times // 32)


def mmu_update(bench: Bench, times: int) -> bytes:
    """Batches of 32: the same changes by machine address"""
    at = bench.mm.l1_entry_of(bench.v.cr3_mfn, TARGET)
    pointer = ((at >> 9) + bench.mm.base) << 12 | (at & 511) << 3
    bench.write(DATA + 64, b"".join(struct.pack("<QQ", pointer, e) for e in _mappings(bench)) * 16)
    return program(hypercall(H.mmu_update, DATA + 64, 32, 0, DOMID_SELF), times // 32)


def page_table_store(bench: Bench, times: int) -> bytes:
    """A store to a leaf table, trapped and checked (vm_assist)"""
    at = bench.entry_address(TARGET)
    body = b"".join(store(at, entry) for entry in _mappings(bench))
    return program(body, times // 2, hypercall(H.vm_assist, 0, 2))


def fault_bounce(bench: Bench, times: int) -> bytes:
    """A page fault, its handler, and iret"""
    handler = b"\x83\xc4\x04\x83\x04\x24\x0a\xcf"  # add esp, 4; add dword [esp], 10; iret
    before = hypercall(H.set_trap_table, DATA + 64)
    code = program(store(0x1000, 0), times, before)
    bench.write(DATA + 64, struct.pack("<BBHI", 14, 0, 0xE019, CODE + len(code)) + bytes(8))
    return code + handler


def context_switch(bench: Bench, times: int) -> bytes:
    """NEW_BASEPTR and stack_switch, between two address spaces"""
    mm, first = bench.mm, bench.v.cr3_mfn
    top = (mm.e[((first - mm.base) << 9) + 3] >> 12) & mm.mfn_mask
    l2 = bench.table_copy(SPARE, top, {}, mm.xen.first_xen_l2_slot)
    second = bench.table_copy(SPARE + 0x1000, first, {3: l2 << 12 | 1}, 4)
    if pin_table(bench.v, second):
        raise RuntimeError("the second address space does not validate")
    for i, root in enumerate((second, first)):
        bench.write(DATA + 64 + 16 * i, struct.pack("<III", NEW_BASEPTR, root, 0))
    body = b"".join(
        hypercall(H.stack_switch, 0xE021, STACK_TOP)
        + hypercall(H.mmuext_op, DATA + 64 + 16 * i, 1, 0, DOMID_SELF)
        for i in range(2)
    )
    return program(body, times // 2)


CASES: dict[str, Callable[[Bench, int], bytes]] = {
    "empty hypercall": empty_hypercall,
    "update_va_mapping": update_va_mapping,
    "multicall entry": multicall,
    "mmu_update entry": mmu_update,
    "page-table store": page_table_store,
    "fault bounce": fault_bounce,
    "context switch": context_switch,
}
REAL_XEN_US = {"empty hypercall": 1.4, "update_va_mapping": 3.4, "multicall entry": 0.5}


@dataclass(frozen=True)
class Figure:
    """One case: microseconds for an operation, and what real Xen under QEMU takes (None: not known)."""

    name: str
    best_us: float
    median_us: float
    real_xen_us: float | None


def measure(name: str, operations: int = OPERATIONS, repeat: int = REPEAT) -> Figure:
    """Run one of CASES `repeat` times."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeat):
            bench = Bench(Path(folder))
            bench.write(CODE, CASES[name](bench, operations))
            runs.append(bench.run() / operations * 1e6)
            bench.machine.host.close()
    return Figure(name, min(runs), statistics.median(runs), REAL_XEN_US.get(name))


def main(argv: list[str] | None = None) -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description="Costs of the hypervisor's services.")
    parser.add_argument("--json", action="store_true", help="an object of figures by name")
    parser.add_argument("--only", metavar="NAME", help="cases whose name contains this")
    arguments = parser.parse_args(argv)
    figures = [measure(name) for name in CASES if (arguments.only or "") in name]
    if arguments.json:
        print(
            json.dumps({f.name: {k: v for k, v in vars(f).items() if k != "name"} for f in figures}, indent=2)
        )
        return
    print(f"{'operation':20}{'best us':>9}{'median us':>11}{'real Xen in QEMU':>18}")
    for f in figures:
        real = f"{f.real_xen_us:.1f}" if f.real_xen_us is not None else ""
        print(f"{f.name:20}{f.best_us:9.2f}{f.median_us:11.2f}{real:>18}")


if __name__ == "__main__":
    main()
