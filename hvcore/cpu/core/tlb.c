/* Translations by address space: what the library caches of page tables is put away when the guest changes its base
 * pointer and brought back with it, where the library would flush. A processor with PCIDs does so, and Xen without
 * them keeps a process's translations through toggle_guest_mode() by the global bit.
 *
 * It is never out of date. The guest's tables can be written by Xen alone, so every change of an entry that was present
 * is known; for each address space a directory tells at which address an entry was used, and that page is dropped at
 * once. Whatever else changes drops all. So no guest sees when the processor looked at its tables, nor how much is
 * kept, and a flush that it asks for has nothing left to do.
 *
 * Kept are the TLB and a table of blocks by virtual address. The library's own (tb_jmp_cache) is for what is executed
 * behind an exit alone: it holds a few blocks, and none any more when anything changes.
 * Source: accel/tcg/cputlb.c, include/exec/tb-hash.h of QEMU 5.0.1 as Unicorn 2.1.4 carries it.
 */
#include "blocks.h"
#include "lane.h"
#include "tlb.h"

#include <stdlib.h>

enum { NR_SPACES = 6 };
enum { DIRECTORY_BITS = 9, WAYS = 4 };
enum { MOST_NOTED = 16, TB_JMP_PAGE_BITS = 6 };
#define PAGE_ADDRESS (((UINT64_C(1) << 40) - 1) << PAGE_SHIFT)

struct space {
    uint64_t root;                   /* the frame of its page table; 0: nobody's */
    uint64_t drops;                  /* it holds what is right if no more was dropped since */
    uint64_t used;                   /* when */
    struct cpu_tlb tlb;              /* while it is put away; `table` NULL: never used */
    struct hv_jumps jumps;
    struct use {
        uint64_t entry, va;          /* machine address of an L1 entry, and the page that was reached by it */
    } directory[1 << DIRECTORY_BITS][WAYS];
};

struct hv_spaces {
    struct cpu_tlb *tlb;             /* the one that is in use */
    struct translation_block **library_jumps;
    uint64_t nr_noted, noted[MOST_NOTED]; /* the places in there that may not be empty */
    uint64_t drops, page_drops, clock;
    struct space *current;
    uint8_t holders[1 << DIRECTORY_BITS]; /* for each place of the directories, a bit for each that has something there */
    struct space at[NR_SPACES];
};

typedef void cpu_function(void *cpu);
typedef void page_function(void *cpu, uint64_t va);

static struct { /* the library's own functions */
    cpu_function *tlb_init, *tlb_flush;
    page_function *tlb_flush_page;
} library;

static void flush(const struct hv_engine *e) { ((cpu_function *)e->tlb_flush)((void *)e->cpu); }

static struct hv_spaces *spaces_of(const struct hv_engine *e) { return (struct hv_spaces *)e->spaces; }

/* Page tables of two levels, outside of long mode, have no directory: each change of theirs drops all. */
static bool has_directory(const struct hv_engine *e) { return *(const uint32_t *)(e->env + HFLAGS_OFFSET) & HF_LMA; }

static bool is_valid(const struct hv_spaces *s, const struct space *space) { return space->drops == s->drops; }

/* -- one page */

static uint64_t page_of(uint64_t address) { return address & ~(uint64_t)(PAGE_SIZE - 1); }

static bool is_empty(const struct tlb_entry *entry) {
    return (entry->addr[0] & entry->addr[1] & entry->addr[2]) == UINT64_MAX;
}

/* tlb_flush_entry_locked(): how many were dropped. */
static unsigned drop_from(struct tlb_entry *entry, uint64_t page) {
    if (is_empty(entry) ||
        (page_of(entry->addr[0]) != page && page_of(entry->addr[1]) != page && page_of(entry->addr[2]) != page))
        return 0;
    memset(entry, -1, sizeof *entry);
    return 1;
}

static void forget_noted(struct hv_spaces *s) {
    for (uint64_t i = 0; i < s->nr_noted; i++)
        s->library_jumps[s->noted[i]] = NULL;
    s->nr_noted = 0;
}

