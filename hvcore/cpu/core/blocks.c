/* Finding the block that comes next.
 *
 * A block that does not know the next one asks for it by the virtual address, each `ret` for one. The library has a
 * table for that, tb_jmp_cache, which it empties with the TLB; here each address space has its own (tlb.c). Behind both
 * comes a hash table of all blocks, and before that is a shorter way to what was found there last for an address: the
 * same comparison, with the block itself. What was not found is not kept.
 * Source: accel/tcg/tcg-runtime.c, cpu-exec.c and include/exec/tb-lookup.h of QEMU 5.0.1 as Unicorn 2.1.4 carries it.
 */
#include "blocks.h"
#include "lane.h"
#include "tlb.h"

#define CF_COMPARED UINT32_C(0xff0effff) /* CF_HASH_MASK | CF_INVALID */
#define NO_PAGE UINT64_MAX
enum { CODE_UNIT = 64, CODE_OFFSET = 192 }; /* what a block is aligned to, and where its code lies */
enum { MUCH_PATIENCE = 4096 };
/* HF_TF, RF, VM, IOPL, AC in EFLAGS: cpu_get_tb_cpu_state() */
enum { EFLAGS_OF_BLOCKS = X86_EFLAGS_IOPL | X86_EFLAGS_TF | X86_EFLAGS_RF | X86_EFLAGS_VM | X86_EFLAGS_AC };

typedef struct translation_block *lookup_function(void *cpu, uint64_t pc, uint64_t cs_base, uint32_t flags,
                                                  uint32_t cflags);
typedef uint64_t page_function(void *env, uint64_t address);
typedef void flush_function(void *cpu);
typedef void *jump_function(void *env);

static struct {
    lookup_function *lookup;
    page_function *get_page_addr_code;
    flush_function *flush;
    jump_function *lookup_tb_ptr;
} library;

HV_EXPORT void hv_set_block_functions(page_function *get_page_addr_code, lookup_function *lookup, flush_function *flush) {
    library.get_page_addr_code = get_page_addr_code;
    library.lookup = lookup;
    library.flush = flush;
}

/* helper_lookup_tb_ptr() */
void hv_set_jump_function(void *found) { library.lookup_tb_ptr = (jump_function *)found; }

bool hv_finds_blocks(void) { return library.lookup; }

/* -- by virtual address */

/* tb_jmp_cache_hash_func(): the blocks of a page lie together. */
static unsigned page_of(uint64_t pc) { return (pc >> 12 ^ pc >> (12 + JUMP_PAGE_BITS)) & (JUMP_PAGES - 1); }

static struct hv_jump *row_of(struct hv_jumps *jumps, uint64_t pc) {
    return jumps->rows[page_of(pc) << ROW_BITS | ((pc ^ pc >> ROW_BITS ^ pc >> 2 * ROW_BITS) & (ROWS_A_PAGE - 1))];
}

void hv_drop_jumps_of_page(struct hv_jumps *jumps, uint64_t va) {
    unsigned page = page_of(va);
    if (jumps->has_any[page])
        memset(jumps->rows[page << ROW_BITS], 0, sizeof jumps->rows[0] << ROW_BITS);
    jumps->has_any[page] = false;
}

void hv_drop_jumps(struct hv_jumps *jumps) {
    for (uint64_t page = 0; page < JUMP_PAGES; page++)
        hv_drop_jumps_of_page(jumps, page << 12);
}

static uint8_t *block_at(const struct hv_engine *e, uint32_t block) {
    return (uint8_t *)e->code_base + (uint64_t)block * CODE_UNIT;
}

static bool is_block_invalid(const struct hv_engine *e, uint32_t block) {
    return ((const struct translation_block *)block_at(e, block))->cflags & CF_INVALID;
}

/* What is stored over makes blocks invalid, and the library tells nobody, but counts. While that goes on the block is
 * asked; when it has ceased for a while, all are once. */
