/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "cpuid: forced emulation, the hypervisor's leaves, and what is masked";

struct leaf {
    u32 a, b, c, d;
};

static struct leaf cpuid(u32 number, u32 sub)
{
    struct leaf leaf;
    __asm__ volatile(".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2" /* ud2; .ascii "xen"; cpuid */
                     : "=a"(leaf.a), "=b"(leaf.b), "=c"(leaf.c), "=d"(leaf.d)
                     : "a"(number), "c"(sub));
    return leaf;
}

static void not_forced(void *unused)
{
    (void)unused;
    __asm__ volatile(".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x90"); /* ud2; "xen"; nop: not an instruction for it */
}

#define FEATURE_PSE (1u << 3)
#define FEATURE_PAE (1u << 6)
#define FEATURE_FXSR (1u << 24)
#define FEATURE_ACPI (1u << 22)
#define FEATURE_MTRR (1u << 12)
#define FEATURE_HYPERVISOR (1u << 31)
#define FEATURE_NX (1u << 20)
#define FEATURE_SYSCALL (1u << 11)

void conform(void)
{
    struct leaf base = cpuid(0x40000000, 0), version = cpuid(0x40000001, 0), page = cpuid(0x40000002, 0);
    struct leaf features = cpuid(1, 0), extended = cpuid(0x80000001, 0);

    EXPECT_EQUAL(base.b, 0x566e6558); /* "XenVMMXenVMM" */
    EXPECT_EQUAL(base.c, 0x65584d4d);
    EXPECT_EQUAL(base.d, 0x4d4d566e);
    EXPECT(base.a >= 0x40000002);
    EXPECT_EQUAL(version.a, 4 << 16 | 17);
    EXPECT_EQUAL(page.a, 1);
    EXPECT_EQUAL(page.b, 0x40000000);
    EXPECT_EQUAL(page.c & 1, 1); /* XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD */

    EXPECT(features.d & FEATURE_PAE);
    EXPECT(features.d & FEATURE_FXSR);
    EXPECT(features.c & FEATURE_HYPERVISOR);
    EXPECT(extended.d & FEATURE_NX);
    /* No large pages for PV. A domU has no MTRRs or ACPI either; dom0 sees the machine's. */
    EXPECT(!(features.d & FEATURE_PSE));
    if (!(start_info->flags & SIF_INITDOMAIN)) {
        EXPECT(!(features.d & FEATURE_ACPI));
        EXPECT(!(features.d & FEATURE_MTRR));
    }
    EXPECT_TRAP(not_forced, NULL, TRAP_UD, 0);
}
