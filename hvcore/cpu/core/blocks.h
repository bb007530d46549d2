/* Blocks of translated code. Source: include/exec/exec-all.h of QEMU 5.0.1 as Unicorn 2.1.4 carries it. */
#ifndef HV_BLOCKS_H
#define HV_BLOCKS_H

#include "core.h"

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
enum { FOUND_BLOCKS_BITS = 13, FOUND_BLOCKS_SIZE = sizeof(struct translation_block *) << FOUND_BLOCKS_BITS };
static inline struct translation_block **hv_found_blocks(const struct hv_engine *e) {
    return (struct translation_block **)e->found_blocks;
}

/* translate.c: whether the block that this thread translated last is of an engine of ours. */
bool hv_translates_ours(void);

#endif
