/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "fpu_taskswitch: lazy FPU by #NM";

static void use_fpu(void *unused)
{
    (void)unused;
    __asm__ volatile("fnop");
}

static volatile u32 handled;

static void on_nm(struct regs *regs)
{
    (void)regs;
    handled++; /* Xen has cleared TS before it calls (do_device_not_available) */
}

void conform(void)
{
    EXPECT_NO_TRAP(use_fpu, NULL);
    EXPECT_OK(HYPERCALL1(fpu_taskswitch, 1));
    EXPECT_TRAP(use_fpu, NULL, TRAP_NM, 0);
    EXPECT_NO_TRAP(use_fpu, NULL);
    EXPECT_OK(HYPERCALL1(fpu_taskswitch, 1));
    EXPECT_OK(HYPERCALL1(fpu_taskswitch, 0));
    EXPECT_NO_TRAP(use_fpu, NULL);
    trap_handler(TRAP_NM, on_nm);
    EXPECT_OK(HYPERCALL1(fpu_taskswitch, 1));
    use_fpu(NULL);
    use_fpu(NULL);
    EXPECT_EQUAL(handled, 1);
}
