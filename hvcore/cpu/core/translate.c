/* What is left out of translated code, and what is put there: this lies in the jump slot of tcg_gen_callN().
 *
 * The translator generates calls of check_exit_request at the head of each block and behind accesses to memory.
 * Where our block hook is, they are dropped: it leaves by itself. And the hook is not called at each block either:
 * the count is generated as operations, as QEMU's own icount is, and the hook called only to leave:
 *
 *     if (e->left <= e->limit) hv_count(uc, 0, 0, e);
 *     e->left = e->left - size;
 *
 * What counts in a short loop is how many stores a block makes, so there is one: the size, which Unicorn puts into
 * the first operation of the call when the block is done, is not to outlive a branch (it would be kept in memory),
 * and RIP, which Unicorn stores for the hook's sake, is not needed: leaving restores it. Hence the branch and the call
 * are moved to before the store, and the store is made nothing.
 * Source: include/tcg/tcg.h, tcg-op.h and accel/tcg/translator.c of QEMU 5.0.1 as Unicorn 2.1.4 carries it.
 */
#include "blocks.h"
#include "inner_stops.h"
#include "tlb.h"

enum { TCG_TYPE_I32, TCG_TYPE_I64 };
enum { TCG_COND_GT = 8 | 2 | 1 };

/* Places in tcg-opc.h; the loader looks whether OP_movi_i64 is in the code of tcg_const_i64(). */
enum { OP_set_label = 1, OP_movi_i32 = 6, OP_movi_i64 = 64, OP_ld_i64 = 73, OP_st_i64 = 77, OP_sub_i64 = 79 };
HV_EXPORT const uint64_t hv_op_movi_i64 = OP_movi_i64;

struct tcg_temp;
struct tcg_label {
    uint32_t is_present; /* bit 0 */
};
typedef uintptr_t tcg_arg; /* a temporary's address, a label's, or a number */
struct tcg_link { /* QTAILQ_ENTRY */
    struct tcg_op *next;
    struct tcg_link *prev;
};
struct tcg_op {
    uint32_t number : 8, others : 24;
    struct tcg_link link;
    tcg_arg args[3];
};
typedef uintptr_t tcg_v;   /* a temporary, told by its distance from the translator's context */

struct tcg_functions { /* in the order in which the loader gives them */
    void (*gen_call)(void *tcg, void *function, struct tcg_temp *result, int nargs, struct tcg_temp **args);
    void *check_exit_request;
    struct tcg_temp *(*temp_new)(void *tcg, int type, bool local);
    void (*temp_free)(void *tcg, struct tcg_temp *temp);
    void (*extu_i32_i64)(void *tcg, tcg_v to, tcg_v from);
    tcg_v (*const_i32)(void *tcg, int32_t value);
    tcg_v (*const_i64)(void *tcg, int64_t value);
    struct tcg_op *(*emit)(void *tcg, int op);
    void (*op1)(void *tcg, int op, tcg_arg a);
    void (*op3)(void *tcg, int op, tcg_arg a, tcg_arg b, tcg_arg c);
    void (*brcond_i64)(void *tcg, int condition, tcg_v a, tcg_v b, struct tcg_label *to);
    struct tcg_label *(*new_label)(void *tcg);
    void *lookup_tb_ptr;
    size_t (*count_invalid)(void *tcg); /* tcg_tb_phys_invalidate_count() */
    void *uc_tracecode; /* helper_uc_tracecode(size, kind, uc, address), called where an instruction has several hooks */
};

static struct tcg_functions library;
static _Thread_local struct hv_engine *running;
static _Thread_local bool is_ours; /* the block that was translated last */
static size_t offset_of_count; /* of dropped blocks, in a translator's context */
static void *block_hook; /* hv_count() or hv_pace_and_leave() */

typedef int start_function(void *uc, uint64_t begin, uint64_t until, uint64_t timeout, size_t count);

void hv_count(void *uc, uint64_t address, uint32_t size, struct hv_engine *e);
void hv_pace_and_leave(void *uc, uint64_t address, uint32_t size, struct hv_engine *e);

/* Where in a context the count of dropped blocks is: in one whose words say where they are. */
static size_t find_offset_of_count(void) {
    static size_t context[1024];
    for (size_t i = 0; i < sizeof context / sizeof *context; i++)
        context[i] = i * sizeof *context;
    return library.count_invalid(context);
}

HV_EXPORT void hv_set_tcg_functions(const struct tcg_functions *found) {
    library = *found;
    hv_set_jump_function(found->lookup_tb_ptr);
    offset_of_count = library.count_invalid ? find_offset_of_count() : 0;
}

/* uc_emu_start(), with the engine known to hv_gen_call(), which is told nothing but the translator's context. */
HV_EXPORT int hv_run(struct hv_engine *e, start_function *uc_emu_start, uint64_t rip) {
    struct hv_engine *outer = running;
    running = e;
    hv_unlearn_branches(e);
    int error = uc_emu_start((void *)e->uc, rip, 0, 0, 0);
    running = outer;
    return error;
}

