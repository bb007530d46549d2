/* do_mmuext_op(): hvcore/pv/mmuext_op.py. Pins, base pointers and flushes, a few operations a call. */
#include "lane.h"

enum {
    MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L2_TABLE, MMUEXT_PIN_L3_TABLE, MMUEXT_PIN_L4_TABLE, MMUEXT_UNPIN_TABLE,
    MMUEXT_NEW_BASEPTR, MMUEXT_TLB_FLUSH_LOCAL, MMUEXT_INVLPG_LOCAL, MMUEXT_TLB_FLUSH_MULTI, MMUEXT_INVLPG_MULTI,
    MMUEXT_TLB_FLUSH_ALL, MMUEXT_INVLPG_ALL,
    MMUEXT_NEW_USER_BASEPTR = 15,
};
enum { MOST_OPERATIONS = 64 };

struct operation {
    uint64_t arg1, arg2;
    uint32_t cmd;
};

/* struct mmuext_op, of either width */
static bool read_operation(struct hv_call *c, uint64_t va, struct operation *op) {
    const uint8_t *at = hv_copy_from(c, va, c->is_32bit ? 12 : 24);
    if (!at)
        return false;
    op->arg1 = op->arg2 = 0;
    memcpy(&op->cmd, at, 4);
    memcpy(&op->arg1, at + (c->is_32bit ? 4 : 8), c->is_32bit ? 4 : 8);
    memcpy(&op->arg2, at + (c->is_32bit ? 8 : 16), c->is_32bit ? 4 : 8);
    return true;
}

static bool pin(struct hv_call *c, uint64_t mfn, int level) {
    if (level > (int)c->d->levels)
        return MINE; /* a level that the guest does not have: ignored */
    if (!hv_get_page_and_type(c, mfn, level))
        return NOT_MINE;
    uint8_t *flags = hv_pflags(c->d, hv_frame(c->d, mfn));
    if (*flags & PGT_pinned)
        return NOT_MINE;
    hv_set8(c, flags, *flags | PGT_pinned);
    return MINE;
}

static bool unpin(struct hv_call *c, uint64_t mfn) {
    if (!hv_get_page(c, mfn))
        return NOT_MINE;
    uint8_t *flags = hv_pflags(c->d, hv_frame(c->d, mfn));
    if (!(*flags & PGT_pinned))
        return NOT_MINE;
    hv_set8(c, flags, *flags & ~PGT_pinned);
    return hv_put_page_and_type(c, mfn) && hv_put_page(c, mfn);
}

/* PageTables.new_guest_cr3() */
static bool new_baseptr(struct hv_call *c, uint64_t mfn) {
    uint64_t old = c->v->cr3_mfn;
    if (c->is_32bit && !c->v->compat_l4)
        return NOT_MINE;
    if (old != mfn || c->is_32bit) {
        if (!hv_get_page_and_type(c, mfn, (int)c->d->levels))
            return NOT_MINE;
        hv_set64(c, &c->v->cr3_mfn, mfn);
        if (old && !hv_put_page_and_type(c, old))
            return NOT_MINE;
    }
    hv_write_ptbase(c);
    return MINE;
}

static bool new_user_baseptr(struct hv_call *c, uint64_t mfn) {
    uint64_t old = c->v->user_cr3_mfn;
    if (old == mfn)
        return MINE;
    if (c->is_32bit || (mfn && !hv_get_page_and_type(c, mfn, PGT_l4_page_table)))
        return NOT_MINE;
    hv_set64(c, &c->v->user_cr3_mfn, mfn);
    return old ? hv_put_page_and_type(c, old) : MINE;
}

static bool one_operation(struct hv_call *c, const struct operation *op) {
    switch (op->cmd) {
    case MMUEXT_PIN_L1_TABLE:
    case MMUEXT_PIN_L2_TABLE:
    case MMUEXT_PIN_L3_TABLE:
    case MMUEXT_PIN_L4_TABLE:
        return pin(c, op->arg1, (int)op->cmd - MMUEXT_PIN_L1_TABLE + PGT_l1_page_table);
    case MMUEXT_UNPIN_TABLE:
        return unpin(c, op->arg1);
    case MMUEXT_NEW_BASEPTR:
        return new_baseptr(c, op->arg1);
    case MMUEXT_NEW_USER_BASEPTR:
        return c->is_32bit ? NOT_MINE : new_user_baseptr(c, op->arg1);
    case MMUEXT_TLB_FLUSH_MULTI:
    case MMUEXT_INVLPG_MULTI: /* every vCPU shares the one processor, so all flush */
        if (!hv_copy_from(c, op->arg2, c->is_32bit ? 4 : 8))
            return NOT_MINE;
        hv_flush_tlb(c);
        return MINE;
    case MMUEXT_TLB_FLUSH_LOCAL:
    case MMUEXT_TLB_FLUSH_ALL:
        hv_flush_tlb(c);
        return MINE;
    case MMUEXT_INVLPG_LOCAL:
    case MMUEXT_INVLPG_ALL: /* of which nothing is out of date */
        return MINE;
    default:
        return NOT_MINE;
    }
}

bool hv_mmuext_op(struct hv_call *c) {
    uint64_t uops = c->args[0], count = c->args[1], size = c->is_32bit ? 12 : 24;
    if (!hv_requests_okay(c, size, MOST_OPERATIONS))
        return NOT_MINE;
    for (uint64_t i = 0; i < count; i++) {
        struct operation op;
        if (!read_operation(c, uops + i * size, &op) || !one_operation(c, &op))
            return NOT_MINE;
        hv_spend(c, REQUEST_NS);
        if (hv_turn_is_over(c->e) && i + 1 < count)
            return NOT_MINE; /* the rest is put off */
    }
    return hv_requests_done(c);
}
