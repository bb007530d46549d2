/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Two levels: L1 and L2 tables are pinned, hooked in, switched to and given back";

#define L2_ENTRIES 1024
#define FIRST_XEN_SLOT (0xfc000000ul >> 22)
#define TABLE_FLAGS (PTE_PRESENT | PTE_RW | PTE_USER | PTE_ACCESSED)

static u8 *const fresh = (u8 *)(VIRT_BASE + 0x10000000ul);

static void store(void *address)
{
    *(volatile u32 *)address = 0;
}

static void a_leaf_table(void)
{
    u32 *table = alloc_page();
    u8 *page = alloc_page();
    ulong mfn = virt_to_mfn(table);
    table[1023] = virt_to_machine(page) | PTE_PRESENT | PTE_RW;
    EXPECT_REFUSED(mmuext(MMUEXT_PIN_L1_TABLE, mfn, 0), EINVAL); /* still writable */
    EXPECT_OK(make_readonly(table));
    EXPECT_OK(mmuext(MMUEXT_PIN_L1_TABLE, mfn, 0));
    EXPECT_REFUSED(mmuext(MMUEXT_PIN_L1_TABLE, mfn, 0), EINVAL);
    EXPECT_REFUSED(mmuext(MMUEXT_PIN_L2_TABLE, mfn, 0), EINVAL);
    EXPECT_REFUSED(make_writable(table), EBUSY);
    EXPECT_REFUSED(mmu_update_one(table + 4, virt_to_machine(table) | PTE_PRESENT | PTE_RW, 0), EBUSY);
    EXPECT_TRAP(store, table, TRAP_PF, 3);
    EXPECT_OK(mmu_update_one(table + 1023, 0, 0));
    EXPECT_OK(mmuext(MMUEXT_UNPIN_TABLE, mfn, 0));
    EXPECT_OK(make_writable(table));
    EXPECT_NO_TRAP(store, table);
    /* What no table may hold: itself, writable; the last entry counts as the first does. */
    table[1023] = virt_to_machine(table) | PTE_PRESENT | PTE_RW;
    EXPECT_OK(make_readonly(table));
    EXPECT_REFUSED(mmuext(MMUEXT_PIN_L1_TABLE, mfn, 0), EBUSY);
    EXPECT_OK(make_writable(table));
    table[1023] = 0;
}

static void hooked_in(void)
{
    u32 *table = alloc_page(), *above = pte_of(fresh, 2);
    u8 *page = alloc_page();
    page[9] = 99;
    table[0] = virt_to_machine(page) | PTE_PRESENT | PTE_RW;
    EXPECT_OK(make_readonly(table));
    EXPECT_OK(mmu_update_one(above, virt_to_machine(table) | TABLE_FLAGS, 0));
    EXPECT_EQUAL(fresh[9], 99);
    EXPECT_OK(mmu_update_one(above + 1, virt_to_machine(table) | TABLE_FLAGS, 0)); /* twice */
    EXPECT_EQUAL(fresh[0x400000 + 9], 99);
    EXPECT_OK(mmu_update_one(above, 0, 0));
    EXPECT_REFUSED(make_writable(table), EBUSY);
    EXPECT_OK(mmu_update_one(above + 1, 0, 0));
    EXPECT_OK(make_writable(table));
}

static void refused_in_an_l2(void)
{
    u32 *above = pte_of(fresh, 2), *base = (u32 *)start_info->pt_base;
    u64 page = virt_to_machine(alloc_page());
    EXPECT_REFUSED(mmu_update_one(above, page | PTE_PRESENT | PTE_RW | PTE_PSE, 0), EINVAL); /* 4 MiB */
    EXPECT_REFUSED(mmu_update_one(above, page | PTE_PRESENT | PTE_GLOBAL, 0), EINVAL);
    EXPECT_REFUSED(mmu_update_one(above, virt_to_machine(base) | PTE_PRESENT | PTE_RW, 0), EINVAL); /* a writable linear map */
    EXPECT_REFUSED(mmu_update_one(above, 0xfffff000u | PTE_PRESENT, 0), EINVAL);
    for (ulong slot = FIRST_XEN_SLOT; slot < L2_ENTRIES; slot++)
        if (mmu_update_one(base + slot, 0, 0) != -EPERM)
            EXPECT_EQUAL(slot, L2_ENTRIES);
    EXPECT_REFUSED(mmu_update_one(base + FIRST_XEN_SLOT, page | TABLE_FLAGS, 0), EPERM);
    EXPECT_OK(mmu_update_one(base + FIRST_XEN_SLOT - 1, 0, 0));
}

static void another_base(void)
{
    u32 *base = alloc_page(), *current = (u32 *)start_info->pt_base;
    ulong mfn = virt_to_mfn(base), old = virt_to_mfn(current);
    memcpy(base, current, FIRST_XEN_SLOT * sizeof(u32)); /* no L2 but shares what is below it */
    base[FIRST_XEN_SLOT] = 0x12345000; /* whatever stands in Xen's slots, Xen overwrites it */
    EXPECT_REFUSED(mmuext(MMUEXT_NEW_BASEPTR, mfn, 0), EINVAL);
    EXPECT_OK(make_readonly(base));
    EXPECT_OK(mmuext(MMUEXT_PIN_L2_TABLE, mfn, 0));
    EXPECT_EQUAL(base[FIRST_XEN_SLOT], current[FIRST_XEN_SLOT]);
    EXPECT_OK(mmuext(MMUEXT_NEW_BASEPTR, mfn, 0));
    EXPECT_OK(mmuext(MMUEXT_UNPIN_TABLE, old, 0)); /* the first one is pinned, and now by nothing else held */
    EXPECT_OK(mmuext(MMUEXT_PIN_L2_TABLE, old, 0));
    EXPECT_OK(mmuext(MMUEXT_NEW_BASEPTR, old, 0));
    EXPECT_OK(mmuext(MMUEXT_UNPIN_TABLE, mfn, 0));
    EXPECT_OK(make_writable(base));
    EXPECT_REFUSED(mmuext(MMUEXT_NEW_BASEPTR, virt_to_mfn(pte_of(base, 1)), 0), EINVAL); /* an L1 */
    EXPECT_REFUSED(mmuext(MMUEXT_NEW_BASEPTR, 0xfffff, 0), EINVAL);
    EXPECT_REFUSED(mmuext(MMUEXT_NEW_USER_BASEPTR, old, 0), EINVAL);
    /* Levels that the guest does not have: pinning is ignored (do_mmuext_op). */
    EXPECT_OK(mmuext(MMUEXT_PIN_L3_TABLE, virt_to_mfn(base), 0));
    EXPECT_OK(mmuext(MMUEXT_PIN_L4_TABLE, virt_to_mfn(base), 0));
    EXPECT_NO_TRAP(store, base);
}

void conform(void)
{
    a_leaf_table();
    hooked_in();
    refused_in_an_l2();
    another_base();
}
