/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Privileged instructions of the kernel: emulated, harmless, or #GP";

#define INSTRUCTION(name, text)                        \
    static void name(void *ax)                         \
    {                                                  \
        ulong a = (ulong)ax, d = 0, c = 0;             \
        __asm__ volatile(text : "+a"(a), "+d"(d), "+c"(c) : : "memory", "cc"); \
    }

INSTRUCTION(clear_interrupts, "cli")
INSTRUCTION(set_interrupts, "sti")
INSTRUCTION(write_back, "wbinvd")
INSTRUCTION(invalidate_page, "invlpg (%0)")
INSTRUCTION(invalidate_caches, "invd")
INSTRUCTION(halt, "hlt")
INSTRUCTION(load_task, "ltr %w0")
INSTRUCTION(load_ldt, "lldt %w0")
INSTRUCTION(load_gdt, "lgdt (%0)")
INSTRUCTION(load_idt, "lidt (%0)")
INSTRUCTION(read_tsc, "rdtsc")
INSTRUCTION(set_cr0, "mov %0, %%cr0")
INSTRUCTION(set_cr3, "mov %0, %%cr3")
INSTRUCTION(set_cr4, "mov %0, %%cr4")
INSTRUCTION(clear_task_switched, "clts")

static ulong cr0(void)
{
    ulong value;
    __asm__ volatile("mov %%cr0, %0" : "=r"(value));
    return value;
}

static ulong cr3(void)
{
    ulong value;
    __asm__ volatile("mov %%cr3, %0" : "=r"(value));
    return value;
}

static ulong cr4(void)
{
    ulong value;
    __asm__ volatile("mov %%cr4, %0" : "=r"(value));
    return value;
}

static ulong cr2(void)
{
    ulong value;
    __asm__ volatile("mov %%cr2, %0" : "=r"(value));
    return value;
}

static void set_cr2(void *value)
{
    __asm__ volatile("mov %0, %%cr2" : : "r"(value));
}

static long set_iopl(u32 iopl)
{
    return HYPERCALL2(physdev_op, 6 /* PHYSDEVOP_set_iopl */, &iopl);
}

#define CR0_TS 8ul

void conform(void)
{
    ulong base = virt_to_mfn((void *)start_info->pt_base);

    /*
     * The interrupt flag is not the guest's. Its kernel counts as CPL 1 against the IOPL it has asked for
     * (iopl_ok, emul-priv-op.c); even then cli and sti change nothing.
     */
    EXPECT_TRAP(clear_interrupts, NULL, TRAP_GP, 0);
    EXPECT_TRAP(set_interrupts, NULL, TRAP_GP, 0);
    EXPECT_OK(set_iopl(1));
    EXPECT_NO_TRAP(clear_interrupts, NULL);
    EXPECT_NO_TRAP(set_interrupts, NULL);
    EXPECT_EQUAL(shared_info->vcpu_info[0].evtchn_upcall_mask, 1);
    EXPECT_NO_TRAP(write_back, NULL);
    EXPECT_OK(set_iopl(0));
    EXPECT_REFUSED(set_iopl(4), EINVAL);
    EXPECT_NO_TRAP(read_tsc, NULL);

    EXPECT_EQUAL(cr0() & 0x80010001, 0x80010001);
    EXPECT_NO_TRAP(set_cr0, cr0() | CR0_TS);
    EXPECT_EQUAL(cr0() & CR0_TS, CR0_TS);
    EXPECT_NO_TRAP(clear_task_switched, NULL);
    EXPECT_EQUAL(cr0() & CR0_TS, 0);
    EXPECT_TRAP(set_cr0, cr0() & ~0x10000ul, TRAP_GP, 0); /* WP */
    EXPECT_TRAP(set_cr0, cr0() ^ 0x40000000ul, TRAP_GP, 0); /* CD */

    EXPECT_EQUAL(cr3() >> PAGE_SHIFT, base);
    EXPECT_NO_TRAP(set_cr3, base << PAGE_SHIFT);
    EXPECT_EQUAL(cr3() >> PAGE_SHIFT, base);
    EXPECT_TRAP(set_cr3, virt_to_mfn((void *)start_info) << PAGE_SHIFT, TRAP_GP, 0); /* no page table */

    EXPECT_EQUAL(cr4() & 0x20, 0x20); /* PAE */
    EXPECT_NO_TRAP(set_cr4, cr4());

    /* Writing cr2 writes arch.cr2 of the vCPU as well (write_cr). */
    EXPECT_NO_TRAP(set_cr2, 0x4560);
    EXPECT_EQUAL(cr2(), 0x4560);
    EXPECT_EQUAL(shared_info->vcpu_info[0].cr2, 0x4560);

    /* Not among those that are emulated (validate): there are hypercalls for them. */
    EXPECT_TRAP(halt, NULL, TRAP_GP, 0);
    EXPECT_TRAP(invalidate_page, start_info, TRAP_GP, 0);
    EXPECT_TRAP(invalidate_caches, NULL, TRAP_GP, 0);
    EXPECT_TRAP(load_task, 0xe040, TRAP_GP, 0);
    EXPECT_TRAP(load_ldt, 0, TRAP_GP, 0);
    EXPECT_TRAP(load_gdt, start_info, TRAP_GP, 0);
    EXPECT_TRAP(load_idt, start_info, TRAP_GP, 0);
}
