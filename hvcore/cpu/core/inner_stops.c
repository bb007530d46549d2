/* Stops inside blocks, for debuggers and for the guest's own data breakpoints.
 *
 * A block is paid for at its head. Where it is left in the middle, the caller is told where it ends: what is left
 * of it is paid, and given back when the guest goes on there (hvcore/cpu/inner_stops.py).
 */
#include "blocks.h"
#include "inner_stops.h"
#include "x86.h"

typedef const struct translation_block *lookup_function(void *tcg, uintptr_t host_address);
typedef void exit_function(void *cpu, uintptr_t host_address);

static const struct translation_block *block_of(const struct hv_engine *e, uintptr_t caller) {
    if (!e->tcg_tb_lookup || !e->translator)
        return NULL;
    return ((lookup_function *)e->tcg_tb_lookup)((void *)e->translator, caller);
}

/* A store into its own block is executed again as a block of one instruction, which QEMU notes where a stop would
 * lose it (cpu->cflags_next_tb). */
static bool is_store_again(const struct translation_block *tb) { return (tb->cflags & CF_COUNT_MASK) == 1; }

static void note_stop(struct hv_engine *e, uint64_t kind, uint64_t address, const struct translation_block *tb) {
    e->stop_kind = kind;
    e->stop_address = address;
    e->stop_block = tb->pc;
    e->stop_block_size = tb->size;
}

bool hv_stops_at(struct hv_engine *e, uint64_t address, uintptr_t caller) {
    bool goes_on = e->is_passing && e->passing == address;
    e->is_passing = 0;
    const struct translation_block *tb = block_of(e, caller);
    if (goes_on || !tb || is_store_again(tb))
        return false;
    note_stop(e, HV_AT_INSTRUCTION, address, tb);
    return true;
}

bool hv_completes_store(struct hv_engine *e, uintptr_t caller) {
    if (e->horizon - e->left >= e->turn_end) /* the guest's turn is over, whoever asks */
        return false;
    const struct translation_block *tb = block_of(e, caller);
    return tb && is_store_again(tb);
}

bool hv_watches_page(const struct hv_engine *e, uint64_t va) {
    const struct hv_watch *watch = (const struct hv_watch *)e->watches;
    uint64_t page = va & ~(uint64_t)PAGE_MASK;
    for (uint64_t i = 0; i < e->nr_watches; i++)
        if (watch[i].start <= page + PAGE_MASK && watch[i].end > page)
            return true;
    return false;
}

bool hv_watches(const struct hv_engine *e, uint64_t va, int size, bool is_store) {
    const struct hv_watch *watch = (const struct hv_watch *)e->watches;
    for (uint64_t i = 0; i < e->nr_watches; i++)
        if (watch[i].start < va + (uint64_t)size && watch[i].end > va && watch[i].accesses >> is_store & 1)
            return true;
    return false;
}

void hv_leave_before_access(struct hv_engine *e, uint64_t va, int size, bool is_store, uintptr_t caller) {
    const struct translation_block *tb = block_of(e, caller);
    if (!tb)
        return; /* an access of no block */
    note_stop(e, HV_BEFORE_ACCESS, va, tb);
    e->stop_size = (uint64_t)size;
    e->stop_is_store = is_store;
    hv_emu_stop(e);
    ((exit_function *)e->cpu_loop_exit_restore)((void *)e->cpu, caller);
}