static tcg_v v_of(void *tcg, struct tcg_temp *temp) { return (uintptr_t)temp - (uintptr_t)tcg; }

static struct tcg_temp *temp_of(void *tcg, tcg_v v) { return (struct tcg_temp *)((uintptr_t)tcg + v); }

static struct tcg_op *before(const struct tcg_op *op) {
    return (struct tcg_op *)((uintptr_t)op->link.prev - offsetof(struct tcg_op, link));
}

/* The store of RIP that Unicorn makes before the hook's arguments, the last operations so far; NULL if it is not. */
static struct tcg_op *store_of_rip(const struct tcg_op *last) {
    enum { ARGUMENTS = 4, RIP_OFFSET = 128 }; /* state_window.RIP */
    struct tcg_op *op = before(last);
    for (int i = 0; i < ARGUMENTS; i++, op = before(op))
        if (op->number != OP_movi_i64 && op->number != OP_movi_i32)
            return NULL;
    return op->number == OP_st_i64 && op->args[2] == RIP_OFFSET ? op : NULL;
}

/* Move the operations from `first` to before `behind` in front of `to`. */
static void move_operations(struct tcg_op *first, struct tcg_op *behind, struct tcg_op *to) {
    struct tcg_op *last = before(behind), *rest = before(first), *ahead = before(to);
    rest->link.next = behind;
    behind->link.prev = &rest->link;
    ahead->link.next = first;
    first->link.prev = &ahead->link;
    last->link.next = to;
    to->link.prev = &last->link;
}

/* Where the words are: by their distance from the processor's state, whose address is in a register, or by their
 * own (in `constant`). AMD's processors forward a store sooner that is addressed by RBP, which is that register.
 */
struct place {
    struct tcg_temp *base, *constant;
    tcg_arg offset;
};

static struct place place_of(void *tcg, struct hv_engine *e, struct tcg_temp *env) {
    intptr_t distance = (intptr_t)((uintptr_t)e - (uintptr_t)e->env);
    if (distance == (int32_t)distance && distance + (intptr_t)sizeof *e <= INT32_MAX)
        return (struct place){env, NULL, (tcg_arg)distance};
    struct tcg_temp *constant = temp_of(tcg, library.const_i64(tcg, (int64_t)(uintptr_t)e));
    return (struct place){constant, constant, 0};
}

static void forget(void *tcg, struct place place) {
    if (place.constant)
        library.temp_free(tcg, place.constant);
}

static void load(void *tcg, struct tcg_temp *to, struct place place, size_t word) {
    library.op3(tcg, OP_ld_i64, (tcg_arg)to, (tcg_arg)place.base, place.offset + word);
}

/* At the head of the block: leave where the horizon is reached. */
static void gen_leave(void *tcg, struct hv_engine *e, struct tcg_temp *env) {
    struct tcg_temp *left = library.temp_new(tcg, TCG_TYPE_I64, false);
    struct tcg_temp *limit = library.temp_new(tcg, TCG_TYPE_I64, false);
    struct tcg_label *go_on = library.new_label(tcg);
    struct place place = place_of(tcg, e, env);
    load(tcg, left, place, offsetof(struct hv_engine, left));
    load(tcg, limit, place, offsetof(struct hv_engine, limit));
    library.brcond_i64(tcg, TCG_COND_GT, v_of(tcg, left), v_of(tcg, limit), go_on);
    struct tcg_temp *args[] = {
        temp_of(tcg, library.const_i64(tcg, (int64_t)e->uc)),
        temp_of(tcg, library.const_i64(tcg, 0)),
        temp_of(tcg, library.const_i32(tcg, 0)),
        temp_of(tcg, library.const_i64(tcg, (int64_t)(uintptr_t)e)),
    };
    library.gen_call(tcg, hv_count, NULL, 4, args);
    go_on->is_present |= 1;
    library.op1(tcg, OP_set_label, (tcg_arg)go_on);
    for (int i = 0; i < 4; i++)
        library.temp_free(tcg, args[i]);
    library.temp_free(tcg, left);
    library.temp_free(tcg, limit);
    forget(tcg, place);
}

/* Behind it: pay for the block. `size` is a constant of this side of the branch. */
static void gen_pay(void *tcg, struct hv_engine *e, struct tcg_temp *env, struct tcg_temp *size) {
    struct tcg_temp *left = library.temp_new(tcg, TCG_TYPE_I64, false);
    struct tcg_temp *cost = library.temp_new(tcg, TCG_TYPE_I64, false);
    struct place place = place_of(tcg, e, env);
    library.extu_i32_i64(tcg, v_of(tcg, cost), v_of(tcg, size));
    load(tcg, left, place, offsetof(struct hv_engine, left));
    library.op3(tcg, OP_sub_i64, (tcg_arg)left, (tcg_arg)left, (tcg_arg)cost);
    library.op3(tcg, OP_st_i64, (tcg_arg)left, (tcg_arg)place.base, place.offset + offsetof(struct hv_engine, left));
    library.temp_free(tcg, left);
    library.temp_free(tcg, cost);
    forget(tcg, place);
}

