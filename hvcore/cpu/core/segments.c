/* Loading segment registers as `iretq` and `mov` do, when it is Xen that returns to the guest: hvcore/pv/segments.py.
 *
 * Descriptors of the GDT alone; those of an LDT, and whatever would fault, are not mine.
 */
#include "lane.h"

enum { LDT_SELECTOR = 4, LAST_GDT_PAGE = 14 };
enum {
    ACCESS_ROW = 0xf0ff00, CODE = 1 << 11, CONFORMING = 1 << 10, WRITABLE = 1 << 9, S = 1 << 12, PRESENT = 1 << 15,
    LONG = 1 << 21, GRANULAR = 1 << 23,
};

static unsigned dpl_of(uint32_t high) { return high >> 13 & 3; }

/* gdt_ldt_desc(), by the frames that Xen has mapped for the vCPU; where there is none the processor finds zeroes. */
bool hv_descriptor(const struct hv_call *c, uint32_t selector, struct hv_descriptor *found) {
    uint64_t raw = 0, entry;
    if (selector & LDT_SELECTOR || selector >> PAGE_SHIFT > LAST_GDT_PAGE)
        return NOT_MINE;
    entry = ((const uint64_t *)c->v->perdomain_ptes)[selector >> PAGE_SHIFT];
    if (entry & PAGE_PRESENT) {
        uint64_t pg = hv_frame(c->d, hv_mfn_of(entry));
        if (!hv_is_frame(c->d, pg))
            return NOT_MINE;
        raw = ((const uint64_t *)hv_page(c->d, pg))[selector >> 3 & 511];
    }
    uint32_t low = (uint32_t)raw, high = (uint32_t)(raw >> 32);
    found->high = high;
    found->base = low >> 16 | (high & 0xff) << 16 | (high & 0xff000000);
    found->limit = (low & 0xffff) | (high & 0xf0000);
    if (high & GRANULAR)
        found->limit = found->limit << 12 | 0xfff;
    return MINE;
}

/* load_cs_ss() */
bool hv_load_cs_ss(struct hv_call *c, uint32_t cs, uint32_t ss) {
    struct hv_descriptor code, stack;
    unsigned rpl = cs & 3;
    if (!(cs & ~3u) || !(ss & ~3u) || !hv_descriptor(c, cs, &code) || !hv_descriptor(c, ss, &stack))
        return NOT_MINE;
    if ((code.high & (S | CODE | PRESENT)) != (S | CODE | PRESENT))
        return NOT_MINE;
    if (code.high & CONFORMING ? dpl_of(code.high) > rpl : dpl_of(code.high) != rpl)
        return NOT_MINE;
    if ((stack.high & (S | CODE | WRITABLE | PRESENT)) != (S | WRITABLE | PRESENT))
        return NOT_MINE;
    if ((ss & 3) != rpl || dpl_of(stack.high) != rpl)
        return NOT_MINE;
    hv_set_segment(c, CS, cs, code.base, code.limit, code.high & ACCESS_ROW);
    hv_set_segment(c, SS, ss, stack.base, stack.limit, stack.high & ACCESS_ROW);
    return MINE;
}

/* load_data() of what loads: null, or a segment that may be read */
bool hv_load_data(struct hv_call *c, int index, uint32_t selector) {
    struct hv_descriptor data;
    if (!(selector & ~3u)) {
        hv_set_segment(c, index, selector, 0, 0, 0);
        return MINE;
    }
    if (!hv_descriptor(c, selector, &data) || (data.high & (S | PRESENT)) != (S | PRESENT))
        return NOT_MINE;
    bool is_code = data.high & CODE, is_conforming = is_code && data.high & CONFORMING;
    if (is_code && !(data.high & WRITABLE)) /* which says of code that it may be read */
        return NOT_MINE;
    if (!is_conforming && (dpl_of(data.high) < (selector & 3) || dpl_of(data.high) < (*hv_hflags(c) & HF_CPL)))
        return NOT_MINE;
    hv_set_segment(c, index, selector, data.base, data.limit, data.high & ACCESS_ROW);
    return MINE;
}

/* drop_privileged_data(): on a return to an outer ring the data segments of an inner one are nulled. */
void hv_drop_privileged_data(struct hv_call *c) {
    static const int registers[] = {ES, DS, FS, GS};
    for (int i = 0; i < 4; i++) {
        const struct hv_segment *segment = hv_segment(c, registers[i]);
        bool is_conforming = (segment->flags & (CODE | CONFORMING)) == (CODE | CONFORMING);
        if (segment->selector & ~3u && dpl_of(segment->flags) < (*hv_hflags(c) & HF_CPL) && !is_conforming)
            hv_set_segment(c, registers[i], 0, 0, 0, 0);
    }
}
