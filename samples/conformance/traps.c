/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Faults reach the guest's handlers with vector, error code and cr2";

static void divide_by_zero(void *unused)
{
    (void)unused;
    __asm__ volatile("xorl %%eax, %%eax; xorl %%edx, %%edx; divl %%eax" : : : "eax", "edx", "cc");
}

static void breakpoint(void *unused)
{
    (void)unused;
    __asm__ volatile("int3");
}

static void undefined(void *unused)
{
    (void)unused;
    __asm__ volatile("ud2");
}

static void read_from(void *address)
{
    (void)*(volatile u8 *)address;
}

static void write_to(void *address)
{
    *(volatile u8 *)address = 1;
}

static void software_interrupt(void *unused)
{
    (void)unused;
    __asm__ volatile("int $0x30");
}

static void load_bad_selector(void *selector)
{
    __asm__ volatile("mov %w0, %%fs" : : "r"(selector));
}

#ifndef __x86_64__
static void overflow(void *unused)
{
    (void)unused;
    __asm__ volatile("movb $0x7f, %%al; addb $1, %%al; into" : : : "eax", "cc");
}

static void out_of_bounds(void *unused)
{
    static const u32 bounds[2] = { 1, 2 };
    (void)unused;
    __asm__ volatile("bound %0, %1" : : "r"(5), "m"(bounds));
}
#endif

static volatile unsigned handled;

static void skip_ud2(struct regs *regs)
{
    handled++;
    regs->ip += 2;
}

void conform(void)
{
    EXPECT_TRAP(divide_by_zero, NULL, TRAP_DE, 0);
    EXPECT_TRAP(breakpoint, NULL, TRAP_BP, 0);
    EXPECT_TRAP(undefined, NULL, TRAP_UD, 0);
    /* int n without a handler: the CPU's #GP, whose error code names the gate (do_general_protection). */
    EXPECT_TRAP(software_interrupt, NULL, TRAP_GP, 0x30 * 8 + 2);
    EXPECT_TRAP(load_bad_selector, 0x7ff8, TRAP_GP, 0x7ff8);
#ifdef __x86_64__
    /* In kernel mode the U bit is taken out of the error code (pv_inject_event). */
    EXPECT_TRAP(read_from, 0x1000, TRAP_PF, 0);
    EXPECT_TRAP(write_to, 0x1000, TRAP_PF, 2);
    EXPECT_TRAP(write_to, start_info->pt_base, TRAP_PF, 3);
    EXPECT_TRAP(read_from, 0x8000000000000000, TRAP_GP, 0);
#else
    EXPECT_TRAP(overflow, NULL, TRAP_OF, 0);
    EXPECT_TRAP(out_of_bounds, NULL, TRAP_BR, 0);
    EXPECT_TRAP(read_from, 0x1000, TRAP_PF, 0);
    EXPECT_TRAP(write_to, 0x1000, TRAP_PF, 2);
    EXPECT_TRAP(write_to, start_info->pt_base, TRAP_PF, 3);
#endif
    struct trap trap = probe(write_to, (void *)0x1234);
    EXPECT_EQUAL(trap.cr2, 0x1234);
    EXPECT_NO_TRAP(read_from, start_info->pt_base);
    /* A handler that returns goes on where it says. */
    trap_handler(TRAP_UD, skip_ud2);
    undefined(NULL);
    undefined(NULL);
    EXPECT_EQUAL(handled, 2);
}
