/* References and types of frames, and entries of page tables: hvcore/pv/page_types.py and mm.py.
 *
 * All of it is for frames of the domain's own; a count that would reach 0, which frees the frame, a linear page
 * table, and every refusal are not mine.
 */
#include "lane.h"

#define PAGE_NX (UINT64_C(1) << 63)
#define PAGE_AVAIL_HIGH (UINT64_C(0x7ff) << 52)
#define PAGE_GUEST_KERNEL (UINT64_C(1) << 52)
#define FASTPATH \
    (PAGE_NX | PAGE_AVAIL_HIGH | PAGE_AVAIL | PAGE_GLOBAL | PAGE_DIRTY | PAGE_ACCESSED | PAGE_USER)
#define L1_DISALLOW_MASK ((uint64_t)(PAGE_PWT | PAGE_PCD | PAGE_PSE))
#define L2_DISALLOW_MASK (L1_DISALLOW_MASK | PAGE_GLOBAL)

enum { MOST_REFERENCES = 1 << 30 };
enum { FIRST_XEN_L4_SLOT = 256, FIRST_GUEST_L4_SLOT = 272, ROOT_LINEAR_SLOT = 258 };

/* PageTypes.flush_tlb(): nothing is out of date. */
void hv_flush_tlb(struct hv_call *c) { hv_count_up(c, &c->e->tlb_flushes); }

/* -- references */

bool hv_get_page(struct hv_call *c, uint64_t mfn) {
    uint64_t pg = hv_frame(c->d, mfn);
    if (!hv_is_own(c->d, pg))
        return NOT_MINE;
    uint32_t held = *hv_count(c->d, pg);
    if (!held || held >= MOST_REFERENCES)
        return NOT_MINE;
    hv_set32(c, hv_count(c->d, pg), held + 1);
    return MINE;
}

bool hv_put_page(struct hv_call *c, uint64_t mfn) {
    uint64_t pg = hv_frame(c->d, mfn);
    if (!hv_is_own(c->d, pg) || *hv_count(c->d, pg) <= 1)
        return NOT_MINE;
    hv_set32(c, hv_count(c->d, pg), *hv_count(c->d, pg) - 1);
    return MINE;
}

/* -- types */

static bool promote(struct hv_call *c, uint64_t pg, int ptype);
static bool demote(struct hv_call *c, uint64_t pg, int ptype);

/* A frame that changes its type flushes the TLB, unless a flush came in between. */
static void change_type(struct hv_call *c, uint64_t pg, int ptype) {
    if (*hv_stamp(c->d, pg) >= c->e->tlb_flushes)
        hv_flush_tlb(c);
    hv_set8(c, hv_ptype(c->d, pg), (uint8_t)ptype);
}

static bool get_page_type(struct hv_call *c, uint64_t mfn, int ptype) {
    uint64_t pg = hv_frame(c->d, mfn);
    uint32_t uses = *hv_tcount(c->d, pg);
    if (!uses) {
        uint8_t flags = *hv_pflags(c->d, pg) & ~PGT_pae_xen_l2;
        if (*hv_ptype(c->d, pg) != ptype) {
            change_type(c, pg, ptype);
            flags &= ~PGT_validated;
        }
        hv_set8(c, hv_pflags(c->d, pg), flags);
    } else if (*hv_ptype(c->d, pg) != ptype || *hv_pflags(c->d, pg) & PGT_pae_xen_l2 || uses >= MOST_REFERENCES) {
        return NOT_MINE;
    }
    hv_set32(c, hv_tcount(c->d, pg), uses + 1);
    if (*hv_pflags(c->d, pg) & PGT_validated)
        return MINE;
    if (ptype <= PGT_l4_page_table) {
        hv_spend(c, TABLE_NS);
        uint8_t *linear = (uint8_t *)c->d->linear_pt_count + 2 * pg;
        hv_set8(c, linear, 0);
        hv_set8(c, linear + 1, 0);
        if (!promote(c, pg, ptype))
            return NOT_MINE;
    }
    hv_set8(c, hv_pflags(c->d, pg), *hv_pflags(c->d, pg) | PGT_validated);
    return MINE;
}

