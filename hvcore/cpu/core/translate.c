/* What is left out of translated code, and what is put there: this lies in the jump slot of tcg_gen_callN().
 *
 * The translator generates calls of check_exit_request at the head of each block and behind accesses to memory.
 * Where our block hook is, they are dropped: it leaves by itself. And the hook is not called at each block either:
 * the count is generated as operations, as QEMU's own icount is:
 *
 *     left = e->left; e->left = left - size; if (left <= e->limit) hv_leave(uc, 0, size, e);
 *
 * Only local temporaries outlive a branch, so the subtraction comes before it, and the one call that leaves gives
 * back what its block has not used.
 * Source: include/tcg/tcg.h and tcg/tcg-op.c of QEMU 5.0.1 as Unicorn 2.1.4 carries it.
 */
#include "core.h"

enum { TCG_TYPE_I32, TCG_TYPE_I64 };
enum { TCG_COND_GT = 8 | 2 | 1 };

/* Places in tcg-opc.h; the loader looks whether OP_movi_i64 is in the code of tcg_const_i64(). */
enum { OP_set_label = 1, OP_mov_i32 = 5, OP_movi_i64 = 64, OP_ld_i64 = 73, OP_st_i64 = 77, OP_sub_i64 = 79 };
HV_EXPORT const uint64_t hv_op_movi_i64 = OP_movi_i64;

struct tcg_temp;
struct tcg_label {
    uint32_t is_present; /* bit 0 */
};
typedef uintptr_t tcg_arg; /* a temporary's address, a label's, or a number */
typedef uintptr_t tcg_v;   /* a temporary, told by its distance from the translator's context */

struct tcg_functions { /* in the order in which the loader gives them */
    void (*gen_call)(void *tcg, void *function, struct tcg_temp *result, int nargs, struct tcg_temp **args);
    void *check_exit_request;
    struct tcg_temp *(*temp_new)(void *tcg, int type, bool local);
    void (*temp_free)(void *tcg, struct tcg_temp *temp);
    void (*extu_i32_i64)(void *tcg, tcg_v to, tcg_v from);
    tcg_v (*const_i32)(void *tcg, int32_t value);
    tcg_v (*const_i64)(void *tcg, int64_t value);
    void (*op1)(void *tcg, int op, tcg_arg a);
    void (*op2)(void *tcg, int op, tcg_arg a, tcg_arg b);
    void (*op3)(void *tcg, int op, tcg_arg a, tcg_arg b, tcg_arg c);
    void (*brcond_i64)(void *tcg, int condition, tcg_v a, tcg_v b, struct tcg_label *to);
    struct tcg_label *(*new_label)(void *tcg);
};

static struct tcg_functions library;
static _Thread_local struct hv_engine *running;

typedef int start_function(void *uc, uint64_t begin, uint64_t until, uint64_t timeout, size_t count);

void hv_leave(void *uc, uint64_t address, uint32_t size, struct hv_engine *e);
void hv_pace_and_leave(void *uc, uint64_t address, uint32_t size, struct hv_engine *e);

HV_EXPORT void hv_set_tcg_functions(const struct tcg_functions *found) { library = *found; }

/* uc_emu_start(), with the engine known to hv_gen_call(), which is told nothing but the translator's context. */
HV_EXPORT int hv_run(struct hv_engine *e, start_function *uc_emu_start, uint64_t rip) {
    struct hv_engine *outer = running;
    running = e;
    int error = uc_emu_start((void *)e->uc, rip, 0, 0, 0);
    running = outer;
    return error;
}

static tcg_v v_of(void *tcg, struct tcg_temp *temp) { return (uintptr_t)temp - (uintptr_t)tcg; }

static struct tcg_temp *temp_of(void *tcg, tcg_v v) { return (struct tcg_temp *)((uintptr_t)tcg + v); }

/* The call that leaves: constants made before the branch are not known behind it. */
static void gen_leave(void *tcg, struct hv_engine *e, struct tcg_temp *size) {
    struct tcg_temp *args[] = {
        temp_of(tcg, library.const_i64(tcg, (int64_t)e->uc)),
        temp_of(tcg, library.const_i64(tcg, 0)),
        size,
        temp_of(tcg, library.const_i64(tcg, (int64_t)(uintptr_t)e)),
    };
    library.gen_call(tcg, hv_leave, NULL, 4, args);
    for (int i = 0; i < 4; i++)
        if (args[i] != size)
            library.temp_free(tcg, args[i]);
}

static void gen_count(void *tcg, struct hv_engine *e, struct tcg_temp *size, struct tcg_temp *data) {
    struct tcg_temp *left = library.temp_new(tcg, TCG_TYPE_I64, false);
    struct tcg_temp *limit = library.temp_new(tcg, TCG_TYPE_I64, false);
    struct tcg_temp *rest = library.temp_new(tcg, TCG_TYPE_I64, false);
    struct tcg_temp *kept = library.temp_new(tcg, TCG_TYPE_I32, true);
    struct tcg_label *go_on = library.new_label(tcg);

    library.op2(tcg, OP_mov_i32, (tcg_arg)kept, (tcg_arg)size);
    library.extu_i32_i64(tcg, v_of(tcg, rest), v_of(tcg, size));
    library.op3(tcg, OP_ld_i64, (tcg_arg)left, (tcg_arg)data, offsetof(struct hv_engine, left));
    library.op3(tcg, OP_ld_i64, (tcg_arg)limit, (tcg_arg)data, offsetof(struct hv_engine, limit));
    library.op3(tcg, OP_sub_i64, (tcg_arg)rest, (tcg_arg)left, (tcg_arg)rest);
    library.op3(tcg, OP_st_i64, (tcg_arg)rest, (tcg_arg)data, offsetof(struct hv_engine, left));
    library.brcond_i64(tcg, TCG_COND_GT, v_of(tcg, left), v_of(tcg, limit), go_on);
    gen_leave(tcg, e, kept);
    go_on->is_present |= 1;
    library.op1(tcg, OP_set_label, (tcg_arg)go_on);

    library.temp_free(tcg, left);
    library.temp_free(tcg, limit);
    library.temp_free(tcg, rest);
    library.temp_free(tcg, kept);
}

/* tcg_gen_callN() */
HV_EXPORT void hv_gen_call(void *tcg, void *function, struct tcg_temp *result, int nargs, struct tcg_temp **args) {
    struct hv_engine *e = running;
    if (e && function == (void *)hv_leave) { /* the block hook, by its name: gen_leave() goes past this */
        e->translator = (uintptr_t)tcg;
        gen_count(tcg, e, args[2], args[3]);
        return;
    }
    if (e && function == (void *)hv_pace_and_leave)
        e->translator = (uintptr_t)tcg;
    else if (e && function == library.check_exit_request && e->translator == (uintptr_t)tcg)
        return;
    library.gen_call(tcg, function, result, nargs, args);
}
