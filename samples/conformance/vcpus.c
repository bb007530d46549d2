/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "A second vCPU: initialise, up, is_up, down";

static u8 stack[PAGE_SIZE] PAGE_ALIGNED;
static volatile u32 runs, command;

static void second(void)
{
    for (;;) {
        runs++;
        while (!command)
            HYPERCALL2(sched_op, SCHEDOP_yield, 0);
        command = 0;
        HYPERCALL3(vcpu_op, VCPUOP_down, 1, 0);
    }
}

static void wait_for(volatile u32 *value, u32 expected)
{
    for (u64 end = system_time() + 2000000000ull; *value != expected && system_time() < end;)
        HYPERCALL2(sched_op, SCHEDOP_yield, 0);
    EXPECT_EQUAL(*value, expected);
}

#define EXPECT_BAD(field, value)                                                              \
    do {                                                                                      \
        struct vcpu_guest_context *context = vcpu_context(second, stack + sizeof(stack));     \
        context->field = value;                                                               \
        EXPECT_REFUSED(HYPERCALL3(vcpu_op, VCPUOP_initialise, 1, context), EINVAL);           \
    } while (0)

/* arch_set_info_guest() */
static void bad_contexts(void)
{
    EXPECT_BAD(ldt_base, 0x10);
    EXPECT_BAD(ldt_ents, 8193);
    EXPECT_BAD(gdt_ents, 16 * 512 + 1);
    EXPECT_BAD(ctrlreg[3], 0);
#ifdef __x86_64__
    EXPECT_BAD(user_regs.rip, 1ul << 47);
    EXPECT_BAD(user_regs.rsp, 1ul << 47);
    EXPECT_BAD(kernel_sp, 1ul << 47);
    EXPECT_BAD(fs_base, 1ul << 47);
    EXPECT_BAD(gs_base_kernel, 1ul << 47);
    EXPECT_BAD(gs_base_user, 1ul << 47);
    EXPECT_BAD(event_callback_eip, 1ul << 47);
    EXPECT_BAD(failsafe_callback_eip, 1ul << 47);
    EXPECT_BAD(syscall_callback_eip, 1ul << 47);
    EXPECT_BAD(trap_ctxt[19].address, 1ul << 47);
    EXPECT_BAD(ldt_base, 0xffff820000000000ul); /* Xen's */
    EXPECT_BAD(flags, 0);                       /* a process, and no page table for it */
#endif
}

void conform(void)
{
    EXPECT_RC(HYPERCALL3(vcpu_op, VCPUOP_is_up, 0, 0), 1);
    EXPECT_REFUSED(HYPERCALL3(vcpu_op, VCPUOP_is_up, 4096, 0), ENOENT);
    long up = HYPERCALL3(vcpu_op, VCPUOP_is_up, 1, 0);
    if (up == -ENOENT)
        skip("needs two vCPUs");
    EXPECT_EQUAL(up, 0);
    EXPECT_REFUSED(HYPERCALL3(vcpu_op, VCPUOP_up, 1, 0), EINVAL); /* not initialised */
    EXPECT_REFUSED(HYPERCALL3(vcpu_op, VCPUOP_initialise, 1, 16), EFAULT);

    bad_contexts();
    EXPECT_OK(HYPERCALL3(vcpu_op, VCPUOP_initialise, 1, vcpu_context(second, stack + sizeof(stack))));
    EXPECT_RC(HYPERCALL3(vcpu_op, VCPUOP_is_up, 1, 0), 0);
    EXPECT_EQUAL(runs, 0);
    EXPECT_OK(HYPERCALL3(vcpu_op, VCPUOP_up, 1, 0));
    wait_for(&runs, 1);
    EXPECT_RC(HYPERCALL3(vcpu_op, VCPUOP_is_up, 1, 0), 1);
    EXPECT_REFUSED(
        HYPERCALL3(vcpu_op, VCPUOP_initialise, 1, vcpu_context(second, stack + sizeof(stack))), EEXIST);

    command = 1; /* it takes itself down; up lets it go on where it was */
    wait_for(&command, 0);
    for (u64 end = system_time() + 2000000000ull; HYPERCALL3(vcpu_op, VCPUOP_is_up, 1, 0) && system_time() < end;)
        HYPERCALL2(sched_op, SCHEDOP_yield, 0);
    EXPECT_RC(HYPERCALL3(vcpu_op, VCPUOP_is_up, 1, 0), 0);
    EXPECT_OK(HYPERCALL3(vcpu_op, VCPUOP_up, 1, 0));
    wait_for(&runs, 2);
    EXPECT_OK(HYPERCALL3(vcpu_op, VCPUOP_down, 1, 0));
    EXPECT_RC(HYPERCALL3(vcpu_op, VCPUOP_is_up, 1, 0), 0);
    EXPECT_REFUSED(HYPERCALL3(vcpu_op, 99, 0, 0), ENOSYS);
}
