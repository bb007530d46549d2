/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "The FPU image of a vCPU's context: what the vCPU starts with, and another vCPU's registers beside it";

/* As fxsave stores it. */
struct fxsave {
    u16 fcw, fsw;
    u8 ftw, pad;
    u16 fop;
    u64 fip, fdp;
    u32 mxcsr, mxcsr_mask;
    struct {
        u64 mantissa;
        u16 exponent, pad[3];
    } st[8];
    u64 xmm[8][2];
    u8 rest[224];
};

static u8 stack[PAGE_SIZE] PAGE_ALIGNED;
static struct fxsave seen __attribute__((aligned(16)));
static struct {
    u16 fcw, fsw;
    u32 mxcsr;
    u64 popped;
} read;
static volatile u32 done;

static void second(void)
{
    __asm__ volatile("fxsave %0" : "=m"(seen));
    __asm__ volatile("fnstcw %0; fnstsw %1; stmxcsr %2; faddp; fstpl %3"
                     : "=m"(read.fcw), "=m"(read.fsw), "=m"(read.mxcsr), "=m"(read.popped));
    done = 1;
    for (;;)
        HYPERCALL3(vcpu_op, VCPUOP_down, 1, 0);
}

void conform(void)
{
    static const u64 own[2] = { 0x1111222233334444ull, 0x5555666677778888ull };
    u64 kept[2];
    u32 mxcsr = 0x1f80 | 0x4000, mxcsr_kept;
    if (HYPERCALL3(vcpu_op, VCPUOP_is_up, 1, 0) == -ENOENT)
        skip("needs two vCPUs");
    __asm__ volatile("ldmxcsr %1; movups %0, %%xmm1" : : "m"(own), "m"(mxcsr));

    struct vcpu_guest_context *context = vcpu_context(second, stack + sizeof(stack));
    struct fxsave *image = (struct fxsave *)context->fpu_ctxt;
    context->flags |= VGCF_i387_valid;
    image->fcw = 0x027f;          /* double precision */
    image->fsw = 6 << 11 | 0x100; /* ST(0) is register 6; C0 */
    image->ftw = 0xc0;            /* registers 6 and 7 are in use */
    image->mxcsr = 0x3f80;        /* round down */
    image->st[0].mantissa = 0xc000000000000000ull; /* 1.5 */
    image->st[0].exponent = 0x3fff;
    image->st[1].mantissa = 0xa000000000000000ull; /* 40 */
    image->st[1].exponent = 0x4004;
    for (unsigned i = 0; i < 8; i++) {
        image->xmm[i][0] = 0x0123456789abcdefull + i;
        image->xmm[i][1] = 0xfedcba9876543210ull - i;
    }
    EXPECT_OK(HYPERCALL3(vcpu_op, VCPUOP_initialise, 1, context));
    EXPECT_REFUSED(HYPERCALL3(vcpu_op, VCPUOP_initialise, 1, context), EEXIST);
    EXPECT_OK(HYPERCALL3(vcpu_op, VCPUOP_up, 1, 0));
    for (u64 end = system_time() + 2000000000ull; !done && system_time() < end;)
        HYPERCALL2(sched_op, SCHEDOP_yield, 0);
    EXPECT_EQUAL(done, 1);

    EXPECT_EQUAL(read.fcw, 0x027f);
    EXPECT_EQUAL(read.fsw, 6 << 11 | 0x100);
    EXPECT_EQUAL(read.mxcsr, 0x3f80);
    EXPECT(read.popped == 0x4044c00000000000ull); /* 41.5 */
    EXPECT_EQUAL(seen.fcw, 0x027f);
    EXPECT_EQUAL(seen.ftw, 0xc0);
    EXPECT_EQUAL(seen.mxcsr, 0x3f80);
    EXPECT(!memcmp(&seen.st[0], &image->st[0], 10));
    EXPECT(!memcmp(&seen.st[1], &image->st[1], 10));
    EXPECT(!memcmp(seen.xmm, image->xmm, sizeof(seen.xmm)));

    /* This one's registers are its own. */
    __asm__ volatile("movups %%xmm1, %0; stmxcsr %1" : "=m"(kept), "=m"(mxcsr_kept));
    EXPECT(!memcmp(kept, own, sizeof(own)));
    EXPECT_EQUAL(mxcsr_kept, mxcsr);
}
