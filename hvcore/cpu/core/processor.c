/* The processor's state beyond the general registers: hvcore/cpu/processor.py. */
#include "lane.h"

enum { UC_X86_REG_EFLAGS = 25 };
enum { DESC_B = 1 << 22, DESC_L = 1 << 21 };

typedef int reg_read_function(void *uc, int number, void *value);
typedef uint32_t compute_all_function(void *env, int cc_op);

/* EFLAGS of a guest that runs, with the lazily kept arithmetic flags worked out: cpu_compute_eflags() */
uint64_t hv_read_eflags(const struct hv_engine *e) {
    const uint32_t *words = (const uint32_t *)e->env;
    uint64_t eflags = ((const uint64_t *)e->env)[EFLAGS];
    if (likely(e->cc_compute_all != 0))
        eflags |= ((compute_all_function *)e->cc_compute_all)((void *)e->env, (int)words[CC_OP]) | (words[DF] & X86_EFLAGS_DF);
    else
        ((reg_read_function *)e->uc_reg_read)((void *)e->uc, UC_X86_REG_EFLAGS, &eflags);
    return (eflags & EFLAGS_SETTABLE) | X86_EFLAGS_MBS;
}

/* Those of a guest that runs: arithmetic flags and DF lie apart. */
void hv_write_eflags(struct hv_call *c, uint64_t value) {
    uint32_t *words = (uint32_t *)c->regs;
    hv_set64(c, &c->regs[EFLAGS], (value & ~(uint64_t)(EFLAGS_ARITHMETIC | X86_EFLAGS_DF)) | X86_EFLAGS_MBS);
    hv_set64(c, &c->regs[CC_SRC], value & EFLAGS_ARITHMETIC);
    hv_set32(c, &words[CC_OP], CC_OP_EFLAGS);
    hv_set32(c, &words[DF], value & X86_EFLAGS_DF ? UINT32_MAX : 1);
}

/* HF_ADDSEG: whether DS, ES or SS have a base */
static void set_addseg(struct hv_call *c, uint32_t h) {
    h &= ~(uint32_t)HF_ADDSEG;
    bool has_base = hv_segment(c, ES)->base | hv_segment(c, SS)->base | hv_segment(c, DS)->base;
    if (!(h & HF_CS64) && (has_base || !(h & HF_CS32)))
        h |= HF_ADDSEG;
    hv_set32(c, hv_hflags(c), h);
}

void hv_set_base(struct hv_call *c, int index, uint64_t base) {
    hv_set64(c, &hv_segment(c, index)->base, base);
    set_addseg(c, *hv_hflags(c));
}

/* Load a segment register: CS sets CPL and the code's size, too, SS the stack's. */
void hv_set_segment(struct hv_call *c, int index, uint32_t selector, uint64_t base, uint32_t limit, uint32_t flags) {
    struct hv_segment *segment = hv_segment(c, index);
    uint32_t h = *hv_hflags(c);
    hv_set32(c, &segment->selector, selector);
    hv_set64(c, &segment->base, base);
    hv_set32(c, &segment->limit, limit);
    hv_set32(c, &segment->flags, flags);
    if (index == CS) {
        h = (h & ~(uint32_t)(HF_CPL | HF_CS32 | HF_CS64)) | (selector & HF_CPL);
        if (flags & DESC_L && h & HF_LMA)
            h |= HF_CS32 | HF_CS64 | HF_SS32;
        else if (flags & DESC_B)
            h |= HF_CS32;
    } else if (index == SS) {
        h &= ~(uint32_t)HF_SS32;
        if (flags & DESC_B || h & HF_CS64)
            h |= HF_SS32;
    }
    set_addseg(c, h);
}