static __attribute__((noinline)) bool is_still_valid(struct hv_engine *e, struct hv_jumps *jumps, uint32_t block) {
    uint64_t nr_invalid = *(const uint64_t *)e->nr_invalid;
    if (jumps->nr_seen != nr_invalid) {
        jumps->nr_seen = nr_invalid;
        jumps->patience = MUCH_PATIENCE;
    } else if (!--jumps->patience) {
        struct hv_jump *all = jumps->rows[0];
        for (unsigned i = 0; i < JUMP_PAGES * ROWS_A_PAGE * JUMP_WAYS; i++)
            if (all[i].block && is_block_invalid(e, all[i].block))
                all[i] = (struct hv_jump){0};
        jumps->nr_invalid = nr_invalid;
    }
    return !is_block_invalid(e, block);
}

static inline bool is_valid(struct hv_engine *e, struct hv_jumps *jumps, uint32_t block) {
    return likely(jumps->nr_invalid == *(const uint64_t *)e->nr_invalid) || is_still_valid(e, jumps, block);
}

/* A block that was found another way goes to the front of its row. */
static void enter_jump(struct hv_engine *e, struct hv_jumps *jumps, const struct translation_block *tb) {
    if (!e->code_base)
        e->code_base = (uintptr_t)tb - (UINT64_C(1) << 31) * CODE_UNIT;
    uint64_t block = ((uintptr_t)tb - e->code_base) / CODE_UNIT;
    if (tb->cs_base || block != (uint32_t)block || tb->code != (const uint8_t *)tb + CODE_OFFSET || (uintptr_t)tb % CODE_UNIT)
        return;
    struct hv_jump *row = row_of(jumps, tb->pc);
    memmove(row + 1, row, (JUMP_WAYS - 1) * sizeof *row);
    *row = (struct hv_jump){.pc = tb->pc, .block = (uint32_t)block, .flags = tb->flags};
    jumps->has_any[page_of(tb->pc)] = true;
}

static bool is_jump_to(const struct hv_jump *jump, uint64_t pc, uint32_t flags) {
    return jump->pc == pc && jump->flags == flags && jump->block;
}

/* Not the one in front: it may stand behind, and changes places with that then. Otherwise the library looks for it. */
static __attribute__((noinline)) void *next_code_from_behind(struct hv_engine *e, struct hv_jump *row, uint64_t pc,
                                                             uint32_t flags) {
    struct hv_jumps *jumps = (struct hv_jumps *)e->jumps;
    for (int way = 1; way < JUMP_WAYS && !((const uint64_t *)e->env)[CS_BASE]; way++)
        if (is_jump_to(&row[way], pc, flags) && is_valid(e, jumps, row[way].block)) {
            struct hv_jump found = row[way];
            row[way] = row[0];
            row[0] = found;
            return block_at(e, found.block) + CODE_OFFSET;
        }
    hv_forget_jump(e, pc); /* so that it asks us, and the block enters here */
    return library.lookup_tb_ptr((void *)e->env);
}

/* helper_lookup_tb_ptr() for a block of ours: the code that comes next. */
HV_EXPORT void *hv_next_code(struct hv_engine *e) {
    const uint64_t *regs = (const uint64_t *)e->env;
    uint64_t pc = regs[RIP] + regs[CS_BASE];
    uint32_t flags = *(const uint32_t *)(e->env + HFLAGS_OFFSET) | ((uint32_t)regs[EFLAGS] & EFLAGS_OF_BLOCKS);
    struct hv_jumps *jumps = (struct hv_jumps *)e->jumps;
    struct hv_jump *row = row_of(jumps, pc);
    if (likely(is_jump_to(row, pc, flags) && !regs[CS_BASE] && is_valid(e, jumps, row->block)))
        return block_at(e, row->block) + CODE_OFFSET;
    return next_code_from_behind(e, row, pc, flags);
}

/* -- by where it lies in memory */

