/* Entering and leaving 32-bit guests: hvcore/pv/frames32.py. The kernel is in ring 1, frames have words of 32 bits. */
#include "lane.h"

/* The stack that a handler gets: the one in use, or from an outer ring the kernel's. */
struct stack {
    uint32_t ss, base, sp;
};

static bool stack_of(const struct hv_call *c, bool is_outer, struct stack *stack) {
    struct hv_descriptor descriptor;
    if (!is_outer) {
        *stack = (struct stack){hv_segment(c, SS)->selector, (uint32_t)hv_segment(c, SS)->base, (uint32_t)c->regs[RSP]};
        return MINE;
    }
    *stack = (struct stack){.ss = (uint32_t)c->v->kernel_ss, .sp = (uint32_t)c->v->kernel_sp};
    if (!(stack->ss & ~3u) || !hv_descriptor(c, stack->ss, &descriptor))
        return NOT_MINE;
    stack->base = descriptor.base;
    return MINE;
}

/* Frames32.create_bounce_frame(): [error code] EIP CS|mask EFLAGS [ESP SS] */
bool hv_bounce_frame32(struct hv_call *c, uint64_t cs, uint64_t address, const uint64_t *error_code, bool mask_events) {
    uint32_t old_cs = hv_segment(c, CS)->selector, frame[6], *next = frame;
    uint64_t eflags = hv_read_eflags(c->e);
    bool is_outer = old_cs & 2;
    uint8_t mask = hv_info(c->v)->evtchn_upcall_mask;
    struct stack stack;
    if (!(cs & ~UINT64_C(3)) || !stack_of(c, is_outer, &stack))
        return NOT_MINE;
    if (error_code)
        *next++ = (uint32_t)*error_code;
    *next++ = (uint32_t)c->regs[RIP];
    *next++ = old_cs | (uint32_t)mask << 16;
    *next++ = (uint32_t)hv_saved_eflags(c, eflags, mask);
    if (is_outer) {
        *next++ = (uint32_t)c->regs[RSP];
        *next++ = hv_segment(c, SS)->selector;
    }
    uint32_t size = (uint32_t)((uint8_t *)next - (uint8_t *)frame), sp = stack.sp - size;
    if (!hv_copy_to_guest(c, (uint32_t)(stack.base + sp), frame, size))
        return NOT_MINE;
    if (mask_events)
        hv_set8(c, &hv_info(c->v)->evtchn_upcall_mask, mask | 1);
    hv_write_eflags(c, (eflags & ~HV_CLEARED_ON_TRAP) | X86_EFLAGS_IF);
    hv_set64(c, &c->regs[RSP], sp);
    if ((cs != old_cs || stack.ss != hv_segment(c, SS)->selector) && !hv_load_cs_ss(c, (uint32_t)cs, stack.ss))
        return NOT_MINE;
    hv_set64(c, &c->regs[RIP], (uint32_t)address);
    return MINE;
}

/* Frames32.do_iret(): EAX EIP CS EFLAGS [ESP SS] on the guest's stack */
bool hv_iret32(struct hv_call *c) {
    uint32_t frame[4], outer[2], sp = (uint32_t)c->regs[RSP], at = (uint32_t)(hv_segment(c, SS)->base + sp);
    uint32_t old_cpl = *hv_hflags(c) & HF_CPL;
    if (!hv_copy_from_guest(c, frame, at, sizeof frame))
        return NOT_MINE;
    uint32_t cs = frame[2] & 0xffff, eflags = frame[3];
    if (eflags & (X86_EFLAGS_VM | X86_EFLAGS_TF) || !(cs & 3))
        return NOT_MINE;
    if ((cs & 3) == 1) {
        outer[0] = sp + sizeof frame;
        outer[1] = hv_segment(c, SS)->selector;
    } else if (!hv_copy_from_guest(c, outer, at + (uint32_t)sizeof frame, sizeof outer)) {
        return NOT_MINE;
    }
    uint32_t ss = outer[1] & 0xffff;
    hv_restore_flags(c, eflags);
    hv_set64(c, &c->regs[RAX], frame[0]);
    hv_set64(c, &c->regs[RIP], frame[1]);
    hv_set64(c, &c->regs[RSP], outer[0]);
    if (cs == hv_segment(c, CS)->selector && ss == hv_segment(c, SS)->selector)
        return MINE;
    if (!hv_load_cs_ss(c, cs, ss))
        return NOT_MINE;
    if ((*hv_hflags(c) & HF_CPL) > old_cpl)
        hv_drop_privileged_data(c);
    return MINE;
}
