/* Entering and leaving 64-bit guests: hvcore/pv/frames64.py and frames.py. */
#include "lane.h"

#define CLEARED_ON_TRAP \
    ((uint64_t)(X86_EFLAGS_VM | X86_EFLAGS_RF | X86_EFLAGS_NT | X86_EFLAGS_TF | X86_EFLAGS_AC))

enum { VMASST_architectural_iopl = 1 << 4, VGCF_in_syscall = 1 << 8 };
enum { CALLBACKTYPE_event = 0, CALLBACKTYPE_syscall = 2 };
enum { FLAT_CS_FLAGS = 0x00affb00, FLAT_SS_FLAGS = 0x00cff300 };

/* -- segments */

/* Frames64._set_flat() */
static void set_flat(struct hv_call *c) {
    if (*hv_segment(c, CS) != FLAT_RING3_CS64)
        hv_set_segment(c, CS, FLAT_RING3_CS64, 0, UINT32_MAX, FLAT_CS_FLAGS);
    if (*hv_segment(c, SS) != FLAT_RING3_SS)
        hv_set_segment(c, SS, FLAT_RING3_SS, 0, UINT32_MAX, FLAT_SS_FLAGS);
}

/* -- flags */

static uint8_t *info_of(const struct hv_call *c) { return (uint8_t *)c->v->info_address; }

/* saved_eflags(): IF is the negated event mask, IOPL the virtual one where it is wanted. */
static uint64_t saved_eflags(const struct hv_call *c, uint64_t eflags, uint8_t mask) {
    eflags &= ~(uint64_t)(X86_EFLAGS_IF | X86_EFLAGS_IOPL);
    if (!mask)
        eflags |= X86_EFLAGS_IF;
    if (c->d->vm_assist & VMASST_architectural_iopl)
        eflags |= c->v->iopl;
    return eflags;
}

static void close_ports(struct hv_call *c) { hv_set64(c->j, &c->e->port_ring, NO_RING); }

/* restore_flags() */
static void restore_flags(struct hv_call *c, uint64_t eflags) {
    if (c->d->vm_assist & VMASST_architectural_iopl && (eflags & X86_EFLAGS_IOPL) != c->v->iopl) {
        hv_set64(c->j, &c->v->iopl, eflags & X86_EFLAGS_IOPL);
        close_ports(c);
    }
    hv_set8(c->j, &info_of(c)[1], eflags & X86_EFLAGS_IF ? 0 : 1);
    hv_set64(c->j, &c->v->async_exception_mask, false);
    hv_write_eflags(c, (eflags & ~(uint64_t)(X86_EFLAGS_IOPL | X86_EFLAGS_VM) & EFLAGS_SETTABLE) | X86_EFLAGS_IF);
}

/* -- modes */

/* Frames64.toggle_guest_mode() */
static void toggle_guest_mode(struct hv_call *c) {
    struct hv_vcpu *v = c->v;
    hv_set64(c->j, v->kernel_mode ? &v->gs_base_kernel : &v->gs_base_user, hv_segment_base(c, GS));
    hv_set_base(c, GS, v->kernel_mode ? v->gs_base_user : v->gs_base_kernel);
    hv_set64(c->j, &v->kernel_mode, !v->kernel_mode);
    close_ports(c);
    hv_set64(c->j, &c->regs[CR3], (v->kernel_mode ? v->cr3_mfn : v->user_cr3_mfn) << PAGE_SHIFT);
    hv_flush_tlb(c);
}

/* -- frames */

/* Frames64._push() and _enter(): RCX R11 [error code] RIP CS|mask RFLAGS RSP SS */
static bool enter_handler(struct hv_call *c, uint64_t address, const uint64_t *error_code, bool mask_events,
                          uint64_t cleared) {
    uint64_t *regs = c->regs, rsp = regs[RSP], cs = *hv_segment(c, CS), ss = *hv_segment(c, SS), sp;
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
    uint8_t mask = info_of(c)[1];
    uint64_t frame[8], *next = frame;
    *next++ = regs[RCX];
    *next++ = regs[R11];
    if (error_code)
        *next++ = *error_code;
    *next++ = regs[RIP];
    *next++ = cs | (uint64_t)mask << 32;
    *next++ = saved_eflags(c, eflags, mask);
    *next++ = rsp;
    *next++ = ss;
    uint64_t size = (uint64_t)((uint8_t *)next - (uint8_t *)frame);
    sp -= size;
    uint8_t *to = hv_copy_to(c, sp, size);
    if (!to)
        return NOT_MINE;
    for (const uint64_t *word = frame; word < next; word++, to += 8)
        hv_set64(c->j, to, *word);
    if (mask_events)
        hv_set8(c->j, &info_of(c)[1], mask | 1);
    eflags = (eflags & ~cleared) | X86_EFLAGS_IF;
    hv_write_eflags(c, eflags);
    hv_set64(c->j, &regs[RSP], sp);
    set_flat(c);
    hv_set64(c->j, &regs[RIP], address);
    hv_set64(c->j, &regs[RCX], address);
    hv_set64(c->j, &regs[R11], eflags);
    return MINE;
}

