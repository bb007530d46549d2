/* The words that Python and this core share: blocks of 64-bit words, as hvcore/cpu/words.py has them.
 *
 * A word holds a number, or the address of something that lives as long as the block. Each list below is also
 * exported as text (words.c), and the loader compares that with Python's list before it uses the library.
 */
#ifndef HV_WORDS_H
#define HV_WORDS_H

#include <stdint.h>

/* An engine's block. The first six words are the clock's (hvcore/clock.py). */
#define HV_ENGINE_WORDS(WORD) \
    WORD(left)                /* nanoseconds to the horizon: a byte of guest code takes one */ \
    WORD(spent)               /* how much of what was taken was not code */ \
    WORD(limit)               /* the engine leaves where `left` is no more than this */ \
    WORD(horizon)             /* system time when nothing is left: now is horizon - left */ \
    WORD(turn_end)            /* when the guest's turn is over */ \
    WORD(idle) \
    WORD(uc)                  /* Unicorn's handle */ \
    WORD(cpu)                 /* its CPUState */ \
    WORD(env)                 /* its CPUX86State, which is what the state window shows */ \
    WORD(translator)          /* the TCGContext whose blocks pace themselves */ \
    WORD(uc_emu_stop)         /* functions of the library */ \
    WORD(uc_reg_read) \
    WORD(cc_compute_all)      /* 0: not in this build */ \
    WORD(raise_exception_err) \
    WORD(tlb_flush) \
    WORD(tlb_vaddr_to_host) \
    WORD(port_ring)           /* the ring that may do port I/O, or NO_RING */ \
    WORD(port_cost)           /* what an access takes of the budget */ \
    WORD(port_keeps)          /* two words for what is written to Xen's ports; 0: not here */ \
    WORD(port_reads) \
    WORD(port_writes) \
    WORD(region)              /* the MemoryRegion that RAM is */ \
    WORD(ram_base)            /* physical address of RAM */ \
    WORD(ram_pages) \
    WORD(page_has_code)       /* a byte for each page of RAM */ \
    WORD(tracks_pages)        /* whether these marks are kept */ \
    WORD(access)              /* the kind of the access that fills the TLB */ \
    WORD(tlb_flushes)         /* how often the whole TLB was dropped */ \
    WORD(step_rechecked)      /* the engine looks at TF once more behind this `syscall` */ \
    WORD(python_interrupt)    /* what is called for an exit that no lane takes */ \
    WORD(python_syscall) \
    WORD(python_rdtsc) \
    WORD(python_rdtscp) \
    WORD(vcpu)                /* the block of the vCPU that runs; 0: no lanes */ \
    WORD(journal)             /* struct hv_journal */ \
    WORD(lane_counts)         /* struct hv_lane_count for each lane */ \
    WORD(multicall_done)      /* entries of a list that were made before Python was asked */ \
    WORD(tcg_tb_lookup)       /* functions of the library, for stops inside blocks (inner_stops.c) */ \
    WORD(cpu_loop_exit_restore) \
    WORD(paid)                /* bytes of the block under way, from RIP on, that are paid for */ \
    WORD(paid_is_of_long)     /* the block is so long that it may have been cut */ \
    WORD(passing)             /* where the guest goes on from a stop: its instruction is no new one, once */ \
    WORD(is_passing) \
    WORD(stop_kind)           /* what the engine was left for inside a block: 0, HV_AT_INSTRUCTION, HV_BEFORE_ACCESS */ \
    WORD(stop_address)        /* the instruction's address, or the address of the access */ \
    WORD(stop_size)           /* of the access */ \
    WORD(stop_is_store) \
    WORD(stop_block)          /* the block: its address and size */ \
    WORD(stop_block_size) \
    WORD(watches)             /* struct hv_watch */ \
    WORD(nr_watches) \
    WORD(coverage)            /* struct hv_coverage; 0: nobody asks which blocks run */ \
    WORD(found_blocks)        /* those that were found last (blocks.c) */ \
    WORD(ram)                 /* where RAM lies in this process */ \
    WORD(spaces)              /* struct hv_spaces (tlb.c); 0: translations are not kept */ \
    WORD(jumps)               /* struct hv_jumps (blocks.c) of the address space in use; 0: not kept */ \
    WORD(nr_invalid)          /* where the library counts the blocks that it dropped; 0: not known yet */ \
    WORD(code_base)           /* below all blocks; 0: there was none yet */

