/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "memory_op: giving pages back, getting pages, and what a guest may ask";

static ulong frames[4];

static struct xen_memory_reservation reservation(ulong count)
{
    return (struct xen_memory_reservation){ frames, count, 0, 0, DOMID_SELF };
}

void conform(void)
{
    u16 self = DOMID_SELF, other = 0x1234;
    long before = HYPERCALL2(memory_op, XENMEM_current_reservation, &self);
    u8 *page = alloc_page();
    ulong pfn = ((ulong)page - VIRT_BASE) >> PAGE_SHIFT;
    struct xen_memory_reservation ask;

    EXPECT(before > 0);
    EXPECT(HYPERCALL2(memory_op, XENMEM_maximum_reservation, &self) >= before);
    EXPECT(HYPERCALL2(memory_op, XENMEM_maximum_ram_page, 0) > 0);
    EXPECT_REFUSED(HYPERCALL2(memory_op, XENMEM_current_reservation, &other), ESRCH);

    /* decrease: a frame that is still mapped is given up only when its last mapping goes. */
    frames[0] = pfn_to_mfn(pfn);
    pte_t old = *pte_of(page, 1);
    EXPECT_OK(set_va(page, 0, UVMF_INVLPG));
    ask = reservation(1);
    EXPECT_RC(HYPERCALL2(memory_op, XENMEM_decrease_reservation, &ask), 1);
    EXPECT_RC(HYPERCALL2(memory_op, XENMEM_current_reservation, &self), before - 1);
    EXPECT_REFUSED(set_va(page, old, UVMF_INVLPG), EBUSY); /* no longer ours (get_page_from_l1e) */

    /* populate: the pfn goes in, the mfn comes out, and the reverse table knows it. */
    frames[0] = pfn;
    ask = reservation(1);
    EXPECT_RC(HYPERCALL2(memory_op, XENMEM_populate_physmap, &ask), 1);
    EXPECT_EQUAL(mfn_to_pfn(frames[0]), pfn);
    EXPECT_OK(set_va(page, ((u64)frames[0] << PAGE_SHIFT) | PTE_PRESENT | PTE_RW, UVMF_INVLPG));
    page[0] = 1;
    EXPECT_EQUAL(page[0], 1);
    EXPECT_RC(HYPERCALL2(memory_op, XENMEM_current_reservation, &self), before);

    struct xen_machphys_mapping mapping;
    EXPECT_OK(HYPERCALL2(memory_op, XENMEM_machphys_mapping, &mapping));
    EXPECT(mapping.v_start < mapping.v_end);
    EXPECT_REFUSED(HYPERCALL2(memory_op, XENMEM_machphys_mapping, 16), EFAULT);

    ask = reservation(1);
    ask.domid = other;
    EXPECT_REFUSED(HYPERCALL2(memory_op, XENMEM_populate_physmap, &ask), 0);
    frames[0] = 0xfffffff;
    ask = reservation(1);
    EXPECT_REFUSED(HYPERCALL2(memory_op, XENMEM_decrease_reservation, &ask), 0); /* none done */
    /* A reservation that cannot be read is none done as well (do_memory_op). */
    EXPECT_REFUSED(HYPERCALL2(memory_op, XENMEM_populate_physmap, 16), 0);
    EXPECT_REFUSED(HYPERCALL2(memory_op, 63, &ask), ENOSYS);
}
