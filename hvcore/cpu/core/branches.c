/* What the host's branch predictor has wrong of translated code, and how a loop gets rid of it.
 *
 * A block ends in a jump that first goes to the next instruction, and is written over when the following block is
 * known. AMD's Zen keeps the target that it saw first: a direct jump has one for good, it thinks, corrects itself at
 * each execution, 17 cycles later, and never learns. A short loop then takes four times as long until something else
 * evicts that entry, which on a quiet machine takes tenths of a second; which of the two it was differed from one
 * start to the next. So where the guest spends turn after turn in one page, all such entries are evicted.
 * Nothing of this is seen by the guest. Measured on an EPYC of model 17 (Zen 4): loop of samples/bench 5.9 and 1.5 ns.
 */
#include "core.h"

enum { PAGE_SHIFT = 12, MUCH_CODE = 5000000 }; /* bytes: half of what a whole turn can have, about a millisecond */

#if defined(__x86_64__)
/* More jumps than the predictor has entries (7,168 in the larger of Zen 4's two tables): 50 us. */
static __attribute__((noinline)) void evict_branches(void) {
    __asm__ volatile(".rept 16384\n\tjmp 1f\n\tnop\n\tnop\n1:\n\t.endr");
}
#else
static void evict_branches(void) {
}
#endif

/* The guest goes on at `rip`. The second time in a row that it spent its turn in that page, and then ever more rarely. */
void hv_unlearn_branches(const struct hv_engine *e, uint64_t rip) {
    static _Thread_local uint64_t page, before, times;
    uint64_t code = e->horizon - e->left - e->spent - e->idle;
    times = rip >> PAGE_SHIFT == page && code - before >= MUCH_CODE ? times + 1 : 0;
    if (times > 1 && !(times & (times - 1)))
        evict_branches();
    page = rip >> PAGE_SHIFT;
    before = code;
}
