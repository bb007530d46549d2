/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Flushes: by vCPU bitmap, of what changed, and only where the caller may";

static pte_t *entry;
static u8 *page, *other;
static pte_t own, elsewhere;

/* What the CPU sees after a flush is the table as it is. */
static void sees(u8 expected)
{
    EXPECT_EQUAL(*(volatile u8 *)page, expected);
}

static void moved(pte_t value)
{
    EXPECT_OK(mmu_update_one(entry, value, 0));
}

void conform(void)
{
    ulong masks[3] = { 1, 0, 0 }, both[2] = { 3, 0 }, beyond[2] = { ~0ul, ~0ul }, none[2] = { 0, 0 };
    page = alloc_page();
    other = alloc_page();
    page[0] = 1;
    other[0] = 2;
    entry = pte_of(page, 1);
    own = *entry;
    elsewhere = virt_to_machine(other) | PTE_PRESENT | PTE_RW;

    sees(1);
    moved(elsewhere);
    EXPECT_OK(mmuext(MMUEXT_TLB_FLUSH_MULTI, 0, (ulong)masks));
    sees(2);
    moved(own);
    EXPECT_OK(mmuext(MMUEXT_INVLPG_MULTI, (ulong)page, (ulong)masks));
    sees(1);
    moved(elsewhere);
    EXPECT_OK(mmuext(MMUEXT_TLB_FLUSH_MULTI, 0, (ulong)both));
    sees(2);
    moved(own);
    EXPECT_OK(mmuext(MMUEXT_INVLPG_MULTI, (ulong)page, (ulong)beyond)); /* vCPUs that are none are passed over */
    sees(1);
    moved(elsewhere);
    EXPECT_OK(mmuext(MMUEXT_TLB_FLUSH_ALL, 0, 0));
    sees(2);
    moved(own);
    EXPECT_OK(mmuext(MMUEXT_INVLPG_ALL, (ulong)page, 0));
    sees(1);
    EXPECT_OK(mmuext(MMUEXT_TLB_FLUSH_MULTI, 0, (ulong)none));
    /* By update_va_mapping: all, by bitmap in the flags' upper bits. */
    EXPECT_OK(set_va(page, elsewhere, (ulong)masks | UVMF_TLB_FLUSH));
    sees(2);
    EXPECT_OK(set_va(page, own, (ulong)masks | UVMF_INVLPG));
    sees(1);

    /* A bitmap that cannot be read: the flush is refused, the mapping of update_va_mapping stands. */
    EXPECT_REFUSED(mmuext(MMUEXT_TLB_FLUSH_MULTI, 0, 16), EINVAL);
    EXPECT_REFUSED(mmuext(MMUEXT_INVLPG_MULTI, (ulong)page, 16), EINVAL);
    EXPECT_REFUSED(mmuext(MMUEXT_TLB_FLUSH_MULTI, 0, 0), EINVAL);
    EXPECT_REFUSED(set_va(page, elsewhere, 0x2000 | UVMF_TLB_FLUSH), EFAULT);
    EXPECT_EQUAL(PTE_MFN(*entry), PTE_MFN(elsewhere));
    moved(own);
    EXPECT_OK(mmuext(MMUEXT_TLB_FLUSH_LOCAL, 0, 0));
    sees(1);

    /* Foreign domains are not flushed from here (get_pg_owner). */
    struct mmuext_op op = { MMUEXT_TLB_FLUSH_ALL, 0, 0 };
    EXPECT_REFUSED(HYPERCALL4(mmuext_op, &op, 1, 0, 0x1234), ESRCH);
    if (!(start_info->flags & SIF_INITDOMAIN)) {
        /* Caches are for those with devices (cache_flush_permitted). */
        EXPECT_REFUSED(mmuext(MMUEXT_FLUSH_CACHE, 0, 0), EACCES);
        EXPECT_REFUSED(mmuext(MMUEXT_FLUSH_CACHE_GLOBAL, 0, 0), EINVAL);
        EXPECT_REFUSED(HYPERCALL4(mmuext_op, &op, 1, 0, DOMID_IO), EPERM);
    }
}
