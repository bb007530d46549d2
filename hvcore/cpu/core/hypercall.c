/* The ways into Xen that guests take most: hypercalls and `rdtsc`. hvcore/pv/traps.py and pv/hypercall.py.
 *
 * These are the engine's hooks. Where a lane takes the exit, no Python runs at all.
 */
#include "lane.h"

enum { HYPERCALL_VECTOR = 0x82 };
enum { RECENT = 16, RECENT_WORDS = 9 };
#define OUT (UINT64_C(1) << 62) /* clock.OUT */
enum { SYSCALL_SIZE = 2 };

typedef bool lane_function(struct hv_call *c);
typedef void syscall_function(void *uc, void *data);
typedef void interrupt_function(void *uc, uint32_t vector, void *data);
typedef int insn_function(void *uc, void *data);

static const struct {
    lane_function *lane;
    uint8_t arguments, arguments32;
} lanes[NR_HYPERCALLS] = {
    [HC_mmu_update] = {hv_mmu_update, 4, 4},
    [HC_stack_switch] = {hv_stack_switch, 2, 2},
    [HC_fpu_taskswitch] = {hv_fpu_taskswitch, 1, 1},
    [HC_multicall] = {hv_multicall, 2, 2},
    [HC_update_va_mapping] = {hv_update_va_mapping, 3, 4},
    [HC_xen_version] = {hv_xen_version, 2, 2},
    [HC_vcpu_op] = {hv_vcpu_op, 3, 3},
    [HC_set_segment_base] = {hv_set_segment_base, 2, 2},
    [HC_mmuext_op] = {hv_mmuext_op, 4, 4},
};

/* HypercallTable.dispatch(): the call `number` with `c->args`. */
bool hv_hypercall(struct hv_call *c, uint64_t number) {
    if (number >= NR_HYPERCALLS || !lanes[number].lane)
        return NOT_MINE;
    c->result = 0;
    if (!hv_count_lane(c, (int)number, lanes[number].lane(c)))
        return NOT_MINE;
    hv_count_up(c, (uint64_t *)c->d->hypercalls + number);
    return MINE;
}

unsigned hv_arity(const struct hv_call *c, uint64_t number) {
    return c->is_32bit ? lanes[number].arguments32 : lanes[number].arguments;
}

/* Trace.note(): how many calls there were, then a ring of the last: number, how many arguments, they, result. */
static void note_recent(struct hv_call *c, uint64_t number, const uint64_t *args) {
    uint64_t *recent = (uint64_t *)c->d->recent;
    uint64_t *at = recent + 1 + recent[0] % RECENT * RECENT_WORDS;
    unsigned nargs = hv_arity(c, number);
    at[0] = number;
    at[1] = nargs;
    memcpy(at + 2, args, nargs * sizeof *args);
    at[8] = c->result;
    recent[0]++;
}

/* The exit begins: its cost is taken outside of the journal, which a multicall empties on its way. An event that waits
 * may preempt a hypercall, but not this one, by which Linux asks for the event (xen_force_evtchn_callback()). */
static bool begin(struct hv_call *c, bool is_hypercall) {
    if (hv_has_event(c->v) && !(is_hypercall && c->regs[RAX] == HC_xen_version))
        return NOT_MINE;
    if (c->regs[EFLAGS] & X86_EFLAGS_TF || !hv_events_begin(c->d))
        return NOT_MINE;
    c->j->used = 0;
    hv_take_time(c->e, NS_PER_EXIT);
    c->begun_ns = hv_now(c->e);
    return MINE;
}

static bool give_back(struct hv_call *c) {
    hv_undo(c, 0);
    hv_go_back_to_space(c->e, c->v->kernel_mode ? c->v->cr3_mfn : c->v->user_cr3_mfn);
    hv_events_undo(c->d);
    hv_take_time(c->e, -(uint64_t)NS_PER_EXIT);
    return NOT_MINE;
}

static struct hv_call call_of(struct hv_engine *e) {
    struct hv_vcpu *v = (struct hv_vcpu *)e->vcpu;
    return (struct hv_call){
        .e = e, .v = v, .d = (struct hv_domain *)v->domain_words, .j = (struct hv_journal *)e->journal,
        .regs = (uint64_t *)e->env, .is_32bit = ((struct hv_domain *)v->domain_words)->levels == 3,
    };
}

/* The iret hypercall, which has no result. */
static bool iret(struct hv_call *c, uint64_t rip) {
    hv_count_up(c, (uint64_t *)c->d->hypercalls + HC_iret);
    hv_event(c, EVENT_iret, rip, 0, 0);
    return hv_count_lane(c, HC_iret, (c->is_32bit ? hv_iret32(c) : hv_iret64(c)) && hv_test_all_events(c));
}

/* A call with its arguments from registers; `rip` is what a listener is told of. */
static bool hypercall(struct hv_call *c, uint64_t number, const uint64_t args[6], uint64_t rip) {
    if (number == HC_iret)
        return iret(c, rip);
    memcpy(c->args, args, sizeof c->args);
    if (!hv_hypercall(c, number))
        return NOT_MINE;
    hv_set64(c, &c->regs[RAX], c->is_32bit ? (uint32_t)c->result : c->result);
    hv_event_call(c, EVENT_hypercall, rip, number, args, hv_arity(c, number));
    if (!hv_test_all_events(c) || c->j->is_full)
        return NOT_MINE;
    note_recent(c, number, args);
    return MINE;
}

