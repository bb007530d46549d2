/* do_multicall(): hvcore/common/multicall.py. Entries are made one by one; the first that is not mine, and those
 * behind it, are made by Python, which is told how many were.
 */
#include "lane.h"

/* hypercall_preempt_check(); no call that has a lane makes the vCPU wait, or its domain shut down. */
static bool must_stop(const struct hv_call *c) { return hv_has_event(c->v) || hv_turn_is_over(c->e); }

static uint64_t word_at(const struct hv_call *c, const uint8_t *at, unsigned index) {
    uint64_t value = 0;
    unsigned word = c->is_32bit ? 4 : 8;
    memcpy(&value, at + index * word, word);
    return value;
}

/* multicall_entry: op, result, args[6] */
static bool one_entry(struct hv_call *c, uint64_t va) {
    unsigned word = c->is_32bit ? 4 : 8;
    const uint8_t *from = hv_copy_from(c, va, 8 * word);
    if (!from)
        return NOT_MINE;
    uint64_t number = word_at(c, from, 0), args[6];
    for (unsigned i = 0; i < 6; i++)
        c->args[i] = args[i] = word_at(c, from, 2 + i);
    if (number == HC_multicall || number == HC_iret || !hv_hypercall(c, number))
        return NOT_MINE;
    hv_event_call(c, EVENT_subcall, c->regs[RIP], number, args, hv_arity(c, number));
    if (!hv_copy_to_guest(c, va + word, &c->result, word))
        return NOT_MINE;
    hv_spend(c, ENTRY_NS);
    return MINE;
}

bool hv_multicall(struct hv_call *c) {
    uint64_t call_list = c->args[0], nr_calls = (uint32_t)c->args[1];
    uint64_t size = c->is_32bit ? 32 : 64;
    struct hv_lane_count *entries = (struct hv_lane_count *)c->e->lane_counts + LANE_multicall_entry;
    if (!nr_calls || (!c->is_32bit && !hv_guest_handle_okay(c, call_list, nr_calls * size)))
        return NOT_MINE;
    for (uint64_t done = 0; done < nr_calls; done++) {
        uint64_t so_far = c->j->used;
        if ((done && must_stop(c)) || !hv_events_begin(c->d) || !one_entry(c, call_list + done * size) || c->j->is_full) {
            hv_undo(c, so_far);
            hv_events_undo(c->d);
            entries->not_mine++;
            c->e->multicall_done = done;
            return NOT_MINE;
        }
        entries->taken++;
        c->j->used = 0; /* what an entry did stays done; hv_syscall() and hv_interrupt() know */
        hv_events_keep(c->d);
    }
    if (hv_has_event(c->v)) { /* which comes before the guest goes on: there is nothing left but to say so */
        c->e->multicall_done = nr_calls;
        return NOT_MINE;
    }
    c->result = 0; /* which the entries have set */
    return MINE;
}
