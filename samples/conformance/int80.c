/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "int 0x80: straight to the handler from user mode, whatever the DPL of its row; the #GP of its gate without one";

static const u8 system_call[] = { 0xcd, 0x80 };
static const u8 breakpoint[] = { 0xcc };

extern const ulong entry_syscall, trap_entries[];

static long set(u8 vector, u8 flags, u16 cs, ulong address)
{
    struct trap_info rows[] = { { vector, flags, cs, address }, { 0, 0, 0, 0 } };
    return HYPERCALL1(set_trap_table, rows);
}

static void from_kernel(void *unused)
{
    (void)unused;
    __asm__ volatile("int $0x80");
}

static struct trap user(void)
{
    return run_user(system_call, sizeof(system_call), 0x1234);
}

#define EXPECT_USER(wanted)                   \
    do {                                      \
        struct trap trap = user();            \
        EXPECT_EQUAL(trap.vector, wanted);    \
        EXPECT_EQUAL(trap.regs.ax, 0x1234);   \
    } while (0)

#define EXPECT_USER_REFUSED()                                            \
    do {                                                                 \
        struct trap trap = user();                                       \
        count_refusal();                                                 \
        EXPECT_EQUAL(trap.vector, TRAP_GP);                              \
        EXPECT_EQUAL(trap.error_code, 0x80 * 8 + 2);                     \
        count_refusal();                                                 \
        EXPECT_EQUAL(trap.ip, user_code()); /* the instruction itself */ \
    } while (0)

void conform(void)
{
    volatile struct vcpu_info *vcpu = &shared_info->vcpu_info[0];
    EXPECT_USER(0x80);
    EXPECT_TRAP(from_kernel, NULL, 0x80, 0);
    events_enable();
    EXPECT_USER(0x80);
    EXPECT_EQUAL(vcpu->evtchn_upcall_mask, 0); /* it masks nothing unless its row says so */
    EXPECT_OK(set(0x80, 3 | 4, FLAT_KERNEL_CS, entry_syscall));
    EXPECT_USER(0x80);
    EXPECT_EQUAL(vcpu->evtchn_upcall_mask, 1);

    /* Its gate is open to user mode, and nobody asks the row (int80_direct_trap). */
    EXPECT_OK(set(0x80, 0, FLAT_KERNEL_CS, entry_syscall));
    EXPECT_USER(0x80);
    EXPECT_TRAP(from_kernel, NULL, 0x80, 0);

    /* int3 has an exception of its own. */
    struct trap trap = run_user(breakpoint, sizeof(breakpoint), 0);
    EXPECT_EQUAL(trap.vector, TRAP_BP);
    EXPECT_EQUAL(trap.ip, user_code() + 1);

    /* No row at all, or one without a code segment: #GP at the instruction, from either mode (int80_slow_path). */
    EXPECT_OK(HYPERCALL1(set_trap_table, 0));
    EXPECT_OK(set(TRAP_GP, 0, FLAT_KERNEL_CS, trap_entries[TRAP_GP]));
    EXPECT_USER_REFUSED();
    EXPECT_TRAP(from_kernel, NULL, TRAP_GP, 0x80 * 8 + 2);
#ifndef __x86_64__
    EXPECT_OK(set(0x80, 0, 3, entry_syscall));
    EXPECT_USER_REFUSED();
    EXPECT_TRAP(from_kernel, NULL, TRAP_GP, 0x80 * 8 + 2);
#endif
    traps_init();
    EXPECT_USER(0x80);
#ifdef __x86_64__
    EXPECT_REFUSED(set(0x80, 3, FLAT_KERNEL_CS, 0x8000000000000000ul), EINVAL);
#endif
    EXPECT_REFUSED(HYPERCALL1(set_trap_table, 16), EFAULT);
    EXPECT_USER(0x80);
}
