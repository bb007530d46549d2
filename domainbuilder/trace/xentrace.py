"""A trace as Xen writes its own: what xentrace reads from the hypervisor, and xenalyze takes.

Records are those of TRC_PV_ENTRY and TRC_PV_SUBCALL, and run states; for event channels, upcalls, the console
and devices Xen has no trace points. All is on one processor, as it is here. The time stamp counter is the
guest's, which has 2 GHz (`xenalyze --cpu-hz 2G`).
Source: xen/include/public/trace.h, xen/arch/x86/pv/trace.c, __trace_hypercall() in xen/common/trace.c, and
tools/xentrace/xentrace.c for the windows.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import BinaryIO

from domainbuilder.errors import BuildError, Where
from domainbuilder.hypercall_names import hypercall_name
from domainbuilder.trace.record import Head, Record, Tail
from hvcore.public.xen import Hypercall
from hvcore.x86 import vector_name

TSC_PER_NS = 2
TRC_TRACE_CPU_CHANGE = 0x0001F003
TRC_SCHED_RUNSTATE_CHANGE = 0x00021001
TRC_PV_TRAP, TRC_PV_PAGE_FAULT, TRC_PV_EMULATE_PRIVOP = 0x00201003, 0x00201004, 0x00201006
TRC_PV_PTWR_EMULATION, TRC_PV_PTWR_EMULATION_PAE = 0x0020100B, 0x0020100C
TRC_PV_HYPERCALL_V2, TRC_PV_HYPERCALL_SUBCALL = 0x0020100D, 0x0020200E
TRC_64_FLAG = 0x100
TRC_HD_CYCLE_FLAG = 1 << 31
TRACE_EXTRA_SHIFT, TRACE_EXTRA_MAX = 28, 7

_RUNSTATE_CHANGE = 0x00021000  # the low twelve bits: old state, new state, 1
_HEAD = struct.Struct("<I")
_CHANGE = struct.Struct("<III")  # header, processor, bytes up to the next change
_CYCLES = struct.Struct("<IQ")
_WINDOW = 1 << 15
_MOST_WAITING = 1 << 20  # bytes of entries whose multicall has not come
_MOST_KNOWN = 1 << 15
_PAGE_FAULT = 14
_TRAP_WITH_CODE = 1 << 15
_OP = 0xFFFFF
# Which arguments of a hypercall Xen notes.
_NOTED = {
    Hypercall.mmu_update: (1,), Hypercall.multicall: (1,), Hypercall.grant_table_op: (0, 2),
    Hypercall.vcpu_op: (0, 1), Hypercall.mmuext_op: (1,), Hypercall.sched_op: (0,),
}  # fmt: skip
MAGIC = _HEAD.pack(TRC_TRACE_CPU_CHANGE | 2 << TRACE_EXTRA_SHIFT)


class XentraceEncoder:
    """The records, in windows of one processor.

    A multicall's record comes behind those of its entries; Xen writes it before them.
    """

    def __init__(self) -> None:
        self._window: list[tuple[int, bool, bytes]] = []  # time, whether it is an entry's, record
        self._size = 0
        self._known: dict[tuple[object, ...], tuple[int, bytes]] = {}  # header and extra words
        self._is_64bit = True
        self._domain_id = 0

    def begin(self, head: Head) -> bytes:
        """Nothing: Xen says nothing about a domain."""
        self._is_64bit = head.bits == 64
        self._domain_id = head.domain_id
        return b""

    def encode(self, record: Record) -> bytes:
        """A record, if Xen has one of the kind; what is ready of the file."""
        kind = record.kind
        if kind not in KINDS:
            return b""
        key = kind, record[2:7]  # all that Xen has of it but the time; guests do the same again and again
        known = self._known.get(key)
        if known is None:
            event, extra = _ENCODE[kind](self, record)
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            header = event | len(extra) // 4 << TRACE_EXTRA_SHIFT | TRC_HD_CYCLE_FLAG
            known = self._known[key] = header, extra
        data = _CYCLES.pack(known[0], record.ns * TSC_PER_NS) + known[1]
        is_entry = kind == "subcall"
        self._window.append((record.ns, is_entry, data))
        self._size += len(data)
        if self._size < _WINDOW or (is_entry and self._size < _MOST_WAITING):
            return b""
        return self._flush()

    def end(self, tail: Tail) -> bytes:
        """The last window. A trace of nothing is one empty window."""
        del tail
        return self._flush()

    def _flush(self) -> bytes:
        self._window.sort(key=itemgetter(0, 1))
        out = _CHANGE.pack(int.from_bytes(MAGIC, "little"), 0, self._size)
        out += b"".join(data for _, _, data in self._window)
        self._window.clear()
        self._size = 0
        return out

    # -- kinds of records: (event, extra words)

    def _word(self) -> str:
        return "<Q" if self._is_64bit else "<I"

    def _flag(self) -> int:
        return TRC_64_FLAG if self._is_64bit else 0

    def hypercall(self, r: Record) -> tuple[int, bytes]:
        """__trace_hypercall()"""
        event = TRC_PV_HYPERCALL_SUBCALL if r.kind == "subcall" else TRC_PV_HYPERCALL_V2
        op = r.number & _OP
        noted = [i for i in _NOTED.get(r.number, ()) if i < len(r.args)]  # type: ignore[call-overload]
        op |= sum(1 << 20 + 2 * i for i in noted)
        return event, struct.pack(f"<{1 + len(noted)}I", op, *(r.args[i] & 0xFFFFFFFF for i in noted))

    def iret(self, _record: Record) -> tuple[int, bytes]:
        """__trace_hypercall() of a call without arguments"""
        return TRC_PV_HYPERCALL_V2, _HEAD.pack(Hypercall.iret)

    def trap(self, r: Record) -> tuple[int, bytes]:
        """__trace_pv_page_fault() and __trace_pv_trap()"""
        code = r.args[0] if r.args else None
        if r.number == _PAGE_FAULT and len(r.args) > 1:
            extra = struct.pack(
                f"{self._word()}{self._word()[1]}I", r.rip, r.args[1], (code or 0) & 0xFFFFFFFF
            )
            return TRC_PV_PAGE_FAULT | self._flag(), extra
        vector = r.number & 0x7FFF | (_TRAP_WITH_CODE if code is not None else 0)
        return TRC_PV_TRAP | self._flag(), struct.pack(
            f"{self._word()}HH", r.rip, vector, (code or 0) & 0xFFFF
        )

    def emulated(self, r: Record) -> tuple[int, bytes]:
        """trace_trap_one_addr()"""
        return TRC_PV_EMULATE_PRIVOP | self._flag(), struct.pack(self._word(), r.rip)

    def store(self, r: Record) -> tuple[int, bytes]:
        """__trace_ptwr_emulation(); the new entry is not known yet"""
        if self._is_64bit:
            return TRC_PV_PTWR_EMULATION | TRC_64_FLAG, struct.pack("<QQQ", 0, r.args[0], r.rip)
        return TRC_PV_PTWR_EMULATION_PAE, struct.pack("<QII", 0, r.args[0], r.rip)

    def runstate(self, r: Record) -> tuple[int, bytes]:
        """trace_runstate_change()"""
        old, new = r.args
        return TRC_SCHED_RUNSTATE_CHANGE | old << 8 | new << 4, _HEAD.pack(r.vcpu | self._domain_id << 16)


_ENCODE: dict[str, Callable[[XentraceEncoder, Record], tuple[int, bytes]]] = {
    "hypercall": XentraceEncoder.hypercall,
    "subcall": XentraceEncoder.hypercall,
    "unfinished": XentraceEncoder.hypercall,
    "iret": XentraceEncoder.iret,
    "trap": XentraceEncoder.trap,
    "emulated": XentraceEncoder.emulated,
    "store": XentraceEncoder.store,
    "runstate": XentraceEncoder.runstate,
}
KINDS = frozenset(_ENCODE)


class XentraceReader:
    """Records of PV guests in a file of xentrace's, ours or Xen's. Others are counted in `skipped`.

    Of more than one processor the records come processor by processor, as their windows do. Raises BuildError
    for what is no such file.
    """

    def __init__(self, name: str, file: BinaryIO) -> None:
        self._name, self._file = name, file
        self._offset = 0
        self._cpu = 0
        self._current: dict[int, int] = {}  # processor -> vCPU that runs there
        self._first: int | None = None
        self._last = 0
        self.skipped = 0
        self.head = Head()
        self.tail = Tail()

    def __iter__(self) -> Iterator[Record]:
        while header := self._read(_HEAD.size, may_end=True):
            (word,) = _HEAD.unpack(header)
            event, count = word & 0x0FFFFFFF, word >> TRACE_EXTRA_SHIFT & TRACE_EXTRA_MAX
            tsc = int.from_bytes(self._read(8), "little") if word & TRC_HD_CYCLE_FLAG else 0
            extra = struct.unpack(f"<{count}I", self._read(4 * count))
            if event == TRC_TRACE_CPU_CHANGE:
                if not extra:
                    raise BuildError(
                        "a change of the processor names none", where=Where(self._name, self._offset)
                    )
                self._cpu = extra[0]
                continue
            ns = tsc // TSC_PER_NS if word & TRC_HD_CYCLE_FLAG else self._last
            self._last = ns
            record = self._record(event, ns, extra)
            if record is None:
                self.skipped += 1
            else:
                yield record
        self.tail = Tail(self._last)

    def _read(self, size: int, *, may_end: bool = False) -> bytes:
        data = self._file.read(size)
        if len(data) != size and not (may_end and not data):
            raise BuildError("a record of the trace has no end", where=Where(self._name, self._offset))
        self._offset += size
        return data

    def _record(self, event: int, ns: int, extra: tuple[int, ...]) -> Record | None:
        vcpu = self._current.get(self._cpu, 0)
        plain, wide = event & ~TRC_64_FLAG, bool(event & TRC_64_FLAG)
        if event & ~0xFFF == _RUNSTATE_CHANGE and event & 0xF == 1 and extra:
            who, old, new = extra[0] & 0xFFFF, event >> 8 & 3, event >> 4 & 3
            if new == 0 and len(self._current) < 1 << 16:
                self._current[self._cpu] = who
            return Record("runstate", ns, who, args=(old, new))
        if event in (TRC_PV_HYPERCALL_V2, TRC_PV_HYPERCALL_SUBCALL) and extra:
            return _hypercall(event, ns, vcpu, extra)
        words = _wide(extra) if wide else extra
        if plain == TRC_PV_PAGE_FAULT and len(extra) == (5 if wide else 3):
            return Record("trap", ns, vcpu, words[0], "#PF", _PAGE_FAULT, (extra[-1], words[1]))
        if plain == TRC_PV_TRAP and len(extra) == (3 if wide else 2):
            return _trap(ns, vcpu, words[0], extra[-1])
        if plain == TRC_PV_EMULATE_PRIVOP and words:
            return Record("emulated", ns, vcpu, words[0], "privileged instruction")
        if plain in (TRC_PV_PTWR_EMULATION, TRC_PV_PTWR_EMULATION_PAE) and len(extra) == (6 if wide else 4):
            address, rip = (words[1], words[2]) if wide else (extra[2], extra[3])
            return Record("store", ns, vcpu, rip, args=(address,))
        return None


def _wide(extra: tuple[int, ...]) -> tuple[int, ...]:
    """Pairs of words as numbers of 64 bits."""
    return tuple(low | high << 32 for low, high in zip(extra[::2], extra[1::2], strict=False))


def _hypercall(event: int, ns: int, vcpu: int, extra: tuple[int, ...]) -> Record:
    number = extra[0] & _OP
    if event == TRC_PV_HYPERCALL_V2 and number == Hypercall.iret:
        return Record("iret", ns, vcpu)
    kind = "subcall" if event == TRC_PV_HYPERCALL_SUBCALL else "hypercall"
    return Record(kind, ns, vcpu, name=hypercall_name(number), number=number, args=extra[1:])


def _trap(ns: int, vcpu: int, rip: int, word: int) -> Record:
    vector, code = word & 0x7FFF, word >> 16
    args = (code,) if word & _TRAP_WITH_CODE else ()
    return Record("trap", ns, vcpu, rip, vector_name(vector), vector, args)
