/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Pinning: a page becomes a page table only when its contents and mappings allow";

static void store(void *address)
{
    *(volatile u64 *)address = 0;
}

void conform(void)
{
    pte_t *table = alloc_page();
    u8 *page = alloc_page();
    ulong mfn = virt_to_mfn(table);

    /* While a writable mapping is left, it cannot be one (_get_page_type). */
    EXPECT_REFUSED(mmuext(MMUEXT_PIN_L1_TABLE, mfn, 0), EINVAL);
    EXPECT_OK(make_readonly(table));
    EXPECT_OK(mmuext(MMUEXT_PIN_L1_TABLE, mfn, 0));
    EXPECT_REFUSED(mmuext(MMUEXT_PIN_L1_TABLE, mfn, 0), EINVAL); /* already pinned */
    EXPECT_REFUSED(make_writable(table), EBUSY);
    EXPECT_REFUSED(mmuext(MMUEXT_PIN_L2_TABLE, mfn, 0), EINVAL); /* another type while it is L1 */

    /* It is a live table: entries go through Xen. */
    EXPECT_OK(mmu_update_one(table + 3, virt_to_machine(page) | PTE_PRESENT | PTE_RW, 0));
    EXPECT_EQUAL(PTE_MFN(table[3]), virt_to_mfn(page));
    EXPECT_REFUSED(mmu_update_one(table + 4, virt_to_machine(table) | PTE_PRESENT | PTE_RW, 0), EBUSY);
    EXPECT_TRAP(store, start_info->pt_base, TRAP_PF, 3);

    /* What it maps writable cannot become a table meanwhile. */
    EXPECT_OK(make_readonly(page));
    EXPECT_REFUSED(mmuext(MMUEXT_PIN_L1_TABLE, virt_to_mfn(page), 0), EINVAL);
    EXPECT_OK(mmu_update_one(table + 3, 0, 0));
    EXPECT_OK(mmuext(MMUEXT_PIN_L1_TABLE, virt_to_mfn(page), 0));
    EXPECT_OK(mmuext(MMUEXT_UNPIN_TABLE, virt_to_mfn(page), 0));
    EXPECT_OK(make_writable(page));

    EXPECT_OK(mmuext(MMUEXT_UNPIN_TABLE, mfn, 0));
    EXPECT_REFUSED(mmuext(MMUEXT_UNPIN_TABLE, mfn, 0), EINVAL);
    EXPECT_OK(make_writable(table));
    EXPECT_NO_TRAP(store, table);

    /* Contents that no table may have: a table of its own, writable; a frame beyond memory. */
    table[7] = virt_to_machine(table) | PTE_PRESENT | PTE_RW;
    EXPECT_OK(make_readonly(table));
    EXPECT_REFUSED(mmuext(MMUEXT_PIN_L1_TABLE, mfn, 0), EBUSY);
    EXPECT_OK(make_writable(table));
    table[7] = 0x000ffffffffff000ull | PTE_PRESENT;
    EXPECT_OK(make_readonly(table));
    EXPECT_REFUSED(mmuext(MMUEXT_PIN_L1_TABLE, mfn, 0), EINVAL);
    EXPECT_OK(make_writable(table));

    EXPECT_REFUSED(mmuext(MMUEXT_PIN_L1_TABLE, 0xfffffff, 0), EINVAL);
    EXPECT_REFUSED(mmuext(MMUEXT_UNPIN_TABLE, virt_to_mfn(page), 0), EINVAL);
}
