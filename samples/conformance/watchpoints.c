/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Watchpoints: a data breakpoint traps after the store, a read alone does not";

static volatile u32 watched;

static void store(void *unused)
{
    (void)unused;
    watched++;
}

static void load(void *unused)
{
    (void)unused;
    (void)watched;
}

static long set(int reg, ulong value)
{
    return HYPERCALL2(set_debugreg, reg, value);
}

void conform(void)
{
    EXPECT_OK(set(1, (ulong)&watched));
    EXPECT_OK(set(7, 0x400 | 0x4 | 0x00d00000)); /* L1, write, four bytes */
    EXPECT_NO_TRAP(load, NULL);
    EXPECT_TRAP(store, NULL, TRAP_DB, 0);
    EXPECT_EQUAL(watched, 1);
    EXPECT_EQUAL(HYPERCALL1(get_debugreg, 6) & 0xf, 2);
    EXPECT_OK(set(7, 0x400));
    EXPECT_NO_TRAP(store, NULL);
    EXPECT_EQUAL(watched, 2);
}
