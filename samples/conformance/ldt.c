/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "set_ldt: pages are mapped on their first use, and become descriptor pages by that";

#define DATA(dpl) (0x00cf92000000ffffull | (u64)(dpl) << 45)
#define SELECTOR(index) ((index) * 8 + 4 + 3)

static u64 *ldt;

static void store(void *address)
{
    *(volatile u64 *)address = 0;
}

static long set_ldt(const void *base, ulong entries)
{
    return mmuext(MMUEXT_SET_LDT, (ulong)base, entries);
}

static long descriptor(u64 *at, u64 value)
{
    return update_descriptor(virt_to_machine(at), value);
}

void conform(void)
{
    ldt = alloc_page();
    alloc_page();
    ldt[1] = DATA(3);
    ldt[2] = 0x00cf12000000ffffull | 3ull << 45; /* not present */
    ldt[512] = DATA(3);

    EXPECT_TRAP(load_gs, SELECTOR(1), TRAP_GP, SELECTOR(1) & ~3); /* there is none yet */
    /* do_mmuext_op: alignment, 8192 entries at most, and not Xen's addresses. */
    EXPECT_REFUSED(set_ldt((u8 *)ldt + 8, 16), EINVAL);
    EXPECT_REFUSED(set_ldt(ldt, 8193), EINVAL);
#ifdef __x86_64__
    EXPECT_REFUSED(set_ldt((void *)0xffff800000000000ul, 16), EINVAL);
#else
    EXPECT_OK(set_ldt((void *)0xfffff000ul, 16)); /* __addr_ok: an address of 32 bits always is */
    EXPECT_OK(set_ldt(NULL, 0));
#endif

    /* Nothing is looked at until it is used; a page that is writable then is a fault at the LDT's own address. */
    EXPECT_OK(set_ldt(ldt, 1024));
    struct trap trap = probe(load_gs, (void *)SELECTOR(1));
    count_refusal();
    EXPECT_EQUAL(trap.vector, TRAP_PF); /* handle_ldt_mapping_fault */
    EXPECT_EQUAL(trap.cr2, (ulong)(ldt + 1));
    EXPECT_OK(make_readonly(ldt));
    EXPECT_NO_TRAP(load_gs, SELECTOR(1));
    EXPECT_TRAP(load_gs, SELECTOR(2), TRAP_NP, SELECTOR(2) & ~3);
    EXPECT_TRAP(load_gs, SELECTOR(3), TRAP_GP, SELECTOR(3) & ~3);
    EXPECT_TRAP(load_gs, SELECTOR(1024), TRAP_GP, SELECTOR(1024) & ~3); /* past its end */
    EXPECT_REFUSED(make_writable(ldt), EBUSY);
    EXPECT_TRAP(store, ldt + 4, TRAP_PF, 3);
    EXPECT_OK(make_readonly(ldt + 512));
    EXPECT_NO_TRAP(load_gs, SELECTOR(512)); /* its second page */

    /* Entries change by update_descriptor, as in the GDT. */
    EXPECT_OK(descriptor(ldt + 3, DATA(3)));
    EXPECT_NO_TRAP(load_gs, SELECTOR(3));
    EXPECT_OK(descriptor(ldt + 3, 0));
    EXPECT_TRAP(load_gs, SELECTOR(3), TRAP_GP, SELECTOR(3) & ~3);
    EXPECT_REFUSED(descriptor(ldt + 3, 0x0000e20000000000ull), EINVAL); /* an LDT in the LDT */
    EXPECT_REFUSED(descriptor((u64 *)((u8 *)ldt + 4), 0), EINVAL);      /* misaligned */
    EXPECT_REFUSED(descriptor((u64 *)start_info->pt_base, 0), EINVAL);  /* a page table */

    /* A descriptor that no guest may have keeps the whole page out. */
    EXPECT_NO_TRAP(load_gs, 0);
    EXPECT_OK(set_ldt(NULL, 0));
    EXPECT_TRAP(load_gs, SELECTOR(1), TRAP_GP, SELECTOR(1) & ~3);
    EXPECT_OK(make_writable(ldt));
    ldt[9] = 0x0000e90000000067ull; /* a TSS */
    EXPECT_OK(make_readonly(ldt));
    EXPECT_OK(set_ldt(ldt, 512));
    trap = probe(load_gs, (void *)SELECTOR(1));
    count_refusal();
    EXPECT_EQUAL(trap.vector, TRAP_PF);
    EXPECT_OK(set_ldt(NULL, 0));
    EXPECT_OK(make_writable(ldt));
    EXPECT_NO_TRAP(load_gs, 0);
}