/* A vCPU's block: fields of struct vcpu (hvcore/vcpu.py). */
#define HV_VCPU_WORDS(WORD) \
    WORD(domain_words)        /* the block of its domain */ \
    WORD(info_address)        /* struct vcpu_info */ \
    WORD(vcpu_id) \
    WORD(kernel_mode)         /* TF_kernel_mode */ \
    WORD(nmi_pending) \
    WORD(cr3_mfn) \
    WORD(user_cr3_mfn) \
    WORD(compat_l4)           /* the root under which the L3 of a 32-bit guest hangs; 0: none yet */ \
    WORD(kernel_ss) \
    WORD(kernel_sp) \
    WORD(gs_base_user) \
    WORD(gs_base_kernel) \
    WORD(ts_set) \
    WORD(iopl)                /* where EFLAGS has it */ \
    WORD(async_exception_mask) \
    WORD(cr2_offset)          /* of arch.cr2 in struct vcpu_info */ \
    WORD(ctrlreg_words)       /* CR0 to CR7 as the guest reads them */ \
    WORD(perdomain_ptes)      /* L1 entries: sixteen pages of the GDT, sixteen of the LDT */ \
    WORD(trap_words)          /* struct hv_entry by vector */ \
    WORD(callback_words)      /* struct hv_entry by CALLBACKTYPE_* */

/* A domain's block: its frames, and what is counted. */
#define HV_DOMAIN_WORDS(WORD) \
    WORD(domain_id) \
    WORD(levels)              /* of page tables: 3 or 4, with entries of eight bytes */ \
    WORD(ram)                 /* the frame base_mfn; the arrays below begin with it */ \
    WORD(base_mfn) \
    WORD(nr_frames) \
    WORD(nr_vcpus) \
    WORD(m2p_addresses)       /* two words: the machine-to-phys table, and that of 32-bit guests; 0: not in use */ \
    WORD(end_mfn)             /* how many entries they have */ \
    WORD(owner)               /* uint16_t */ \
    WORD(ptype)               /* uint8_t */ \
    WORD(pflags)              /* uint8_t */ \
    WORD(count)               /* uint32_t */ \
    WORD(tcount)              /* uint32_t */ \
    WORD(stamp)               /* uint32_t */ \
    WORD(linear_pt_count)     /* int16_t */ \
    WORD(xen_l4_slots)        /* what stands in slots 256 to 271 of every L4, the linear one left out */ \
    WORD(vm_assist) \
    WORD(cmos_idx)            /* the last byte written to port 0x70 */ \
    WORD(pci_cf8)             /* and the last four to 0xcf8 */ \
    WORD(hypercalls)          /* counts by number */ \
    WORD(exceptions)          /* counts by vector */ \
    WORD(cli_sti)             /* counts of both, emulated */ \
    WORD(events_delivered) \
    WORD(page_table_stores) \
    WORD(recent)              /* the last calls: hvcore/trace.py */ \
    WORD(events)              /* struct hv_events (lane.h); 0: nobody listens */

#define HV_WORD(name) uint64_t name;

/* Where Xen enters the guest; address 0 where the guest said nothing. */
struct hv_entry {
    uint64_t flags, cs, address;
};

struct hv_engine {
    HV_ENGINE_WORDS(HV_WORD)
};

struct hv_vcpu {
    HV_VCPU_WORDS(HV_WORD)
};

struct hv_domain {
    HV_DOMAIN_WORDS(HV_WORD)
};

#endif
