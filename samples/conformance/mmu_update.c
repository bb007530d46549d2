/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "mmu_update: entries change as asked, and only to what a guest may map";

static u8 *page, *other;
static pte_t *entry;

static long update(u64 ptr, u64 val)
{
    struct mmu_update request = { ptr, val };
    return HYPERCALL4(mmu_update, &request, 1, 0, DOMID_SELF);
}

void conform(void)
{
    page = alloc_page();
    other = alloc_page();
    entry = pte_of(page, 1);
    u64 at = virt_to_machine(entry);
    pte_t old = *entry, moved = virt_to_machine(other) | PTE_PRESENT | PTE_RW;

    other[5] = 0x5a;
    EXPECT_OK(update(at, moved));
    mmuext(MMUEXT_INVLPG_LOCAL, (ulong)page, 0);
    EXPECT_EQUAL(PTE_MFN(*entry), virt_to_mfn(other));
    EXPECT_EQUAL(page[5], 0x5a);
    EXPECT_OK(update(at, 0));
    EXPECT_EQUAL(*entry, 0);
    EXPECT_OK(update(at, old));

    /* Preserving accessed and dirty: they come from the entry, not from the request (update_intpte). */
    page[0] = 1;
    EXPECT_OK(update(at | MMU_PT_UPDATE_PRESERVE_AD, old & ~(PTE_ACCESSED | PTE_DIRTY)));
    EXPECT_EQUAL(*entry & (PTE_ACCESSED | PTE_DIRTY), PTE_ACCESSED | PTE_DIRTY);

    /* machphys: the reverse table says what the guest says of its own frames. */
    ulong mfn = virt_to_mfn(page), pfn = mfn_to_pfn(mfn);
    EXPECT_OK(update(((u64)mfn << PAGE_SHIFT) | MMU_MACHPHYS_UPDATE, 0x12345));
    EXPECT_EQUAL(mfn_to_pfn(mfn), 0x12345);
    EXPECT_OK(update(((u64)mfn << PAGE_SHIFT) | MMU_MACHPHYS_UPDATE, pfn));

    /* A count that is too long for what is done: `done` tells how far it came (do_mmu_update). */
    struct mmu_update pair[2] = { { at, old }, { at, 0x000ffffffffff000ull | PTE_PRESENT } };
    u32 done = 77;
    EXPECT_REFUSED(HYPERCALL4(mmu_update, pair, 2, &done, DOMID_SELF), EINVAL);
    EXPECT_EQUAL(done, 1);

    /* Refused: a frame beyond memory, a page table writable, reserved bits, frames that are not ours. */
    EXPECT_REFUSED(update(at, 0x000ffffffffff000ull | PTE_PRESENT), EINVAL);
    EXPECT_REFUSED(update(at, virt_to_machine((void *)start_info->pt_base) | PTE_PRESENT | PTE_RW), EBUSY);
    EXPECT_EQUAL(*entry & ~(PTE_ACCESSED | PTE_DIRTY), old & ~(PTE_ACCESSED | PTE_DIRTY));
    EXPECT_OK(update(at, virt_to_machine((void *)start_info->pt_base) | PTE_PRESENT));
    EXPECT_OK(update(at, old));
    EXPECT_OK(update(at, old | PTE_GLOBAL)); /* L1_DISALLOW_MASK lets it through in a leaf */
    EXPECT_OK(update(at, old));
    EXPECT_REFUSED(update(at, 0x00000ffffff00000ull | PTE_PRESENT), EPERM); /* I/O space: get_page_from_l1e */
    EXPECT_REFUSED(HYPERCALL4(mmu_update, pair, 1, 0, 0x1234), ESRCH);
    EXPECT_REFUSED(HYPERCALL4(mmu_update, 16, 1, 0, DOMID_SELF), EFAULT);
    EXPECT_OK(HYPERCALL4(mmu_update, 16, 0, 0, DOMID_SELF));
}