/* tlb_flush_page() for one address space */
static void drop_page(struct hv_spaces *s, struct space *space, uint64_t page) {
    struct cpu_tlb *tlb = space == s->current ? s->tlb : &space->tlb;
    for (int mode = 0; mode < NB_MMU_MODES; mode++) {
        if (!(tlb->dirty >> mode & 1))
            continue;
        const struct tlb_fast *fast = &tlb->f[mode];
        struct tlb_desc *desc = &tlb->d[mode];
        if (drop_from(&fast->table[page >> PAGE_SHIFT & fast->mask >> CPU_TLB_ENTRY_BITS], page) && desc->n_used_entries)
            desc->n_used_entries--;
        for (int i = 0; i < CPU_VTLB_SIZE; i++)
            drop_from(&desc->vtable[i], page); /* which are not counted */
    }
    hv_drop_jumps_of_page(&space->jumps, page - PAGE_SIZE); /* a block may begin in the page before */
    hv_drop_jumps_of_page(&space->jumps, page);
    s->page_drops++;
}

/* The place in a directory where the entry's uses are kept, the last in front. */
static unsigned place_of(uint64_t entry) { return hv_hash(entry >> 3, DIRECTORY_BITS); }

/* The page `va` is cached by way of `entry`. What there is no room for any more may not be cached. */
static void enter_use(struct hv_spaces *s, struct space *space, uint64_t entry, uint64_t va) {
    unsigned place = place_of(entry);
    struct use *uses = space->directory[place], new = {entry, va};
    s->holders[place] |= (uint8_t)(1 << (space - s->at));
    for (int way = 0; way < WAYS; way++) {
        struct use old = uses[way];
        uses[way] = new;
        if (!old.entry || (old.entry == entry && old.va == va))
            return;
        new = old;
    }
    drop_page(s, space, new.va);
}

/* tlb_set_page_with_attrs() was called for `va`: by which L1 entry? Superpages are Xen's own, and never change. */
void hv_note_page(struct hv_engine *e, uint64_t va) {
    struct hv_spaces *s = spaces_of(e);
    if (!s || !has_directory(e))
        return;
    uint64_t entry = ((const uint64_t *)e->env)[CR3];
    for (int level = 4; level; level--) {
        uint64_t at = (entry & PAGE_ADDRESS) + (va >> (3 + 9 * level) & 511) * 8;
        if (at - e->ram_base >= e->ram_pages << PAGE_SHIFT)
            return;
        if (level == 1) {
            enter_use(s, s->current, at, page_of(va));
            return;
        }
        entry = *(const uint64_t *)(e->ram + (at - e->ram_base));
        if (level < 4 && entry & PAGE_PSE)
            return;
    }
}

/* tb_jmp_cache_hash_func() */
static unsigned hash(uint64_t pc) {
    uint64_t mixed = pc ^ pc >> (PAGE_SHIFT - TB_JMP_PAGE_BITS);
    return (mixed >> (PAGE_SHIFT - TB_JMP_PAGE_BITS) & 0xfc0) | (mixed & 0x3f);
}

/* tb_htable_lookup() was called for `pc`, and what it finds goes to tb_jmp_cache. */
void hv_note_jump(struct hv_engine *e, uint64_t pc) {
    struct hv_spaces *s = spaces_of(e);
    if (!s)
        return;
    if (s->nr_noted == MOST_NOTED)
        forget_noted(s);
    s->noted[s->nr_noted++] = hash(pc);
}

/* The library is to ask for the block at `pc`. */
void hv_forget_jump(struct hv_engine *e, uint64_t pc) {
    struct hv_spaces *s = spaces_of(e);
    if (s)
        s->library_jumps[hash(pc)] = NULL;
}

/* How many pages were dropped, to see whether any was. */
uint64_t hv_page_drops(const struct hv_engine *e) {
    const struct hv_spaces *s = spaces_of(e);
    return s ? s->page_drops : 0;
}

