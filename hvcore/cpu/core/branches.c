/* Jumps between translated blocks, and what the host's branch predictor makes of them.
 *
 * A block ends in a jump that first goes to the next instruction, and is written over when the following block is
 * known. AMD's Zen may keep what it saw first: it then corrects itself at each execution, a dozen cycles later, and
 * never learns, so that a short loop takes four times as long until something else evicts that entry. So what has no
 * target yet is no jump at all. That leaves a few loops that are mispredicted by what else lies in the same 64 bytes:
 * where the guest has run for a while and no jump got a target, all of the predictor's entries are evicted.
 * Nothing of this is seen by the guest. Measured on an EPYC of model 17 (Zen 4).
 * Source: tb_set_jmp_target() in accel/tcg/cpu-exec.c of QEMU 5.0.1 as Unicorn 2.1.4 carries it.
 */
#include "blocks.h"

#include <string.h>

enum { MUCH_CODE = 5000000 }; /* bytes of it: about a millisecond */

typedef void set_jmp_target_function(struct translation_block *tb, int n, uintptr_t address);

static set_jmp_target_function *library;
static _Thread_local uint64_t links; /* how many jumps got a target */

/* The library's own function. 0 where blocks do not end in jumps as below. */
HV_EXPORT int hv_set_link_function(set_jmp_target_function *own) {
    library = own;
#if defined(__x86_64__)
    return 1;
#else
    return 0;
#endif
}

/* tb_set_jmp_target(): jump `n` of the block goes to `address`, which lies behind it where it has no target. */
HV_EXPORT void hv_set_jmp_target(struct translation_block *tb, int n, uintptr_t address) {
    enum { JMP = 0xe9, OPCODE_SIZE = 1 };
    static const uint8_t nop[] = {0x0f, 0x1f, 0x44, 0, 0}; /* as long as a jump */
    uint8_t *jump = tb->code + tb->jmp_target_arg[n] - OPCODE_SIZE;
    bool has_target = address != (uintptr_t)jump + sizeof nop;
    if (!has_target && hv_translates_ours()) {
        memcpy(jump, nop, sizeof nop);
        return;
    }
    *jump = JMP;
    library(tb, n, address);
    links += has_target;
}

#if defined(__x86_64__)
/* More jumps than the predictor has entries (7,168 in the larger of Zen 4's two tables): 50 us. */
static __attribute__((noinline)) void evict_branches(void) {
    __asm__ volatile(".rept 16384\n\tjmp 1f\n\tnop\n\tnop\n1:\n\t.endr");
}
#else
static void evict_branches(void) {
}
#endif

/* The guest goes on. Once for all that was linked, when it has run for a while without more of it. */
void hv_unlearn_branches(const struct hv_engine *e) {
    static _Thread_local uint64_t code_before, links_before, links_unlearnt;
    uint64_t code = e->horizon - e->left - e->spent - e->idle;
    if (code - code_before < MUCH_CODE)
        return;
    if (links == links_before && links != links_unlearnt) {
        evict_branches();
        links_unlearnt = links;
    }
    code_before = code;
    links_before = links;
}
