"""The block backend: what Linux's xen-blkback is in domain 0, with xen/include/public/io/blkif.h.

A request is done when it is taken, and answered when a disk would have done it by the guest's clock: so the
guest sees a disk, and never how long this host's took. Every index, grant, sector and length may lie: what
blkback refuses is refused, and no more requests are under way than it has room for.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Container, Iterator
from itertools import islice
from time import perf_counter_ns
from typing import TYPE_CHECKING, NamedTuple

from hvcore.backends.back_ring import BackRing
from hvcore.backends.block_image import BlockImage
from hvcore.backends.disk import Disk
from hvcore.backends.disk_use import DiskUse
from hvcore.backends.libxl_nodes import add_device
from hvcore.backends.xenbus import FrontendError, XenbusDevice
from hvcore.common.grant_map import map_for_backend, unmap_for_backend
from hvcore.public.blkif import (
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_INDIRECT,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_OP_WRITE_BARRIER,
    BLKIF_RING_ENTRY,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
    SECTOR_SIZE,
    VDISK_CDROM,
    VDISK_READONLY,
    VDISK_REMOVABLE,
    blkif_request,
    blkif_request_discard,
    blkif_request_indirect,
    blkif_request_segment,
    blkif_response,
)
from hvcore.public.errno import EINVAL, EIO, ENOSYS
from hvcore.public.protocols import XEN_IO_PROTO_ABI
from hvcore.public.xen import PAGE_SIZE
from hvcore.public.xenbus import XenbusStateInitialising, XenbusStateInitWait

if TYPE_CHECKING:
    from hvcore.backends.xenstored import Xenstored
    from hvcore.domain import Domain

_U32 = struct.Struct("<I")
VBD = "vbd"  # the kind of device, and of its timer
MAX_RING_PAGE_ORDER = 4
MAX_INDIRECT_SEGMENTS = 256
MAX_PERSISTENT_GRANTS = 1056
MAX_UNDER_WAY = 64  # requests that are done and not answered: others wait in the ring
_SEGMENTS_PER_PAGE = PAGE_SIZE // blkif_request_segment.size
_SECTORS_PER_PAGE = PAGE_SIZE // SECTOR_SIZE
# The disk, by the guest's clock: one request at a time, this long each and for each byte.
_REQUEST_NS = 20_000
_BYTES_PER_NS = 1
_FLUSH_NS = 100_000
_DISCARD_NODES = {"discard-granularity": PAGE_SIZE, "discard-alignment": 0, "discard-secure": 0}
_FLUSHES = frozenset((BLKIF_OP_WRITE_BARRIER, BLKIF_OP_FLUSH_DISKCACHE))
_DIRECT = frozenset((BLKIF_OP_READ, BLKIF_OP_WRITE, *_FLUSHES))  # whose segments are in the request


# A part of a request: a grant, and the first and the last sector of its page.
Segment = tuple[int, int, int]


class Answer(NamedTuple):
    """A response, and when it comes."""

    when: int
    id: int
    operation: int
    status: int


class _Refused(Exception):
    """The request is answered with BLKIF_RSP_ERROR."""


class BlockBackend(XenbusDevice):
    """One disk of one guest."""

    WIRING = frozenset((*XenbusDevice.WIRING, "image", "disk", "back_ring", "use"))

    def __init__(
        self, guest: Domain, backend: Domain, store: Xenstored, disk: Disk, image: BlockImage
    ) -> None:
        self.disk = disk
        self.image = image
        self.use = DiskUse()
        self.word = 8  # of the protocol
        self.is_halted = False  # the frontend claimed requests that cannot be
        self.persistent: dict[int, tuple[int, int]] | None = None  # grants that stay: (handle, frame)
        self.answers: list[Answer] = []
        self.busy_until = 0
        self.back_ring: BackRing | None = None
        _add_nodes(store, guest, disk)
        super().__init__(VBD, disk.devid, guest, backend, store)
        self.tell("feature-max-indirect-segments", MAX_INDIRECT_SEGMENTS)
        self.tell("multi-queue-max-queues", 1)
        self.tell("max-ring-page-order", MAX_RING_PAGE_ORDER)
        self.tell("hotplug-status", "connected")
        self.switch_state(XenbusStateInitWait)

    @property
    def sectors(self) -> int:
        """The disk's size."""
        return self.image.size // SECTOR_SIZE

    def owners(self) -> Iterator[tuple[str, object]]:
        """See XenbusDevice."""
        if self.back_ring is not None:
            yield "ring", self.back_ring

    def prepare(self, saved: Container[str]) -> None:
        """See XenbusDevice."""
        if "ring" in saved:
            self.back_ring = BackRing(self.guest.mem, [self.guest.shared_info_mfn], BLKIF_RING_ENTRY[8])

    # -- connecting

    def connect_ring(self) -> None:
        """See XenbusDevice."""
        protocol = self.asked("protocol") or XEN_IO_PROTO_ABI[8]
        words = [word for word, name in XEN_IO_PROTO_ABI.items() if name == protocol]
        if not words:
            raise FrontendError(ENOSYS, f"unknown fe protocol {protocol[:40]}")
        if self.number("multi-queue-num-queues", 1) != 1:
            raise FrontendError(ENOSYS, "more queues requested than there are")
        port = self.number("event-channel")
        frames = self.map_frames(self._ring_refs())
        ring = BackRing(self.guest.mem, frames, BLKIF_RING_ENTRY[words[0]])
        if ring.unconsumed() is None:
            raise FrontendError(EIO, "the ring holds more requests than it has room for")
        self.bind(port)
        self.word, self.back_ring, self.is_halted = words[0], ring, False
        self.persistent = {} if self.number("feature-persistent", 0) else None

    def _ring_refs(self) -> list[int]:
        if self.asked("ring-page-order") is None:
            return [self.number("ring-ref")]
        order = self.number("ring-page-order")
        if order > MAX_RING_PAGE_ORDER:
            raise FrontendError(EINVAL, f"ring-page-order {order} exceeds {MAX_RING_PAGE_ORDER}")
        return [self.number(f"ring-ref{i}") for i in range(1 << order)]

    def advertise(self) -> None:
        """See XenbusDevice: what the frontend asks of a disk, and what it may ask."""
        disk = self.disk
        info = VDISK_CDROM * disk.is_cdrom | VDISK_REMOVABLE * disk.removable
        discard = disk.discard and disk.readwrite
        for name, value in {
            "feature-flush-cache": 1,
            **(_DISCARD_NODES if discard else {}),
            "feature-discard": int(discard),
            "feature-barrier": 1,
            "feature-persistent": 1,
            "sectors": self.sectors,
            "info": info | VDISK_READONLY * (not disk.readwrite),
            "sector-size": self.image.sector_sizes.logical,
            "physical-sector-size": self.image.sector_sizes.physical,
        }.items():
            self.tell(name, value)

    def close_ring(self) -> None:
        """See XenbusDevice. What was answered to nobody stays so."""
        for handle, _ in (self.persistent or {}).values():
            unmap_for_backend(self.home, handle)
        self.persistent, self.back_ring = None, None
        self.answers.clear()
        self.guest.clock.stop_timer((VBD, self.devid))
        super().close_ring()

    def close(self) -> None:
        """See XenbusDevice."""
        self.image.close()

    # -- requests

    def handle_event(self) -> None:
        """The guest notified: take what is in the ring, as far as there is room for it."""
        ring = self.back_ring
        if ring is None or self.is_halted:
            return
        while len(self.answers) < MAX_UNDER_WAY:
            waiting = ring.unconsumed()
            if waiting is None:
                self.is_halted = True
                return
            if not waiting:
                ring.final_check()
                break
            if ring.is_full():
                break
            self._take(ring.next_request())
        if self.answers:
            self.guest.clock.set_timer((VBD, self.devid), self.answers[0].when, self.answer_due)

    def _take(self, request: bytes) -> None:
        """Do a request, and note its answer for when a disk would have done it."""
        began_ns, size = perf_counter_ns(), 0
        operation, count, _, id_, sector, data = blkif_request[self.word].unpack_from(request)
        status = BLKIF_RSP_OKAY
        try:
            if operation in _DIRECT:
                segments = _parse(data, count)
                size = self._transfer(operation, sector, segments, is_read=operation == BLKIF_OP_READ)
            elif operation == BLKIF_OP_INDIRECT:
                is_read, segments = self._indirect_segments(request)
                size = self._transfer(operation, sector, segments, is_read=is_read)
            elif operation == BLKIF_OP_DISCARD:
                self._discard(request)
            else:
                status = BLKIF_RSP_EOPNOTSUPP
        except _Refused:
            status = BLKIF_RSP_ERROR
        except OSError as error:
            status = BLKIF_RSP_EOPNOTSUPP if error.errno == errno.EOPNOTSUPP else BLKIF_RSP_ERROR
        flushes = operation in _FLUSHES
        if operation == BLKIF_OP_INDIRECT:
            operation = count  # indirect_op, in its place: an answer is one to what it was to do
        self.use.add(operation, size, began_ns)
        begin = max(self.busy_until, self.guest.clock.now())
        self.busy_until = begin + _REQUEST_NS + size // _BYTES_PER_NS + _FLUSH_NS * flushes
        self.answers.append(Answer(self.busy_until, id_, operation, status))

    def _transfer(self, operation: int, sector: int, segments: list[Segment], *, is_read: bool) -> int:
        """Blkback's dispatch_rw_block_io: how many bytes were read or written. Raises _Refused, OSError."""
        if not segments and operation not in _FLUSHES:
            raise _Refused
        count = sum([last - first for _, first, last in segments]) + len(segments)
        self._check_extent(sector, count, is_read=is_read)
        self._check_aligned(sector, segments)
        handles: list[int] = []
        try:
            frames = self._map(segments, handles, is_read=is_read)
            try:
                self._move(operation, sector * SECTOR_SIZE, self._buffers(frames, segments), is_read=is_read)
            finally:  # what was read of a file that is cut short is there, too
                for mfn in frames if is_read else ():
                    self.guest.engine.wrote_frame(mfn)
        finally:
            for handle in handles:
                unmap_for_backend(self.home, handle)
        return count * SECTOR_SIZE

    def _buffers(self, frames: list[int], segments: list[Segment]) -> list[memoryview]:
        """The guest's memory that a request is about. The frames are mapped, so there are such."""
        mem = self.guest.mem
        view, base = mem.view, mem.base_mfn
        found = []
        for mfn, (_, first, last) in zip(frames, segments, strict=True):
            start = (mfn - base) * PAGE_SIZE
            found.append(view[start + first * SECTOR_SIZE : start + (last + 1) * SECTOR_SIZE])
        return found

    def _move(self, operation: int, offset: int, buffers: list[memoryview], *, is_read: bool) -> None:
        """The bytes to or from the disk; a barrier has what came before it there, and itself."""
        if operation in _FLUSHES:
            self.image.flush()
        if is_read:
            self.image.read(offset, buffers)
        elif buffers:
            self.image.write(offset, buffers)
        if operation == BLKIF_OP_WRITE_BARRIER:
            self.image.flush()

    def _indirect_segments(self, request: bytes) -> tuple[bool, list[Segment]]:
        """Whether it is a read, and the pages that its pages tell."""
        _, operation, count, _, _, _, grefs = blkif_request_indirect[self.word].unpack_from(request)
        if operation not in (BLKIF_OP_READ, BLKIF_OP_WRITE) or not 0 < count <= MAX_INDIRECT_SEGMENTS:
            raise _Refused
        segments: list[Segment] = []
        for (ref,) in islice(_U32.iter_unpack(grefs), -(-count // _SEGMENTS_PER_PAGE)):
            handle, mfn = map_for_backend(self.home, self.guest, ref, readonly=True)
            if handle < 0:
                raise _Refused
            page = bytes(self.guest.mem.frame(mfn))
            unmap_for_backend(self.home, handle)
            segments += _parse(page, min(count - len(segments), _SEGMENTS_PER_PAGE))
        return operation == BLKIF_OP_READ, segments

    def _check_extent(self, sector: int, count: int, *, is_read: bool) -> None:
        """Blkback's xen_vbd_translate: the sectors are there, and may be written where they are to be."""
        if not is_read and not self.disk.readwrite:
            raise _Refused
        if count and sector + count > self.sectors:
            raise _Refused

    def _check_aligned(self, sector: int, segments: list[Segment]) -> None:
        """dispatch_rw_block_io: a device of larger sectors takes whole ones only."""
        odd = self.image.sector_sizes.logical // SECTOR_SIZE - 1
        if odd and any((sector | last - first + 1) & odd for _, first, last in segments):
            raise _Refused

    def _map(self, segments: list[Segment], handles: list[int], *, is_read: bool) -> list[int]:
        """The frames of grants: of those that stay mapped, and of `handles`, which the caller lets go."""
        kept, frames = self.persistent, []
        for ref, _, _ in segments:
            if kept is not None and ref in kept:
                frames.append(kept[ref][1])
                continue
            handle, mfn = map_for_backend(self.home, self.guest, ref, readonly=kept is None and not is_read)
            if handle < 0:
                raise _Refused
            if kept is not None and len(kept) < MAX_PERSISTENT_GRANTS:
                kept[ref] = handle, mfn
            else:
                handles.append(handle)
            frames.append(mfn)
        return frames

    def _discard(self, request: bytes) -> None:
        """dispatch_discard_io, as blkback has it."""
        _, _, _, _, sector, count = blkif_request_discard[self.word].unpack_from(request)
        self._check_extent(sector, count, is_read=False)
        if count:
            self.image.discard(sector * SECTOR_SIZE, count * SECTOR_SIZE)

    # -- answers

    def answer_due(self) -> None:
        """The timer: answer what is done by now, and take what waited for that."""
        ring, now = self.back_ring, self.guest.clock.now()
        if ring is None:
            return
        self.serve()
        answers, due = self.answers, []
        while answers and answers[0].when <= now:
            due.append(answers.pop(0)[1:])
        ring.respond(blkif_response[self.word], due)
        if ring.publish():
            self.notify()
        self.handle_event()


def _parse(data: bytes, count: int) -> list[Segment]:
    """Segments of whole sectors within a page, as many as `data` has room for, or _Refused."""
    size = count * blkif_request_segment.size
    if size > len(data):
        raise _Refused
    found = list(blkif_request_segment.iter_unpack(data[:size]))
    for _, first, last in found:
        if last >= _SECTORS_PER_PAGE or last < first:
            raise _Refused
    return found


def _add_nodes(store: Xenstored, guest: Domain, disk: Disk) -> None:
    """device_disk_add() of tools/libs/light/libxl_disk.c, for what is a file or device of this host."""
    kind = "cdrom" if disk.is_cdrom else "disk"
    back = {
        "params": disk.target,
        "script": f"/etc/xen/scripts/{disk.script}",
        "frontend-id": str(guest.domain_id),
        "online": "1",
        "removable": str(int(disk.removable)),
        "bootable": "1",
        "state": str(XenbusStateInitialising),
        "dev": disk.vdev,
        "type": "phy",
        "mode": "w" if disk.readwrite else "r",
        "device-type": kind,
        **({"direct-io-safe": "1"} if disk.direct_io_safe else {}),
        "discard-enable": str(int(disk.discard)),
        "specification": "xen",
    }
    front = {
        "backend-id": "0",
        "state": str(XenbusStateInitialising),
        "virtual-device": str(disk.devid),
        "device-type": kind,
        "trusted": str(int(disk.trusted)),
        "protocol": XEN_IO_PROTO_ABI[guest.abi.word],
    }
    add_device(store, guest.domain_id, VBD, disk.devid, back, front)
