/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "multicall: results in place, one entry's failure is its own";

#define ENTRY(name, ...) { HYPERCALL_##name, 0x5a5a, { __VA_ARGS__ } }

void conform(void)
{
    u8 *page = alloc_page();
    pte_t old = *pte_of(page, 1);
    struct multicall_entry calls[] = {
        ENTRY(xen_version, XENVER_version, 0),
        ENTRY(xen_version, 99, 0),
        ENTRY(fpu_taskswitch, 0),
        { 4711, 0, { 0 } },
#ifdef __x86_64__
        ENTRY(update_va_mapping, (ulong)page, old & ~PTE_RW, UVMF_INVLPG),
        ENTRY(update_va_mapping, (ulong)page, old, UVMF_INVLPG),
#else
        ENTRY(update_va_mapping, (ulong)page, (ulong)(old & ~PTE_RW), (ulong)((u64)old >> 32), UVMF_INVLPG),
        ENTRY(update_va_mapping, (ulong)page, (ulong)old, (ulong)((u64)old >> 32), UVMF_INVLPG),
#endif
        ENTRY(xen_version, XENVER_get_features, 16),
        ENTRY(xen_version, XENVER_pagesize, 0),
    };
    EXPECT_OK(HYPERCALL2(multicall, calls, ARRAY_SIZE(calls)));
    EXPECT_EQUAL(calls[0].result, 4 << 16 | 17);
    EXPECT_EQUAL(calls[1].result, -ENOSYS);
    EXPECT_EQUAL(calls[2].result, 0);
    EXPECT_EQUAL(calls[3].result, -ENOSYS);
    EXPECT_EQUAL(calls[4].result, 0);
    EXPECT_EQUAL(calls[5].result, 0);
    EXPECT_EQUAL(calls[6].result, -EFAULT);
    EXPECT_EQUAL(calls[7].result, 4096);
    page[0] = 1; /* writable again */
    EXPECT_EQUAL(page[0], 1);

    struct multicall_entry nested[] = { ENTRY(multicall, (ulong)calls, 1) };
    EXPECT_OK(HYPERCALL2(multicall, nested, 1));
    EXPECT_EQUAL(nested[0].result, -EINVAL); /* do_multicall */
    EXPECT_OK(HYPERCALL2(multicall, calls, 0));
    EXPECT_REFUSED(HYPERCALL2(multicall, 16, 1), EFAULT);
}
