"""The state of a domain's grant table: shared and status frames, pinned entries, mapping handles.

What a guest grants stands in frames that it may write at any time; an entry counts from the moment that it is
pinned, and then the pinned copy does (`ActiveEntry`). Backends pin entries as any domain does, by mappings.
Source: xen/common/grant_table.c.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from hvcore.public.errno import EBUSY, ENOMEM, ERANGE
from hvcore.public.grant_table import (
    GNTTAB_NR_RESERVED_ENTRIES,
    GNTMAP_device_map,
    GNTMAP_readonly,
    GNTST_general_error,
    GNTST_okay,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_sub_page,
    GTF_transitive,
    GTF_type_mask,
    GTF_writing,
    grant_entry_v1,
    grant_entry_v2,
    grant_status,
)
from hvcore.public.xen import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hvcore.domain import Domain

MAX_GRANT_FRAMES = 64
MAX_MAPTRACK_FRAMES = 1024
INITIAL_NR_GRANT_FRAMES = 1
MAPTRACK_PER_PAGE = 256

# Counters in `ActiveEntry.pin`, eight bits each.
GNTPIN_hstw_inc = 1 << 0
GNTPIN_hstr_inc = 1 << 8
GNTPIN_devw_inc = 1 << 16
GNTPIN_devr_inc = 1 << 24
GNTPIN_write_mask = 0xFF * (GNTPIN_hstw_inc | GNTPIN_devw_inc)
_OVERFLOW_SHIFT = 7

_V1_PER_PAGE = PAGE_SIZE // grant_entry_v1.size
_V2_PER_PAGE = PAGE_SIZE // grant_entry_v2.size
_STATUS_PER_PAGE = PAGE_SIZE // grant_status.size


class ActiveEntry:
    """A pinned grant: who (`domid`) holds it how (`pin`), which frame, and which bytes of it."""

    __slots__ = ("domid", "is_sub_page", "length", "mfn", "pin", "start", "trans_domid", "trans_gref")

    def __init__(
        self,
        domid: int,
        mfn: int,
        start: int = 0,
        length: int = PAGE_SIZE,
        is_sub_page: bool = False,
        *,
        trans_domid: int,
        trans_gref: int,
    ) -> None:
        self.domid = domid
        self.pin = 0
        self.mfn = mfn
        self.start = start
        self.length = length
        self.is_sub_page = is_sub_page
        self.trans_domid = trans_domid  # the owner of the frame: behind a transitive entry another domain
        self.trans_gref = trans_gref

    def is_same_grant(self, other: ActiveEntry) -> bool:
        """What the shared entry says now (`other`) is what was pinned."""
        if (self.mfn, self.trans_domid, self.trans_gref) != (other.mfn, other.trans_domid, other.trans_gref):
            return False
        return not self.is_sub_page or (
            other.is_sub_page and (self.start, self.length) == (other.start, other.length)
        )


class Mapping:
    """A maptrack entry: what one handle stands for. `domid` grants, `flags` are GNTMAP_*."""

    __slots__ = ("domid", "flags", "mfn", "ref")

    def __init__(self, domid: int, ref: int, flags: int, mfn: int) -> None:
        self.domid = domid
        self.ref = ref
        self.flags = flags
        self.mfn = mfn


def grant_to_status_frames(grant_frames: int) -> int:
    """Status frames that go with a version 2 table of `grant_frames`."""
    return -(-grant_frames * _V2_PER_PAGE // _STATUS_PER_PAGE)


class GrantTable:
    """One domain's grant table, of one frame and version 1 to begin with."""

    __slots__ = (
        "_free_handles",
        "_spare",
        "active",
        "domain",
        "maptrack",
        "maptrack_limit",
        "shared",
        "status",
        "version",
    )

    WIRING = frozenset(("domain",))

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.version = 1
        self.shared: list[int] = []  # machine frames
        self.status: list[int] = []
        self._spare: list[int] = []  # frames that once were status frames
        self.active: dict[int, ActiveEntry] = {}  # entries with a pin, by reference
        self.maptrack: dict[int, Mapping] = {}
        self.maptrack_limit = 0
        self._free_handles: deque[int] = deque()
        self.grow(INITIAL_NR_GRANT_FRAMES)

    # --- frames -------------------------------------------------------------------------------------------

    def _share_new_frame(self) -> int:
        d = self.domain
        mfn = self._spare.pop() if self._spare else d.alloc_xenheap_page()
        d.mem.frame(mfn)[:] = bytes(PAGE_SIZE)
        d.frames.share_xen_page_with_guest(mfn, d.domain_id, writable=True)
        return mfn

    def grow(self, nr_frames: int) -> int:
        """gnttab_grow_table(): 0 or -ENOMEM."""
        try:
            while len(self.shared) < nr_frames:
                self.shared.append(self._share_new_frame())
        except MemoryError:
            return -ENOMEM
        return self.populate_status_frames() if self.version == 2 else 0

    def populate_status_frames(self) -> int:
        """Have a status entry for every grant entry: 0 or -ENOMEM."""
        try:
            while len(self.status) < grant_to_status_frames(len(self.shared)):
                self.status.append(self._share_new_frame())
        except MemoryError:
            return -ENOMEM
        return 0

    def _unpopulate_status_frames(self) -> int:
        """Take the status frames back: 0, or -EBUSY while the guest maps one."""
        frames = self.domain.frames
        if any(frames.count[mfn - frames.base_mfn] != 1 for mfn in self.status):
            return -EBUSY
        for mfn in self.status:
            frames.unshare_xen_page(mfn)
        self._spare += self.status
        self.status.clear()
        return 0

    # --- entries ------------------------------------------------------------------------------------------

    @property
    def nr_entries(self) -> int:
        """References below this exist."""
        return len(self.shared) * (_V1_PER_PAGE if self.version == 1 else _V2_PER_PAGE)

    def entry(self, ref: int) -> memoryview:
        """The bytes of a shared entry."""
        size = grant_entry_v1.size if self.version == 1 else grant_entry_v2.size
        frame, slot = divmod(ref * size, PAGE_SIZE)
        return self.domain.mem.frame(self.shared[frame])[slot : slot + size]

    def status_word(self, ref: int) -> memoryview:
        """Where GTF_reading and GTF_writing of an entry stand: its own flags, or its status entry."""
        if self.version == 1:
            return self.entry(ref)[: grant_status.size]
        frame, slot = divmod(ref * grant_status.size, PAGE_SIZE)
        return self.domain.mem.frame(self.status[frame])[slot : slot + grant_status.size]

    def frame_of(self, ref: int) -> int:
        """The frame that a shared entry names."""
        layout = grant_entry_v1 if self.version == 1 else grant_entry_v2
        return int(layout.unpack(self.entry(ref))[-1])

    def preset(self, ref: int, domid: int, mfn: int) -> None:
        """xc_dom_set_gnttab_entry(): grant `mfn` to `domid` for the guest, before it runs."""
        grant_entry_v1.pack_into(self.entry(ref), 0, GTF_permit_access, domid, mfn)

    def set_status(self, ref: int, ldomid: int, *, readonly: bool, mapping: bool) -> int:
        """_set_status(): mark an entry as being read or written: GNTST_okay or GNTST_general_error."""
        flags, domid = grant_entry_v1.unpack_from(self.entry(ref))[:2]
        if ref not in self.active:
            kind = flags & (GTF_type_mask | (GTF_sub_page if mapping else 0))
            usable = kind == GTF_permit_access or (
                self.version == 2 and not mapping and kind == GTF_transitive
            )
            if not usable or domid != ldomid:
                return GNTST_general_error
        status = self.status_word(ref)
        if not readonly and flags & GTF_readonly:
            return GNTST_general_error
        mark = GTF_reading if readonly else GTF_reading | GTF_writing
        grant_status.pack_into(status, 0, grant_status.unpack(status)[0] | mark)
        return GNTST_okay

    def reduce_status_for_pin(self, ref: int, readonly: bool) -> None:
        """Clear the marks that no pin justifies any more, and forget an entry that nobody pins."""
        act = self.active.get(ref)
        pin = act.pin if act else 0
        clear = 0 if pin else GTF_reading
        if not readonly and not pin & GNTPIN_write_mask:
            clear |= GTF_writing
        if clear:
            status = self.status_word(ref)
            grant_status.pack_into(status, 0, grant_status.unpack(status)[0] & ~clear)
        if not pin:
            self.active.pop(ref, None)

    def may_pin(self, ref: int, ldom: int, increment: int) -> bool:
        """Domain `ldom` may add a pin of this kind: nobody else holds the entry, and no counter overflows."""
        act = self.active.get(ref)
        if act is None:
            return True
        return act.domid == ldom and not act.pin & increment << _OVERFLOW_SHIFT

    # --- handles ------------------------------------------------------------------------------------------

    def get_handle(self) -> int:
        """A free mapping handle, or -1. As in Xen one always stays behind in the free list."""
        free = self._free_handles
        if len(free) <= 1:
            if self.maptrack_limit >= MAX_MAPTRACK_FRAMES * MAPTRACK_PER_PAGE:
                return -1
            new = self.maptrack_limit
            self.maptrack_limit += MAPTRACK_PER_PAGE
            free.extendleft(range(new + MAPTRACK_PER_PAGE - 1, new - 1, -1))
        return free.popleft()

    def put_handle(self, handle: int) -> None:
        """Give a handle back."""
        self.maptrack.pop(handle, None)
        self._free_handles.append(handle)

    def held_frames(self) -> Iterator[tuple[int, bool]]:
        """(frame, writable) of each reference that no page-table entry holds, but a device mapping."""
        for mapping in self.maptrack.values():
            if mapping.flags & GNTMAP_device_map:
                yield mapping.mfn, not mapping.flags & GNTMAP_readonly

    # --- versions -----------------------------------------------------------------------------------------

    def set_version(self, version: int) -> int:
        """Change to version 1 or 2: all entries but the reserved ones are cleared. 0 or -errno."""
        if any(ref >= GNTTAB_NR_RESERVED_ENTRIES for ref in self.active):
            return -EBUSY
        if version == 2:
            rc = self.populate_status_frames()
            reserved = [self._as_v1(ref) for ref in range(GNTTAB_NR_RESERVED_ENTRIES)]
        else:
            if not all(self._is_v1(ref) for ref in range(GNTTAB_NR_RESERVED_ENTRIES)):
                return -ERANGE
            reserved = [self._as_v1(ref) for ref in range(GNTTAB_NR_RESERVED_ENTRIES)]
            rc = self._unpopulate_status_frames()
        if rc:
            return rc
        for mfn in self.shared:
            self.domain.mem.frame(mfn)[:] = bytes(PAGE_SIZE)
        self.version = version
        for ref, (flags, domid, frame) in enumerate(reserved):
            if version == 1:
                grant_entry_v1.pack_into(self.entry(ref), 0, flags, domid, frame)
            else:
                marks = flags & (GTF_reading | GTF_writing)
                grant_status.pack_into(self.status_word(ref), 0, marks)
                grant_entry_v2.pack_into(self.entry(ref), 0, flags & ~marks, domid, 0, 0, frame)
        return 0

    def _is_v1(self, ref: int) -> bool:
        """A version 2 entry that version 1 can express."""
        flags, _, _, _, frame = grant_entry_v2.unpack(self.entry(ref))
        kind = flags & GTF_type_mask
        return not (kind == GTF_transitive or (kind == GTF_permit_access and frame >> 32))

    def _as_v1(self, ref: int) -> tuple[int, int, int]:
        """(flags, domid, frame) of an entry; nothing but access grants survives from version 2."""
        if self.version == 1:
            flags, domid, frame = grant_entry_v1.unpack(self.entry(ref))
            return flags, domid, frame
        flags, domid, _, _, frame = grant_entry_v2.unpack(self.entry(ref))
        if flags & GTF_type_mask != GTF_permit_access:
            return 0, 0, 0
        return flags | grant_status.unpack(self.status_word(ref))[0], domid, frame & 0xFFFFFFFF
