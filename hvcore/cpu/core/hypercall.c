/* The ways into Xen that guests take most: hypercalls and `rdtsc`. hvcore/pv/traps.py and pv/hypercall.py.
 *
 * These are the engine's hooks. Where a lane takes the exit, no Python runs at all.
 */
#include "lane.h"

enum { HYPERCALL_VECTOR = 0x82 };
enum { RECENT = 16, RECENT_WORDS = 9 };
#define OUT (UINT64_C(1) << 62) /* clock.OUT */
enum { CS_SELECTOR = (184 + 24) / 4, SS_SELECTOR = (184 + 48) / 4 };
enum { SYSCALL_SIZE = 2 };

typedef bool lane_function(struct hv_call *c);
typedef void syscall_function(void *uc, void *data);
typedef void interrupt_function(void *uc, uint32_t vector, void *data);
typedef int insn_function(void *uc, void *data);
typedef int stop_function(void *uc);

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

static void take_time(struct hv_engine *e, uint64_t ns) {
    e->left -= ns;
    e->spent += ns;
}

static struct hv_lane_count *lane_count(const struct hv_engine *e, int lane) {
    return (struct hv_lane_count *)e->lane_counts + lane;
}

static bool count_lane(const struct hv_engine *e, int lane, bool taken) {
    if (taken)
        lane_count(e, lane)->taken++;
    else
        lane_count(e, lane)->not_mine++;
    return taken;
}

/* The exit begins: its cost is taken outside of the journal, which a multicall empties on its way. */
static bool begin(struct hv_call *c) {
    if (hv_has_event(c->v) || c->regs[EFLAGS] & X86_EFLAGS_TF || !hv_events_begin(c->d))
        return NOT_MINE;
    c->j->used = 0;
    take_time(c->e, NS_PER_EXIT);
    c->begun_ns = hv_now(c->e);
    return MINE;
}

static bool give_back(struct hv_call *c) {
    hv_undo(c->j, 0);
    hv_events_undo(c->d);
    take_time(c->e, -(uint64_t)NS_PER_EXIT);
    return NOT_MINE;
}

static struct hv_call call_of(struct hv_engine *e) {
    struct hv_vcpu *v = (struct hv_vcpu *)e->vcpu;
    return (struct hv_call){
        .e = e, .v = v, .d = (struct hv_domain *)v->domain_words, .j = (struct hv_journal *)e->journal,
        .regs = (uint64_t *)e->env,
    };
}

static bool is_flat(const struct hv_call *c) {
    const uint32_t *words = (const uint32_t *)c->regs;
    return words[CS_SELECTOR] == FLAT_RING3_CS64 && words[SS_SELECTOR] == FLAT_RING3_SS;
}

/* A hypercall of a 64-bit kernel: HypercallTable.entry64(). */
static bool hypercall64(struct hv_call *c) {
    const uint64_t *regs = c->regs;
    const uint64_t number = regs[RAX], args[6] = {regs[RDI], regs[RSI], regs[RDX], regs[R10], regs[R8], regs[R9]};
    if (!is_flat(c))
        return NOT_MINE;
    if (number == HC_iret) {
        uint64_t *calls = (uint64_t *)c->d->hypercalls + HC_iret;
        uint64_t rip = c->regs[RIP] - SYSCALL_SIZE;
        hv_set64(c->j, calls, *calls + 1);
        hv_event(c, EVENT_iret, rip, 0, 0);
        return count_lane(c->e, HC_iret, hv_iret64(c) && hv_test_all_events64(c) && !c->j->is_full);
    }
    memcpy(c->args, args, sizeof args);
    if (!hv_hypercall(c, number))
        return NOT_MINE;
    hv_set64(c->j, &c->regs[RAX], c->result);
    hv_event_call(c, EVENT_hypercall, c->regs[RIP] - SYSCALL_SIZE, number, args, hv_arity(c, number));
    if (!hv_test_all_events64(c) || c->j->is_full)
        return NOT_MINE;
    note_recent(c, number, args);
    return MINE;
}

