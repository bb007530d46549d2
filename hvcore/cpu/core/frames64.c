/* Entering and leaving 64-bit guests: hvcore/pv/frames64.py and frames.py. */
#include "lane.h"

enum {
    X86_EFLAGS_IF = 0x200, X86_EFLAGS_DF = 0x400, X86_EFLAGS_IOPL = 0x3000, X86_EFLAGS_NT = 0x4000,
    X86_EFLAGS_RF = 0x10000, X86_EFLAGS_VM = 0x20000, X86_EFLAGS_AC = 0x40000, EFLAGS_SETTABLE = 0x3f7fd7,
};
#define CLEARED_ON_TRAP \
    ((uint64_t)(X86_EFLAGS_VM | X86_EFLAGS_RF | X86_EFLAGS_NT | X86_EFLAGS_TF | X86_EFLAGS_AC))

enum { VMASST_architectural_iopl = 1 << 4, VGCF_in_syscall = 1 << 8 };
enum { CALLBACKTYPE_event = 0, CALLBACKTYPE_syscall = 2 };
enum { ES_SEGMENT, CS_SEGMENT, SS_SEGMENT, GS_SEGMENT = 5 };
enum { HF_CS32 = 1 << 4, HF_SS32 = 1 << 5, HF_ADDSEG = 1 << 6 };
enum { FLAT_CS_FLAGS = 0x00affb00, FLAT_SS_FLAGS = 0x00cff300 };

/* -- segments */

static uint32_t *segment(const struct hv_call *c, int index) { /* selector, base, limit, flags */
    return (uint32_t *)c->regs + (184 + 24 * index) / 4;
}

static uint32_t *hflags_of(const struct hv_call *c) { return (uint32_t *)c->regs + HFLAGS_OFFSET / 4; }

static void load(struct hv_call *c, int index, uint32_t selector, uint32_t flags) {
    uint32_t *at = segment(c, index);
    hv_set32(c->j, &at[0], selector);
    hv_set64(c->j, &at[2], 0);
    hv_set32(c->j, &at[4], UINT32_MAX);
    hv_set32(c->j, &at[5], flags);
}

/* Frames64._set_flat(), by Engine.set_segment() */
static void set_flat(struct hv_call *c) {
    uint32_t hflags = *hflags_of(c);
    if (*segment(c, CS_SEGMENT) != FLAT_RING3_CS64) {
        load(c, CS_SEGMENT, FLAT_RING3_CS64, FLAT_CS_FLAGS);
        hflags = (hflags & ~(uint32_t)HF_ADDSEG) | HF_CPL | HF_CS32 | HF_CS64 | HF_SS32;
    }
    if (*segment(c, SS_SEGMENT) != FLAT_RING3_SS) {
        load(c, SS_SEGMENT, FLAT_RING3_SS, FLAT_SS_FLAGS);
        hflags = (hflags & ~(uint32_t)HF_ADDSEG) | HF_SS32;
    }
    hv_set32(c->j, hflags_of(c), hflags);
}

static uint64_t *gs_base(const struct hv_call *c) { return (uint64_t *)&segment(c, GS_SEGMENT)[2]; }

/* -- flags */

/* Engine.write_eflags() of a guest that runs: arithmetic flags and DF lie apart */
static void write_eflags(struct hv_call *c, uint64_t value) {
    uint32_t *words = (uint32_t *)c->regs;
    hv_set64(c->j, &c->regs[EFLAGS], (value & ~UINT64_C(0xcd5)) | 2);
    hv_set64(c->j, &c->regs[CC_SRC], value & 0x8d5);
    hv_set32(c->j, &words[CC_OP], CC_OP_EFLAGS);
    hv_set32(c->j, &words[DF], value & X86_EFLAGS_DF ? UINT32_MAX : 1);
}

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
    write_eflags(c, (eflags & ~(uint64_t)(X86_EFLAGS_IOPL | X86_EFLAGS_VM) & EFLAGS_SETTABLE) | X86_EFLAGS_IF);
}

/* -- modes */

/* Frames64.toggle_guest_mode() */
static void toggle_guest_mode(struct hv_call *c) {
    struct hv_vcpu *v = c->v;
    hv_set64(c->j, v->kernel_mode ? &v->gs_base_kernel : &v->gs_base_user, *gs_base(c));
    hv_set64(c->j, gs_base(c), v->kernel_mode ? v->gs_base_user : v->gs_base_kernel);
    if (*hflags_of(c) & HF_CS64)
        hv_set32(c->j, hflags_of(c), *hflags_of(c) & ~(uint32_t)HF_ADDSEG);
    hv_set64(c->j, &v->kernel_mode, !v->kernel_mode);
    close_ports(c);
    hv_set64(c->j, &c->regs[CR3], (v->kernel_mode ? v->cr3_mfn : v->user_cr3_mfn) << PAGE_SHIFT);
    hv_flush_tlb(c);
}

/* -- frames */

/* Frames64._push() and _enter(): RCX R11 [error code] RIP CS|mask RFLAGS RSP SS */
static bool enter_handler(struct hv_call *c, uint64_t address, const uint64_t *error_code, bool mask_events,
                          uint64_t cleared) {
    uint64_t *regs = c->regs, rsp = regs[RSP], cs = *segment(c, CS_SEGMENT), ss = *segment(c, SS_SEGMENT), sp;
    uint64_t eflags = hv_read_eflags(c->e);
    if (!address || !(*hflags_of(c) & HF_CS64))
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
    write_eflags(c, eflags);
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
    bool is_loaded = cs == *segment(c, CS_SEGMENT) && ss == *segment(c, SS_SEGMENT);
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
        write_eflags(c, r11 & ~(uint64_t)X86_EFLAGS_RF);
    return MINE;
}

/* Traps.do_page_fault() and inject(): the guest's own fault; a store to what may be a page table is Python's. */
bool hv_page_fault64(struct hv_call *c) {
    enum { PFEC_page_present = 1, PFEC_write_access = 2, PFEC_user_mode = 4, PFEC_reserved_bit = 8 };
    enum { PFEC_insn_fetch = 16 };
    const uint32_t *words = (const uint32_t *)c->regs;
    uint64_t error_code = words[ERROR_CODE_OFFSET / 4], cr2 = c->regs[CR2];
    if (words[ERROR_CODE_OFFSET / 4 + 1] || error_code & PFEC_reserved_bit || !(error_code & PFEC_user_mode))
        return NOT_MINE;
    uint64_t kind = error_code & (PFEC_page_present | PFEC_write_access | PFEC_insn_fetch);
    if (kind == (PFEC_page_present | PFEC_write_access) && c->v->kernel_mode)
        return NOT_MINE;
    uint64_t *exceptions = (uint64_t *)c->d->exceptions;
    hv_set64(c->j, &exceptions[TRAP_page_fault], exceptions[TRAP_page_fault] + 1);
    hv_event(c, EVENT_trap, c->regs[RIP], TRAP_page_fault, error_code);
    hv_set64(c->j, (uint64_t *)c->v->ctrlreg_words + 2, cr2);
    hv_set64(c->j, info_of(c) + c->v->cr2_offset, cr2);
    if (c->v->kernel_mode)
        error_code &= ~(uint64_t)PFEC_user_mode;
    hv_event(c, EVENT_exception, c->regs[RIP], TRAP_page_fault, error_code);
    return hv_bounce64(c, TRAP_page_fault, &error_code);
}
