/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "What is Xen's stays Xen's: its memory, its tables, and the reverse frame table";

static volatile ulong sink;

static void read_from(void *address)
{
    sink = *(volatile ulong *)address;
}

static void write_to(void *address)
{
    *(volatile ulong *)address = 0;
}

void conform(void)
{
    struct xen_machphys_mapping mapping;
    EXPECT_OK(HYPERCALL2(memory_op, XENMEM_machphys_mapping, &mapping));
    ulong *entry = (ulong *)mapping.v_start + virt_to_mfn((void *)start_info);

    EXPECT_NO_TRAP(read_from, entry);
    EXPECT_EQUAL(*entry, ((ulong)start_info - VIRT_BASE) >> PAGE_SHIFT);
    EXPECT_TRAP(write_to, entry, TRAP_PF, 3);

    /* Hypercalls do not write there either: a handle that points into Xen is a bad address. */
    EXPECT_REFUSED(HYPERCALL2(xen_version, XENVER_capabilities, mapping.v_end - 4096), EFAULT);
    EXPECT_REFUSED(HYPERCALL2(memory_op, XENMEM_machphys_mapping, entry), EFAULT);
    EXPECT_REFUSED(set_va(entry, 0, UVMF_INVLPG), EINVAL);
    /* Page-table pages can be read, and are what the guest's own entries say. */
    EXPECT_NO_TRAP(read_from, start_info->pt_base);
    EXPECT_TRAP(write_to, start_info->pt_base, TRAP_PF, 3);
    /* Elsewhere above: a page fault, whatever Xen has there. */
#ifdef __x86_64__
    void *hidden = (void *)0xffff830000000000ul;
#else
    void *hidden = (void *)0xfffff000ul;
#endif
    EXPECT_EQUAL(probe(read_from, hidden).vector, TRAP_PF);
    EXPECT_EQUAL(probe(write_to, hidden).vector, TRAP_PF);
}