/* A hypercall of a 64-bit kernel: HypercallTable.entry64(). */
static bool hypercall64(struct hv_call *c) {
    const uint64_t *regs = c->regs;
    const uint64_t args[6] = {regs[RDI], regs[RSI], regs[RDX], regs[R10], regs[R8], regs[R9]};
    if (hv_segment(c, CS)->selector != FLAT_RING3_CS64 || hv_segment(c, SS)->selector != FLAT_RING3_SS)
        return NOT_MINE;
    return hypercall(c, regs[RAX], args, regs[RIP] - SYSCALL_SIZE);
}

/* `syscall`: a hypercall from the kernel, the guest's own system call from a process (lstar_enter). */
static bool syscall_lane(struct hv_engine *e) {
    if (!e->vcpu)
        return NOT_MINE;
    struct hv_call c = call_of(e);
    if (c.is_32bit || !(*hv_hflags(&c) & HF_CS64) || !begin(&c, c.v->kernel_mode))
        return NOT_MINE;
    uint64_t rip = c.regs[RIP];
    c.regs[RIP] = rip + SYSCALL_SIZE;
    bool mine = c.v->kernel_mode ? hypercall64(&c)
                                 : hv_count_lane(&c, LANE_syscall, hv_switch_to_kernel(&c) && hv_test_all_events(&c));
    if (mine) {
        c.regs[RIP] -= SYSCALL_SIZE; /* which the library adds behind this */
        return MINE;
    }
    give_back(&c);
    c.regs[RIP] = rip;
    return NOT_MINE;
}

/* `int 0x82` from ring 1: HypercallTable.entry32(). */
static bool hypercall32(struct hv_call *c) {
    static const uint8_t registers[6] = {RBX, RCX, RDX, RSI, RDI, RBP};
    uint64_t args[6];
    for (int i = 0; i < 6; i++)
        args[i] = (uint32_t)c->regs[registers[i]];
    return hypercall(c, (uint32_t)c->regs[RAX], args, c->regs[RIP]);
}

static bool interrupt_lane(struct hv_engine *e, uint32_t vector) {
    if (!e->vcpu)
        return NOT_MINE;
    struct hv_call c = call_of(e);
    bool is_hypercall = c.is_32bit && vector == HYPERCALL_VECTOR && (hv_segment(&c, CS)->selector & 3) == 1;
    if (!begin(&c, is_hypercall))
        return NOT_MINE;
    if (!(is_hypercall ? hypercall32(&c) : hv_trap(&c, vector)))
        return give_back(&c);
    *(uint32_t *)(e->env + OLD_EXCEPTION_OFFSET) = UINT32_MAX; /* or the next would be a double fault */
    if ((int64_t)e->left <= (int64_t)e->limit) { /* no block of code may follow that would notice */
        e->limit = OUT;
        hv_emu_stop(e);
    }
    return MINE;
}

/* UC_HOOK_INSN of `syscall`: what the instruction itself does, and the exit. */
HV_EXPORT void hv_syscall(void *uc, struct hv_engine *e) {
    uint64_t *regs = (uint64_t *)e->env;
    regs[RCX] = regs[RIP] + SYSCALL_SIZE;
    regs[R11] = hv_read_eflags(e) & ~(uint64_t)X86_EFLAGS_RF;
    if (syscall_lane(e))
        e->step_rechecked = 0;
    else
        ((syscall_function *)e->python_syscall)(uc, NULL);
}

/* UC_HOOK_INTR */
HV_EXPORT void hv_interrupt(void *uc, uint32_t vector, struct hv_engine *e) {
    if (!interrupt_lane(e, vector))
        ((interrupt_function *)e->python_interrupt)(uc, vector, NULL);
}

/* Traps.rdtsc(): reading the counter takes a little time, so that no guest can wait without end. */
static bool rdtsc_lane(struct hv_engine *e) {
    if (!e->vcpu)
        return NOT_MINE;
    uint64_t *regs = (uint64_t *)e->env;
    hv_take_time(e, NS_PER_RDTSC);
    uint64_t tsc = hv_now(e) * TSC_PER_NS;
    regs[RAX] = (uint32_t)tsc;
    regs[RDX] = tsc >> 32;
    ((struct hv_lane_count *)e->lane_counts)[LANE_rdtsc].taken++;
    return MINE;
}

HV_EXPORT int hv_rdtsc(void *uc, struct hv_engine *e) {
    return rdtsc_lane(e) ? 1 : ((insn_function *)e->python_rdtsc)(uc, NULL);
}

HV_EXPORT int hv_rdtscp(void *uc, struct hv_engine *e) {
    if (!rdtsc_lane(e))
        return ((insn_function *)e->python_rdtscp)(uc, NULL);
    ((uint64_t *)e->env)[RCX] = 0;
    return 1;
}
