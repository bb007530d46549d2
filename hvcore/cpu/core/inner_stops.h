/* Stops inside blocks: what inner_stops.c offers to those who are called from blocks. */
#ifndef HV_INNER_STOPS_H
#define HV_INNER_STOPS_H

#include "core.h"

enum { HV_AT_INSTRUCTION = 1, HV_BEFORE_ACCESS = 2 }; /* stop_kind */

struct hv_watch { /* addresses [start, end) of the guest; `accesses` has bit 0 for loads, bit 1 for stores */
    uint64_t start, end, accesses;
};

/* The call that a block or an instruction makes of a hook, by where it returns to; GETPC() of QEMU. */
#define HV_CALLER() ((uintptr_t)__builtin_return_address(0) - 2)

/* The hook of blocks is called by instructions, too: the lowest bit of its last argument tells which it is. */
static inline bool hv_is_of_instruction(const struct hv_engine *e) { return (uintptr_t)e & 1; }
static inline struct hv_engine *hv_engine_of_instruction(struct hv_engine *e) { return (void *)((uintptr_t)e & ~(uintptr_t)1); }
static inline struct hv_engine *hv_for_instruction(struct hv_engine *e) { return (void *)((uintptr_t)e | 1); }

/* Whether the engine is to be left at an instruction that is hooked. */
bool hv_stops_at(struct hv_engine *e, uint64_t address, uintptr_t caller);

/* Whether the block at whose head somebody outside wants to leave is the rest of a store into its own block. */
bool hv_completes_store(struct hv_engine *e, uintptr_t caller);

/* Whether some watch has to do with the page of an address, or with an access. */
bool hv_watches_page(const struct hv_engine *e, uint64_t va);
bool hv_watches(const struct hv_engine *e, uint64_t va, int size, bool is_store);

/* Leave the engine before the instruction that makes the access. Does not come back. */
void hv_leave_before_access(struct hv_engine *e, uint64_t va, int size, bool is_store, uintptr_t caller);

#endif