static struct translation_block *find_block(const struct hv_engine *e, uint64_t pc, uint64_t cs_base, uint32_t flags,
                                            uint32_t cflags) {
    struct translation_block **slot = hv_found_blocks(e) + hv_hash(pc, FOUND_BLOCKS_BITS);
    struct translation_block *tb = *slot;
    if (tb && tb->pc == pc && tb->cs_base == cs_base && tb->flags == flags && (tb->cflags & CF_COMPARED) == cflags &&
        tb->page_addr[1] == NO_PAGE &&
        tb->page_addr[0] == (library.get_page_addr_code((void *)e->env, pc) & ~(uint64_t)PAGE_MASK))
        return tb;
    tb = library.lookup((void *)e->cpu, pc, cs_base, flags, cflags);
    if (tb)
        *slot = tb;
    return tb;
}

/* tb_htable_lookup(): what is found goes to tb_jmp_cache. */
HV_EXPORT struct translation_block *hv_find_block(void *cpu, uint64_t pc, uint64_t cs_base, uint32_t flags,
                                                  uint32_t cflags) {
    struct hv_engine *e = hv_engine_of(cpu);
    if (unlikely(!e))
        return library.lookup(cpu, pc, cs_base, flags, cflags);
    uint64_t drops = hv_page_drops(e);
    struct translation_block *tb = find_block(e, pc, cs_base, flags, cflags);
    hv_note_jump(e, pc);
    /* What was dropped on the way may be the page of the block's beginning, for that of its end. */
    if (tb && e->jumps && e->nr_invalid && !(cflags & CF_COUNT_MASK) && hv_page_drops(e) == drops)
        enter_jump(e, (struct hv_jumps *)e->jumps, tb);
    return tb;
}

/* -- by an address in its code */

typedef struct translation_block *code_function(void *tcg, uintptr_t address);
typedef void remove_function(void *tcg, struct translation_block *tb);

static struct {
    code_function *lookup;
    remove_function *remove;
} tree;
static uint64_t nr_removed; /* blocks of this process, whose memory may become another's */

HV_EXPORT void hv_set_code_functions(code_function *lookup, remove_function *remove) {
    tree.lookup = lookup;
    tree.remove = remove;
}

/* tcg_tb_lookup(): the library asks at each exit, to know where the guest is, and walks a tree of all blocks. */
HV_EXPORT struct translation_block *hv_find_code(void *tcg, uintptr_t address) {
    struct hv_engine *e = hv_running_engine(tcg);
    if (!e)
        return tree.lookup(tcg, address);
    struct hv_found_code *found = hv_found_code(e);
    uint64_t removed = __atomic_load_n(&nr_removed, __ATOMIC_ACQUIRE);
    if (found->nr_removed != removed) {
        memset(found->at, 0, sizeof found->at);
        found->nr_removed = removed;
    }
    unsigned place = hv_hash(address, FOUND_CODE_BITS);
    if (found->at[place].address != address) {
        struct translation_block *tb = tree.lookup(tcg, address);
        if (!tb)
            return NULL;
        found->at[place].address = address;
        found->at[place].tb = tb;
    }
    return found->at[place].tb;
}

/* tcg_tb_remove() */
HV_EXPORT void hv_remove_block(void *tcg, struct translation_block *tb) {
    __atomic_add_fetch(&nr_removed, 1, __ATOMIC_RELEASE);
    tree.remove(tcg, tb);
}

/* tb_flush(): all blocks go, and their memory is used for others. A block that goes alone is marked (CF_INVALID). */
HV_EXPORT void hv_flush_blocks(void *cpu) {
    struct hv_engine *e = hv_engine_of(cpu);
    if (e)
        memset(hv_found_blocks(e), 0, FOUND_BLOCKS_SIZE);
    __atomic_add_fetch(&nr_removed, 1, __ATOMIC_RELEASE);
    library.flush(cpu);
    if (e && e->spaces)
        hv_drop_all(e);
}