/* An operation whose result nobody uses, and which is left out in the end. */
static struct tcg_op *make_nothing(struct tcg_op *op, struct tcg_temp *result) {
    op->number = OP_movi_i64;
    op->args[0] = (tcg_arg)result;
    op->args[1] = 0;
    return op;
}

/* False where the operations before the call are not those that are known. */
static bool gen_count(void *tcg, struct hv_engine *e, struct tcg_temp *size) {
    struct tcg_temp *unused = library.temp_new(tcg, TCG_TYPE_I64, false);
    struct tcg_op *first = make_nothing(library.emit(tcg, OP_movi_i64), unused);
    struct tcg_op *store = store_of_rip(first);
    if (store) {
        struct tcg_temp *env = (struct tcg_temp *)store->args[1];
        gen_leave(tcg, e, env);
        move_operations(first, make_nothing(library.emit(tcg, OP_movi_i64), unused), store);
        make_nothing(store, unused);
        gen_pay(tcg, e, env, size);
    }
    library.temp_free(tcg, unused);
    return store;
}

/* UC_HOOK_CODE of the compiled core. No block calls it: what is generated is a call of the hook of blocks, which
 * can leave the block, and of which the library knows how it is called. */
HV_EXPORT void hv_at_instruction(void *uc, uint64_t address, uint32_t size, struct hv_engine *e) {
    (void)uc, (void)address, (void)size, (void)e;
}

static void gen_at_instruction(void *tcg, struct hv_engine *e, struct tcg_temp *uc, struct tcg_temp *address,
                               struct tcg_temp *size) {
    struct tcg_temp *data = temp_of(tcg, library.const_i64(tcg, (int64_t)(uintptr_t)hv_for_instruction(e)));
    struct tcg_temp *args[] = {uc, address, size, data};
    library.gen_call(tcg, block_hook, NULL, 4, args);
    library.temp_free(tcg, data);
}

/* helper_lookup_tb_ptr(env) becomes hv_next_code(e). The library knows no helper of this name, so the call is
 * generated for the one that it knows, and changed then. */
static void gen_next_code(void *tcg, struct hv_engine *e, struct tcg_temp *result, struct tcg_temp **args) {
    enum { ARGUMENT = 1, FUNCTION }; /* in the operation, behind the result */
    struct tcg_temp *words = temp_of(tcg, library.const_i64(tcg, (int64_t)(uintptr_t)e));
    struct tcg_temp *unused = library.temp_new(tcg, TCG_TYPE_I64, false);
    library.gen_call(tcg, library.lookup_tb_ptr, result, 1, args);
    struct tcg_op *call = before(make_nothing(library.emit(tcg, OP_movi_i64), unused));
    if (call->args[ARGUMENT] == (tcg_arg)args[0] && call->args[FUNCTION] == (tcg_arg)library.lookup_tb_ptr) {
        call->args[ARGUMENT] = (tcg_arg)words;
        call->args[FUNCTION] = (tcg_arg)hv_next_code;
    }
    library.temp_free(tcg, unused);
    library.temp_free(tcg, words);
}

/* What one of our blocks has in place of a call; false where it has the call. */
static bool gen_instead(void *tcg, struct hv_engine *e, void *function, struct tcg_temp *result, struct tcg_temp **args) {
    if (function == library.check_exit_request)
        return true;
    if (function == library.lookup_tb_ptr && e->jumps) {
        e->nr_invalid = (uintptr_t)tcg + offset_of_count;
        gen_next_code(tcg, e, result, args);
        return true;
    }
    if (function == (void *)hv_at_instruction) {
        gen_at_instruction(tcg, e, args[0], args[1], args[2]);
        return true;
    }
    if (function == library.uc_tracecode) {
        gen_at_instruction(tcg, e, args[2], args[3], args[0]);
        return true;
    }
    return function == (void *)hv_count && !e->coverage && gen_count(tcg, e, args[2]);
}

bool hv_translates_ours(void) { return is_ours; }

struct hv_engine *hv_running_engine(const void *tcg) {
    return running && running->translator == (uintptr_t)tcg ? running : NULL;
}

/* tcg_gen_callN() */
HV_EXPORT void hv_gen_call(void *tcg, void *function, struct tcg_temp *result, int nargs, struct tcg_temp **args) {
    struct hv_engine *e = running;
    if (e && (function == (void *)hv_count || function == (void *)hv_pace_and_leave)) {
        e->translator = (uintptr_t)tcg;
        block_hook = function;
    }
    is_ours = e && e->translator == (uintptr_t)tcg;
    if (!is_ours || !gen_instead(tcg, e, function, result, args))
        library.gen_call(tcg, function, result, nargs, args);
}
