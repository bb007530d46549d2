/* The ways into Xen that guests take most: hypercalls and `rdtsc`. hvcore/pv/traps.py and pv/hypercall.py.
 *
 * These are the engine's hooks. Where a lane takes the exit, no Python runs at all.
 */
#include "lane.h"

enum { HYPERCALL_VECTOR = 0x82 };
enum { RECENT = 16, RECENT_WORDS = 9 };
#define OUT (UINT64_C(1) << 62) /* clock.OUT */
enum { CS_SELECTOR = (184 + 24) / 4, SS_SELECTOR = (184 + 48) / 4 };
enum { FLAT_RING3_CS64 = 0xe033, FLAT_RING3_SS = 0xe02b };
enum { UC_X86_REG_EFLAGS = 25, EFLAGS_KNOWN = 0x3f7fd7, X86_EFLAGS_MBS = 2, X86_EFLAGS_RF = 0x10000 };

typedef bool lane_function(struct hv_call *c);
typedef void syscall_function(void *uc, void *data);
typedef void interrupt_function(void *uc, uint32_t vector, void *data);
typedef int insn_function(void *uc, void *data);
typedef int stop_function(void *uc);
typedef int reg_read_function(void *uc, int number, void *value);

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
    struct hv_lane_count *lane = (struct hv_lane_count *)c->e->lane_counts + number;
    uint64_t *calls = (uint64_t *)c->d->hypercalls + number;
    if (!lanes[number].lane(c) || c->j->is_full) {
        lane->not_mine++;
        return NOT_MINE;
    }
    lane->taken++;
    hv_set64(c->j, calls, *calls + 1);
    return MINE;
}

/* Trace.note(): how many calls there were, then a ring of the last: number, how many arguments, they, result. */
static void note_recent(struct hv_call *c, uint64_t number, const uint64_t *args) {
    uint64_t *recent = (uint64_t *)c->d->recent;
    uint64_t *at = recent + 1 + recent[0] % RECENT * RECENT_WORDS;
    unsigned nargs = c->is_32bit ? lanes[number].arguments32 : lanes[number].arguments;
    at[0] = number;
    at[1] = nargs;
    memcpy(at + 2, args, nargs * sizeof *args);
    at[8] = c->result;
    recent[0]++;
}

static void take_time(struct hv_engine *e, uint64_t ns) {
    e->left -= ns;
    e->spent += ns;
}

/* HypercallTable._enter() between the cost of the exit and the look at what comes before the guest goes on. */
static bool enter(struct hv_call *c, uint64_t number) {
    uint64_t args[6];
    if (hv_has_event(c->v) || c->regs[EFLAGS] & X86_EFLAGS_TF)
        return NOT_MINE;
    memcpy(args, c->args, sizeof args);
    c->j->used = 0;
    take_time(c->e, NS_PER_EXIT);
    if (!hv_hypercall(c, number) || hv_has_event(c->v)) {
        hv_undo(c->j, 0);
        take_time(c->e, -(uint64_t)NS_PER_EXIT);
        return NOT_MINE;
    }
    note_recent(c, number, args);
    c->regs[RAX] = c->is_32bit ? (uint32_t)c->result : c->result;
    return MINE;
}

static struct hv_call call_of(struct hv_engine *e) {
    struct hv_vcpu *v = (struct hv_vcpu *)e->vcpu;
    return (struct hv_call){
        .e = e, .v = v, .d = (struct hv_domain *)v->domain_words, .j = (struct hv_journal *)e->journal,
        .regs = (uint64_t *)e->env,
    };
}

/* `syscall` of a 64-bit kernel */
static bool syscall_lane(struct hv_engine *e) {
    if (!e->vcpu)
        return NOT_MINE;
    struct hv_call c = call_of(e);
    uint32_t hflags = *(const uint32_t *)(e->env + HFLAGS_OFFSET);
    const uint32_t *words = (const uint32_t *)e->env;
    if (c.d->levels != 4 || !c.v->kernel_mode || !(hflags & HF_CS64))
        return NOT_MINE;
    if (words[CS_SELECTOR] != FLAT_RING3_CS64 || words[SS_SELECTOR] != FLAT_RING3_SS)
        return NOT_MINE;
    const uint64_t *regs = c.regs;
    const uint64_t args[6] = {regs[RDI], regs[RSI], regs[RDX], regs[R10], regs[R8], regs[R9]};
    memcpy(c.args, args, sizeof args);
    return enter(&c, regs[RAX]);
}

/* `int 0x82` from ring 1 */
static bool interrupt_lane(struct hv_engine *e, uint32_t vector) {
    if (vector != HYPERCALL_VECTOR || !e->vcpu)
        return NOT_MINE;
    struct hv_call c = call_of(e);
    const uint32_t *words = (const uint32_t *)e->env;
    if (c.d->levels != 3 || (words[CS_SELECTOR] & 3) != 1)
        return NOT_MINE;
    c.is_32bit = true;
    static const uint8_t registers[6] = {RBX, RCX, RDX, RSI, RDI, RBP};
    for (int i = 0; i < 6; i++)
        c.args[i] = (uint32_t)c.regs[registers[i]];
    if (!enter(&c, (uint32_t)c.regs[RAX]))
        return NOT_MINE;
    *(uint32_t *)(e->env + OLD_EXCEPTION_OFFSET) = UINT32_MAX; /* or the next would be a double fault */
    if ((int64_t)e->left <= (int64_t)e->limit) { /* no block of code may follow that would notice */
        e->limit = OUT;
        ((stop_function *)e->uc_emu_stop)((void *)e->uc);
    }
    return MINE;
}

/* EFLAGS, with the lazily kept arithmetic flags worked out: Engine.read_eflags() */
static uint64_t read_eflags(const struct hv_engine *e) {
    uint64_t eflags = 0;
    ((reg_read_function *)e->uc_reg_read)((void *)e->uc, UC_X86_REG_EFLAGS, &eflags);
    return (eflags & EFLAGS_KNOWN) | X86_EFLAGS_MBS;
}

/* UC_HOOK_INSN of `syscall`, whose length the library adds to RIP behind this: what the instruction itself does,
 * and the exit.
 */
HV_EXPORT void hv_syscall(void *uc, struct hv_engine *e) {
    uint64_t *regs = (uint64_t *)e->env;
    regs[RCX] = regs[RIP] + 2;
    regs[R11] = read_eflags(e) & ~(uint64_t)X86_EFLAGS_RF;
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
    take_time(e, NS_PER_RDTSC);
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
