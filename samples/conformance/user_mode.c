/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "User mode: what it may do, and how its traps arrive";

/* Machine code, the same for both widths. */
static const u8 system_call[] = { 0xcd, 0x80 };             /* int $0x80 */
static const u8 breakpoint[] = { 0xcc };                    /* int3 */
static const u8 privileged_interrupt[] = { 0xcd, 0x0e };    /* int $14 */
static const u8 clear_interrupts[] = { 0xfa };              /* cli */
static const u8 halt[] = { 0xf4 };                          /* hlt */
static const u8 invalidate[] = { 0x0f, 0x01, 0x38 };        /* invlpg (%eax) */
static const u8 write_cr3[] = { 0x0f, 0x22, 0xd8 };         /* mov %eax, %cr3 */
static const u8 store[] = { 0xc6, 0x00, 0x01 };             /* movb $1, (%eax) */
static const u8 undefined[] = { 0x0f, 0x0b };               /* ud2 */

#define EXPECT_USER_TRAP(code, ax, wanted, error)                        \
    do {                                                                 \
        struct trap trap = run_user(code, sizeof(code), (ulong)(ax));    \
        EXPECT_EQUAL(trap.vector, wanted);                               \
        EXPECT_EQUAL(trap.error_code, error);                            \
        EXPECT_EQUAL(trap.regs.cs & 3, 3);                               \
    } while (0)

void conform(void)
{
    struct trap trap = run_user(system_call, sizeof(system_call), 42);
    EXPECT_EQUAL(trap.vector, 0x80);
    EXPECT_EQUAL(trap.regs.ax, 42);
    EXPECT_EQUAL(trap.ip, user_code() + sizeof(system_call));
    EXPECT_EQUAL(trap.regs.cs & 0xffff, FLAT_USER_CS);
    EXPECT_EQUAL(trap.regs.ss & 0xffff, FLAT_USER_SS);
    EXPECT_EQUAL(trap.regs.flags & 0x200, 0x200);
    EXPECT_USER_TRAP(breakpoint, 0, TRAP_BP, 0);
    EXPECT_USER_TRAP(privileged_interrupt, 0, TRAP_GP, 14 * 8 + 2);
    EXPECT_USER_TRAP(clear_interrupts, 0, TRAP_GP, 0);
    EXPECT_USER_TRAP(halt, 0, TRAP_GP, 0);
    EXPECT_USER_TRAP(invalidate, 0, TRAP_GP, 0);
    EXPECT_USER_TRAP(write_cr3, 0, TRAP_GP, 0);
    EXPECT_USER_TRAP(undefined, 0, TRAP_UD, 0);
    EXPECT_USER_TRAP(store, 0x1000, TRAP_PF, 6);
    EXPECT_USER_TRAP(store, start_info->pt_base, TRAP_PF, 7);
}
