/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "MSRs: a few can be read, fewer written, the rest is #GP";

struct access {
    u32 msr;
    u64 value;
};

static void read(void *argument)
{
    struct access *access = argument;
    u32 low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(access->msr));
    access->value = ((u64)high << 32) | low;
}

static void write(void *argument)
{
    struct access *access = argument;
    __asm__ volatile("wrmsr" : : "a"((u32)access->value), "d"((u32)(access->value >> 32)), "c"(access->msr));
}

#define MSR_EFER 0xc0000080
#define MSR_FS_BASE 0xc0000100
#define MSR_GS_BASE 0xc0000101
#define MSR_APIC_BASE 0x1b
#define EFER_NX 0x800

void conform(void)
{
    struct access efer = { MSR_EFER, 0 }, nothing = { 0x12345, 0 }, base = { MSR_FS_BASE, 0 };

    EXPECT_NO_TRAP(read, &efer);
    EXPECT_EQUAL(efer.value & EFER_NX, EFER_NX);
    EXPECT_TRAP(read, &nothing, TRAP_GP, 0);
    EXPECT_TRAP(write, &nothing, TRAP_GP, 0);
    nothing.msr = 0xc0012345;
    EXPECT_TRAP(read, &nothing, TRAP_GP, 0);
    EXPECT_TRAP(write, &nothing, TRAP_GP, 0);
#ifdef __x86_64__
    base.value = 0xffff880012345000ull;
    EXPECT_NO_TRAP(write, &base);
    base.value = 0;
    EXPECT_NO_TRAP(read, &base);
    EXPECT_EQUAL(base.value, 0xffff880012345000ull);
    base.value = 0x8000000000000000ull; /* not canonical */
    EXPECT_TRAP(write, &base, TRAP_GP, 0);
    base.value = 0;
    EXPECT_NO_TRAP(write, &base);
#else
    /* A 32-bit guest has no 64-bit bases (is_pv_32bit_domain in read_msr and write_msr). */
    EXPECT_TRAP(read, &base, TRAP_GP, 0);
    EXPECT_TRAP(write, &base, TRAP_GP, 0);
#endif
}