/* The L1 entry at machine address `entry` was present, and has changed. */
HV_EXPORT void hv_drop_entry(struct hv_engine *e, uint64_t entry) {
    struct hv_spaces *s = spaces_of(e);
    if (!s || !has_directory(e)) {
        hv_drop_all(e);
        return;
    }
    forget_noted(s);
    unsigned place = place_of(entry);
    for (unsigned left = s->holders[place]; left; left &= left - 1) {
        struct space *space = s->at + __builtin_ctz(left);
        struct use *uses = space->directory[place];
        bool holds_more = false;
        for (int way = 0; way < WAYS; way++) {
            if (uses[way].entry == entry) {
                drop_page(s, space, uses[way].va);
                uses[way].entry = 0;
            }
            holds_more |= uses[way].entry != 0;
        }
        if (!holds_more)
            s->holders[place] &= (uint8_t)~(left & -left);
    }
}

/* -- whole address spaces */

static void flush_current(struct hv_engine *e, struct hv_spaces *s) {
    flush(e);
    hv_drop_jumps(&s->current->jumps);
    s->current->drops = s->drops;
}

/* An entry above the L1 has changed, or something that no entry tells. */
HV_EXPORT void hv_drop_all(struct hv_engine *e) {
    struct hv_spaces *s = spaces_of(e);
    if (!s) {
        flush(e);
        return;
    }
    flush_current(e, s);
    s->current->drops = ++s->drops;
}

/* tlb_flush() where the library itself calls it: for us, or because registers were written, CR3 perhaps. */
HV_EXPORT void hv_tlb_flush(void *cpu) {
    struct hv_engine *e = hv_engine_of(cpu);
    if (!e || !e->spaces) {
        library.tlb_flush(cpu);
        return;
    }
    hv_drop_all(e);
    spaces_of(e)->current->root = 0;
}

/* tlb_flush_page() where the library itself calls it: for a breakpoint on data. */
HV_EXPORT void hv_tlb_flush_page(void *cpu, uint64_t va) {
    struct hv_engine *e = hv_engine_of(cpu);
    if (e && e->spaces)
        hv_drop_all(e);
    else
        library.tlb_flush_page(cpu, va);
}

/* The table at `root` is none any more: another may come to lie there, and no entry tells. */
void hv_forget_space(struct hv_engine *e, uint64_t root) {
    struct hv_spaces *s = spaces_of(e);
    for (int i = 0; s && i < NR_SPACES; i++)
        if (s->at[i].root == root)
            s->at[i].root = 0;
}

static void bring_back(struct hv_engine *e, struct hv_spaces *s, struct space *space) {
    s->current->tlb = *s->tlb;
    forget_noted(s);
    if (space->tlb.f[0].table)
        *s->tlb = space->tlb;
    else
        library.tlb_init((void *)e->cpu);
    e->jumps = (uintptr_t)&space->jumps;
    s->current = space;
}

/* Whether a table is so full that pages keep each other out, and the library is to take a larger one, which it does
 * when it flushes. It would not before 70 %, and counts those that are filled once more, too. */
static bool is_crowded(struct cpu_tlb *tlb) {
    enum { MOST_PERCENT = 40 };
    for (int mode = 0; mode < NB_MMU_MODES; mode++) {
        uint64_t size = (tlb->f[mode].mask >> CPU_TLB_ENTRY_BITS) + 1, used = 0;
        if (tlb->d[mode].n_used_entries * 100 <= size * MOST_PERCENT)
            continue;
        for (uint64_t i = 0; i < size; i++)
            used += !is_empty(&tlb->f[mode].table[i]);
        bool is_full = used * 100 > size * MOST_PERCENT;
        tlb->d[mode].n_used_entries = is_full ? size : used;
        if (is_full)
            return true;
    }
    return false;
}

/* When it was used last; 0 if it is of no use any more. */
static uint64_t last_use(const struct hv_spaces *s, const struct space *space) {
    return space->root && is_valid(s, space) ? space->used : 0;
}

