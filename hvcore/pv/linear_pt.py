"""Linear page tables: entries that name a table of their own level, so that a guest reads its tables mapped.

A table may name itself, and another of its level that is validated already. The entry must be read-only, or
the guest could write its own entries; and of tables that name others none is named by another (XSA-240), or
taking a chain of them down would not end. `linear_pt_count` says of each table which of the two it is. A
table that names itself holds no reference: it would never go away.
Source: define_get_linear_pagetable() and _put_page_type() in xen/arch/x86/mm.c of Xen 4.17.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.page_info import PGT_validated
from hvcore.refusal import Reason
from hvcore.x86 import PAGE_RW

if TYPE_CHECKING:
    from hvcore.pv.page_types import PageTypes

_MOST_USES = 1 << 15  # of one table, by all others


def get_linear_pagetable(mm: PageTypes, entry: int, mfn: int, pg: int, level: int) -> bool:
    """get_l2_linear_pagetable() .. l4: whether `entry` of the table `pg` may name `mfn`, of the same level.

    If so, the use of that table is counted. The caller has tried to use it as a table of the level below, and
    it is that refusal which counts where `mfn` is no table of this level at all.
    """
    target = mfn - mm.base
    if not 0 <= target < mm.nr or mm.ptype[target] != level:
        return False
    if entry & PAGE_RW:
        mm.refuse(Reason.LINEAR_WRITABLE)
        return False
    if target == pg:
        return True
    if not (mm.pflags[target] & PGT_validated and _one_more(mm, pg, target, level)):
        return False
    if not mm.get_page(mfn):
        return False
    mm.linear_pt_count[pg] += 1
    mm.linear_pt_count[target] -= 1
    mm.tcount[target] += 1
    return True


def _one_more(mm: PageTypes, pg: int, target: int, level: int) -> bool:
    """inc_linear_entries(), inc_linear_uses(): whether `pg` may have one more entry that names `target`."""
    entries, uses = mm.linear_pt_count[pg], mm.linear_pt_count[target]
    if entries < 0:
        mm.refuse(Reason.LINEAR_ENTRIES, level, pg + mm.base, -entries)
    elif uses > 0:
        mm.refuse(Reason.LINEAR_USES, level, target + mm.base, uses)
    elif uses == -_MOST_USES:
        mm.refuse(Reason.LINEAR_LIMIT, level, target + mm.base)
    else:
        return True
    return False


def put_linear_pagetable(mm: PageTypes, mfn: int, pg: int) -> None:
    """End the use that an entry of the table `pg` made of the table `mfn` of its level."""
    target = mfn - mm.base
    if target == pg:
        return
    mm.put_page_type(mfn)
    mm.linear_pt_count[target] += 1
    mm.linear_pt_count[pg] -= 1
    mm.put_page(mfn)
