/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Starting another vCPU: Xen takes the whole of its state at once, then lets it run.
 */
#include "guest.h"

static struct vcpu_guest_context context;

/* The state in which vCPU `id` would run function() on a stack that ends at `stack_end`. */
struct vcpu_guest_context *vcpu_context(void (*function)(void), void *stack_end)
{
    memset(&context, 0, sizeof(context));
    context.flags = VGCF_in_kernel;
    context.kernel_ss = FLAT_KERNEL_SS;
    context.kernel_sp = (ulong)stack_end;
    context.ctrlreg[0] = 0x80050033;
    context.ctrlreg[3] = virt_to_mfn((void *)start_info->pt_base) << PAGE_SHIFT;
    context.user_regs.cs = FLAT_KERNEL_CS;
    context.user_regs.ds = FLAT_KERNEL_DS;
    context.user_regs.es = FLAT_KERNEL_DS;
    context.user_regs.ss = FLAT_KERNEL_SS;
#ifdef __x86_64__
    context.user_regs.rip = (ulong)function;
    context.user_regs.rsp = (ulong)stack_end - 8; /* as after a call */
    context.user_regs.rflags = 0x200;
#else
    context.user_regs.eip = (ulong)function;
    context.user_regs.esp = (ulong)stack_end - 4;
    context.user_regs.eflags = 0x200;
#endif
    return &context;
}

long vcpu_start(unsigned id, void (*function)(void), void *stack_end)
{
    long error = HYPERCALL3(vcpu_op, VCPUOP_initialise, id, vcpu_context(function, stack_end));
    return error ? error : HYPERCALL3(vcpu_op, VCPUOP_up, id, 0);
}
