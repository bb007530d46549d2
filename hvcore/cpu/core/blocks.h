/* Blocks of translated code. Source: include/exec/exec-all.h of QEMU 5.0.1 as Unicorn 2.1.4 carries it. */
#ifndef HV_BLOCKS_H
#define HV_BLOCKS_H

#include "core.h"

enum { CF_COUNT_MASK = 0x7fff, CF_INVALID = 0x40000 }; /* in cflags */

struct translation_block {
    uint64_t pc, cs_base;
    uint32_t flags;
    uint16_t size, icount;
    uint32_t cflags, trace_vcpu_dstate;
    uint8_t *code;
    size_t code_size;
    struct translation_block *orig_tb;
    uintptr_t page_next[2], page_addr[2];
    uint16_t jmp_reset_offset[2];
    uintptr_t jmp_target_arg[2];
};

/* The blocks that were found last, by a hash of their address. They lie behind the words. */
enum { FOUND_BLOCKS_BITS = 11, FOUND_BLOCKS_SIZE = sizeof(struct translation_block *) << FOUND_BLOCKS_BITS };
static inline struct translation_block **hv_found_blocks(const struct hv_engine *e) {
    return (struct translation_block **)e->found_blocks;
}

/* The blocks that were found last by an address in their code. They lie behind those. */
enum { FOUND_CODE_BITS = 8 };
struct hv_found_code {
    uint64_t nr_removed; /* all were found since so many blocks were removed */
    struct {
        uintptr_t address;
        struct translation_block *tb;
    } at[1 << FOUND_CODE_BITS];
};
static inline struct hv_found_code *hv_found_code(const struct hv_engine *e) {
    return (struct hv_found_code *)(e->found_blocks + FOUND_BLOCKS_SIZE);
}

/* Blocks of one address space by virtual address, as tb_jmp_cache has them. A row is half a line of the host's cache,
 * what was used last in front, and tells all that has to agree: the block itself is a line that need not be read. */
enum { JUMP_WAYS = 2, ROW_BITS = 6, ROWS_A_PAGE = 1 << ROW_BITS, JUMP_PAGE_BITS = 5, JUMP_PAGES = 1 << JUMP_PAGE_BITS };
struct hv_jump {
    uint64_t pc;
    uint32_t block, flags; /* where the block lies, as CODE_UNITS say; 0: none */
};
struct hv_jumps {
    struct hv_jump rows[JUMP_PAGES * ROWS_A_PAGE][JUMP_WAYS];
    uint64_t nr_invalid;       /* those that are invalid since the library has counted so many are not in here */
    uint64_t nr_seen, patience;
    bool has_any[JUMP_PAGES];  /* of the pages that share these rows */
};

void hv_drop_jumps_of_page(struct hv_jumps *jumps, uint64_t va);
void hv_drop_jumps(struct hv_jumps *jumps);

/* translate.c: whether the block that this thread translated last is of an engine of ours, and which of ours runs in it,
 * if it is the one with this translator; or NULL. */
bool hv_translates_ours(void);
struct hv_engine *hv_running_engine(const void *tcg);

#endif
