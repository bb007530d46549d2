/* What a lane is made of: the call, the journal by which it is undone, the guest's memory and its frames.
 *
 * A fast lane does what the Python beside it does, in the common case, or says "not mine" and leaves no trace:
 * all that it writes goes through the journal, and what is not mine is rolled back before Python is asked, which
 * then decides everything. So a lane need not foresee; it is right if each of its steps is Python's.
 */
#ifndef HV_LANE_H
#define HV_LANE_H

#include "core.h"
#include "x86.h"

#include <string.h>

enum { NOT_MINE = false, MINE = true };

/* xen.h: hypercalls that have a lane, and the counts of other lanes behind them */
enum {
    HC_mmu_update = 1, HC_stack_switch = 3, HC_fpu_taskswitch = 5, HC_multicall = 13, HC_update_va_mapping = 14,
    HC_xen_version = 17, HC_iret = 23, HC_vcpu_op = 24, HC_set_segment_base = 25, HC_mmuext_op = 26, HC_sched_op = 29,
    NR_HYPERCALLS = 64,
    LANE_rdtsc = NR_HYPERCALLS, LANE_multicall_entry, LANE_syscall, LANE_page_fault,
    LANE_page_table_store, LANE_software_interrupt, LANE_cli_sti, NR_LANES,
};

/* public/xen.h */
enum { DOMID_SELF = 0x7ff0, VMASST_writable_pagetables = 1 << 2, VMASST_architectural_iopl = 1 << 4 };
enum { FLAT_RING3_CS32 = 0xe023, FLAT_RING3_CS64 = 0xe033, FLAT_RING3_SS = 0xe02b };

struct hv_vcpu_info { /* what every layout of struct vcpu_info begins with */
    uint8_t evtchn_upcall_pending, evtchn_upcall_mask;
};

/* hvcore/clock.py and where the costs are named */
enum { NS_PER_EXIT = 100, NS_PER_RDTSC = 1000, TSC_PER_NS = 2, REQUEST_NS = 100, ENTRY_NS = 50, TABLE_NS = 2000 };

/* hvcore/page_info.py */
enum { PGT_none, PGT_l1_page_table, PGT_l2_page_table, PGT_l3_page_table, PGT_l4_page_table, PGT_writable_page = 7 };
enum { PGC_allocated = 1, PGT_validated = 2, PGT_pinned = 4, PGT_pae_xen_l2 = 8 };

struct hv_lane_count {
    uint64_t taken, not_mine;
};

enum { JOURNAL_SIZE = 4096 };

struct hv_journal {
    uint64_t used, is_full;
    struct {
        void *at;
        uint64_t old;
        uint64_t size;
    } written[JOURNAL_SIZE];
};

/* What lanes did, for who listens: hvcore/debug/event_log.py. `kept` of them stay whatever is undone. */
enum hv_event_kind {
    EVENT_hypercall, EVENT_subcall, EVENT_iret, EVENT_trap, EVENT_exception, EVENT_upcall, EVENT_page_table_store,
    EVENT_emulated,
};

struct hv_event {
    uint64_t kind, vcpu_id, ns, rip, end_ns, number, result, nargs, args[6], unused[2];
};

struct hv_events {
    uint64_t count, kept, capacity, kinds; /* `kinds`: a bit for each that is wanted */
    struct hv_event at[];
};

struct hv_call {
    struct hv_engine *e;
    struct hv_vcpu *v;
    struct hv_domain *d;
    struct hv_journal *j;
    uint64_t *regs; /* the state window */
    uint64_t args[6];
    uint64_t result;
    uint64_t begun_ns; /* the exit's cost taken */
    bool is_32bit;
};

/* journal.c */
void hv_set8(struct hv_call *c, void *at, uint8_t value);
void hv_set32(struct hv_call *c, void *at, uint32_t value);
void hv_set64(struct hv_call *c, void *at, uint64_t value);
void hv_count_up(struct hv_call *c, void *counter);
void hv_undo(struct hv_call *c, uint64_t down_to);

/* processor.c */
uint64_t hv_read_eflags(const struct hv_engine *e);
void hv_write_eflags(struct hv_call *c, uint64_t value);
void hv_set_base(struct hv_call *c, int index, uint64_t base);
void hv_set_segment(struct hv_call *c, int index, uint32_t selector, uint64_t base, uint32_t limit, uint32_t flags);

