/* Which pages hold translated code (hvcore/cpu/code_pages.py tells why): what lies in the library's jump slots.
 *
 * Each function looks whether it is called for an engine of ours, and if not is the library's own.
 */
#include "inner_stops.h"
#include "lane.h"
#include "tlb.h"

enum { PAGE_EXEC = 4, PAGE_WRITE_INV = 0x40 };

typedef bool fill_function(void *cpu, uint64_t address, int size, int access, int mmu_idx, bool probe, uintptr_t from);
typedef void set_page_function(void *cpu, uint64_t va, uint64_t pa, uint32_t attrs, int prot, int mmu_idx, uint64_t size);
typedef void protect_function(void *uc, uint64_t ram_address);
typedef void reset_function(void *cpu, uint64_t start, uint64_t length);

static struct { /* the library's own functions */
    fill_function *tlb_fill;
    set_page_function *set_page;
    protect_function *protect, *unprotect;
    reset_function *reset;
} library;

HV_EXPORT void hv_set_tlb_functions(fill_function *tlb_fill, set_page_function *set_page, protect_function *protect,
                                    protect_function *unprotect, reset_function *reset) {
    library.tlb_fill = tlb_fill;
    library.set_page = set_page;
    library.protect = protect;
    library.unprotect = unprotect;
    library.reset = reset;
}

/* The engine that `key` belongs to, if it keeps marks. */
static struct hv_engine *tracking(const void *key) {
    struct hv_engine *e = hv_engine_of(key);
    return e && e->tracks_pages ? e : NULL;
}

static uint8_t *mark_of(const struct hv_engine *e, uint64_t page) {
    return page < e->ram_pages ? (uint8_t *)e->page_has_code + page : NULL;
}

/* find_memory_mapping() of a machine that has one region of memory. */
HV_EXPORT void *hv_memory_mapping(void *uc, uint64_t pa) {
    const struct hv_engine *e = hv_engine_of(uc);
    return pa - e->ram_base < e->ram_pages << PAGE_SHIFT ? (void *)e->region : NULL;
}

/* x86_cpu_tlb_fill(): note the kind of access for hv_set_page(). */
HV_EXPORT bool hv_tlb_fill(void *cpu, uint64_t address, int size, int access, int mmu_idx, bool probe, uintptr_t from) {
    struct hv_engine *e = tracking(cpu);
    if (e) {
        e->access = (uint64_t)access;
        if (unlikely(e->nr_watches) && access != MMU_INST_FETCH && !probe && from &&
            hv_watches(e, address, size, access == MMU_DATA_STORE))
            hv_leave_before_access(e, address, size, access == MMU_DATA_STORE, from);
    }
    return library.tlb_fill(cpu, address, size, access, mmu_idx, probe, from);
}

/* tlb_set_page_with_attrs(): a page that holds no translated code is not executable until it is executed. One
 * that does, and is not executable at this address, is looked up anew for each store. */
HV_EXPORT void hv_set_page(void *cpu, uint64_t va, uint64_t pa, uint32_t attrs, int prot, int mmu_idx, uint64_t size) {
    struct hv_engine *e = tracking(cpu);
    if (e && e->access != MMU_INST_FETCH) {
        const uint8_t *has_code = mark_of(e, (pa - e->ram_base) >> PAGE_SHIFT);
        if (has_code && !*has_code)
            prot &= ~PAGE_EXEC;
        else if (has_code && !(prot & PAGE_EXEC))
            prot |= PAGE_WRITE_INV;
    }
    if (e && unlikely(e->nr_watches) && hv_watches_page(e, va))
        size = 1; /* each access asks again: TLB_INVALID_MASK */
    if (e)
        hv_note_page(e, va);
    library.set_page(cpu, va, pa, attrs, prot, mmu_idx, size);
}

/* Mark a page of RAM; whether that is done. For an engine without marks, the library does what it does. */
static bool set_mark(void *uc, uint64_t ram_address, bool has_code, protect_function *otherwise) {
    struct hv_engine *e = tracking(uc);
    uint8_t *mark = e ? mark_of(e, ram_address >> PAGE_SHIFT) : NULL;
    if (mark)
        *mark = has_code;
    else if (!e)
        otherwise(uc, ram_address);
    return mark;
}

/* tlb_protect_code(): the page has its first code. Drop the TLB, which may have it as clean. */
HV_EXPORT void hv_protect_code(void *uc, uint64_t ram_address) {
    if (set_mark(uc, ram_address, true, library.protect))
        hv_drop_all(hv_engine_of(uc));
}

/* tlb_unprotect_code(): the page has no code any more. */
HV_EXPORT void hv_unprotect_code(void *uc, uint64_t ram_address) { set_mark(uc, ram_address, false, library.unprotect); }

/* tlb_reset_dirty_by_vaddr(): the two above leave nothing of it to do. */
HV_EXPORT void hv_reset_dirty(void *cpu, uint64_t start, uint64_t length) {
    if (!tracking(cpu))
        library.reset(cpu, start, length);
}
