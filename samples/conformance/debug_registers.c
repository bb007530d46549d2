/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Debug registers, breakpoints, single step, and what is refused";

static void here(void *unused)
{
    (void)unused;
    __asm__ volatile("nop");
}

static void single_step(void *unused)
{
    (void)unused;
#ifdef __x86_64__
    __asm__ volatile("pushfq; orq $0x100, (%%rsp); popfq; nop; nop" : : : "memory", "cc");
#else
    __asm__ volatile("pushfl; orl $0x100, (%%esp); popfl; nop; nop" : : : "memory", "cc");
#endif
}

/* Back from a hypercall by sysret, TF traps at once; by iretq, only behind the next instruction. */
extern u8 stepped[];
#ifdef __x86_64__
__asm__("step_over_hypercall: movl $17, %eax; movl $7, %edi; pushfq; orq $0x100, (%rsp); popfq; syscall;"
        "stepped: nop; ret");
#else
__asm__("step_over_hypercall: pushl %ebx; movl $17, %eax; movl $7, %ebx; pushfl; orl $0x100, (%esp); popfl;"
        "int $0x82; nop; stepped: popl %ebx; ret");
#endif
void step_over_hypercall(void *unused);

static long set(int reg, ulong value)
{
    return HYPERCALL2(set_debugreg, reg, value);
}

static long get(int reg)
{
    return HYPERCALL1(get_debugreg, reg);
}

void conform(void)
{
    EXPECT_EQUAL((ulong)get(6) & 0xffff0ff0, 0xffff0ff0);
    EXPECT_EQUAL(get(7), 0x400);
    EXPECT_OK(set(0, (ulong)here));
    EXPECT_RC(get(0), (long)here);
    EXPECT_OK(set(7, 0x400 | 0x1)); /* L0, on execution */
    struct trap trap = probe(here, NULL);
    EXPECT_EQUAL(trap.vector, TRAP_DB);
    EXPECT_EQUAL(trap.ip, (ulong)here); /* a fault: before the instruction */
    EXPECT_EQUAL(get(6) & 1, 1);
    EXPECT_OK(set(7, 0x400));
    EXPECT_OK(set(6, 0xffff0ff0));
    EXPECT_NO_TRAP(here, NULL);

    EXPECT_TRAP(single_step, NULL, TRAP_DB, 0);
    EXPECT_EQUAL(get(6) & 0x4000, 0x4000); /* BS */
    EXPECT_OK(set(6, 0xffff0ff0));

    trap = probe(step_over_hypercall, NULL);
    EXPECT_EQUAL(trap.vector, TRAP_DB);
    EXPECT_EQUAL(trap.ip, (ulong)stepped);
    EXPECT_EQUAL(trap.regs.ax, PAGE_SIZE);
    EXPECT_OK(set(6, 0xffff0ff0));

    /* Nothing of Xen's may be watched (breakpoint_addr_ok); it is out of a 32-bit guest's reach anyway. */
#ifdef __x86_64__
    EXPECT_REFUSED(set(0, 0xffff830000000000ul), EPERM);
    EXPECT_REFUSED(set(7, 0x100000000ul), EINVAL);
    EXPECT_REFUSED(set(6, 0x100000000ul), EINVAL);
#endif
    EXPECT_REFUSED(set(8, 0), ENODEV);
    EXPECT_REFUSED(get(8), ENODEV);
    EXPECT_REFUSED(set(7, 0x400 | 0x2000), EPERM); /* GD */
    EXPECT_REFUSED(set(7, 0x400 | 0x1 | 0x00020000), EPERM); /* an I/O breakpoint without CR4.DE */
}