/* events.c */
bool hv_events_begin(const struct hv_domain *d);
void hv_events_keep(const struct hv_domain *d);
void hv_events_undo(const struct hv_domain *d);
void hv_event(const struct hv_call *c, enum hv_event_kind kind, uint64_t rip, uint64_t number, uint64_t result);
void hv_event_call(const struct hv_call *c, enum hv_event_kind kind, uint64_t rip, uint64_t number,
                   const uint64_t *args, unsigned nargs);

/* guest_access.c */
const uint8_t *hv_copy_from(struct hv_call *c, uint64_t va, uint64_t size);
bool hv_copy_from_guest(struct hv_call *c, void *to, uint64_t va, uint64_t size);
bool hv_copy_to_guest(struct hv_call *c, uint64_t va, const void *from, uint64_t size);
bool hv_guest_handle_okay(const struct hv_call *c, uint64_t va, uint64_t size);
bool hv_requests_okay(const struct hv_call *c, uint64_t size, uint64_t most);
bool hv_requests_done(struct hv_call *c);
uint64_t *hv_l1_entry_of(const struct hv_domain *d, uint64_t root_mfn, uint64_t va, uint64_t *above);

/* mm.c */
bool hv_mod_entry(struct hv_call *c, uint64_t *at, uint64_t new, int level, bool preserve_ad, bool *replaced);
bool hv_get_page(struct hv_call *c, uint64_t mfn);
bool hv_get_page_and_type(struct hv_call *c, uint64_t mfn, int ptype);
bool hv_put_page_and_type(struct hv_call *c, uint64_t mfn);
bool hv_put_page(struct hv_call *c, uint64_t mfn);
void hv_flush_tlb(struct hv_call *c);
void hv_update_cr3(struct hv_call *c, uint64_t cr3_mfn, uint64_t root);
void hv_write_ptbase(struct hv_call *c);

/* tlb.c */
void hv_load_space(struct hv_engine *e, uint64_t root);
void hv_go_back_to_space(struct hv_engine *e, uint64_t root);
void hv_forget_space(struct hv_engine *e, uint64_t root);
void hv_drop_entry(struct hv_engine *e, uint64_t entry);
void hv_drop_all(struct hv_engine *e);

/* the lanes, by the hypercall that each is for */
bool hv_mmu_update(struct hv_call *c);
bool hv_update_va_mapping(struct hv_call *c);
bool hv_mmuext_op(struct hv_call *c);
bool hv_multicall(struct hv_call *c);
bool hv_stack_switch(struct hv_call *c);
bool hv_set_segment_base(struct hv_call *c);
bool hv_fpu_taskswitch(struct hv_call *c);
bool hv_xen_version(struct hv_call *c);
bool hv_vcpu_op(struct hv_call *c);
bool hv_hypercall(struct hv_call *c, uint64_t number);
unsigned hv_arity(const struct hv_call *c, uint64_t number); /* of a call that has a lane */

/* ro_page_fault.c */
bool hv_ro_page_fault(struct hv_call *c, uint64_t cr2);

/* segments.c */
struct hv_descriptor {
    uint32_t base, limit, high;
};
bool hv_descriptor(const struct hv_call *c, uint32_t selector, struct hv_descriptor *found);
bool hv_load_data(struct hv_call *c, int index, uint32_t selector);
bool hv_load_cs_ss(struct hv_call *c, uint32_t cs, uint32_t ss);
void hv_drop_privileged_data(struct hv_call *c);

/* frames.c, frames32.c, frames64.c */
#define HV_CLEARED_ON_TRAP \
    ((uint64_t)(X86_EFLAGS_VM | X86_EFLAGS_RF | X86_EFLAGS_NT | X86_EFLAGS_TF))
#define HV_CLEARED_ON_TRAP64 (HV_CLEARED_ON_TRAP | X86_EFLAGS_AC)
uint64_t hv_saved_eflags(const struct hv_call *c, uint64_t eflags, uint8_t mask);
void hv_restore_flags(struct hv_call *c, uint64_t eflags);
void hv_close_ports(struct hv_call *c);
bool hv_guest_kernel_mode(const struct hv_call *c);
bool hv_bounce_frame32(struct hv_call *c, uint64_t cs, uint64_t address, const uint64_t *error_code, bool mask_events);
bool hv_bounce_frame64(struct hv_call *c, uint64_t address, const uint64_t *error_code, bool mask_events,
                       uint64_t cleared);