/* Traps.bounce(): go on at the guest's handler for `vector`. */
bool hv_bounce64(struct hv_call *c, unsigned vector, const uint64_t *error_code) {
    const struct hv_entry *entry = (const struct hv_entry *)c->v->trap_words + vector;
    return enter_handler(c, entry->address, error_code, entry->flags & 4, CLEARED_ON_TRAP);
}

/* Traps.test_all_events(): an upcall, if one is due; of NMIs Python knows. */
bool hv_test_all_events64(struct hv_call *c) {
    if (c->v->nmi_pending)
        return NOT_MINE;
    if (!hv_has_event(c->v))
        return MINE;
    const struct hv_entry *entry = (const struct hv_entry *)c->v->callback_words + CALLBACKTYPE_event;
    hv_event(c, EVENT_upcall, c->regs[RIP], 0, 0);
    hv_set64(c->j, &c->d->events_delivered, c->d->events_delivered + 1);
    return enter_handler(c, entry->address, NULL, true, CLEARED_ON_TRAP);
}

/* Frames64._switch_to_kernel(): a process's `syscall`; RIP is behind it. */
bool hv_switch_to_kernel(struct hv_call *c) {
    const struct hv_entry *entry = (const struct hv_entry *)c->v->callback_words + CALLBACKTYPE_syscall;
    set_flat(c);
    return enter_handler(c, entry->address, NULL, entry->flags != 0, CLEARED_ON_TRAP | X86_EFLAGS_DF);
}

static bool is_canonical(uint64_t address) { return address >> 47 == 0 || address >> 47 == 0x1ffff; }

/* Frames64.do_iret(): to the flat 64-bit segments, or to those that are loaded. */
bool hv_iret64(struct hv_call *c) {
    struct {
        uint64_t rax, r11, rcx, flags, rip, cs, rflags, rsp, ss;
    } frame;
    uint64_t *regs = c->regs;
    const uint8_t *from = hv_copy_from(c, regs[RSP], sizeof frame);
    if (!from)
        return NOT_MINE;
    memcpy(&frame, from, sizeof frame);
    if (frame.rflags & X86_EFLAGS_TF) /* which the engine would look at once more */
        return NOT_MINE;
    if ((frame.cs & 3) == 3) {
        if (!c->v->user_cr3_mfn)
            return NOT_MINE;
        toggle_guest_mode(c);
    }
    bool in_syscall = frame.flags & VGCF_in_syscall;
    uint64_t r11 = in_syscall ? regs[R11] : frame.r11, rcx = in_syscall ? regs[RCX] : frame.rcx;
    restore_flags(c, frame.rflags);
    if (in_syscall && hv_has_event(c->v)) /* it comes first, and shows the segments of the frame */
        return NOT_MINE;
    uint32_t cs = (frame.cs | 3) & 0xffff, ss = (frame.ss | 3) & 0xffff;
    bool is_flat = cs == FLAT_RING3_CS64 && ss == FLAT_RING3_SS;
    bool is_loaded = cs == *hv_segment(c, CS) && ss == *hv_segment(c, SS);
    if (in_syscall) {
        if (!is_canonical(frame.rip) || cs == FLAT_RING3_CS32)
            return NOT_MINE;
        rcx = frame.rip;
        r11 = (frame.rflags & ~(uint64_t)(X86_EFLAGS_IOPL | X86_EFLAGS_VM)) | X86_EFLAGS_IF;
    } else if (!is_flat && !is_loaded) {
        return NOT_MINE;
    }
    hv_set64(c->j, &regs[RAX], frame.rax);
    hv_set64(c->j, &regs[RIP], frame.rip);
    hv_set64(c->j, &regs[RSP], frame.rsp);
    hv_set64(c->j, &regs[R11], r11);
    hv_set64(c->j, &regs[RCX], rcx);
    if (in_syscall || is_flat)
        set_flat(c);
    if (in_syscall) /* _sysret() */
        hv_write_eflags(c, r11 & ~(uint64_t)X86_EFLAGS_RF);
    return MINE;
}

/* Traps.inject() of the guest's own page fault */
bool hv_page_fault64(struct hv_call *c, uint64_t error_code, uint64_t cr2) {
    hv_set64(c->j, (uint64_t *)c->v->ctrlreg_words + 2, cr2);
    hv_set64(c->j, info_of(c) + c->v->cr2_offset, cr2);
    if (c->v->kernel_mode)
        error_code &= ~(uint64_t)PFEC_user_mode;
    hv_event(c, EVENT_exception, c->regs[RIP], TRAP_page_fault, error_code);
    return hv_bounce64(c, TRAP_page_fault, &error_code) && hv_test_all_events64(c);
}
