/* Finding the block that comes next, where the library's first table does not have it.
 *
 * That table is emptied with the TLB, so a kernel that changes its page tables looks for its blocks again and again,
 * five million times in a boot of Debian's. The library has a hash table of all for that. Here is a shorter way to what
 * it found last for an address: the same comparison, with the block itself. What it did not find is not kept.
 * Source: tb_htable_lookup() in accel/tcg/cpu-exec.c of QEMU 5.0.1 as Unicorn 2.1.4 carries it.
 */
#include "blocks.h"
#include "lane.h"
#include "tlb.h"

enum { PAGE_MASK = 4095 };
#define CF_COMPARED UINT32_C(0xff0effff) /* CF_HASH_MASK | CF_INVALID */
#define NO_PAGE UINT64_MAX

typedef struct translation_block *lookup_function(void *cpu, uint64_t pc, uint64_t cs_base, uint32_t flags,
                                                  uint32_t cflags);
typedef uint64_t page_function(void *env, uint64_t address);
typedef void flush_function(void *cpu);

static struct {
    lookup_function *lookup;
    page_function *get_page_addr_code;
    flush_function *flush;
} library;

HV_EXPORT void hv_set_block_functions(page_function *get_page_addr_code, lookup_function *lookup, flush_function *flush) {
    library.get_page_addr_code = get_page_addr_code;
    library.lookup = lookup;
    library.flush = flush;
}

bool hv_finds_blocks(void) { return library.lookup; }

/* tb_htable_lookup() */
HV_EXPORT struct translation_block *hv_find_block(void *cpu, uint64_t pc, uint64_t cs_base, uint32_t flags,
                                                  uint32_t cflags) {
    struct hv_engine *e = hv_engine_of(cpu);
    if (unlikely(!e))
        return library.lookup(cpu, pc, cs_base, flags, cflags);
    hv_note_jump(e, pc);
    struct translation_block **slot = hv_found_blocks(e) + (pc * UINT64_C(0x9e3779b97f4a7c15) >> (64 - FOUND_BLOCKS_BITS));
    struct translation_block *tb = *slot;
    if (tb && tb->pc == pc && tb->cs_base == cs_base && tb->flags == flags && (tb->cflags & CF_COMPARED) == cflags &&
        tb->page_addr[1] == NO_PAGE &&
        tb->page_addr[0] == (library.get_page_addr_code((void *)e->env, pc) & ~(uint64_t)PAGE_MASK))
        return tb;
    tb = library.lookup(cpu, pc, cs_base, flags, cflags);
    if (tb)
        *slot = tb;
    return tb;
}

/* tb_flush(): all blocks go, and their memory is used for others. A block that goes alone is marked (CF_INVALID). */
HV_EXPORT void hv_flush_blocks(void *cpu) {
    struct hv_engine *e = hv_engine_of(cpu);
    if (e)
        memset(hv_found_blocks(e), 0, FOUND_BLOCKS_SIZE);
    library.flush(cpu);
    if (e && e->spaces)
        hv_drop_all(e);
}
