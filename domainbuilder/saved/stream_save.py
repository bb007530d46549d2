"""A suspended guest as Xen's migration stream, piece by piece, as xl would save it.

Page tables name pseudo-physical frames in it, and lack what is Xen's; nothing in it is of this machine.
Sources: tools/libs/guest/xg_sr_save.c and xg_sr_save_x86_pv.c, tools/xl/xl_saverestore.c of Xen 4.17.
"""

from __future__ import annotations

import json
import uuid
from array import array
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from domainbuilder.errors import SavedError
from domainbuilder.saved import stream_format as fmt
from domainbuilder.saved.p2m import P2m, guest_p2m
from domainbuilder.saved.stream_devices import device_config
from domainbuilder.saved.stream_format import record
from hvcore.boot_image import WALLCLOCK_NS
from hvcore.clock import TSC_PER_NS
from hvcore.machine import BOOT_TIME_NS
from hvcore.page_info import (
    PGC_xen_heap,
    PGT_l1_page_table,
    PGT_l2_page_table,
    PGT_l3_page_table,
    PGT_l4_page_table,
    PGT_pae_xen_l2,
    PGT_pinned,
    PGT_validated,
)
from hvcore.public.vcpu_guest_context import VCPU_GUEST_CONTEXT, xen_cr3_to_pfn, xen_pfn_to_cr3
from hvcore.pv.descriptor_tables import FIRST_RESERVED_GDT_ENTRY
from hvcore.pv.vcpu_context import arch_get_info_guest, get_ext_vcpucontext
from hvcore.vcpu import VPF_down

if TYPE_CHECKING:
    from hvcore.machine import Machine
    from hvcore.vcpu import Vcpu

_PRESENT, _PSE = 1, 0x80
_XEN_L4_SLOTS = range(256, 273)  # HYPERVISOR_VIRT_START to _END, as libxc counts them
_XEN_L2_SLOTS = range(0xF5800000 >> 21 & 511, 512)
_TSC_KHZ = TSC_PER_NS * 1_000_000
_TSC_MODE_DEFAULT, _INCARNATION = 0, 1


