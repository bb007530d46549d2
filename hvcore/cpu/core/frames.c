/* What guests of both widths have in common when they are entered and left: hvcore/pv/frames.py. */
#include "lane.h"

/* IF is the negated event mask, IOPL the virtual one where it is wanted. */
uint64_t hv_saved_eflags(const struct hv_call *c, uint64_t eflags, uint8_t mask) {
    eflags &= ~(uint64_t)(X86_EFLAGS_IF | X86_EFLAGS_IOPL);
    if (!mask)
        eflags |= X86_EFLAGS_IF;
    if (c->d->vm_assist & VMASST_architectural_iopl)
        eflags |= c->v->iopl;
    return eflags;
}

void hv_close_ports(struct hv_call *c) { hv_set64(c, &c->e->port_ring, NO_RING); }

/* What every iret takes from its frame's EFLAGS */
void hv_restore_flags(struct hv_call *c, uint64_t eflags) {
    if (c->d->vm_assist & VMASST_architectural_iopl && (eflags & X86_EFLAGS_IOPL) != c->v->iopl) {
        hv_set64(c, &c->v->iopl, eflags & X86_EFLAGS_IOPL);
        hv_close_ports(c);
    }
    hv_set8(c, &hv_info(c->v)->evtchn_upcall_mask, eflags & X86_EFLAGS_IF ? 0 : 1);
    hv_set64(c, &c->v->async_exception_mask, false);
    hv_write_eflags(c, (eflags & ~(uint64_t)(X86_EFLAGS_IOPL | X86_EFLAGS_VM) & EFLAGS_SETTABLE) | X86_EFLAGS_IF);
}

bool hv_guest_kernel_mode(const struct hv_call *c) {
    return c->is_32bit ? (*hv_hflags(c) & HF_CPL) == 1 : c->v->kernel_mode;
}
