/* The processor: its state as Unicorn keeps it (hvcore/cpu/state_window.py), its flags, its page tables. */
#ifndef HV_X86_H
#define HV_X86_H

#include "words.h"

/* CPUX86State in words of 64 bits, or 32 where so said; offsets are in bytes. */
enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, RIP = 16, EFLAGS = 17, CC_SRC = 19, CR0 = 53 };
enum { CR2 = CR0 + 2, CR3 };
enum { CC_OP = 168 / 4, DF = 172 / 4, CC_OP_EFLAGS = 1 }; /* of 32 bits */
enum { HFLAGS_OFFSET = 176, SEGMENTS_OFFSET = 184, ERROR_CODE_OFFSET = 5384, OLD_EXCEPTION_OFFSET = 5496 };
enum { DR7 = 5400 / 8 + 7 };

enum { ES, CS, SS, DS, FS, GS };
enum { CS_BASE = (SEGMENTS_OFFSET + CS * 24 + 8) / 8 };

struct hv_segment { /* SegmentCache; `flags` are the upper word of a descriptor */
    uint32_t selector, padding;
    uint64_t base;
    uint32_t limit, flags;
};

enum {
    HF_CPL = 3, HF_INHIBIT_IRQ = 1 << 3, HF_CS32 = 1 << 4, HF_SS32 = 1 << 5, HF_ADDSEG = 1 << 6, HF_TS = 1 << 11,
    HF_LMA = 1 << 14, HF_CS64 = 1 << 15,
};
enum {
    X86_EFLAGS_CF = 1, X86_EFLAGS_MBS = 2, X86_EFLAGS_PF = 4, X86_EFLAGS_AF = 0x10, X86_EFLAGS_ZF = 0x40,
    X86_EFLAGS_SF = 0x80, X86_EFLAGS_TF = 0x100, X86_EFLAGS_IF = 0x200, X86_EFLAGS_DF = 0x400, X86_EFLAGS_OF = 0x800,
    X86_EFLAGS_IOPL = 0x3000, X86_EFLAGS_NT = 0x4000, X86_EFLAGS_RF = 0x10000, X86_EFLAGS_VM = 0x20000,
    X86_EFLAGS_AC = 0x40000, EFLAGS_SETTABLE = 0x3f7fd7,
    EFLAGS_ARITHMETIC = X86_EFLAGS_CF | X86_EFLAGS_PF | X86_EFLAGS_AF | X86_EFLAGS_ZF | X86_EFLAGS_SF | X86_EFLAGS_OF,
};
enum { TRAP_int3 = 3, TRAP_overflow = 4, TRAP_gp_fault = 13, TRAP_page_fault };
enum { PFEC_page_present = 1, PFEC_write_access = 2, PFEC_user_mode = 4, PFEC_reserved_bit = 8, PFEC_insn_fetch = 16 };
enum { MMU_DATA_STORE = 1, MMU_INST_FETCH };    /* MMUAccessType */
enum { MMU_USER_IDX = 1, MMU_KNOSMAP_IDX = 2 }; /* an index of the TLB */
#define NO_RING UINT64_C(0xffffffff) /* in port_ring */

enum { PAGE_SHIFT = 12, PAGE_SIZE = 1 << PAGE_SHIFT, PAGE_MASK = PAGE_SIZE - 1 };
enum {
    PAGE_PRESENT = 0x1, PAGE_RW = 0x2, PAGE_USER = 0x4, PAGE_PWT = 0x8, PAGE_PCD = 0x10, PAGE_ACCESSED = 0x20,
    PAGE_DIRTY = 0x40, PAGE_PSE = 0x80, PAGE_GLOBAL = 0x100, PAGE_AVAIL = 0xe00,
};

#endif
