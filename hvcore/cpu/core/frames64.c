/* Entering and leaving 64-bit guests: hvcore/pv/frames64.py and frames.py. */
#include "lane.h"

enum { VGCF_in_syscall = 1 << 8, CALLBACKTYPE_syscall = 2 };
enum { FLAT_CS_FLAGS = 0x00affb00, FLAT_SS_FLAGS = 0x00cff300 };

/* Frames64._set_flat() */
static void set_flat(struct hv_call *c) {
    if (hv_segment(c, CS)->selector != FLAT_RING3_CS64)
        hv_set_segment(c, CS, FLAT_RING3_CS64, 0, UINT32_MAX, FLAT_CS_FLAGS);
    if (hv_segment(c, SS)->selector != FLAT_RING3_SS)
        hv_set_segment(c, SS, FLAT_RING3_SS, 0, UINT32_MAX, FLAT_SS_FLAGS);
}

/* Frames64.toggle_guest_mode() */
static void toggle_guest_mode(struct hv_call *c) {
    struct hv_vcpu *v = c->v;
    hv_set64(c, v->kernel_mode ? &v->gs_base_kernel : &v->gs_base_user, hv_segment(c, GS)->base);
    hv_set_base(c, GS, v->kernel_mode ? v->gs_base_user : v->gs_base_kernel);
    hv_set64(c, &v->kernel_mode, !v->kernel_mode);
    hv_close_ports(c);
    uint64_t root = v->kernel_mode ? v->cr3_mfn : v->user_cr3_mfn;
    hv_update_cr3(c, root, root);
}

/* Frames64._push() and _enter(): RCX R11 [error code] RIP CS|mask RFLAGS RSP SS */
bool hv_bounce_frame64(struct hv_call *c, uint64_t address, const uint64_t *error_code, bool mask_events,
                       uint64_t cleared) {
    uint64_t *regs = c->regs, rsp = regs[RSP], cs = hv_segment(c, CS)->selector, ss = hv_segment(c, SS)->selector, sp;
    uint64_t eflags = hv_read_eflags(c->e);
    if (!address || !(*hv_hflags(c) & HF_CS64))
        return NOT_MINE;
    if (c->v->kernel_mode) {
        sp = rsp & ~UINT64_C(15);
        cs &= ~UINT64_C(3);
    } else {
        toggle_guest_mode(c);
        sp = c->v->kernel_sp & ~UINT64_C(15);
    }
    uint8_t mask = hv_info(c->v)->evtchn_upcall_mask;
    uint64_t frame[8], *next = frame;
    *next++ = regs[RCX];
    *next++ = regs[R11];
    if (error_code)
        *next++ = *error_code;
    *next++ = regs[RIP];
    *next++ = cs | (uint64_t)mask << 32;
    *next++ = hv_saved_eflags(c, eflags, mask);
    *next++ = rsp;
    *next++ = ss;
    uint64_t size = (uint64_t)((uint8_t *)next - (uint8_t *)frame);
    sp -= size;
    if (!hv_copy_to_guest(c, sp, frame, size))
        return NOT_MINE;
    if (mask_events)
        hv_set8(c, &hv_info(c->v)->evtchn_upcall_mask, mask | 1);
    eflags = (eflags & ~cleared) | X86_EFLAGS_IF;
    hv_write_eflags(c, eflags);
    hv_set64(c, &regs[RSP], sp);
    set_flat(c);
    hv_set64(c, &regs[RIP], address);
    hv_set64(c, &regs[RCX], address);
    hv_set64(c, &regs[R11], eflags);
    return MINE;
}

/* Frames64._switch_to_kernel(): a process's `syscall`; RIP is behind it. */
bool hv_switch_to_kernel(struct hv_call *c) {
    const struct hv_entry *entry = (const struct hv_entry *)c->v->callback_words + CALLBACKTYPE_syscall;
    set_flat(c);
    return hv_bounce_frame64(c, entry->address, NULL, entry->flags != 0, HV_CLEARED_ON_TRAP64 | X86_EFLAGS_DF);
}

/* Frames64.do_iret() */
bool hv_iret64(struct hv_call *c) {
    struct {
        uint64_t rax, r11, rcx, flags, rip, cs, rflags, rsp, ss;
    } frame;
    uint64_t *regs = c->regs;
    if (!hv_copy_from_guest(c, &frame, regs[RSP], sizeof frame))
        return NOT_MINE;
    if (frame.rflags & X86_EFLAGS_TF) /* which the engine would look at once more */
        return NOT_MINE;
    if ((frame.cs & 3) == 3) {
        if (!c->v->user_cr3_mfn)
            return NOT_MINE;
        toggle_guest_mode(c);
    }
    bool in_syscall = frame.flags & VGCF_in_syscall;
    uint64_t r11 = in_syscall ? regs[R11] : frame.r11, rcx = in_syscall ? regs[RCX] : frame.rcx;
    hv_restore_flags(c, frame.rflags);
    if (in_syscall && hv_has_event(c->v)) /* it comes first, and shows the segments of the frame */
        return NOT_MINE;
    uint32_t cs = (frame.cs | 3) & 0xffff, ss = (frame.ss | 3) & 0xffff;
    bool is_flat = cs == FLAT_RING3_CS64 && ss == FLAT_RING3_SS;
    bool is_loaded = cs == hv_segment(c, CS)->selector && ss == hv_segment(c, SS)->selector;
    if (in_syscall) {
        if (!hv_is_canonical(frame.rip) || cs == FLAT_RING3_CS32)
            return NOT_MINE;
        rcx = frame.rip;
        r11 = (frame.rflags & ~(uint64_t)(X86_EFLAGS_IOPL | X86_EFLAGS_VM)) | X86_EFLAGS_IF;
    } else if (!is_flat && !is_loaded && !hv_load_cs_ss(c, cs, ss)) {
        return NOT_MINE;
    }
    hv_set64(c, &regs[RAX], frame.rax);
    hv_set64(c, &regs[RIP], frame.rip);
    hv_set64(c, &regs[RSP], frame.rsp);
    hv_set64(c, &regs[R11], r11);
    hv_set64(c, &regs[RCX], rcx);
    if (in_syscall || is_flat)
        set_flat(c);
    if (in_syscall) /* _sysret() */
        hv_write_eflags(c, r11 & ~(uint64_t)X86_EFLAGS_RF);
    return MINE;
}