bool hv_switch_to_kernel(struct hv_call *c);
bool hv_iret32(struct hv_call *c);
bool hv_iret64(struct hv_call *c);

/* traps.c */
#define HV_NO_ERROR_CODE UINT64_MAX /* of an event */
bool hv_test_all_events(struct hv_call *c);
bool hv_trap(struct hv_call *c, unsigned vector);

/* How a lane ended, counted. */
static inline bool hv_count_lane(const struct hv_call *c, int number, bool taken) {
    struct hv_lane_count *lane = (struct hv_lane_count *)c->e->lane_counts + number;
    taken = taken && !c->j->is_full;
    if (taken)
        lane->taken++;
    else
        lane->not_mine++;
    return taken;
}

static inline struct hv_vcpu_info *hv_info(const struct hv_vcpu *v) { return (struct hv_vcpu_info *)v->info_address; }

/* The exception's error code, and whether it is no exception but an `int`. */
static inline const uint32_t *hv_error_code(const struct hv_call *c) {
    return (const uint32_t *)c->regs + ERROR_CODE_OFFSET / 4;
}

static inline struct hv_segment *hv_segment(const struct hv_call *c, int index) {
    return (struct hv_segment *)((uint8_t *)c->regs + SEGMENTS_OFFSET) + index;
}

static inline uint32_t *hv_hflags(const struct hv_call *c) { return (uint32_t *)c->regs + HFLAGS_OFFSET / 4; }

static inline bool hv_is_canonical(uint64_t address) { return address >> 47 == 0 || address >> 47 == 0x1ffff; }

static inline uint64_t hv_now(const struct hv_engine *e) { return e->horizon - e->left; }

static inline bool hv_turn_is_over(const struct hv_engine *e) { return hv_now(e) >= e->turn_end; }

static inline void hv_spend(struct hv_call *c, uint64_t ns) {
    hv_set64(c, &c->e->left, c->e->left - ns);
    hv_set64(c, &c->e->spent, c->e->spent + ns);
}

/* Whether something is to be delivered to the guest before it goes on. */
static inline bool hv_has_event(const struct hv_vcpu *v) {
    return (hv_info(v)->evtchn_upcall_pending && !hv_info(v)->evtchn_upcall_mask) || v->nmi_pending;
}

/* The frame's place in the frame table, or nr_frames for one that is no memory. */
static inline uint64_t hv_frame(const struct hv_domain *d, uint64_t mfn) {
    uint64_t pg = mfn - d->base_mfn;
    return pg < d->nr_frames ? pg : d->nr_frames;
}

static inline bool hv_is_frame(const struct hv_domain *d, uint64_t pg) { return pg < d->nr_frames; }

static inline uint64_t hv_mfn_of(uint64_t entry) { return entry >> PAGE_SHIFT & ((UINT64_C(1) << 40) - 1); }

static inline uint8_t *hv_page(const struct hv_domain *d, uint64_t pg) {
    return (uint8_t *)d->ram + (pg << PAGE_SHIFT);
}

static inline uint16_t hv_owner(const struct hv_domain *d, uint64_t pg) { return ((uint16_t *)d->owner)[pg]; }
static inline bool hv_is_own(const struct hv_domain *d, uint64_t pg) {
    return hv_is_frame(d, pg) && hv_owner(d, pg) == d->domain_id;
}

static inline uint8_t *hv_ptype(const struct hv_domain *d, uint64_t pg) { return (uint8_t *)d->ptype + pg; }
static inline uint8_t *hv_pflags(const struct hv_domain *d, uint64_t pg) { return (uint8_t *)d->pflags + pg; }
static inline uint32_t *hv_count(const struct hv_domain *d, uint64_t pg) { return (uint32_t *)d->count + pg; }
static inline uint32_t *hv_tcount(const struct hv_domain *d, uint64_t pg) { return (uint32_t *)d->tcount + pg; }
static inline uint32_t *hv_stamp(const struct hv_domain *d, uint64_t pg) { return (uint32_t *)d->stamp + pg; }

#endif
