/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Tables above the leaf: hooking in, writable linear maps and large pages refused, a second base";

static u8 *const fresh = (u8 *)(VIRT_BASE + 0x10000000ul);

static void hook_in_a_leaf_table(void)
{
    pte_t *table = alloc_page(), *above = pte_of(fresh, 2);
    u8 *page = alloc_page();
    pte_t flags = PTE_PRESENT | PTE_RW | PTE_USER | PTE_ACCESSED;

    page[9] = 99;
    table[0] = virt_to_machine(page) | PTE_PRESENT | PTE_RW;
    EXPECT_REFUSED(mmu_update_one(above, virt_to_machine(table) | flags, 0), EINVAL); /* still writable */
    EXPECT_OK(make_readonly(table));
    EXPECT_OK(mmu_update_one(above, virt_to_machine(table) | flags, 0));
    EXPECT_EQUAL(fresh[9], 99);
    EXPECT_OK(set_va(fresh, 0, UVMF_INVLPG));
    EXPECT_OK(mmu_update_one(above, 0, 0));
    EXPECT_OK(make_writable(table)); /* unhooked, it is plain memory again */
}

static void refused_in_an_l2(void)
{
    pte_t *above = pte_of(fresh, 2);
    u8 *page = alloc_page();
    /* A large page (L2_DISALLOW_MASK has _PAGE_PSE for PV guests), reserved bits. */
    EXPECT_REFUSED(mmu_update_one(above, virt_to_machine(page) | PTE_PRESENT | PTE_RW | PTE_PSE, 0), EINVAL);
    EXPECT_REFUSED(mmu_update_one(above, virt_to_machine(page) | PTE_PRESENT | PTE_GLOBAL, 0), EINVAL);
    EXPECT_REFUSED(mmu_update_one(above, 0x000ffffffffff000ull | PTE_PRESENT, 0), EINVAL);
    /* A linear map: an L2 that points at itself (CONFIG_PV_LINEAR_PT, read-only at best). */
    EXPECT_REFUSED(mmu_update_one(above, virt_to_machine(above) | PTE_PRESENT | PTE_RW, 0), EINVAL);
}

static void a_second_base(void)
{
    pte_t *base = alloc_page(), *current = (pte_t *)start_info->pt_base;
#ifdef __x86_64__
    base[511] = current[511];
#else
    base[3] = current[3];
#endif
    ulong mfn = virt_to_mfn(base), old = virt_to_mfn(current);
    EXPECT_REFUSED(mmuext(MMUEXT_NEW_BASEPTR, mfn, 0), EINVAL); /* still writable */
    EXPECT_OK(make_readonly(base));
#ifdef __x86_64__
    EXPECT_OK(mmuext(MMUEXT_PIN_L4_TABLE, mfn, 0));
    EXPECT_OK(mmuext(MMUEXT_NEW_BASEPTR, mfn, 0));
    EXPECT_OK(mmuext(MMUEXT_NEW_BASEPTR, old, 0));
    EXPECT_OK(mmuext(MMUEXT_UNPIN_TABLE, mfn, 0));
#else
    /* The top L2 of a PAE guest belongs to one L3: Xen's own entries are in it (promote_l3_table). */
    EXPECT_REFUSED(mmuext(MMUEXT_PIN_L3_TABLE, mfn, 0), EINVAL);
    EXPECT_OK(mmuext(MMUEXT_NEW_BASEPTR, old, 0));
#endif
    EXPECT_REFUSED(mmuext(MMUEXT_NEW_BASEPTR, virt_to_mfn(pte_of(fresh, 2)), 0), EINVAL);
    EXPECT_REFUSED(mmuext(MMUEXT_NEW_BASEPTR, 0xfffffff, 0), EINVAL);
}

void conform(void)
{
    hook_in_a_leaf_table();
    refused_in_an_l2();
    a_second_base();
}
