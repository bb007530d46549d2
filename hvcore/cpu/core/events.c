/* What lanes did, written down for whoever listens to the domain: hvcore/debug/event_log.py reads it. */
#include "lane.h"

enum { MOST_AT_ONCE = 8 }; /* events of one exit, or of one entry of a multicall */

static struct hv_events *events_of(const struct hv_domain *d) { return (struct hv_events *)d->events; }

/* Whether there is room for what comes; where there is none the exit is Python's, which reads and empties. */
bool hv_events_begin(const struct hv_domain *d) {
    struct hv_events *events = events_of(d);
    if (likely(!events))
        return MINE;
    events->kept = events->count;
    return events->capacity - events->count >= MOST_AT_ONCE ? MINE : NOT_MINE;
}

/* What was done so far stays done. */
void hv_events_keep(const struct hv_domain *d) {
    struct hv_events *events = events_of(d);
    if (unlikely(events != NULL))
        events->kept = events->count;
}

void hv_events_undo(const struct hv_domain *d) {
    struct hv_events *events = events_of(d);
    if (unlikely(events != NULL))
        events->count = events->kept;
}

static struct hv_event *next(const struct hv_call *c, enum hv_event_kind kind, uint64_t rip) {
    struct hv_events *events = events_of(c->d);
    if (likely(!events) || !(events->kinds >> kind & 1) || events->count == events->capacity)
        return NULL;
    struct hv_event *event = &events->at[events->count++];
    event->kind = kind;
    event->vcpu_id = c->v->vcpu_id;
    event->ns = event->end_ns = hv_now(c->e);
    event->rip = rip;
    event->nargs = 0;
    return event;
}

/* An event with two numbers, if it is wanted. */
void hv_event(const struct hv_call *c, enum hv_event_kind kind, uint64_t rip, uint64_t number, uint64_t result) {
    struct hv_event *event = next(c, kind, rip);
    if (likely(!event))
        return;
    event->number = number;
    event->result = result;
    event->args[0] = c->regs[CR2];
}

/* A hypercall, or an entry of a multicall, which has returned `c->result`. */
void hv_event_call(const struct hv_call *c, enum hv_event_kind kind, uint64_t rip, uint64_t number,
                   const uint64_t *args, unsigned nargs) {
    struct hv_event *event = next(c, kind, rip);
    if (likely(!event))
        return;
    event->number = number;
    event->result = c->result;
    event->nargs = nargs;
    memcpy(event->args, args, nargs * sizeof *args);
    if (kind == EVENT_hypercall)
        event->ns = c->begun_ns;
}
