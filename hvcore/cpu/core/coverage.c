/* Which blocks of code run: a set of them, by where they begin. hvcore/cpu/coverage.py reads it. */
#include "core.h"

struct hv_coverage {
    uint64_t start, end; /* where code is of interest */
    uint64_t mask;       /* as many slots, a power of two, less one */
    uint64_t used, dropped;
    struct {
        uint64_t address, size;
    } slots[];
};

static uint64_t first_slot(const struct hv_coverage *set, uint64_t address) {
    return (address * UINT64_C(0x9e3779b97f4a7c15)) >> 32 & set->mask;
}

void hv_cover(const struct hv_engine *e, uint64_t address, uint32_t size) {
    struct hv_coverage *set = (struct hv_coverage *)e->coverage;
    if (!set || address < set->start || address >= set->end)
        return;
    uint64_t at = first_slot(set, address);
    while (set->slots[at].size && set->slots[at].address != address)
        at = (at + 1) & set->mask;
    if (likely(set->slots[at].size >= size))
        return;
    if (!set->slots[at].size) {
        if (set->used > set->mask / 4 * 3) {
            set->dropped++;
            return;
        }
        set->used++;
    }
    set->slots[at].address = address;
    set->slots[at].size = size;
}
