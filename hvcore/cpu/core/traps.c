/* Exceptions, software interrupts and upcalls: hvcore/pv/traps.py. */
#include "lane.h"

enum { LEGACY_SYSCALL_VECTOR = 0x80, CALLBACKTYPE_event = 0, TI_IF = 4 };
enum { CLI = 0xfa, STI, IOPL_SHIFT = 12 };

/* Whether a trap table entry names a handler: a selector of a 32-bit guest, an address of a 64-bit one. */
static bool handler_set(const struct hv_call *c, const struct hv_entry *entry) {
    return c->is_32bit ? (entry->cs & ~UINT64_C(3)) != 0 : entry->address != 0;
}

static bool enter(struct hv_call *c, const struct hv_entry *entry, const uint64_t *error_code, bool mask_events) {
    return c->is_32bit ? hv_bounce_frame32(c, entry->cs, entry->address, error_code, mask_events)
                       : hv_bounce_frame64(c, entry->address, error_code, mask_events, HV_CLEARED_ON_TRAP64);
}

static const struct hv_entry *trap_entry(const struct hv_call *c, unsigned vector) {
    return (const struct hv_entry *)c->v->trap_words + vector;
}

/* Traps.test_all_events(): an upcall, if one is due; of NMIs Python knows. */
bool hv_test_all_events(struct hv_call *c) {
    if (c->v->nmi_pending)
        return NOT_MINE;
    if (!hv_has_event(c->v))
        return MINE;
    hv_event(c, EVENT_upcall, c->regs[RIP], 0, 0);
    hv_count_up(c, &c->d->events_delivered);
    return enter(c, (const struct hv_entry *)c->v->callback_words + CALLBACKTYPE_event, NULL, true);
}

/* Traps.bounce(): go on at the guest's handler for `vector`. */
static bool bounce(struct hv_call *c, unsigned vector, const uint64_t *error_code) {
    const struct hv_entry *entry = trap_entry(c, vector);
    hv_event(c, EVENT_exception, c->regs[RIP], vector, error_code ? *error_code : HV_NO_ERROR_CODE);
    return handler_set(c, entry) && enter(c, entry, error_code, entry->flags & TI_IF) && hv_test_all_events(c);
}

/* Traps.inject() of the guest's own page fault */
static bool inject_page_fault(struct hv_call *c, uint64_t error_code, uint64_t cr2) {
    uint8_t *cr2_of_info = (uint8_t *)hv_info(c->v) + c->v->cr2_offset;
    hv_set64(c, (uint64_t *)c->v->ctrlreg_words + 2, cr2);
    if (c->is_32bit)
        hv_set32(c, cr2_of_info, (uint32_t)cr2);
    else
        hv_set64(c, cr2_of_info, cr2);
    error_code &= ~(uint64_t)PFEC_user_mode;
    if (!hv_guest_kernel_mode(c))
        error_code |= PFEC_user_mode;
    return bounce(c, TRAP_page_fault, &error_code);
}

/* Traps.do_page_fault(): a store to a page table, or a fault of the guest's own. */
static bool page_fault(struct hv_call *c) {
    uint64_t error_code = hv_error_code(c)[0], cr2 = c->regs[CR2];
    uint64_t kind = error_code & (PFEC_page_present | PFEC_write_access | PFEC_insn_fetch);
    if (error_code & PFEC_reserved_bit) /* the end of the domain */
        return NOT_MINE;
    if (c->is_32bit ? cr2 >> 32 : !(error_code & PFEC_user_mode)) /* a look of the processor's into GDT or LDT */
        return NOT_MINE;
    if (kind == (PFEC_page_present | PFEC_write_access) && hv_guest_kernel_mode(c))
        return hv_count_lane(c, LANE_page_table_store, hv_ro_page_fault(c, cr2));
    return hv_count_lane(c, LANE_page_fault, inject_page_fault(c, error_code, cr2));
}

/* Traps.do_softint(): `int n`, `int3` and `into` that the guest lets the ring do; RIP is behind. */
static bool software_interrupt(struct hv_call *c, unsigned vector) {
    const struct hv_entry *entry = trap_entry(c, vector);
    unsigned privilege = hv_guest_kernel_mode(c) ? 1 : 3;
    bool is_open = vector == TRAP_int3 || vector == TRAP_overflow || vector == LEGACY_SYSCALL_VECTOR;
    if (!is_open && (entry->flags & 3) < privilege)
        return NOT_MINE;
    return hv_count_lane(c, LANE_software_interrupt, bounce(c, vector, NULL));
}

/* iopl_ok() */
static bool iopl_ok(const struct hv_call *c) {
    unsigned kernel = c->d->vm_assist & VMASST_architectural_iopl ? 0 : 1;
    return (hv_guest_kernel_mode(c) ? kernel : 3) << IOPL_SHIFT <= c->v->iopl;
}

/* pv_emulate_privileged_op() of a bare `cli` or `sti`, which change nothing and need the right to. */
static bool cli_or_sti(struct hv_call *c) {
    bool is_known_code = *hv_hflags(c) & (HF_CS32 | HF_CS64) && !hv_segment(c, CS)->base;
    if (!is_known_code || c->regs[EFLAGS] & X86_EFLAGS_RF)
        return NOT_MINE;
    const uint8_t *code = hv_copy_from(c, c->regs[RIP], 1);
    if (!code || (*code != CLI && *code != STI) || !iopl_ok(c))
        return NOT_MINE;
    hv_event(c, EVENT_emulated, c->regs[RIP], *code, 0);
    hv_count_up(c, (uint64_t *)c->d->cli_sti + (*code - CLI));
    hv_set64(c, &c->regs[RIP], c->is_32bit ? (uint32_t)(c->regs[RIP] + 1) : c->regs[RIP] + 1);
    return MINE;
}

bool hv_trap(struct hv_call *c, unsigned vector) {
    const uint32_t *error_code = hv_error_code(c);
    bool is_software = error_code[1];
    bool is_privileged = vector == TRAP_gp_fault && !error_code[0];
    if (!is_software && vector != TRAP_page_fault && !is_privileged)
        return NOT_MINE;
    hv_count_up(c, (uint64_t *)c->d->exceptions + vector);
    hv_event(c, EVENT_trap, c->regs[RIP], vector, is_software ? HV_NO_ERROR_CODE : error_code[0]);
    if (is_software)
        return software_interrupt(c, vector);
    return is_privileged ? hv_count_lane(c, LANE_cli_sti, cli_or_sti(c)) : page_fault(c);
}
