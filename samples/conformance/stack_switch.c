/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "stack_switch: the stack on which traps from user mode arrive";

static u8 other_stack[PAGE_SIZE] PAGE_ALIGNED;
static const u8 system_call[] = { 0xcd, 0x80 };

void conform(void)
{
    struct trap trap = run_user(system_call, sizeof(system_call), 0);
    EXPECT_EQUAL(trap.vector, 0x80);
    EXPECT_OK(HYPERCALL2(stack_switch, FLAT_KERNEL_SS, other_stack + sizeof(other_stack)));
    trap = run_user(system_call, sizeof(system_call), 7);
    EXPECT_EQUAL(trap.regs.ax, 7);
    /* The frame lies at the very top of the stack that was given. */
    ulong *top = (ulong *)(other_stack + sizeof(other_stack));
    EXPECT_EQUAL(top[-1] & 0xffff, FLAT_USER_SS);
    EXPECT_EQUAL(top[-5], user_code() + sizeof(system_call));
#ifndef __x86_64__
    /* An ss of ring 0 is raised to ring 1, as every selector is (fixup_guest_stack_selector). */
    EXPECT_OK(HYPERCALL2(stack_switch, FLAT_KERNEL_SS & ~3, other_stack + sizeof(other_stack)));
    trap = run_user(system_call, sizeof(system_call), 8);
    EXPECT_EQUAL(trap.regs.ax, 8);
#endif
}
