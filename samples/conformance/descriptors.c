/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "set_gdt and update_descriptor: tables of one's own, and what may stand in them";

static u64 *gdt;

static long descriptor(unsigned index, u64 value)
{
    return update_descriptor(virt_to_machine(gdt + index), value);
}

static void store(void *address)
{
    *(volatile u64 *)address = 0;
}

/* Flat data and code, present, 32-bit, granularity of pages; the DPL in bits 45 and 46. */
#define DATA(dpl) (0x00cf92000000ffffull | (u64)(dpl) << 45)
#define CODE(dpl) (0x00cf9a000000ffffull | (u64)(dpl) << 45)
#define NOT_PRESENT 0x00cf12000000ffffull
#define TASK_STATE 0x0000e90000000067ull

void conform(void)
{
    ulong frames[1];
    gdt = alloc_page();
    gdt[3] = DATA(3);
    frames[0] = virt_to_mfn(gdt);

    EXPECT_REFUSED(HYPERCALL2(set_gdt, frames, 512), EINVAL); /* still writable */
    EXPECT_OK(make_readonly(gdt));
    EXPECT_OK(HYPERCALL2(set_gdt, frames, 512));
    EXPECT_TRAP(store, gdt + 4, TRAP_PF, 3);
    EXPECT_REFUSED(make_writable(gdt), EBUSY);
    EXPECT_NO_TRAP(load_gs, 3 * 8 + 3);

    EXPECT_OK(descriptor(5, DATA(3)));
    EXPECT_EQUAL(gdt[5] & ~(1ull << 40), DATA(3)); /* Xen may have set the accessed bit */
    EXPECT_NO_TRAP(load_gs, 5 * 8 + 3);
    EXPECT_OK(descriptor(5, 0));
    EXPECT_TRAP(load_gs, 5 * 8 + 3, TRAP_GP, 5 * 8);
    EXPECT_OK(descriptor(5, NOT_PRESENT | 3ull << 45));
    EXPECT_TRAP(load_gs, 5 * 8 + 3, TRAP_NP, 5 * 8);

    /* System segments are refused, but for call gates, which are emulated (check_descriptor). */
    EXPECT_REFUSED(descriptor(6, TASK_STATE), EINVAL);
    EXPECT_REFUSED(descriptor(6, 0x0000e20000000000ull), EINVAL); /* an LDT */
    EXPECT_EQUAL(gdt[6], 0);
    EXPECT_REFUSED(HYPERCALL2(set_gdt, frames, FIRST_RESERVED_GDT_ENTRY + 1), EINVAL);
    EXPECT_REFUSED(HYPERCALL2(set_gdt, 16, 1), EFAULT);
    frames[0] = virt_to_mfn((void *)start_info->pt_base);
    EXPECT_REFUSED(HYPERCALL2(set_gdt, frames, 512), EINVAL); /* a page table */
    frames[0] = 0xfffffff;
    EXPECT_REFUSED(HYPERCALL2(set_gdt, frames, 512), EINVAL);
    EXPECT_NO_TRAP(load_gs, 0);
}
