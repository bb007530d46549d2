/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "The failsafe callback: a segment that no longer loads when its vCPU is switched back to";

#define VECTOR_FAILSAFE 0x101
#define DATA3 0x00cff2000000ffffull
#define SELECTOR (5 * 8 + 3)

static u8 stack[2 * PAGE_SIZE] PAGE_ALIGNED;
static volatile u32 runs;
static u64 *gdt;

static void second(void)
{
    for (;;) {
        runs++;
        HYPERCALL2(sched_op, SCHEDOP_yield, 0);
    }
}

static long descriptor(unsigned index, u64 value)
{
    return update_descriptor(virt_to_machine(gdt + index), value);
}

static u16 selector(void)
{
    u16 value;
    __asm__ volatile("mov %%gs, %0" : "=r"(value));
    return value;
}

static void load(void *value)
{
    __asm__ volatile("mov %w0, %%gs" : : "r"(value));
}

static void let_the_other_run(void *unused)
{
    u32 until = runs + 3;
    (void)unused;
    for (u64 end = system_time() + 1000000000ull; runs < until && system_time() < end;)
        HYPERCALL2(sched_op, SCHEDOP_yield, 0);
}

void conform(void)
{
    if (HYPERCALL3(vcpu_op, VCPUOP_is_up, 1, 0) < 0)
        skip("needs two vCPUs");
    gdt = alloc_page();
    gdt[5] = DATA3;
    ulong frames[1] = { virt_to_mfn(gdt) };
    EXPECT_OK(make_readonly(gdt));
    EXPECT_OK(HYPERCALL2(set_gdt, frames, 512));
    EXPECT_OK(vcpu_start(1, second, stack + sizeof(stack)));

    EXPECT_NO_TRAP(load, SELECTOR);
    EXPECT_NO_TRAP(let_the_other_run, NULL);
    EXPECT_EQUAL(selector(), SELECTOR); /* what loads comes back */
    /* The descriptor goes while its selector is loaded: load_segments cannot load it again. */
    EXPECT_OK(descriptor(5, 0));
    struct trap trap = probe(let_the_other_run, NULL);
    if (trap.vector == NO_TRAP && start_info->flags & SIF_INITDOMAIN)
        skip("needs one processor for both vCPUs (maxcpus=1)");
    count_refusal();
    EXPECT_EQUAL(trap.vector, VECTOR_FAILSAFE);
    count_refusal();
    EXPECT_EQUAL(selector(), 0);
    /* Asked for in the open it is the fault that it is; nothing is wrong any more after that. */
    EXPECT_TRAP(load, SELECTOR, TRAP_GP, SELECTOR & ~3);
    EXPECT_NO_TRAP(let_the_other_run, NULL);
    EXPECT_OK(HYPERCALL3(vcpu_op, VCPUOP_down, 1, 0));
}