/* What may go: what is of no use any more, or was not used for longest. */
static struct space *space_to_reuse(struct hv_spaces *s) {
    struct space *oldest = s->current;
    for (struct space *space = s->at; space < s->at + NR_SPACES; space++)
        if (last_use(s, space) < last_use(s, oldest))
            oldest = space;
    return oldest;
}

/* update_cr3(): from now on the guest runs on the page table at `root`. */
HV_EXPORT void hv_load_space(struct hv_engine *e, uint64_t root) {
    struct hv_spaces *s = spaces_of(e);
    if (!s || !root || !has_directory(e)) {
        hv_drop_all(e);
        if (s)
            s->current->root = 0;
        return;
    }
    struct space *found = NULL;
    for (struct space *space = s->at; space < s->at + NR_SPACES; space++)
        if (space->root == root && is_valid(s, space))
            found = space;
    s->clock++;
    if (!found) {
        struct space *reused = space_to_reuse(s);
        if (reused != s->current)
            bring_back(e, s, reused);
        flush_current(e, s);
        reused->root = root;
    } else if (found != s->current) {
        bring_back(e, s, found);
        if (is_crowded(s->tlb))
            flush_current(e, s);
    }
    s->current->used = s->clock;
}

/* What was loaded since is undone. */
void hv_go_back_to_space(struct hv_engine *e, uint64_t root) {
    const struct hv_spaces *s = spaces_of(e);
    if (s && s->current->root && s->current->root != root)
        hv_load_space(e, root);
}

/* -- setting up */

HV_EXPORT void hv_set_space_functions(cpu_function *tlb_init, cpu_function *tlb_flush, page_function *tlb_flush_page) {
    library.tlb_init = tlb_init;
    library.tlb_flush = tlb_flush;
    library.tlb_flush_page = tlb_flush_page;
}

/* Whether the TLB lies where it is expected, by how one is that was just flushed. */
static bool is_flushed(const struct cpu_tlb *tlb) {
    for (int mode = 0; mode < NB_MMU_MODES; mode++) {
        const struct tlb_desc *desc = &tlb->d[mode];
        uint64_t size = tlb->f[mode].mask + (1 << CPU_TLB_ENTRY_BITS);
        if (desc->large_page_addr != UINT64_MAX || desc->large_page_mask != UINT64_MAX || desc->n_used_entries ||
            size < 1 << CPU_TLB_ENTRY_BITS || size & (size - 1) || !is_empty(&desc->vtable[CPU_VTLB_SIZE - 1]))
            return false;
    }
    return !tlb->dirty;
}

/* Keep translations from now on; `jumps` is tb_jmp_cache. 0 where the library keeps them otherwise, or without memory. */
HV_EXPORT int hv_keep_spaces(struct hv_engine *e, struct translation_block **jumps) {
    struct cpu_tlb *tlb = (struct cpu_tlb *)(e->env - ICOUNT_DECR_SIZE - sizeof *tlb);
    flush(e);
    if (!e->tracks_pages || !hv_finds_blocks() || !is_flushed(tlb))
        return 0;
    struct hv_spaces *s = calloc(1, sizeof *s);
    if (!s)
        return 0;
    s->tlb = tlb;
    s->library_jumps = jumps;
    s->current = s->at;
    e->spaces = (uintptr_t)s;
    e->jumps = (uintptr_t)&s->current->jumps;
    return 1;
}

void hv_free_spaces(struct hv_engine *e) {
    struct hv_spaces *s = spaces_of(e);
    for (int i = 0; s && i < NR_SPACES; i++)
        for (int mode = 0; s->at + i != s->current && mode < NB_MMU_MODES; mode++) {
            free(s->at[i].tlb.f[mode].table); /* the current one's are the library's to free */
            free(s->at[i].tlb.d[mode].iotlb);
        }
    free(s);
    e->spaces = e->jumps = 0;
}
