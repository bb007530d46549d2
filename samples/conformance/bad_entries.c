/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Entries that no table may have: each table's own frames, each bit that is reserved, each level";

static u8 *page;

static void never_writable(const void *table)
{
    pte_t value = virt_to_machine(table) | PTE_PRESENT | PTE_RW;
    EXPECT_REFUSED(set_va(page, value, 0), EBUSY);
    EXPECT_REFUSED(mmu_update_one(pte_of(page, 1), value, 0), EBUSY);
    EXPECT_REFUSED(mmu_update_one(pte_of(page, 1), value, MMU_PT_UPDATE_PRESERVE_AD), EBUSY);
}

static void read_write(void *at)
{
    *(volatile u8 *)at = 0;
}

void conform(void)
{
    page = alloc_page();
    pte_t own = *pte_of(page, 1);
    ulong tables = start_info->pt_base, end = tables + start_info->nr_pt_frames * PAGE_SIZE;

    /* No frame of the builder's page tables is ever mapped writable, or stored to. */
    for (ulong table = tables; table < end; table += PAGE_SIZE) {
        never_writable((void *)table);
        if (!(start_info->flags & SIF_INITDOMAIN)) /* dom0's are emulated, see ptwr */
            EXPECT_TRAP(read_write, table, TRAP_PF, 3);
        EXPECT_REFUSED(mmuext(MMUEXT_CLEAR_PAGE, virt_to_mfn((void *)table), 0), EINVAL);
        EXPECT_REFUSED(mmuext(MMUEXT_COPY_PAGE, virt_to_mfn((void *)table), virt_to_mfn(page)), EINVAL);
    }
    /* Nothing else is made of them while they are in use. */
    ulong leaf = virt_to_mfn(pte_of(page, 1)), above = virt_to_mfn(pte_of(page, 2));
    EXPECT_REFUSED(mmuext(MMUEXT_PIN_L2_TABLE, leaf, 0), EINVAL);
    EXPECT_REFUSED(mmuext(MMUEXT_PIN_L3_TABLE, leaf, 0), EINVAL);
    EXPECT_REFUSED(mmuext(MMUEXT_PIN_L1_TABLE, above, 0), EINVAL);
    EXPECT_REFUSED(mmuext(MMUEXT_PIN_L3_TABLE, above, 0), EINVAL);
    EXPECT_REFUSED(mmuext(MMUEXT_NEW_BASEPTR, leaf, 0), EINVAL);
    EXPECT_REFUSED(mmuext(MMUEXT_NEW_BASEPTR, above, 0), EINVAL);
    EXPECT_REFUSED(HYPERCALL2(set_gdt, &leaf, 512), EINVAL);
    EXPECT_REFUSED(HYPERCALL2(set_gdt, &above, 512), EINVAL);
    EXPECT_REFUSED(mmuext(MMUEXT_UNPIN_TABLE, leaf, 0), EINVAL);
    EXPECT_REFUSED(mmuext(MMUEXT_UNPIN_TABLE, above, 0), EINVAL);

    /* Frames beyond memory, at every level; flags that an upper level may not have (L2_DISALLOW_MASK). */
    for (unsigned bit = 44; bit < 52; bit++) {
        EXPECT_REFUSED(set_va(page, 1ull << bit | PTE_PRESENT, 0), EPERM);
        EXPECT_REFUSED(mmu_update_one(pte_of(page, 1), 1ull << bit | PTE_PRESENT | PTE_RW, 0), EPERM);
        EXPECT_REFUSED(mmu_update_one(pte_of((void *)(VIRT_BASE + 0x10000000), 2), 1ull << bit | PTE_PRESENT, 0), EINVAL);
    }
    for (int level = 2; level <= PT_LEVELS; level++) {
        pte_t *entry = pte_of((void *)(VIRT_BASE + 0x10000000), level), was = *entry;
        pte_t frame = virt_to_machine(page) & ~(pte_t)(PAGE_SIZE - 1);
        EXPECT_REFUSED(mmu_update_one(entry, frame | PTE_PRESENT, 0), EINVAL); /* it is mapped writable */
        EXPECT_REFUSED(mmu_update_one(entry, frame | PTE_PRESENT | PTE_PSE, 0), EINVAL);
        EXPECT_REFUSED(mmu_update_one(entry, frame | PTE_PRESENT | PTE_GLOBAL, 0), EINVAL);
        EXPECT_EQUAL(*entry, was);
    }
    EXPECT_EQUAL(*pte_of(page, 1) & ~(PTE_ACCESSED | PTE_DIRTY), own & ~(PTE_ACCESSED | PTE_DIRTY));
}
