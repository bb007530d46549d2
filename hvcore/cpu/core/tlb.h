/* What the library caches of page tables. Source: include/exec/cpu-defs.h of QEMU 5.0.1 as Unicorn 2.1.4 carries it. */
#ifndef HV_TLB_H
#define HV_TLB_H

#include "core.h"

enum { NB_MMU_MODES = 3, CPU_VTLB_SIZE = 8, CPU_TLB_ENTRY_BITS = 6 };

struct tlb_entry { /* CPUTLBEntry; what is not there is all ones */
    uint64_t addr[3]; /* of reads, writes, code: the page, with flags below */
    uint64_t paddr, addend, padding[3];
};

struct tlb_desc { /* CPUTLBDesc */
    uint64_t large_page_addr, large_page_mask;
    int64_t window_begin_ns;
    uint64_t window_max_entries, n_used_entries, vindex;
    struct tlb_entry vtable[CPU_VTLB_SIZE];
    uint64_t viotlb[CPU_VTLB_SIZE][2];
    void *iotlb;
};

struct tlb_fast { /* CPUTLBDescFast */
    uint64_t mask;
    struct tlb_entry *table;
};

struct cpu_tlb { /* CPUTLB, which lies right before icount_decr and CPUX86State */
    uint16_t dirty; /* a bit for each mode with entries */
    uint64_t full_flush_count, part_flush_count, elide_flush_count;
    struct tlb_desc d[NB_MMU_MODES];
    uint64_t padding;
    struct tlb_fast f[NB_MMU_MODES];
};

enum { ICOUNT_DECR_SIZE = 16 };

/* tlb.c */
void hv_note_page(struct hv_engine *e, uint64_t va);
void hv_note_jump(struct hv_engine *e, uint64_t pc);
void hv_forget_jump(struct hv_engine *e, uint64_t pc);
uint64_t hv_page_drops(const struct hv_engine *e);
void hv_free_spaces(struct hv_engine *e);

/* blocks.c: whether the library finds its blocks by us; helper_lookup_tb_ptr(), and what is called in its place. */
bool hv_finds_blocks(void);
void hv_set_jump_function(void *found);
void *hv_next_code(struct hv_engine *e);

#endif
