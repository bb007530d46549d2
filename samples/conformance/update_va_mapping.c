/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "update_va_mapping: one leaf entry, and what is flushed";

static void store(void *address)
{
    *(volatile u8 *)address = 1;
}

void conform(void)
{
    u8 *page = alloc_page(), *other = alloc_page();
    pte_t old = *pte_of(page, 1);
    pte_t elsewhere = virt_to_machine(other) | PTE_PRESENT | PTE_RW;

    other[0] = 7;
    EXPECT_EQUAL(page[0], 0); /* now it is in the TLB */
    EXPECT_OK(set_va(page, elsewhere, UVMF_INVLPG));
    EXPECT_EQUAL(page[0], 7);
    EXPECT_OK(set_va(page, old, UVMF_TLB_FLUSH));
    EXPECT_EQUAL(page[0], 0);
    EXPECT_OK(set_va(page, elsewhere, UVMF_TLB_FLUSH | UVMF_ALL));
    EXPECT_EQUAL(page[0], 7);
    EXPECT_OK(set_va(page, old, UVMF_INVLPG | UVMF_ALL));
    EXPECT_OK(set_va(page, 0, UVMF_INVLPG));
    EXPECT_TRAP(store, page, TRAP_PF, 2);
    EXPECT_OK(set_va(page, old & ~PTE_RW, UVMF_INVLPG));
    EXPECT_TRAP(store, page, TRAP_PF, 3);
    EXPECT_OK(set_va(page, old, UVMF_INVLPG));
    EXPECT_NO_TRAP(store, page);
    EXPECT_EQUAL(*pte_of(page, 1) & PTE_DIRTY, PTE_DIRTY);

    /* An address without a leaf table, and what mmu_update refuses too. */
    EXPECT_REFUSED(set_va((void *)0x10000000, old, UVMF_NONE), EINVAL);
    EXPECT_REFUSED(set_va(page, virt_to_machine((void *)start_info->pt_base) | PTE_PRESENT | PTE_RW, 0), EBUSY);
    EXPECT_REFUSED(set_va(page, 0x000ffffffffff000ull | PTE_PRESENT, 0), EINVAL);
    EXPECT_EQUAL(page[0], 1);
}
