/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * PRIVILEGED INSTRUCTIONS: Traps and exceptions. The IDT is Xen's. What we have is a table that we hand over
 * once: a handler for each vector, who may call it with `int n` (the ring, like an IDT entry's DPL), and whether
 * events are to be masked on entry, like an interrupt gate. `int $0x80` from ring 3 does not go through Xen's
 * fault handling: the processor, or the shortest path that Xen has, comes straight here.
 */
#include "kernel.h"

#define VECTOR_EVENT 0x100
#define MASK_EVENTS 4

extern u8 entry_divide_error[], entry_debug[], entry_breakpoint[], entry_overflow[], entry_bounds[],
    entry_invalid_op[], entry_device_not_available[], entry_double_fault[], entry_invalid_tss[],
    entry_segment_not_present[], entry_stack_segment[], entry_general_protection[], entry_page_fault[],
    entry_coprocessor_error[], entry_alignment_check[], entry_system_call[], entry_failsafe[];
void from_xen(struct regs *regs);

#define GATE(vector, flags, entry) { vector, flags, KERNEL_CS, (ulong)(entry) }
static const struct trap_info trap_table[] = {
    GATE(0, MASK_EVENTS, entry_divide_error),
    GATE(1, MASK_EVENTS, entry_debug),
    GATE(3, MASK_EVENTS | 3, entry_breakpoint),
    GATE(4, MASK_EVENTS | 3, entry_overflow),
    GATE(5, MASK_EVENTS, entry_bounds),
    GATE(6, MASK_EVENTS, entry_invalid_op),
    GATE(7, MASK_EVENTS, entry_device_not_available),
    GATE(8, MASK_EVENTS, entry_double_fault),
    GATE(10, MASK_EVENTS, entry_invalid_tss),
    GATE(11, MASK_EVENTS, entry_segment_not_present),
    GATE(12, MASK_EVENTS, entry_stack_segment),
    GATE(13, MASK_EVENTS, entry_general_protection),
    GATE(14, MASK_EVENTS, entry_page_fault), /* arch.cr2 must not change before it is read */
    GATE(16, MASK_EVENTS, entry_coprocessor_error),
    GATE(17, MASK_EVENTS, entry_alignment_check),
    GATE(0x80, 3, entry_system_call), /* events stay as they were: on */
    GATE(0, 0, 0),                    /* the end */
};

volatile ulong breakpoints;

void traps_init(void)
{
    struct callback_register failsafe = {
        .type = CALLBACKTYPE_failsafe,
        .flags = CALLBACKF_mask_events,
        .cs = KERNEL_CS,
        .address = (ulong)entry_failsafe,
    };
    must(HYPERCALL1(set_trap_table, trap_table), "set_trap_table");
    must(HYPERCALL2(callback_op, CALLBACKOP_register, &failsafe), "failsafe callback");
    __asm__ volatile("int3");
    printf("traps: the table is set; %lu breakpoint came and went\n", breakpoints);
}

static const char *const names[] = {
    [0] = "divide error",        [1] = "debug",         [4] = "overflow",
    [5] = "bounds",              [6] = "undefined instruction", [7] = "no coprocessor",
    [8] = "double fault",        [10] = "invalid TSS",  [11] = "segment not present",
    [12] = "stack segment",      [13] = "general protection",   [14] = "page fault",
    [16] = "coprocessor error",  [17] = "alignment check",
};

/* A process ends for what it did; the kernel has no such excuse. */
static void die(const struct regs *regs, ulong address)
{
    ulong vector = regs->vector;
    const char *name = vector < ARRAY_SIZE(names) && names[vector] ? names[vector] : "failsafe callback";
    printf("%s, error code %lx", name, regs->error_code);
    if (vector == 14)
        printf(", address %lx", address);
    if (user_mode(regs)) {
        printf(": process %d is killed\n", current->pid);
        exit_task(-1);
    }
    printf("\nip %lx flags %lx\n", regs->ip, regs->flags);
    panic("trap in the kernel");
}

static void page_fault(struct regs *regs)
{
    ulong address = shared_info->vcpu_info[0].cr2;
    if (!user_fault(&current->mm, address, regs->error_code))
        die(regs, address);
}

/* Everything comes here; entry.S has saved the registers. */
void from_xen(struct regs *regs)
{
    switch (regs->vector) {
    case 0x80:
        do_syscall(regs);
        irq_disable(); /* what follows decides whether to return */
        break;
    case VECTOR_EVENT:
        upcall();
        break;
    case 3:
        breakpoints++;
        break;
    case 14:
        page_fault(regs);
        break;
    default:
        die(regs, 0);
    }
    /* A process can be preempted wherever it is, the kernel only where it says so. */
    if (user_mode(regs) && need_resched) {
        current->preempted += regs->vector == VECTOR_EVENT;
        schedule();
    }
}
