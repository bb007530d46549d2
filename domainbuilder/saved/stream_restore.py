"""A domain of Xen's migration stream: memory allocated anew, page tables made this machine's.

The guest's frames are others than where it was saved: its page tables and its p2m list say so afterwards, and
the start_info that it handed back. Sources: tools/libs/guest/xg_sr_restore.c, xg_sr_restore_x86_pv.c of Xen
4.17.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from domainbuilder.build.domain_image import DEFAULT_FIRST_MFN
from domainbuilder.build.guest_memory import machine_frames
from domainbuilder.errors import SavedError, Where
from domainbuilder.inputs import LIMITS
from domainbuilder.plan.domain_plan import DEFAULT_CONSOLE_EVTCHN, DEFAULT_STORE_EVTCHN
from domainbuilder.plan.start_info import START_INFO_FIELDS
from domainbuilder.saved import stream_format as fmt
from domainbuilder.saved.disks import given_again
from domainbuilder.saved.stream_devices import disks_in, identities_in, vfb_in, vifs_in
from domainbuilder.saved.stream_read import Record
from domainbuilder.saved.vifs import led_again
from hvcore.abi import ABIS, XEN_LEGACY_MAX_VCPUS, Abi
from hvcore.backends.disk import Disk
from hvcore.backends.images import open_images
from hvcore.backends.vfb import Vfb
from hvcore.backends.vif import Vif
from hvcore.boot_image import WALLCLOCK_NS, BootImage
from hvcore.common.time import update_domain_wallclock_time
from hvcore.errors import EngineError
from hvcore.host import Host
from hvcore.machine import Machine
from hvcore.machine_memory import MachineMemory
from hvcore.public.vcpu_guest_context import (
    FXSAVE_SIZE,
    VCPU_GUEST_CONTEXT,
    VCPU_GUEST_CONTEXT_SIZE,
    VGCF_i387_valid,
    VGCF_online,
    xen_cr3_to_pfn,
    xen_pfn_to_cr3,
)
from hvcore.public.xen import PAGE_SIZE
from hvcore.pv.descriptor_tables import FIRST_RESERVED_GDT_ENTRY
from hvcore.pv.mmuext_op import pin_table
from hvcore.pv.vcpu_context import arch_set_info_guest, set_ext_vcpucontext

_KINDS = {(4, 3): "xen-3.0-x86_32p", (8, 4): "xen-3.0-x86_64"}
_MOST_PFNS = LIMITS["saved memory"].size >> 12
_MOST_NS = 1 << 61
_UINT32, _INT64 = range(1 << 32), range(-(1 << 63), 1 << 63)


@dataclass(slots=True)
class _VcpuBlobs:
    basic: bytes = b""
    extended: bytes = b""
    fpu: bytes = b""


@dataclass(slots=True)
class Restorer:
    """Takes what a stream says (a stream_read.Receiver), and makes the domain of it at the end.

    `given` are the disks for it, `given_vifs` its interfaces that are said anew. Where `disks_follow` the
    disks are somebody else's until open_disks().
    """

    name: str
    given: Sequence[Disk] = ()
    given_vifs: Sequence[Vif] = ()
    disks_follow: bool = False
    domain_name: str = "restored"
    vcpus: int = 0
    abi: Abi | None = None
    mem: MachineMemory | None = None
    p2m: array[int] = field(default_factory=lambda: array("Q"))
    types: bytearray = field(default_factory=bytearray)
    p2m_frames: array[int] = field(default_factory=lambda: array("Q"))
    shared_info: bytes = b""
    elapsed_ns: int = 0
    wallclock_ns: int = WALLCLOCK_NS
    time_offset: int = 0
    blobs: dict[int, _VcpuBlobs] = field(default_factory=dict)
    disks: Sequence[Disk] = ()
    vifs: Sequence[Vif] = ()
    vfb: Vfb | None = None

    # -- what the stream says

    def config(self, config: dict[str, Any]) -> None:
        """Xl's configuration: the name, how many vCPUs there are, and the devices."""
        names, build = config.get("c_info"), config.get("b_info")
        name = names.get("name") if isinstance(names, dict) else None
        vcpus = build.get("max_vcpus") if isinstance(build, dict) else None
        if isinstance(name, str) and 0 < len(name) <= 64 and name.isprintable():
            self.domain_name = name
        if vcpus is not None:
            if type(vcpus) is not int or not 1 <= vcpus <= XEN_LEGACY_MAX_VCPUS:
                raise self._fail(
                    "that many vCPUs cannot be had", found=vcpus, expected=f"1-{XEN_LEGACY_MAX_VCPUS}"
                )
            self.vcpus = vcpus
        self._clock(config, build if isinstance(build, dict) else {})
        self.disks = self.given
        if config:
            self._devices(config)
        self.vifs = led_again(self.vifs, self.given_vifs, self.name, tells=False)

    def _clock(self, config: dict[str, Any], build: dict[str, Any]) -> None:
        """Its wall clock: xl's offset, and the date, which is ours to say."""
        ours = config.get("domainbuilder")
        offset, date = build.get("rtc_timeoffset", 0), WALLCLOCK_NS
        if isinstance(ours, dict):
            date = ours.get("wallclock_ns", WALLCLOCK_NS)
        for name, value, allowed in (("rtc_timeoffset", offset, _UINT32), ("wallclock_ns", date, _INT64)):
            if type(value) is not int or value not in allowed:
                expected = f"{allowed.start} to {allowed.stop - 1}"
                raise self._fail(f"{name} cannot be", found=repr(value)[:80], expected=expected)
        self.time_offset = offset - (offset >> 31 << 32)  # a uint32_t that libxl takes for an int32_t
        self.wallclock_ns = date

    def _devices(self, config: dict[str, Any]) -> None:
        """Its disks, which have to be those that are given, and its interfaces."""
        try:
            had, self.vifs, self.vfb = disks_in(config), vifs_in(config), vfb_in(config)
        except SavedError as error:
            raise self._fail(error.reason, found=error.found, expected=error.expected) from None
        self.disks = given_again(had, self.given, identities_in(config), self.name)

    def record(self, record: Record) -> None:
        """A record that is no PAGE_DATA."""
        handler = _HANDLERS.get(record.kind)
        if handler is not None:
            getattr(self, handler)(record)
        elif not record.kind & fmt.REC_TYPE_OPTIONAL and record.kind not in _IGNORED:
            raise self._fail(f"{record.name} is not for an x86 PV domain", at=record.at)

    def pages(self, record: Record, words: memoryview, contents: memoryview) -> None:
        """Memory: each page goes into the frame that the domain is to have for it."""
        mem = self._memory(record)
        at, nr = 0, len(self.p2m)
        for word in words.tolist():
            pfn, kind = word & fmt.PAGE_DATA_PFN_MASK, word >> fmt.PAGE_DATA_TYPE_SHIFT
            if pfn >= nr or word & 0xFF << 52:
                raise self._fail("pfn is not valid", found=word, expected=f"below {nr:#x}", at=record.at)
            self.types[pfn] = kind
            if kind in fmt.WITHOUT_CONTENTS:
                continue
            page: bytes | memoryview = contents[at : at + PAGE_SIZE]
            at += PAGE_SIZE
            if kind != fmt.NOTAB:
                page = self._localise(page, pfn, kind & ~fmt.LPINTAB, record)
            mem.frame(self.p2m[pfn])[:] = page

    def _localise(self, page: bytes | memoryview, pfn: int, level: int, record: Record) -> bytes:
        """A page table with this machine's frames: localise_page()."""
        entries = memoryview(page).cast("Q").tolist()
        p2m, nr = self.p2m, len(self.p2m)
        for slot, entry in enumerate(entries):
            if entry & 1:
                target = entry >> 12 & fmt.MFN_MASK
                if target >= nr:
                    what = f"Bad pfn for L{level}[{slot}] of pfn {pfn:#x}"
                    raise self._fail(what, found=target, expected=f"below {nr:#x}", at=record.at)
                if self.types[target] == fmt.XTAB:  # one that is yet to come: populate_pfns()
                    self.types[target] = fmt.NOTAB
                entries[slot] = entry & ~fmt.FRAME_BITS | p2m[target] << 12
        return array("Q", entries).tobytes()

    def _pv_info(self, record: Record) -> None:
        self._check(record, self.abi is None, "Already received X86_PV_INFO record")
        self._check_size(record, fmt.X86_PV_INFO.size)
        kind = _KINDS.get(fmt.X86_PV_INFO.unpack(record.data))
        if kind is None:
            width, levels = fmt.X86_PV_INFO.unpack(record.data)
            raise self._fail(
                "Invalid X86_PV_INFO combination", found=f"width {width}, pt_levels {levels}", at=record.at
            )
        self.abi = ABIS[kind]

    def _p2m_frames(self, record: Record) -> None:
        abi = self._known(record)
        self._check(record, len(record.data) >= 8, "X86_PV_P2M_FRAMES record truncated")
        start, end = fmt.P2M_FRAMES.unpack_from(record.data)
        per_page = PAGE_SIZE // abi.word
        self._check(record, start <= end < _MOST_PFNS, f"pfns {start:#x} to {end:#x} cannot be")
        first, last = start // per_page, end // per_page + 1
        self._check_size(record, 8 + 8 * (last - first))
        if self.mem is not None:
            self._check(
                record, end < len(self.p2m), "the p2m list grows, which no guest's does while it is sent"
            )
        else:
            self._check(record, first == 0, f"the p2m list begins with pfn {start:#x}")
            self._allocate(end + 1, record)
            self.p2m_frames = array("Q", bytes(8 * last))
        self.p2m_frames[first:last] = array("Q", bytes(record.data[8:]))

    def _allocate(self, nr_pages: int, record: Record) -> None:
        try:
            self.mem = MachineMemory(nr_pages, first_mfn=DEFAULT_FIRST_MFN)
        except (OSError, ValueError, OverflowError) as error:
            raise self._fail(f"no memory for {nr_pages:#x} pages: {error}", at=record.at) from None
        self.p2m = machine_frames("xen", nr_pages, DEFAULT_FIRST_MFN)
        self.types = bytearray([fmt.XTAB]) * nr_pages

    def _tsc_info(self, record: Record) -> None:
        self._check_size(record, fmt.TSC_INFO.size)
        _, _, self.elapsed_ns, _, _ = fmt.TSC_INFO.unpack(record.data)
        self._check(record, self.elapsed_ns < _MOST_NS, "the guest is too old")

    def _shared_info(self, record: Record) -> None:
        self._check_size(record, PAGE_SIZE)
        self.shared_info = bytes(record.data)

    def _vcpu(self, record: Record) -> None:
        abi = self._known(record)
        self._check(record, len(record.data) >= fmt.VCPU_HDR.size, f"{record.name} record truncated")
        vcpu_id, _ = fmt.VCPU_HDR.unpack_from(record.data)
        blob = bytes(record.data[fmt.VCPU_HDR.size :])
        if not blob:
            return  # older senders made such by accident
        most = self.vcpus or XEN_LEGACY_MAX_VCPUS
        self._check(
            record,
            vcpu_id < most,
            f"{record.name} record vcpu_id ({vcpu_id}) exceeds domain max ({most - 1})",
        )
        blobs = self.blobs.setdefault(vcpu_id, _VcpuBlobs())
        if record.kind == fmt.REC_TYPE_X86_PV_VCPU_BASIC:
            self._check_size(record, fmt.VCPU_HDR.size + VCPU_GUEST_CONTEXT_SIZE[abi.word])
            blobs.basic = blob
        elif record.kind == fmt.REC_TYPE_X86_PV_VCPU_EXTENDED:
            self._check(
                record, fmt.EXT_WITHOUT_VMCE <= len(blob) <= 128, f"{record.name} record of another size"
            )
            blobs.extended = blob
        elif record.kind == fmt.REC_TYPE_X86_PV_VCPU_XSAVE:
            self._check(record, len(blob) >= fmt.XSAVE_HEAD, f"{record.name} record too short")
            if len(blob) >= fmt.XSAVE_HEAD + FXSAVE_SIZE:
                blobs.fpu = blob[fmt.XSAVE_HEAD : fmt.XSAVE_HEAD + FXSAVE_SIZE]
        else:
            self._check(record, not len(blob) % fmt.VCPU_MSR.size, f"{record.name} record of another size")

    # -- the domain

    def finish(self, output: Callable[[bytes], None], *, plain: bool | None) -> Machine:
        """stream_complete(): the domain on a host of its own. Raises SavedError."""
        if self.abi is None or self.mem is None:
            raise self._fail("the stream ends without X86_PV_INFO and X86_PV_P2M_FRAMES records")
        if 0 not in self.blobs or not self.blobs[0].basic:
            raise self._fail("Sender didn't send vcpu0's basic state")
        if not self.shared_info:
            raise self._fail("the stream ends without a SHARED_INFO record")
        contexts = {i: self._context(i, blobs.basic) for i, blobs in self.blobs.items() if blobs.basic}
        image = self._image(contexts[0])
        self._update_p2m()
        host = Host(self.mem, plain=plain)
        try:
            m = host.create(
                image, vcpus=self.vcpus or max(self.blobs) + 1, console_output=output,
                name=self.domain_name, vifs=self.vifs, vfb=self.vfb,
            )  # fmt: skip
            self._complete(m, contexts)
            if not self.disks_follow:
                self.open_disks(m)
        except EngineError as error:
            host.close()
            raise self._fail(f"no such domain can be made: {error}") from None
        except OSError:
            host.close()
            raise
        return m

    def open_disks(self, m: Machine) -> None:
        """Have the domain's disks served from here on. Raises OSError."""
        m.devices.add_disks(open_images(self.disks))

    def _complete(self, m: Machine, contexts: dict[int, bytes]) -> None:
        d = m.domain
        for i, context in contexts.items():
            if i:
                self._refuse(arch_set_info_guest(d.vcpus[i], context), f"vcpu{i}'s basic info")
                d.vcpus[i].pause_flags = 0
        for i, blobs in self.blobs.items():
            if blobs.extended:
                _, _, *fields = fmt.EXT_VCPUCONTEXT.unpack(blobs.extended[:64].ljust(64, b"\0"))
                self._refuse(set_ext_vcpucontext(d.vcpus[i], *fields[:6]), f"vcpu{i}'s extended info")
        root = m.boot["root_mfn"]
        for pfn, kind in enumerate(self.types):
            if kind & fmt.LPINTAB and kind not in fmt.WITHOUT_CONTENTS and self.p2m[pfn] != root:
                self._refuse(
                    pin_table(d.vcpus[0], self.p2m[pfn], kind & ~fmt.LPINTAB), f"the pin of pfn {pfn:#x}"
                )
        for pfn, kind in enumerate(self.types):
            if kind == fmt.XTAB:
                d.mm.guest_remove_page(self.p2m[pfn])
        m.clock.restart()
        # Its wall time goes on, though its system time begins anew.
        d.wallclock_ns, d.time_offset = self.wallclock_ns + self.elapsed_ns, self.time_offset
        update_domain_wallclock_time(d)

    def _refuse(self, rc: int, what: str) -> None:
        if rc:
            raise self._fail(f"Failed to set {what}: error {rc}")

    def _image(self, context: bytes) -> BootImage:
        """The domain as Host.create() takes it; process_start_info() on the way."""
        abi, mem = self.abi, self.mem
        assert abi is not None
        assert mem is not None
        width, shared_info_mfn = abi.word, mem.next_xenheap_mfn
        fields = VCPU_GUEST_CONTEXT[width]
        mfn = int.from_bytes(context[fields["dx"][0] : fields["dx"][0] + width], "little")
        page, start_info = mem.frame(mfn), START_INFO_FIELDS[width]

        def place(name: str) -> slice:
            at, code = start_info[name]
            return slice(at, at + struct.calcsize(code))

        def get(name: str) -> int:
            return int.from_bytes(page[place(name)], "little")

        store, console = (self._mfn(get(name), name) for name in ("store_mfn", "console_mfn"))
        told = {
            "nr_pages": len(self.p2m), "shared_info": shared_info_mfn << 12, "flags": 0, "store_mfn": store,
            "store_evtchn": DEFAULT_STORE_EVTCHN,
            "console_mfn": console, "console_evtchn": DEFAULT_CONSOLE_EVTCHN,
        }  # fmt: skip
        for name, value in told.items():
            here = place(name)
            page[here] = value.to_bytes(here.stop - here.start, "little")
        cr3 = int.from_bytes(context[fields["cr3"][0] : fields["cr3"][0] + width], "little")
        return BootImage(
            guest_type=abi.name, nr_pages=len(self.p2m), first_mfn=mem.first_mfn, p2m=self.p2m, ram=mem.ram,
            root_mfn=xen_cr3_to_pfn(cr3, width), hypercall_page_mfn=None,
            shared_info_mfn=shared_info_mfn, shared_info=self._new_shared_info(abi), context=context,
            store_mfn=store, store_evtchn=DEFAULT_STORE_EVTCHN,
            console_mfn=console, console_evtchn=DEFAULT_CONSOLE_EVTCHN,
        )  # fmt: skip

    def _new_shared_info(self, abi: Abi) -> bytes:
        """handle_shared_info(): vCPUs and the guest's own part; events all masked, and none pending."""
        page, vcpus = bytearray(PAGE_SIZE), 64 * XEN_LEGACY_MAX_VCPUS
        page[:vcpus] = self.shared_info[:vcpus]
        page[abi.arch_shared_info :] = self.shared_info[abi.arch_shared_info :]
        at = abi.arch_shared_info + abi.word
        page[at : at + abi.word] = bytes(abi.word)  # pfn_to_mfn_frame_list_list
        for i in range(XEN_LEGACY_MAX_VCPUS):
            at = 64 * i + abi.vcpu_pending_sel
            page[at : at + abi.word] = bytes(abi.word)
        size = abi.word * abi.word_bits
        page[abi.evtchn_mask : abi.evtchn_mask + size] = b"\xff" * size
        return bytes(page)

    def _context(self, vcpu_id: int, raw: bytes) -> bytes:
        """A vCPU's context with this machine's frames: process_vcpu_basic()."""
        abi, blobs = self.abi, self.blobs[vcpu_id]
        assert abi is not None
        width, fields, out = abi.word, VCPU_GUEST_CONTEXT[abi.word], bytearray(raw)

        def get(at: int) -> int:
            return int.from_bytes(out[at : at + width], "little")

        def put(at: int, value: int) -> None:
            out[at : at + width] = value.to_bytes(width, "little")

        if vcpu_id == 0:
            at = fields["dx"][0]
            put(at, self._mfn(get(at), "Start Info", {fmt.NOTAB}))
        at = fields["vgcf"][0]
        put(at, get(at) | VGCF_online | (VGCF_i387_valid if blobs.fpu else 0))
        if blobs.fpu:
            out[:FXSAVE_SIZE] = blobs.fpu
        entries = get(fields["gdt_ents"][0])
        if entries > FIRST_RESERVED_GDT_ENTRY:
            raise self._fail(
                f"GDT entry count of vcpu{vcpu_id} out of range",
                found=entries,
                expected=f"at most {FIRST_RESERVED_GDT_ENTRY}",
            )
        for i in range(-(-entries // 512)):
            at = fields["gdt_frames"][0] + i * width
            put(at, self._mfn(get(at), f"GDT frame {i}", {fmt.NOTAB}))
        roots = {abi.pt_levels, abi.pt_levels | fmt.LPINTAB}
        at = fields["cr3"][0]
        put(at, xen_pfn_to_cr3(self._mfn(xen_cr3_to_pfn(get(at), width), "cr3", roots), width))
        cr1 = fields["ctrlreg"][0] + width
        if width == 8:
            put(cr1, self._mfn(get(cr1) >> 12, "cr1", roots) << 12 if get(cr1) & 1 else 0)
        return bytes(out)

    def _update_p2m(self) -> None:
        """update_guest_p2m(): the guest's own list says where its pages are now."""
        abi, mem = self.abi, self.mem
        assert abi is not None
        assert mem is not None
        invalid = (1 << 8 * abi.word) - 1
        pages = (invalid if kind == fmt.XTAB else mfn for mfn, kind in zip(self.p2m, self.types, strict=True))
        data = array("Q" if abi.word == 8 else "I", pages).tobytes()
        for i, pfn in enumerate(self.p2m_frames):
            mfn = self._mfn(pfn, f"p2m_frame_list[{i}]", {fmt.NOTAB})
            piece = data[i * PAGE_SIZE : (i + 1) * PAGE_SIZE]
            mem.frame(mfn)[: len(piece)] = piece

    def _mfn(self, pfn: int, what: str, types: set[int] | None = None) -> int:
        if pfn >= len(self.p2m):
            raise self._fail(f"{what}: pfn out of range", found=pfn, expected=f"below {len(self.p2m):#x}")
        kind = self.types[pfn]
        if kind == fmt.XTAB or (types is not None and kind not in types):
            raise self._fail(f"{what}: pfn {pfn:#x} has bad type", found=kind)
        return self.p2m[pfn]

    # -- errors

    def _fail(
        self, reason: str, *, found: object = None, expected: object = None, at: int | None = None
    ) -> SavedError:
        return SavedError(reason, where=Where(self.name, at), found=found, expected=expected)

    def _check(self, record: Record, holds: bool, reason: str) -> None:  # noqa: FBT001
        if not holds:
            raise self._fail(reason, at=record.at)

    def _check_size(self, record: Record, size: int) -> None:
        if len(record.data) != size:
            reason = f"{record.name} record wrong size"
            raise self._fail(reason, found=len(record.data), expected=size, at=record.at)

    def _known(self, record: Record) -> Abi:
        if self.abi is None:
            raise self._fail("Not yet received X86_PV_INFO record", at=record.at)
        return self.abi

    def _memory(self, record: Record) -> MachineMemory:
        if self.mem is None:
            raise self._fail("Not yet received X86_PV_P2M_FRAMES record", at=record.at)
        return self.mem


_HANDLERS = {
    fmt.REC_TYPE_X86_PV_INFO: "_pv_info",
    fmt.REC_TYPE_X86_PV_P2M_FRAMES: "_p2m_frames",
    fmt.REC_TYPE_X86_TSC_INFO: "_tsc_info",
    fmt.REC_TYPE_SHARED_INFO: "_shared_info",
    fmt.REC_TYPE_X86_PV_VCPU_BASIC: "_vcpu",
    fmt.REC_TYPE_X86_PV_VCPU_EXTENDED: "_vcpu",
    fmt.REC_TYPE_X86_PV_VCPU_XSAVE: "_vcpu",
    fmt.REC_TYPE_X86_PV_VCPU_MSRS: "_vcpu",
}
# Records about a processor's features or a live sender, which this host has no use for.
_IGNORED = frozenset(
    (
        fmt.REC_TYPE_STATIC_DATA_END, fmt.REC_TYPE_X86_CPUID_POLICY, fmt.REC_TYPE_X86_MSR_POLICY,
        fmt.REC_TYPE_VERIFY,
    )
)  # fmt: skip