/* `syscall`: a hypercall from the kernel, the guest's own system call from a process (lstar_enter). */
static bool syscall_lane(struct hv_engine *e) {
    if (!e->vcpu)
        return NOT_MINE;
    struct hv_call c = call_of(e);
    uint32_t hflags = *(const uint32_t *)(e->env + HFLAGS_OFFSET);
    if (c.d->levels != 4 || !(hflags & HF_CS64) || !begin(&c))
        return NOT_MINE;
    uint64_t rip = c.regs[RIP];
    c.regs[RIP] = rip + SYSCALL_SIZE;
    bool mine = c.v->kernel_mode
                    ? hypercall64(&c)
                    : count_lane(e, LANE_syscall, hv_switch_to_kernel(&c) && hv_test_all_events64(&c) && !c.j->is_full);
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
    const uint64_t number = (uint32_t)c->regs[RAX];
    uint64_t args[6];
    for (int i = 0; i < 6; i++)
        args[i] = (uint32_t)c->regs[registers[i]];
    memcpy(c->args, args, sizeof args);
    if (!hv_hypercall(c, number) || hv_has_event(c->v))
        return NOT_MINE;
    hv_event_call(c, EVENT_hypercall, c->regs[RIP], number, args, hv_arity(c, number));
    note_recent(c, number, args);
    c->regs[RAX] = (uint32_t)c->result;
    return MINE;
}

/* Traps.do_page_fault(): a store to a page table, or a fault of the guest's own. */
static bool page_fault(struct hv_call *c) {
    const uint32_t *words = (const uint32_t *)c->regs;
    uint64_t error_code = words[ERROR_CODE_OFFSET / 4], cr2 = c->regs[CR2], *exceptions = (uint64_t *)c->d->exceptions;
    bool is_kernel = c->is_32bit ? (*hv_hflags(c) & HF_CPL) == 1 : c->v->kernel_mode;
    if (words[ERROR_CODE_OFFSET / 4 + 1] || error_code & PFEC_reserved_bit) /* `int 14`; or Xen's end of the domain */
        return NOT_MINE;
    if (c->is_32bit ? cr2 >> 32 : !(error_code & PFEC_user_mode)) /* a look of the processor's into GDT or LDT */
        return NOT_MINE;
    hv_set64(c->j, &exceptions[TRAP_page_fault], exceptions[TRAP_page_fault] + 1);
    hv_event(c, EVENT_trap, c->regs[RIP], TRAP_page_fault, error_code);
    uint64_t kind = error_code & (PFEC_page_present | PFEC_write_access | PFEC_insn_fetch);
    if (kind == (PFEC_page_present | PFEC_write_access) && is_kernel)
        return count_lane(c->e, LANE_page_table_store, hv_ro_page_fault(c, cr2) && !c->j->is_full);
    if (c->is_32bit)
        return NOT_MINE;
    return count_lane(c->e, LANE_page_fault, hv_page_fault64(c, error_code, cr2) && !c->j->is_full);
}

static bool interrupt_lane(struct hv_engine *e, uint32_t vector) {
    if ((vector != HYPERCALL_VECTOR && vector != TRAP_page_fault) || !e->vcpu)
        return NOT_MINE;
    struct hv_call c = call_of(e);
    const uint32_t *words = (const uint32_t *)e->env;
    c.is_32bit = c.d->levels == 3;
    bool is_hypercall = c.is_32bit && vector == HYPERCALL_VECTOR && (words[CS_SELECTOR] & 3) == 1;
    if (!(is_hypercall || vector == TRAP_page_fault) || !begin(&c))
        return NOT_MINE;
    if (!(is_hypercall ? hypercall32(&c) : page_fault(&c)))
        return give_back(&c);
    *(uint32_t *)(e->env + OLD_EXCEPTION_OFFSET) = UINT32_MAX; /* or the next would be a double fault */
    if ((int64_t)e->left <= (int64_t)e->limit) { /* no block of code may follow that would notice */
        e->limit = OUT;
        ((stop_function *)e->uc_emu_stop)((void *)e->uc);
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
    take_time(e, NS_PER_RDTSC);
    uint64_t tsc = hv_now(e) * TSC_PER_NS;
    regs[RAX] = (uint32_t)tsc;
    regs[RDX] = tsc >> 32;
    return count_lane(e, LANE_rdtsc, MINE);
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
