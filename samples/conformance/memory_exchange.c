/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Memory exchanged, taken and given in extents: counts, partial results, and refusals";

static ulong in_frames[4], out_frames[4];
static struct xen_memory_exchange exchange;

static void prepare(ulong in, ulong out)
{
    exchange = (struct xen_memory_exchange){
        { in_frames, in, 0, 0, DOMID_SELF }, { out_frames, out, 0, 0, DOMID_SELF }, 0
    };
}

static long do_exchange(void)
{
    return HYPERCALL2(memory_op, XENMEM_exchange, &exchange);
}

static ulong pfn_of(const void *page)
{
    return ((ulong)page - VIRT_BASE) >> PAGE_SHIFT;
}

static long reserve(unsigned command, ulong *frames, ulong count, u32 order, u16 domid)
{
    struct xen_memory_reservation ask = { frames, count, order, 0, domid };
    return HYPERCALL2(memory_op, command, &ask);
}

static void exchanging(u8 *page)
{
    ulong pfn = pfn_of(page), old = virt_to_mfn(page);
    u16 self = DOMID_SELF;
    long before = HYPERCALL2(memory_op, XENMEM_current_reservation, &self);
    in_frames[0] = old;
    out_frames[0] = pfn;
    prepare(1, 1);
    EXPECT_REFUSED(do_exchange(), EINVAL); /* it is still mapped (steal_page) */
    EXPECT_EQUAL(exchange.nr_exchanged, 0);
    EXPECT_EQUAL(mfn_to_pfn(old), pfn);
    EXPECT_OK(set_va(page, 0, UVMF_INVLPG));
    EXPECT_OK(do_exchange());
    EXPECT_EQUAL(exchange.nr_exchanged, 1);
    EXPECT_EQUAL(mfn_to_pfn(out_frames[0]), pfn);
    EXPECT_OK(set_va(page, ((u64)out_frames[0] << PAGE_SHIFT) | PTE_PRESENT | PTE_RW, UVMF_INVLPG));
    page[0] = 1;
    EXPECT_RC(HYPERCALL2(memory_op, XENMEM_current_reservation, &self), before);

    /* memory_exchange: the sanity checks, in their order. */
    prepare(1, 2);
    EXPECT_REFUSED(do_exchange(), EINVAL);
    prepare(1, 1);
    exchange.nr_exchanged = 2;
    EXPECT_REFUSED(do_exchange(), EINVAL);
    prepare(1, 1);
    exchange.out.domid = 0x1234;
    EXPECT_REFUSED(do_exchange(), EINVAL);
    exchange.in.domid = 0x1234;
    EXPECT_REFUSED(do_exchange(), ESRCH);
    prepare(1, 1);
    exchange.in.extent_order = exchange.out.extent_order = 30;
    EXPECT_REFUSED(do_exchange(), EPERM);
    prepare(1, 1);
    exchange.nr_exchanged = 1;
    EXPECT_OK(do_exchange()); /* all done already */
    prepare(1, 1);
    in_frames[0] = 0xfffffff;
    EXPECT_REFUSED(do_exchange(), EINVAL);
    in_frames[0] = virt_to_mfn((void *)start_info->pt_base);
    EXPECT_REFUSED(do_exchange(), EINVAL); /* a page table */
    EXPECT_EQUAL(exchange.nr_exchanged, 0);
    EXPECT_REFUSED(HYPERCALL2(memory_op, XENMEM_exchange, 16), EFAULT);
}

static void in_extents(void)
{
    u8 *page = alloc_page(), *second = alloc_page();
    u16 self = DOMID_SELF;
    long before = HYPERCALL2(memory_op, XENMEM_current_reservation, &self);
    in_frames[0] = virt_to_mfn(page);
    in_frames[1] = 0xfffffff;
    in_frames[2] = virt_to_mfn(second);
    EXPECT_OK(set_va(page, 0, UVMF_INVLPG));
    EXPECT_OK(set_va(second, 0, UVMF_INVLPG));
    /* The first goes, the second is none: one extent is told (decrease_reservation). */
    EXPECT_RC(reserve(XENMEM_decrease_reservation, in_frames, 3, 0, DOMID_SELF), 1);
    count_refusal();
    EXPECT_RC(HYPERCALL2(memory_op, XENMEM_current_reservation, &self), before - 1);
    EXPECT_RC(reserve(XENMEM_decrease_reservation, in_frames + 2, 1, 0, DOMID_SELF), 1);
    EXPECT_RC(reserve(XENMEM_decrease_reservation, in_frames, 1, 0, DOMID_SELF), 0); /* given already */
    count_refusal();
    out_frames[0] = pfn_of(page);
    out_frames[1] = pfn_of(second);
    EXPECT_RC(reserve(XENMEM_populate_physmap, out_frames, 2, 0, DOMID_SELF), 2);
    EXPECT_EQUAL(mfn_to_pfn(out_frames[0]), pfn_of(page));
    EXPECT_EQUAL(mfn_to_pfn(out_frames[1]), pfn_of(second));
    EXPECT_OK(set_va(page, ((u64)out_frames[0] << PAGE_SHIFT) | PTE_PRESENT | PTE_RW, UVMF_INVLPG));
    EXPECT_OK(set_va(second, ((u64)out_frames[1] << PAGE_SHIFT) | PTE_PRESENT | PTE_RW, UVMF_INVLPG));
    EXPECT_EQUAL(page[0] | second[0], 0); /* what comes is clean */

    /* do_memory_op: none done is the answer to what cannot be. */
    EXPECT_REFUSED(reserve(XENMEM_populate_physmap, out_frames, 1, 30, DOMID_SELF), 0);
    EXPECT_REFUSED(reserve(XENMEM_increase_reservation, out_frames, 1, 30, DOMID_SELF), 0);
    EXPECT_REFUSED(reserve(XENMEM_decrease_reservation, out_frames, 1, 0, 0x1234), 0);
    EXPECT_REFUSED(reserve(XENMEM_decrease_reservation, (ulong *)16, 1, 0, DOMID_SELF), 0);
    EXPECT_REFUSED(reserve(XENMEM_populate_physmap, (ulong *)16, 1, 0, DOMID_SELF), 0);
    EXPECT_OK(reserve(XENMEM_populate_physmap, out_frames, 0, 0, DOMID_SELF));
}

void conform(void)
{
    exchanging(alloc_page());
    in_extents();
}