static bool put_page_type(struct hv_call *c, uint64_t mfn) {
    uint64_t pg = hv_frame(c->d, mfn);
    if (!hv_is_own(c->d, pg) || !*hv_tcount(c->d, pg))
        return NOT_MINE;
    uint32_t left = *hv_tcount(c->d, pg) - 1;
    if (!left) {
        int ptype = *hv_ptype(c->d, pg);
        if (ptype && ptype <= PGT_l4_page_table && *hv_pflags(c->d, pg) & PGT_validated) {
            hv_set8(c, hv_pflags(c->d, pg), *hv_pflags(c->d, pg) & ~PGT_validated);
            hv_spend(c, TABLE_NS);
            hv_forget_space(c->e, mfn);
            if (!demote(c, pg, ptype))
                return NOT_MINE;
        }
        hv_set32(c, hv_stamp(c->d, pg), (uint32_t)c->e->tlb_flushes);
    }
    hv_set32(c, hv_tcount(c->d, pg), left);
    return MINE;
}

bool hv_get_page_and_type(struct hv_call *c, uint64_t mfn, int ptype) {
    return hv_get_page(c, mfn) && get_page_type(c, mfn, ptype);
}

bool hv_put_page_and_type(struct hv_call *c, uint64_t mfn) { return put_page_type(c, mfn) && hv_put_page(c, mfn); }

/* -- L1 entries */

static bool get_page_from_l1e(struct hv_call *c, uint64_t l1e) {
    if (l1e & L1_DISALLOW_MASK || !hv_get_page(c, hv_mfn_of(l1e)))
        return NOT_MINE;
    if (!(l1e & PAGE_RW))
        return MINE;
    uint64_t pg = hv_frame(c->d, hv_mfn_of(l1e));
    uint32_t uses = *hv_tcount(c->d, pg);
    if (*hv_ptype(c->d, pg) != PGT_writable_page) {
        if (uses)
            return NOT_MINE;
        change_type(c, pg, PGT_writable_page);
        hv_set8(c, hv_pflags(c->d, pg), *hv_pflags(c->d, pg) | PGT_validated);
    }
    if (uses >= MOST_REFERENCES)
        return NOT_MINE;
    hv_set32(c, hv_tcount(c->d, pg), uses + 1);
    return MINE;
}

static bool put_page_from_l1e(struct hv_call *c, uint64_t l1e) {
    uint64_t pg = hv_frame(c->d, hv_mfn_of(l1e));
    if (!hv_is_own(c->d, pg)) /* Xen's, or another domain's by a grant */
        return NOT_MINE;
    if (l1e & PAGE_RW) {
        if (!*hv_tcount(c->d, pg))
            return NOT_MINE;
        uint32_t left = *hv_tcount(c->d, pg) - 1;
        hv_set32(c, hv_tcount(c->d, pg), left);
        if (!left)
            hv_set32(c, hv_stamp(c->d, pg), (uint32_t)c->e->tlb_flushes);
    }
    return hv_put_page(c, hv_mfn_of(l1e));
}

/* -- L2, L3 and L4 entries */

static bool get_page_from_upper(struct hv_call *c, uint64_t entry, int level) {
    return !(entry & L2_DISALLOW_MASK) && hv_get_page_and_type(c, hv_mfn_of(entry), level - 1);
}

static bool put_page_from_upper(struct hv_call *c, uint64_t entry, int level) {
    uint64_t pg = hv_frame(c->d, hv_mfn_of(entry));
    if (!hv_is_frame(c->d, pg) || *hv_ptype(c->d, pg) != level - 1)
        return NOT_MINE;
    return hv_put_page_and_type(c, hv_mfn_of(entry));
}

/* -- entries of any level */

/* adjust_guest_l1e() .. l4e(): USER for 64-bit guests, whose kernel runs at CPL 3; of the L3 of a 32-bit guest there is
 * nothing here. */
static uint64_t adjust_guest_entry(const struct hv_call *c, uint64_t entry, int level) {
    if (c->is_32bit)
        return entry;
    if (level == 1 && !(entry & PAGE_USER))
        return entry | PAGE_GUEST_KERNEL | PAGE_USER;
    return level == 1 && !(entry & PAGE_GUEST_KERNEL) ? entry | PAGE_GLOBAL | PAGE_USER : entry | PAGE_USER;
}

static bool get_page_from_entry(struct hv_call *c, uint64_t entry, int level) {
    return level == 1 ? get_page_from_l1e(c, entry) : get_page_from_upper(c, entry, level);
}

static bool put_page_from_entry(struct hv_call *c, uint64_t entry, int level) {
    return level == 1 ? put_page_from_l1e(c, entry) : put_page_from_upper(c, entry, level);
}

/* PageTables.write_entry(): of what was not there nothing is cached. */
static void write_entry(struct hv_call *c, uint64_t *at, uint64_t new, int level, bool preserve_ad) {
    uint64_t old = *at;
    hv_set64(c, at, preserve_ad ? new | (old & (PAGE_ACCESSED | PAGE_DIRTY)) : new);
    if (!(old & PAGE_PRESENT) || *at == old)
        return;
    if (level == 1)
        hv_drop_entry(c->e, (uintptr_t)at - c->d->ram + (c->d->base_mfn << PAGE_SHIFT));
    else
        hv_drop_all(c->e);
}

