/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Other domains' memory: by no name and no number to be had";

static u8 *page;
static pte_t own;

static long update_to(pte_t entry, u16 domid)
{
    struct mmu_update request = { virt_to_machine(pte_of(page, 1)), entry };
    return HYPERCALL4(mmu_update, &request, 1, 0, domid);
}

static long update(u16 domid)
{
    return update_to(own, domid);
}

static long map(u16 domid)
{
#ifdef __x86_64__
    return HYPERCALL4(update_va_mapping_otherdomain, page, own, UVMF_INVLPG, domid);
#else
    return hypercall(HYPERCALL_update_va_mapping_otherdomain, (ulong)page, (ulong)own, (ulong)(own >> 32), UVMF_INVLPG,
                     domid);
#endif
}

static long flush(u16 domid)
{
    struct mmuext_op op = { MMUEXT_TLB_FLUSH_LOCAL, 0, 0 };
    return HYPERCALL4(mmuext_op, &op, 1, 0, domid);
}

static long reservation(unsigned command, u16 domid)
{
    ulong frames[1] = { 0 };
    struct xen_memory_reservation ask = { frames, 1, 0, 0, domid };
    return HYPERCALL2(memory_op, command, &ask);
}

void conform(void)
{
    page = alloc_page();
    u8 *other = alloc_page();
    own = *pte_of(page, 1);
    EXPECT_OK(update(DOMID_SELF));
    EXPECT_OK(map(DOMID_SELF));
    EXPECT_OK(flush(DOMID_SELF));
    static const u16 nobody[] = { 0x1234, 0x7fe0, 0x7ff4, 0xffff };
    for (unsigned i = 0; i < ARRAY_SIZE(nobody); i++) {
        EXPECT_REFUSED(update(nobody[i]), ESRCH);
        EXPECT_REFUSED(map(nobody[i]), ESRCH);
        EXPECT_REFUSED(flush(nobody[i]), ESRCH);
        EXPECT_REFUSED(reservation(XENMEM_populate_physmap, nobody[i]), 0);
        EXPECT_REFUSED(HYPERCALL2(memory_op, XENMEM_current_reservation, &nobody[i]), ESRCH);
    }
    if (start_info->flags & SIF_INITDOMAIN) {
        EXPECT_REFUSED(update(0), ESRCH); /* oneself is not foreign (get_pg_owner) */
        EXPECT_REFUSED(map(0), ESRCH);
        EXPECT_REFUSED(flush(0), ESRCH);
    } else {
        EXPECT_REFUSED(map(DOMID_IO), EPERM);
        EXPECT_REFUSED(flush(DOMID_IO), EPERM);
        /* It may try (xsm_mmu_update), and what maps the same frame as before is fast; but no other is I/O. */
        EXPECT_OK(update(DOMID_IO));
        EXPECT_REFUSED(update_to(*pte_of(other, 1), DOMID_IO), EBUSY);
        EXPECT_REFUSED(map(DOMID_XEN), EPERM);
    }
    EXPECT_EQUAL(PTE_MFN(*pte_of(page, 1)), PTE_MFN(own));
}
