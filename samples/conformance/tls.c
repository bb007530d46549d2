/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Thread-local segments: three descriptors in one multicall, bases by hypercall on 64 bits";

static ulong here, there;

static ulong read_fs(void)
{
    ulong value;
    __asm__ volatile("mov %%fs:0, %0" : "=r"(value));
    return value;
}

static void load_fs(void *selector)
{
    __asm__ volatile("mov %w0, %%fs" : : "r"(selector));
}

#ifdef __x86_64__
static void touch_fs(void *unused)
{
    (void)unused;
    read_fs();
}

#define SEGBASE_FS 0
#define SEGBASE_GS_USER 1
#define SEGBASE_GS_KERNEL 2
#define SEGBASE_GS_USER_SEL 3

static long set_base(int which, ulong base)
{
    return HYPERCALL2(set_segment_base, which, base);
}

void conform(void)
{
    here = 0x1111;
    there = 0x2222;
    EXPECT_OK(set_base(SEGBASE_FS, (ulong)&here));
    EXPECT_EQUAL(read_fs(), 0x1111);
    EXPECT_OK(set_base(SEGBASE_FS, (ulong)&there));
    EXPECT_EQUAL(read_fs(), 0x2222);
    EXPECT_OK(set_base(SEGBASE_GS_KERNEL, (ulong)&here));
    EXPECT_OK(set_base(SEGBASE_GS_USER, (ulong)&here));
    EXPECT_OK(set_base(SEGBASE_GS_USER_SEL, 0));
    /* do_set_segment_base: canonical addresses, known segments. */
    EXPECT_REFUSED(set_base(SEGBASE_FS, 0x8000000000000000ul), EINVAL);
    EXPECT_REFUSED(set_base(SEGBASE_GS_USER, 0x8000000000000000ul), EINVAL);
    EXPECT_REFUSED(set_base(SEGBASE_GS_KERNEL, 0x8000000000000000ul), EINVAL);
    EXPECT_REFUSED(set_base(4, 0), EINVAL);
    EXPECT_EQUAL(read_fs(), 0x2222);
    EXPECT_TRAP(load_fs, 6 * 8 + 3, TRAP_GP, 6 * 8);
    EXPECT_EQUAL(read_fs(), 0x2222);
    EXPECT_OK(set_base(SEGBASE_FS, 0));
    EXPECT_TRAP(touch_fs, NULL, TRAP_PF, 0);
}
#else
static u64 segment(const void *base, u32 limit, unsigned dpl)
{
    u64 at = (ulong)base;
    return 0x0040f20000000000ull | (u64)dpl << 45 | (limit & 0xffff) | (u64)(limit & 0xf0000) << 32 |
           (at & 0xffffff) << 16 | (at >> 24) << 56;
}

void conform(void)
{
    u64 *gdt = alloc_page(), wanted[3];
    ulong frames[1] = { virt_to_mfn(gdt) };
    struct multicall_entry calls[3];
    here = 0x1111;
    there = 0x2222;
    EXPECT_OK(make_readonly(gdt));
    EXPECT_OK(HYPERCALL2(set_gdt, frames, 512));
    EXPECT_TRAP(load_fs, 6 * 8 + 3, TRAP_GP, 6 * 8);

    wanted[0] = segment(&here, 0xfff, 3);
    wanted[1] = segment(&there, 0xfff, 3);
    wanted[2] = 0x0000890000000067ull; /* a TSS: refused, and the others stand */
    for (unsigned i = 0; i < 3; i++) {
        u64 at = virt_to_machine(gdt + 6 + i);
        calls[i] = (struct multicall_entry){ HYPERCALL_update_descriptor, 1,
                                             { (ulong)at, (ulong)(at >> 32), (ulong)wanted[i], (ulong)(wanted[i] >> 32) } };
    }
    EXPECT_OK(HYPERCALL2(multicall, calls, 3));
    EXPECT_OK(calls[0].result);
    EXPECT_OK(calls[1].result);
    EXPECT_REFUSED(calls[2].result, EINVAL);
    EXPECT_NO_TRAP(load_fs, 6 * 8 + 3);
    EXPECT_EQUAL(read_fs(), 0x1111);
    EXPECT_NO_TRAP(load_fs, 7 * 8 + 3);
    EXPECT_EQUAL(read_fs(), 0x2222);
    EXPECT_TRAP(load_fs, 8 * 8 + 3, TRAP_GP, 8 * 8);
    EXPECT_EQUAL(read_fs(), 0x2222);

    /* A DPL below the kernel's ring becomes it (check_descriptor, __fixup_guest_selector). */
    u64 at = virt_to_machine(gdt + 9), raised = segment(&here, 0xfff, 0) & ~(3ull << 45);
    EXPECT_OK(HYPERCALL4(update_descriptor, at, at >> 32, raised, raised >> 32));
    EXPECT_EQUAL(gdt[9] >> 45 & 3, 1);
    EXPECT_TRAP(load_fs, 9 * 8 + 3, TRAP_GP, 9 * 8); /* an RPL of 3 is too little for it */
    EXPECT_NO_TRAP(load_fs, 9 * 8 + 1);
    EXPECT_EQUAL(read_fs(), 0x1111);
    EXPECT_NO_TRAP(load_fs, 0);
    /* Bases are not set by hypercall here. */
    EXPECT_REFUSED(HYPERCALL2(set_segment_base, 0, &here), ENOSYS);
    EXPECT_REFUSED(HYPERCALL2(set_segment_base, 3, 0), ENOSYS);
}
#endif