static bool is_guest_slot(int level, unsigned slot) {
    return level < 4 || slot < FIRST_XEN_L4_SLOT || slot >= FIRST_GUEST_L4_SLOT;
}

/* mod_l1_entry() .. mod_l4_entry(): replace the entry at `at`. `*replaced` is set where a table was. */
bool hv_mod_entry(struct hv_call *c, uint64_t *at, uint64_t new, int level, bool preserve_ad, bool *replaced) {
    uint64_t old = *at;
    unsigned slot = (unsigned)((uintptr_t)at % PAGE_SIZE / 8);
    if (!is_guest_slot(level, slot))
        return NOT_MINE;
    if (new & PAGE_PRESENT) {
        if (new & (level == 1 ? L1_DISALLOW_MASK : L2_DISALLOW_MASK))
            return NOT_MINE;
        new = adjust_guest_entry(c, new, level);
        if (!((old ^ new) & ~FASTPATH)) {
            write_entry(c, at, new, level, preserve_ad);
            return MINE;
        }
        if (!get_page_from_entry(c, new, level))
            return NOT_MINE;
    }
    write_entry(c, at, new, level, preserve_ad);
    if (!(old & PAGE_PRESENT))
        return MINE;
    if (level > 1)
        *replaced = true;
    return put_page_from_entry(c, old, level);
}

/* -- whole tables */

/* init_xen_l4_slots() */
static void init_xen_l4_slots(struct hv_call *c, uint64_t *table, uint64_t mfn) {
    const uint64_t *slots = (const uint64_t *)c->d->xen_l4_slots;
    for (unsigned slot = FIRST_XEN_L4_SLOT; slot < FIRST_GUEST_L4_SLOT; slot++) {
        uint64_t entry = slots[slot - FIRST_XEN_L4_SLOT];
        hv_set64(c, &table[slot], slot == ROOT_LINEAR_SLOT ? entry | mfn << PAGE_SHIFT : entry);
    }
}

static bool promote(struct hv_call *c, uint64_t pg, int ptype) {
    uint64_t *table = (uint64_t *)hv_page(c->d, pg);
    if (c->is_32bit && ptype > PGT_l2_page_table)
        return NOT_MINE;
    for (unsigned slot = 0; slot < 512; slot++) {
        uint64_t entry = table[slot], adjusted = adjust_guest_entry(c, entry, ptype);
        if (!(entry & PAGE_PRESENT) || !is_guest_slot(ptype, slot))
            continue;
        if (!get_page_from_entry(c, entry, ptype))
            return NOT_MINE;
        if (adjusted != entry)
            hv_set64(c, &table[slot], adjusted);
    }
    if (ptype == PGT_l4_page_table)
        init_xen_l4_slots(c, table, pg + c->d->base_mfn);
    return MINE;
}

static bool demote(struct hv_call *c, uint64_t pg, int ptype) {
    const uint64_t *table = (const uint64_t *)hv_page(c->d, pg);
    if (*hv_pflags(c->d, pg) & PGT_pae_xen_l2 || (c->is_32bit && ptype > PGT_l2_page_table))
        return NOT_MINE;
    for (unsigned slot = 0; slot < 512; slot++) {
        uint64_t entry = table[slot];
        if (!(entry & PAGE_PRESENT) || !is_guest_slot(ptype, slot))
            continue;
        if (!put_page_from_entry(c, entry, ptype) || c->j->is_full)
            return NOT_MINE;
    }
    return MINE;
}

/* -- base pointers */

/* update_cr3(): a flush for who counts them */
void hv_update_cr3(struct hv_call *c, uint64_t cr3_mfn, uint64_t root) {
    hv_set64(c, &c->regs[CR3], cr3_mfn << PAGE_SHIFT);
    hv_flush_tlb(c);
    hv_load_space(c->e, root);
}

/* XenMappings.write_ptbase() of a kernel: a 32-bit guest's L3 hangs under a root of Xen's. */
void hv_write_ptbase(struct hv_call *c) {
    uint64_t mfn = c->v->cr3_mfn;
    if (c->is_32bit) {
        hv_set64(c, hv_page(c->d, hv_frame(c->d, c->v->compat_l4)), mfn << PAGE_SHIFT | 0x27);
        mfn = c->v->compat_l4;
    }
    hv_update_cr3(c, mfn, c->v->cr3_mfn);
}
