"""A suspended guest's own table of which machine frame each of its pages is in, as Xen's tools find it.

shared_info says where it is: as a list by page tables (p2m_cr3, p2m_vaddr) or as a tree of frames.
Source: map_p2m(), map_p2m_tree() and map_p2m_list() of tools/libs/guest/xg_sr_save_x86_pv.c.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, NamedTuple

from domainbuilder.errors import SavedError
from domainbuilder.saved.stream_format import INVALID_MFN, MFN_MASK
from hvcore.public.vcpu_guest_context import xen_cr3_to_pfn
from hvcore.public.xen import PAGE_SIZE

if TYPE_CHECKING:
    from hvcore.machine import Machine

_MOST_PFNS = 1 << 24
_HYPERVISOR = {4: (0xF5800000, 1 << 32), 8: (0xFFFF800000000000, 0xFFFF880000000000)}


class P2m(NamedTuple):
    """`mfns` by pfn, INVALID_MFN where there is none; `frames`: the pfns of the frames that hold the list."""

    mfns: array[int]
    frames: array[int]


def guest_p2m(machine: Machine) -> P2m:
    """The list of the domain of `machine`, and where it is kept. Raises SavedError in libxc's words."""
    return _Finder(machine).find()


def check_has_p2m(machine: Machine) -> None:
    """Raise SavedError where the guest has told nobody of a list, before it is asked to suspend in vain.

    libxc looks there first, too: x86_pv_setup() in tools/libs/guest/xg_sr_save_x86_pv.c.
    """
    _Finder(machine).check()


class _Finder:
    def __init__(self, machine: Machine) -> None:
        self.d = d = machine.domain
        self.mem = machine.mem
        self.abi, self.word = d.abi, d.abi.word
        self.per_page = PAGE_SIZE // self.word
        self.m2p = self.mem.m2p[d.abi.m2p_entry].words

    def _arch(self, index: int) -> int:
        """A word of shared_info.arch: max_pfn, frame_list_list, nmi_reason, p2m_cr3, p2m_vaddr."""
        at = self.abi.arch_shared_info + index * self.word
        return int.from_bytes(self.d.shared_info[at : at + self.word], "little")

    def check(self) -> None:
        if not self._arch(1) and not self._arch(3):
            raise SavedError(
                "Bad mfn 0 for p2m frame list list: the guest tells nobody where its p2m list is, "
                "so xl cannot save it either; it can be saved as it stands, in the frozen form"
            )

    def find(self) -> P2m:
        self.check()
        nr_pfns, top, cr3, vaddr = self._arch(0), self._arch(1), self._arch(3), self._arch(4)
        if not 0 < nr_pfns <= _MOST_PFNS:
            raise SavedError("max_pfn cannot be: the guest has no p2m list to be saved by", found=nr_pfns)
        leaves = -(-nr_pfns // self.per_page)
        found = self._list(cr3, vaddr, leaves) if cr3 else self._tree(top, leaves)
        words = array("Q" if self.word == 8 else "I")
        for mfn in found:
            words.frombytes(bytes(self._frame(mfn, "p2m_frame_list")))
        mfns = array("Q", words[:nr_pfns])
        if self.word == 4:
            mfns = array("Q", (INVALID_MFN if mfn == 0xFFFFFFFF else mfn for mfn in mfns))
        pfns = array("Q")
        for index, mfn in enumerate(found):
            pfn = self.m2p[mfn]
            if pfn >= nr_pfns or mfns[pfn] != mfn:
                raise SavedError(f"Bad mfn in p2m_frame_list[{index}]", found=mfn)
            pfns.append(pfn)
        return P2m(mfns, pfns)

    def _frame(self, mfn: int, what: str) -> memoryview:
        frames = self.d.frames
        if (
            not 0 <= mfn - frames.base_mfn < frames.nr
            or frames.owner[mfn - frames.base_mfn] != self.d.domain_id
        ):
            raise SavedError(f"Bad mfn {mfn:#x} for {what}", expected="a frame of the guest's")
        return self.mem.frame(mfn)

    def _words(self, mfn: int, what: str) -> memoryview:
        return self._frame(mfn, what).cast("Q" if self.word == 8 else "I")

    def _tree(self, top: int, leaves: int) -> list[int]:
        """The frames of the list, by a frame that names frames that name them."""
        lists = -(-leaves // self.per_page)
        if lists > self.per_page:
            raise SavedError("max_pfn is too large for a p2m tree", found=leaves * self.per_page)
        names = self._words(top, "p2m frame list list")
        found: list[int] = []
        for mfn in names[:lists].tolist():
            found += self._words(mfn, "p2m frame list")[: leaves - len(found)].tolist()
        return found

    def _list(self, cr3: int, vaddr: int, leaves: int) -> list[int]:
        """The frames of the list, by the page tables that map it."""
        end = vaddr + leaves * PAGE_SIZE - 1
        low, high = _HYPERVISOR[self.word]
        if end > self.abi.word_mask or (vaddr < high and end >= low) or vaddr % PAGE_SIZE:
            raise SavedError("Bad virtual p2m address range", found=f"{vaddr:#x}-{end:#x}")
        root = xen_cr3_to_pfn(cr3, self.word)
        tables: dict[tuple[int, int], list[int]] = {}
        return [self._walk(root, vaddr + i * PAGE_SIZE, tables) for i in range(leaves)]

    def _walk(self, root: int, va: int, tables: dict[tuple[int, int], list[int]]) -> int:
        mfn = root
        for level in range(self.abi.pt_levels, 0, -1):
            shift = 3 + 9 * level
            if (level, va >> shift + 9) not in tables:
                tables[level, va >> shift + 9] = (
                    self._frame(mfn, "a page table of the p2m list").cast("Q").tolist()
                )
            entry = tables[level, va >> shift + 9][va >> shift & 511]
            if not entry & 1:
                raise SavedError(
                    f"Bad mfn during page table walk for vaddr {va:#x} at level {level} of p2m list"
                )
            mfn = entry >> 12 & MFN_MASK
        return mfn
