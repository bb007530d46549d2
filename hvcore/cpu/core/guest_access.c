/* The guest's memory as its kernel sees it: hvcore/guest_access.py, for what lies in one page. */
#include "lane.h"

static uint64_t word_mask(const struct hv_call *c) { return c->is_32bit ? UINT32_MAX : UINT64_MAX; }

/* access_ok() */
static uint64_t limit_low(const struct hv_call *c) { return c->is_32bit ? 0xF5800000 : UINT64_C(1) << 47; }
static uint64_t limit_high(const struct hv_call *c) {
    return c->is_32bit ? UINT64_C(1) << 32 : UINT64_C(0xFFFF880000000000);
}

/* Whether [va, va + size) lies outside of Xen's range; nothing of mappings. */
bool hv_guest_handle_okay(const struct hv_call *c, uint64_t va, uint64_t size) {
    uint64_t last = va + (size ? size - 1 : 0);
    if (last < va) /* beyond 2^64, which Python's numbers are not: not mine to say */
        return false;
    return last < limit_low(c) || (va >= limit_high(c) && last <= word_mask(c));
}

static uint64_t *table_entry(const struct hv_domain *d, uint64_t mfn, unsigned slot) {
    uint64_t pg = hv_frame(d, mfn);
    return hv_is_frame(d, pg) ? (uint64_t *)hv_page(d, pg) + slot : NULL;
}

/* PageTables.l1_entry_of(): the L1 entry that maps `va` under `root_mfn`, or NULL; `above` has the bits that all entries
 * over it have. */
uint64_t *hv_l1_entry_of(const struct hv_domain *d, uint64_t root_mfn, uint64_t va, uint64_t *above) {
    uint64_t mfn = root_mfn, common = UINT64_MAX;
    for (unsigned level = (unsigned)d->levels; level > 1; level--) {
        const uint64_t *entry = table_entry(d, mfn, va >> (3 + 9 * level) & 511);
        if (!entry || !(*entry & PAGE_PRESENT) || (level < 4 && *entry & PAGE_PSE))
            return NULL;
        common &= *entry;
        mfn = hv_mfn_of(*entry);
    }
    *above = common;
    return table_entry(d, mfn, va >> PAGE_SHIFT & 511);
}

/* PageTables.walk(): the accessed and dirty bits are set, as the processor sets them when Xen copies. What a linear page
 * table shows may not be written, because of the entries above. */
static uint8_t *walk(struct hv_call *c, uint64_t va, uint64_t size, bool write) {
    va &= word_mask(c);
    if ((va & (PAGE_SIZE - 1)) + size > PAGE_SIZE || (va >= limit_low(c) && va < limit_high(c)))
        return NULL;
    uint64_t root = c->v->kernel_mode ? c->v->cr3_mfn : c->v->user_cr3_mfn;
    uint64_t above, *l1e = hv_l1_entry_of(c->d, root, va, &above);
    uint64_t readable = c->is_32bit ? PAGE_PRESENT : PAGE_PRESENT | PAGE_USER;
    if (!l1e || (*l1e & readable) != readable)
        return NULL;
    if (write && !(*l1e & above & PAGE_RW))
        return NULL;
    uint64_t pg = hv_frame(c->d, hv_mfn_of(*l1e));
    if (!hv_is_frame(c->d, pg))
        return NULL;
    uint64_t touched = *l1e | PAGE_ACCESSED | (write ? PAGE_DIRTY : 0);
    if (touched != *l1e)
        hv_set64(c, l1e, touched);
    return hv_page(c->d, pg) + (va & (PAGE_SIZE - 1));
}

/* Where `size` bytes at `va` can be read; NULL where they cannot, or lie in two pages. */
const uint8_t *hv_copy_from(struct hv_call *c, uint64_t va, uint64_t size) { return walk(c, va, size, false); }

bool hv_copy_from_guest(struct hv_call *c, void *to, uint64_t va, uint64_t size) {
    const uint8_t *from = hv_copy_from(c, va, size);
    if (from)
        memcpy(to, from, size);
    return from;
}

/* Through the journal; `size` is a multiple of four. */
bool hv_copy_to_guest(struct hv_call *c, uint64_t va, const void *from, uint64_t size) {
    uint8_t *to = walk(c, va, size, true);
    if (!to)
        return false;
    uint64_t done = 0, word;
    for (; size - done >= sizeof word; done += sizeof word) {
        memcpy(&word, (const uint8_t *)from + done, sizeof word);
        hv_set64(c, to + done, word);
    }
    if (done < size) {
        uint32_t half;
        memcpy(&half, (const uint8_t *)from + done, sizeof half);
        hv_set32(c, to + done, half);
    }
    return true;
}

/* A hypercall of (requests, count, pdone, domain): some requests of `size` bytes, upon the guest itself. */
bool hv_requests_okay(const struct hv_call *c, uint64_t size, uint64_t most) {
    uint64_t requests = c->args[0], count = c->args[1], foreigndom = c->args[3];
    return count && count <= most && hv_guest_handle_okay(c, requests, count * size) && foreigndom == DOMID_SELF;
}

/* All of them were done: say so where the guest asks for it; false where that cannot be written. */
bool hv_requests_done(struct hv_call *c) {
    uint64_t pdone = c->args[2];
    uint32_t done = (uint32_t)c->args[1];
    return !pdone || hv_copy_to_guest(c, pdone, &done, sizeof done);
}
