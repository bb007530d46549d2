/* What the files of this core share beside the words: how calls are made, and what is exported. */
#ifndef HV_CORE_H
#define HV_CORE_H

#include "words.h"

#include <stdbool.h>
#include <stddef.h>

#define HV_EXPORT __attribute__((visibility("default")))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* A call that must become a jump: the callee looks at the address that this function returns to. */
#if defined(__has_attribute)
#if __has_attribute(musttail)
#define HV_TAIL_CALL __attribute__((musttail)) return
#endif
#endif
#ifndef HV_TAIL_CALL
#define HV_TAIL_CALL return /* -foptimize-sibling-calls, which the build asks for */
#endif

/* A place among 1 << bits. */
static inline unsigned hv_hash(uint64_t key, unsigned bits) {
    return (unsigned)(key * UINT64_C(0x9e3779b97f4a7c15) >> (64 - bits));
}

/* uc_emu_stop(): the engine leaves behind the block, or what hook it is in. */
static inline void hv_emu_stop(const struct hv_engine *e) { ((int (*)(void *))e->uc_emu_stop)((void *)e->uc); }

/* Time that passes without code, and stays passed whatever is undone. */
static inline void hv_take_time(struct hv_engine *e, uint64_t ns) {
    e->left -= ns;
    e->spent += ns;
}

/* coverage.c: the block at `address` is about to run. */
void hv_cover(const struct hv_engine *e, uint64_t address, uint32_t size);

/* branches.c: the guest is about to go on. */
void hv_unlearn_branches(const struct hv_engine *e);

/* The engine whose Unicorn handle or CPUState `key` is; NULL for one that is not ours. */
struct hv_engine *hv_engine_of(const void *key);

#endif
