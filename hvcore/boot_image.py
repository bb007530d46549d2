"""What the hypervisor wants of whoever built a domain: its memory, and where in it is what Xen must know.

As in Xen a builder decides everything and the hypervisor checks it: Host.create() refuses page tables that
do not validate, a context that cannot be, event channels that are not the next free ones.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any, NamedTuple


class BuildInfo(NamedTuple):
    """What libxl_domain_build_info says of a domain beside its image.

    It may come to have `max_pages`, so many of its vCPUs are online when it begins, and `handle` is its UUID;
    None is for what the image has, all of them, and a UUID of the domain's number. It begins at `date_ns` of
    Unix time (None: WALLCLOCK_NS, and a second), which its clock shows `time_offset` seconds later.
    """

    max_pages: int | None = None
    avail_vcpus: int | None = None
    handle: bytes | None = None
    date_ns: int | None = None
    time_offset: int = 0


AS_BUILT = BuildInfo()
WALLCLOCK_NS = 1_184_716_062 * 10**9  # 2007-07-17, the day the founding commit was written


@dataclass(frozen=True, slots=True, eq=False)
class BootImage:
    """A domain that has not run. Frames are machine frames (mfn) except where it says pfn.

    `p2m` maps pseudo-physical to machine frames, all of them within `nr_pages` from `first_mfn` on; `ram` is
    the contents of these in machine order, of format "B". `context` is a packed `struct vcpu_guest_context`.
    """

    guest_type: str  # a name in hvcore.abi.ABIS
    nr_pages: int
    first_mfn: int
    p2m: array[int]
    ram: memoryview
    root_mfn: int  # of the top-level page table
    hypercall_page_mfn: int | None  # left for the hypervisor to fill
    shared_info_mfn: int  # one of Xen's own frames: the next of its heap
    shared_info: bytes
    context: bytes
    store_mfn: int
    store_evtchn: int
    console_mfn: int
    console_evtchn: int

    def places(self) -> dict[str, Any]:
        """Where everything is, without what is there: from_places() makes an image of it again."""
        return {name: getattr(self, name) for name in _PLACES}

    @classmethod
    def from_places(cls, places: dict[str, Any]) -> BootImage:
        """An image whose memory is there already."""
        empty: dict[str, Any] = {"p2m": array("Q"), "ram": memoryview(b""), "context": b""}
        return cls(**places, shared_info=bytes(4096), **empty)


_PLACES = (
    "guest_type", "nr_pages", "first_mfn", "root_mfn", "hypercall_page_mfn", "shared_info_mfn", "store_mfn",
    "store_evtchn", "console_mfn", "console_evtchn",
)  # fmt: skip
