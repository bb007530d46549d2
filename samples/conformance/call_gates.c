/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Call gates: checked on entry, emulated for 32-bit guests, of no use to 64-bit ones";

#define GATE(selector, offset, dpl, type) \
    ((u64)((offset) & 0xffff) | (u64)(selector) << 16 | (u64)(type) << 40 | (u64)(dpl) << 45 | (u64)((offset) >> 16) << 48)
#define PRESENT_CALL_GATE 0x8c

static u64 *gdt;

static long descriptor(unsigned index, u64 value)
{
    return update_descriptor(virt_to_machine(gdt + index), value);
}

/* With 32 bits of offset in both widths: of 64 bits processors of different makers read different selectors. */
static struct {
    u32 offset;
    u16 selector;
} __attribute__((packed)) target;

static void far_call(void *selector)
{
    target.selector = (u16)(ulong)selector;
    __asm__ volatile("lcall *%0" : : "m"(target) : "memory");
}

#ifndef __x86_64__
extern volatile u32 called;
volatile u32 called;
extern u8 gate_target[];
/* It runs with whatever data segments its caller had: the stack's alone is sure. */
__asm__(".text\n"
        "gate_target: incl %ss:called\n"
        "  lret\n");

/* lcall $SELECTOR, $0; int $0x80 */
static u8 user_call[] = { 0x9a, 0, 0, 0, 0, 0, 0, 0xcd, 0x80 };

static struct trap call_from_user(u16 selector)
{
    user_call[5] = (u8)selector;
    user_call[6] = (u8)(selector >> 8);
    return run_user(user_call, sizeof(user_call), (ulong)0);
}

static void emulated(void)
{
    ulong offset = (ulong)gate_target;
    EXPECT_OK(descriptor(6, GATE(FLAT_KERNEL_CS, offset, 1, PRESENT_CALL_GATE)));
    EXPECT_EQUAL(gdt[6] >> 45 & 3, 0); /* its DPL has moved to the selector's RPL */
    EXPECT_EQUAL(gdt[6] >> 16 & 3, 1);
    EXPECT_NO_TRAP(far_call, 6 * 8 + 1);
    EXPECT_EQUAL(called, 1);
    EXPECT_TRAP(far_call, 6 * 8 + 3, TRAP_GP, 6 * 8); /* RPL above the gate's DPL */

    /* From ring 3 through a gate for it, onto the kernel's stack, and back. */
    struct trap trap = call_from_user(6 * 8 + 3);
    count_refusal();
    EXPECT_EQUAL(trap.vector, TRAP_GP);
    EXPECT_EQUAL(trap.error_code, 6 * 8);
    EXPECT_OK(descriptor(7, GATE(FLAT_KERNEL_CS, offset, 3, PRESENT_CALL_GATE)));
    trap = call_from_user(7 * 8 + 3);
    EXPECT_EQUAL(trap.vector, 0x80);
    EXPECT_EQUAL(called, 2);

    EXPECT_OK(descriptor(8, GATE(FLAT_KERNEL_CS, offset, 3, 0x0c)));
    trap = call_from_user(8 * 8 + 3); /* not present */
    count_refusal();
    EXPECT_EQUAL(trap.vector, TRAP_NP);
    EXPECT_EQUAL(trap.error_code, 8 * 8);
    EXPECT_EQUAL(called, 2);
    /* To a data segment, to nothing: the target's selector is in the error code (pv_emulate_gate_op). */
    EXPECT_OK(descriptor(9, GATE(3 * 8, offset, 1, PRESENT_CALL_GATE)));
    EXPECT_TRAP(far_call, 9 * 8 + 1, TRAP_GP, 3 * 8);
    EXPECT_OK(descriptor(10, GATE(100 * 8, offset, 1, PRESENT_CALL_GATE)));
    EXPECT_TRAP(far_call, 10 * 8 + 1, TRAP_GP, 100 * 8);
}
#endif

void conform(void)
{
    ulong frames[1];
    gdt = alloc_page();
    gdt[3] = 0x00cff2000000ffffull;
    frames[0] = virt_to_mfn(gdt);
    EXPECT_OK(make_readonly(gdt));
    EXPECT_OK(HYPERCALL2(set_gdt, frames, 512));

#ifndef __x86_64__
    emulated();
    EXPECT_REFUSED(descriptor(11, GATE(FLAT_KERNEL_CS, 0, 3, PRESENT_CALL_GATE) | 0x20ull << 32), EINVAL); /* reserved */
#else
    EXPECT_REFUSED(descriptor(11, GATE(FLAT_KERNEL_CS, 0, 3, PRESENT_CALL_GATE) | 1ull << 32), EINVAL); /* parameters */
#endif
    /* guest_gate_selector_okay: never into Xen's own segments, but for its flat kernel code. */
    EXPECT_REFUSED(descriptor(11, GATE(0xe008, 0, 3, PRESENT_CALL_GATE)), EINVAL);
    EXPECT_REFUSED(descriptor(11, GATE(0xe010, 0, 0, PRESENT_CALL_GATE)), EINVAL);
    /* Every other gate is refused (check_descriptor). */
    EXPECT_REFUSED(descriptor(11, GATE(FLAT_KERNEL_CS, 0, 3, 0x84)), EINVAL); /* 16-bit call gate */
    EXPECT_REFUSED(descriptor(11, GATE(FLAT_KERNEL_CS, 0, 3, 0x85)), EINVAL); /* task gate */
    EXPECT_REFUSED(descriptor(11, GATE(FLAT_KERNEL_CS, 0, 3, 0x8e)), EINVAL); /* interrupt gate */
    EXPECT_REFUSED(descriptor(11, GATE(FLAT_KERNEL_CS, 0, 3, 0x8f)), EINVAL); /* trap gate */
    EXPECT_EQUAL(gdt[11], 0);
    EXPECT_TRAP(far_call, 11 * 8 + 3, TRAP_GP, 11 * 8);
    EXPECT_TRAP(far_call, 3 * 8 + 3, TRAP_GP, 3 * 8); /* data */
    EXPECT_TRAP(far_call, 0, TRAP_GP, 0);
}
