/* do_mmu_update() and do_update_va_mapping(): hvcore/pv/mmu_update.py. */
#include "lane.h"

struct mmu_update {
    uint64_t ptr, val;
};

enum { MMU_NORMAL_PT_UPDATE, MMU_MACHPHYS_UPDATE, MMU_PT_UPDATE_PRESERVE_AD, MMU_PT_UPDATE_NO_TRANSLATE };
enum { MOST_REQUESTS = PAGE_SIZE / sizeof(struct mmu_update) };
enum { UVMF_FLUSHTYPE_MASK = 3, UVMF_TLB_FLUSH = 1, UVMF_INVLPG = 2, UVMF_LOCAL = 0, UVMF_ALL = 4 };

static bool machphys_update(struct hv_call *c, uint64_t mfn, uint64_t pfn) {
    uint64_t pg = hv_frame(c->d, mfn);
    if (!hv_is_own(c->d, pg) || !*hv_count(c->d, pg) || mfn >= c->d->end_mfn)
        return NOT_MINE;
    const uint64_t *tables = (const uint64_t *)c->d->m2p_addresses; /* set_gpfn_from_mfn() */
    if (tables[0])
        hv_set64(c, (uint64_t *)tables[0] + mfn, pfn);
    if (tables[1])
        hv_set32(c, (uint32_t *)tables[1] + mfn, (uint32_t)pfn);
    return MINE;
}

static bool one_update(struct hv_call *c, uint64_t ptr, uint64_t val, bool *replaced) {
    unsigned cmd = ptr & 7;
    uint64_t mfn = ptr >> PAGE_SHIFT;
    if (cmd == MMU_MACHPHYS_UPDATE)
        return machphys_update(c, mfn, val);
    uint64_t pg = hv_frame(c->d, mfn);
    if (cmd > MMU_PT_UPDATE_NO_TRANSLATE || !hv_is_own(c->d, pg) || !*hv_count(c->d, pg) || !*hv_tcount(c->d, pg))
        return NOT_MINE;
    uint64_t *at = (uint64_t *)hv_page(c->d, pg) + (ptr % PAGE_SIZE) / 8;
    bool preserve_ad = cmd == MMU_PT_UPDATE_PRESERVE_AD;
    int ptype = *hv_ptype(c->d, pg);
    if (ptype == PGT_writable_page) {
        hv_set64(c, at, val);
        return MINE;
    }
    if (ptype < PGT_l1_page_table || ptype > (c->is_32bit ? PGT_l2_page_table : PGT_l4_page_table))
        return NOT_MINE;
    return !(*hv_pflags(c->d, pg) & PGT_pae_xen_l2) && hv_mod_entry(c, at, val, ptype, preserve_ad, replaced);
}

/* A batch that lies in one page: Python, too, reads it before it applies the first request. */
bool hv_mmu_update(struct hv_call *c) {
    struct mmu_update requests[MOST_REQUESTS];
    uint64_t ureqs = c->args[0], count = c->args[1];
    bool replaced = false;
    if (!hv_requests_okay(c, sizeof *requests, MOST_REQUESTS) ||
        !hv_copy_from_guest(c, requests, ureqs, count * sizeof *requests))
        return NOT_MINE;
    for (uint64_t i = 0; i < count; i++)
        if (!one_update(c, requests[i].ptr, requests[i].val, &replaced))
            return NOT_MINE;
    hv_spend(c, count * REQUEST_NS);
    if (replaced)
        hv_flush_tlb(c);
    return hv_requests_done(c);
}

bool hv_update_va_mapping(struct hv_call *c) {
    uint64_t va = c->args[0], val = c->args[1], flags = c->args[2];
    if (c->is_32bit) {
        val |= c->args[2] << 32;
        flags = c->args[3];
    }
    uint64_t above, *at = hv_l1_entry_of(c->d, c->v->cr3_mfn, va, &above);
    if (!at)
        return NOT_MINE;
    uint64_t pg = ((uintptr_t)at - c->d->ram) >> PAGE_SHIFT;
    if (hv_owner(c->d, pg) != c->d->domain_id || *hv_ptype(c->d, pg) != PGT_l1_page_table)
        return NOT_MINE;
    if (!hv_mod_entry(c, at, val, PGT_l1_page_table, false, NULL))
        return NOT_MINE;
    uint64_t flush = flags & UVMF_FLUSHTYPE_MASK, target = flags & ~(uint64_t)UVMF_FLUSHTYPE_MASK;
    if (flush == UVMF_TLB_FLUSH || flush == UVMF_INVLPG) {
        if (target != UVMF_LOCAL && target != UVMF_ALL)
            return NOT_MINE;
        if (flush == UVMF_TLB_FLUSH)
            hv_flush_tlb(c);
    }
    return MINE;
}