class StreamSaver:
    """The stream of the domain of `machine`, whose guest has suspended (or runs yet, for `pages` of it)."""

    def __init__(self, machine: Machine, p2m: P2m, *, is_suspended: bool) -> None:
        self.machine = machine
        self.is_suspended = is_suspended  # before the first piece
        self.d = d = machine.domain
        self.mem, self.abi = machine.mem, d.abi
        self.m2p = self.mem.m2p[d.abi.m2p_entry].words
        self.p2m = p2m
        self.deferred: set[int] = set()  # what could not be sent while the guest ran

    # -- pieces, in the order in which they come

    def begin(self) -> Iterator[bytes]:
        """Xl's and libxl's headers, and what libxc says before the pages."""
        yield xl_header(self.machine, is_suspended=self.is_suspended)
        yield fmt.LIBXL_HEADER.pack(fmt.RESTORE_STREAM_IDENT, fmt.RESTORE_STREAM_VERSION, 0)
        yield record(fmt.LIBXC_CONTEXT)
        yield fmt.IHDR.pack(fmt.IHDR_MARKER, fmt.IHDR_ID, fmt.IHDR_VERSION, 0, 0, 0)
        yield fmt.DHDR.pack(fmt.DHDR_TYPE_X86_PV, 12, 0, fmt.XEN_MAJOR, fmt.XEN_MINOR)
        yield record(fmt.REC_TYPE_X86_PV_INFO, fmt.X86_PV_INFO.pack(self.abi.word, self.abi.pt_levels))
        yield record(fmt.REC_TYPE_STATIC_DATA_END)
        head = fmt.P2M_FRAMES.pack(0, len(self.p2m.mfns) - 1)
        yield record(fmt.REC_TYPE_X86_PV_P2M_FRAMES, head, self.p2m.frames.tobytes())

    def pages(self, pfns: Iterable[int], *, live: bool = False) -> Iterator[bytes]:
        """PAGE_DATA records of these frames.

        While the guest runs (`live`) a page table can name what is not the guest's to keep: it is left out,
        to be sent again at the end. Raises SavedError for one that cannot be saved.
        """
        batch: list[int] = []
        for pfn in pfns:
            batch.append(pfn)
            if len(batch) == fmt.MAX_BATCH_SIZE:
                yield self._batch(batch, live=live)
                batch.clear()
        if batch:
            yield self._batch(batch, live=live)

    def end(self) -> Iterator[bytes]:
        """What libxc says behind the pages, and the ends of both streams."""
        elapsed = self.machine.clock.now() - BOOT_TIME_NS
        tsc = fmt.TSC_INFO.pack(_TSC_MODE_DEFAULT, _TSC_KHZ, elapsed, _INCARNATION, 0)
        yield record(fmt.REC_TYPE_X86_TSC_INFO, tsc)
        yield record(fmt.REC_TYPE_SHARED_INFO, bytes(self.d.shared_info))
        for v in self.d.vcpus:
            if v.is_initialised and not v.pause_flags & VPF_down:
                head = fmt.VCPU_HDR.pack(v.vcpu_id, 0)
                yield record(fmt.REC_TYPE_X86_PV_VCPU_BASIC, head, self._basic(v))
                yield record(fmt.REC_TYPE_X86_PV_VCPU_EXTENDED, head, _extended(v))
        yield record(fmt.REC_TYPE_END)
        yield record(fmt.LIBXL_END)

    # -- pages

    def _batch(self, pfns: list[int], *, live: bool) -> bytes:
        words, contents = array("Q"), []
        for pfn in pfns:
            kind, page = self._page(pfn, live=live)
            words.append(kind << fmt.PAGE_DATA_TYPE_SHIFT | pfn)
            if page is not None:
                contents.append(page)
        return record(fmt.REC_TYPE_PAGE_DATA, fmt.PAGE_DATA.pack(len(pfns), 0), words.tobytes(), *contents)

    def _page(self, pfn: int, *, live: bool) -> tuple[int, bytes | memoryview | None]:
        """The type of a frame and what is in it: normalise_page()."""
        kind, mfn = self.type_of(pfn), self.p2m.mfns[pfn]
        if kind == fmt.XTAB:
            return kind, None
        page = self.mem.frame(mfn)
        if kind == fmt.NOTAB:
            return kind, page
        has_m2p = bool(self.d.frames.flags[mfn - self.d.frames.base_mfn] & PGT_pae_xen_l2)
        try:
            return kind, self._normalise(page, kind & ~fmt.LPINTAB, has_m2p=has_m2p)
        except SavedError:
            if not live:
                raise
            self.deferred.add(pfn)
            return fmt.XTAB, None

    def type_of(self, pfn: int) -> int:
        """XEN_DOMCTL_getpageframeinfo3."""
        frames = self.d.frames
        pg = self.p2m.mfns[pfn] - frames.base_mfn
        if not 0 <= pg < frames.nr or frames.owner[pg] != self.d.domain_id or frames.flags[pg] & PGC_xen_heap:
            return fmt.XTAB
        flags, ptype = frames.flags[pg], frames.ptype[pg]
        is_table = PGT_l1_page_table <= ptype <= PGT_l4_page_table
        if not is_table or not flags & (PGT_pinned | PGT_validated):
            return fmt.NOTAB
        return ptype | (fmt.LPINTAB if flags & PGT_pinned else 0)

    def _normalise(self, page: memoryview, ptype: int, *, has_m2p: bool) -> bytes:
        """A page table with pseudo-physical frames, without what is Xen's in it."""
        entries = page.cast("Q").tolist()
        xens = range(0)
        if self.abi.pt_levels == 4 and ptype == PGT_l4_page_table:
            xens = _XEN_L4_SLOTS
        elif self.abi.pt_levels == 3 and ptype == PGT_l3_page_table:
            xens = range(4, 512)
        elif self.abi.pt_levels == 3 and ptype == PGT_l2_page_table and has_m2p:
            xens = _XEN_L2_SLOTS
        for slot in xens:
            entries[slot] = 0
        for slot, entry in enumerate(entries):
            if entry & _PRESENT:
                if ptype > PGT_l1_page_table and entry & _PSE:
                    raise SavedError(f"Cannot migrate superpage (L{ptype}[{slot}]: {entry:#x})")
                pfn = self._pfn(entry >> 12 & fmt.MFN_MASK, f"L{ptype}[{slot}]")
                entries[slot] = entry & ~fmt.FRAME_BITS | pfn << 12
        return array("Q", entries).tobytes()

    def _pfn(self, mfn: int, what: str) -> int:
        """mfn_in_pseudophysmap() and mfn_to_pfn()."""
        mfns = self.p2m.mfns
        pfn = self.m2p[mfn] if 0 <= mfn < len(self.m2p) else len(mfns)
        if pfn >= len(mfns) or mfns[pfn] != mfn:
            raise SavedError(f"Bad mfn for {what}", found=mfn, expected="a frame of the guest's p2m list")
        return int(pfn)

    # -- vCPUs

    def _basic(self, v: Vcpu) -> bytes:
        """Struct vcpu_guest_context with pseudo-physical frames: write_one_vcpu_basic()."""
        size = self.abi.word
        raw = bytearray(arch_get_info_guest(v, self.machine.state_of(v)))
        fields = VCPU_GUEST_CONTEXT[size]

        def get(at: int) -> int:
            return int.from_bytes(raw[at : at + size], "little")

        def put(at: int, value: int) -> None:
            raw[at : at + size] = value.to_bytes(size, "little")

        if v.vcpu_id == 0:
            put(fields["dx"][0], self._pfn(get(fields["dx"][0]), "suspend record"))
        if v.gdt_ents > FIRST_RESERVED_GDT_ENTRY:
            raise SavedError("GDT entry count out of range", found=v.gdt_ents)
        for i in range(-(-v.gdt_ents // 512)):
            at = fields["gdt_frames"][0] + i * size
            put(at, self._pfn(get(at), f"frame {i} of vcpu{v.vcpu_id}'s GDT"))
        cr3 = xen_cr3_to_pfn(get(fields["cr3"][0]), size)
        put(fields["cr3"][0], xen_pfn_to_cr3(self._pfn(cr3, f"vcpu{v.vcpu_id}'s cr3"), size))
        cr1 = fields["ctrlreg"][0] + size
        if self.abi.pt_levels == 4 and get(cr1):
            put(cr1, 1 | self._pfn(get(cr1) >> 12, f"vcpu{v.vcpu_id}'s cr1") << 12)
        return bytes(raw)


def _extended(v: Vcpu) -> bytes:
    """Struct xen_domctl_ext_vcpucontext; of machine checks this processor has none."""
    values = (*get_ext_vcpucontext(v), 0, 0, 0, 0)
    return fmt.EXT_VCPUCONTEXT.pack(v.vcpu_id, fmt.EXT_VCPUCONTEXT.size, *values)


def xl_header(machine: Machine, *, is_suspended: bool) -> bytes:
    """Xl's file header, with the configuration that `xl restore` makes the domain by.

    Of a guest that has suspended it says how the disks' files are. Raises OSError where they cannot be read.
    """
    d = machine.domain
    kib = d.tot_pages << 2
    ident = uuid.UUID(bytes=d.handle) if any(d.handle) else uuid.uuid5(uuid.NAMESPACE_URL, machine.name)
    config = {
        "c_info": {"type": "pv", "name": machine.name, "uuid": str(ident)},
        "b_info": {
            "max_vcpus": len(d.vcpus),
            "avail_vcpus": [v.vcpu_id for v in d.vcpus if not v.pause_flags & VPF_down],
            "max_memkb": max(kib, machine.boot["nr_pages"] << 2),
            "target_memkb": kib,
            "video_memkb": 0,
            "type.pv": {},
            **({"rtc_timeoffset": d.time_offset & 0xFFFFFFFF} if d.time_offset else {}),
        },
        **device_config(machine, with_identity=is_suspended),
    }
    if d.wallclock_ns != WALLCLOCK_NS:  # a date of its own: under xl it is the host's
        config["domainbuilder"] = {**config.get("domainbuilder", {}), "wallclock_ns": d.wallclock_ns}
    data = json.dumps(config, indent=4).encode() + b"\0"
    flags = fmt.XL_MANDATORY_FLAG_JSON | fmt.XL_MANDATORY_FLAG_STREAMv2
    size = fmt.XL_CONFIG_SIZE.size + len(data)
    head = fmt.XL_HEADER.pack(fmt.XL_MAGIC, fmt.SAVEFILE_BYTEORDER_VALUE, flags, 0, size)
    return head + fmt.XL_CONFIG_SIZE.pack(len(data)) + data


def saved_stream(machine: Machine) -> Iterator[bytes]:
    """The whole stream of a guest that has suspended. Raises SavedError where it cannot be saved."""
    saver = StreamSaver(machine, guest_p2m(machine), is_suspended=True)
    yield from saver.begin()
    yield from saver.pages(range(len(saver.p2m.mfns)))
    yield from saver.end()
