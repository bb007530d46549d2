/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Faults inside handlers nest on the kernel's stack; no fault becomes a double fault";

static volatile unsigned depth, deepest, page_faults, double_faults;
static volatile ulong outer_sp, inner_sp, last_cr2;

static void undefined(void *unused)
{
    (void)unused;
    __asm__ volatile("ud2");
}

static void read_from(void *address)
{
    (void)*(volatile u8 *)address;
}

static void on_undefined(struct regs *regs)
{
    if (++depth == 1)
        outer_sp = (ulong)regs;
    inner_sp = (ulong)regs;
    deepest = depth > deepest ? depth : deepest;
    if (depth < 5)
        undefined(NULL);
    depth--;
    regs->ip += 2;
}

static u8 *absent;
static pte_t own;

/* A page fault whose handler takes another before it mends the first. */
static void on_page_fault(struct regs *regs)
{
    ulong cr2 = shared_info->vcpu_info[0].cr2;
    (void)regs;
    if (++page_faults == 1)
        read_from(absent + PAGE_SIZE);
    last_cr2 = cr2;
    set_va((void *)(cr2 & ~(PAGE_SIZE - 1)), own, UVMF_INVLPG);
}

static void on_double_fault(struct regs *regs)
{
    (void)regs;
    double_faults++;
}

static const u8 user_undefined[] = { 0x0f, 0x0b };

void conform(void)
{
    events_enable();
    trap_handler(TRAP_UD, on_undefined);
    trap_handler(8, on_double_fault);
    undefined(NULL);
    EXPECT_EQUAL(depth, 0);
    EXPECT_EQUAL(deepest, 5);
    EXPECT(inner_sp < outer_sp);
    EXPECT_EQUAL(shared_info->vcpu_info[0].evtchn_upcall_mask, 0);
    events_disable();

    absent = alloc_page();
    alloc_page();
    own = *pte_of(absent, 1);
    EXPECT_OK(set_va(absent, 0, UVMF_INVLPG));
    EXPECT_OK(set_va(absent + PAGE_SIZE, 0, UVMF_INVLPG));
    trap_handler(TRAP_PF, on_page_fault);
    read_from(absent);
    EXPECT_EQUAL(page_faults, 2);
    EXPECT_EQUAL(last_cr2, (ulong)absent); /* saved before the second fault overwrote it */
    EXPECT_EQUAL(shared_info->vcpu_info[0].cr2, (ulong)(absent + PAGE_SIZE));
    trap_handler(TRAP_PF, NULL);
    EXPECT_EQUAL(double_faults, 0);

    /* Probed from within: each is the fault it is, with its own error code. */
    EXPECT_TRAP(read_from, 0x1000, TRAP_PF, 0);
    trap_handler(TRAP_UD, NULL);
    EXPECT_TRAP(undefined, NULL, TRAP_UD, 0);
    EXPECT_TRAP(read_from, 0x2000, TRAP_PF, 0);
    struct trap trap = run_user(user_undefined, sizeof(user_undefined), 0);
    count_refusal();
    EXPECT_EQUAL(trap.vector, TRAP_UD);
    EXPECT_TRAP(read_from, 0x3000, TRAP_PF, 0);
    EXPECT_EQUAL(double_faults, 0);
}
