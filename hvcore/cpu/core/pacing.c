/* The block hook: guest code pays for itself, and the engine leaves between two blocks and nowhere else. */
#include "inner_stops.h"

/* helper_check_exit_request(uc, in_delay_slot), which looks at two arguments; a jump hands on as many as came. */
typedef void check_function(void *uc, uint64_t in_delay_slot, uint32_t size, struct hv_engine *e);

static check_function *check_exit_request;

/* Where the library is found that leaves a block by the address to which its helper returns. */
HV_EXPORT void hv_set_check_exit_request(check_function *found) { check_exit_request = found; }

/* The block runs. */
static void pay(struct hv_engine *e, uint64_t address, uint32_t size) {
    if (unlikely(e->coverage != 0))
        hv_cover(e, address, size);
    e->left -= size;
}

/* UC_HOOK_BLOCK for translators that keep their checks: `uc_emu_stop` is seen by the check behind this. */
HV_EXPORT void hv_pace(void *uc, uint64_t address, uint32_t size, struct hv_engine *e) {
    (void)uc;
    if (unlikely((int64_t)e->left <= (int64_t)e->limit) && !hv_completes_store(e, HV_CALLER()))
        hv_emu_stop(e);
    else
        pay(e, address, size);
}

/* UC_HOOK_BLOCK where the checks are left out (translate.c): it leaves the block itself, before anything. The
 * same is what an instruction calls that is hooked. */
HV_EXPORT void hv_pace_and_leave(void *uc, uint64_t address, uint32_t size, struct hv_engine *e) {
    if (unlikely(hv_is_of_instruction(e))) {
        e = hv_engine_of_instruction(e);
        if (!hv_stops_at(e, address, HV_CALLER()))
            return;
    } else if (likely((int64_t)e->left > (int64_t)e->limit) || hv_completes_store(e, HV_CALLER())) {
        pay(e, address, size);
        return;
    }
    hv_emu_stop(e);
    HV_TAIL_CALL check_exit_request(uc, 0, size, e);
}

/* The same where the count is generated into the block, by which name translate.c knows: called only to leave. */
HV_EXPORT void hv_count(void *uc, uint64_t address, uint32_t size, struct hv_engine *e) {
    HV_TAIL_CALL hv_pace_and_leave(uc, address, size, e);
}
