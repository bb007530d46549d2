/* A store of the guest's kernel to one of its L1 tables: hvcore/pv/ro_page_fault.py.
 *
 * Python has the engine execute the instruction on a copy of the table. Here those that kernels use are decoded and
 * made: mov, xchg, cmpxchg, cmpxchg8b, and, or, xor, of a register or an immediate to one entry. The instruction is
 * read where the engine has read it, and its operand has to be where the processor faulted. What is left as it is after
 * the engine's way is taken from there: two exits and one instruction more to pay, the TLB without the page.
 */
#include "lane.h"

enum { LOCK = 0xf0, REPNE = 0xf2, REP = 0xf3, OPSIZE = 0x66, ADSIZE = 0x67 };
enum { REX_B = 1, REX_X = 2, REX_R = 4, REX_W = 8 };
enum kind { MOV, XCHG, CMPXCHG, CMPXCHG8B, OR, AND, XOR };

typedef uint8_t *vaddr_to_host_function(void *env, uint64_t va, int access, int mmu_idx);

struct code {
    const uint8_t *next, *end; /* of the page */
    bool is_over;
};

struct store {
    enum kind kind;
    unsigned size;
    uint64_t operand;  /* what is stored, or combined with what is there */
    uint64_t *reg;     /* the register it is from */
    unsigned reg_shift;
    uint64_t at;       /* linear address */
    uint64_t next_rip;
    const uint8_t *code; /* of the instruction */
};

/* -- the instruction */

static struct code code_at(const struct hv_call *c, uint64_t rip) {
    int mmu_idx = (*hv_hflags(c) & HF_CPL) == 3 ? MMU_USER_IDX : MMU_KNOSMAP_IDX;
    const uint8_t *at = ((vaddr_to_host_function *)c->e->tlb_vaddr_to_host)(c->regs, rip, MMU_INST_FETCH, mmu_idx);
    return (struct code){at, at ? at + (PAGE_SIZE - rip % PAGE_SIZE) : at, !at};
}

static uint64_t take(struct code *code, unsigned size) {
    uint64_t value = 0;
    if ((size_t)(code->end - code->next) < size) {
        code->is_over = true;
        return 0;
    }
    memcpy(&value, code->next, size);
    code->next += size;
    return value;
}

static uint64_t take_signed(struct code *code, unsigned size) {
    uint64_t value = take(code, size), sign = UINT64_C(1) << (8 * size - 1);
    return (value ^ sign) - sign;
}

struct prefixes {
    unsigned op_size, rex;
    int segment; /* an override, or -1 */
};

/* The opcode behind the prefixes; 0 (add, which is none of ours) where one of them says that it is not. */
static unsigned take_opcode(const struct hv_call *c, struct code *code, struct prefixes *p) {
    *p = (struct prefixes){.op_size = 4, .segment = -1};
    for (;;) {
        unsigned byte = (unsigned)take(code, 1);
        switch (byte) {
        case LOCK: /* there is one processor */
            break;
        case OPSIZE:
            p->op_size = 2;
            break;
        case 0x64:
        case 0x65:
            p->segment = byte == 0x64 ? FS : GS;
            break;
        case 0x26:
        case 0x2e:
        case 0x36:
        case 0x3e:
            p->segment = c->is_32bit ? (int)(byte - 0x26) / 8 : p->segment; /* ES CS SS DS */
            break;
        case REPNE:
        case REP:
        case ADSIZE:
            return 0;
        default:
            if (!c->is_32bit && (byte & 0xf0) == 0x40) {
                p->rex = byte;
                p->op_size = byte & REX_W ? 8 : p->op_size;
                byte = (unsigned)take(code, 1);
            }
            return byte == 0x0f ? 0x0f00 | (unsigned)take(code, 1) : byte;
        }
    }
}

/* The memory operand of ModRM, without the base of its segment; RIP-relative it counts from behind the displacement. */
static uint64_t take_operand(const struct hv_call *c, struct code *code, const struct prefixes *p, unsigned modrm,
                             int *segment, bool *is_relative) {
    unsigned mod = modrm >> 6, base = modrm & 7;
    uint64_t ea = 0;
    if (base == 4) {
        unsigned sib = (unsigned)take(code, 1), index = (sib >> 3 & 7) | (p->rex & REX_X) << 2;
        base = sib & 7;
        if (index != RSP)
            ea = c->regs[index] << (sib >> 6);
    }
    *is_relative = mod == 0 && (modrm & 7) == 5 && !c->is_32bit;
    *segment = DS;
    if (mod == 0 && base == 5)
        return ea + take_signed(code, 4);
    base |= (p->rex & REX_B) << 3;
    if (base == RSP || base == RBP)
        *segment = SS;
    ea += c->regs[base];
    return mod ? ea + take_signed(code, mod == 1 ? 1 : 4) : ea;
}

/* What ModRM.reg names; of a byte without REX that may be AH to BH. */
static void name_register(struct hv_call *c, struct store *s, const struct prefixes *p, unsigned modrm) {
    unsigned reg = (modrm >> 3 & 7) | (p->rex & REX_R) << 1;
    bool is_high = s->size == 1 && !p->rex && reg >= 4;
    s->reg = &c->regs[is_high ? reg - 4 : reg];
    s->reg_shift = is_high ? 8 : 0;
    s->operand = *s->reg >> s->reg_shift;
}

static const struct form {
    uint16_t opcode; /* of bytes; one more of words */
    uint8_t kind;
    bool has_immediate;
    int8_t reg; /* what ModRM.reg has to be; -1: a register */
} forms[] = {
    {0x88, MOV, false, -1},     {0xc6, MOV, true, 0},       {0x86, XCHG, false, -1}, {0x0fb0, CMPXCHG, false, -1},
    {0x0fc6, CMPXCHG8B, false, 1}, {0x08, OR, false, -1},      {0x20, AND, false, -1},  {0x30, XOR, false, -1},
    {0x80, OR, true, 1},        {0x80, AND, true, 4},       {0x80, XOR, true, 6},
};

static const struct form *form_of(unsigned opcode, unsigned modrm) {
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++)
        if (forms[i].opcode == opcode && (forms[i].reg < 0 || forms[i].reg == (int)(modrm >> 3 & 7)))
            return &forms[i];
    return NULL;
}

static bool decode(struct hv_call *c, struct store *s) {
    uint64_t rip = c->regs[RIP];
    struct code code = code_at(c, rip);
    const uint8_t *start = s->code = code.next;
    struct prefixes p;
    if (code.is_over)
        return NOT_MINE;
    unsigned opcode = take_opcode(c, &code, &p), modrm = (unsigned)take(&code, 1);
    bool is_short = opcode == 0x83; /* a byte, extended */
    const struct form *form = form_of(is_short ? 0x80 : opcode & ~1u, modrm);
    if (!form || modrm >> 6 == 3)
        return NOT_MINE;
    if (form->kind == CMPXCHG8B && (!(opcode & 1) || p.op_size != 4))
        return NOT_MINE;
    s->kind = (enum kind)form->kind;
    s->size = opcode & 1 ? p.op_size : 1;
    int segment;
    bool is_relative;
    s->at = take_operand(c, &code, &p, modrm, &segment, &is_relative);
    if (form->has_immediate)
        s->operand = is_short ? take_signed(&code, 1) : take_signed(&code, s->size == 8 ? 4 : s->size);
    else if (form->kind == CMPXCHG8B)
        s->size = 8;
    else
        name_register(c, s, &p, modrm);
    if (code.is_over)
        return NOT_MINE;
    s->next_rip = rip + (uint64_t)(code.next - start);
    if (is_relative)
        s->at += s->next_rip;
    segment = p.segment >= 0 ? p.segment : segment;
    if (c->is_32bit)
        s->at = (uint32_t)(hv_segment(c, segment)->base + (uint32_t)s->at);
    else if (segment == FS || segment == GS)
        s->at += hv_segment(c, segment)->base;
    return MINE;
}

/* -- what it does */

static uint64_t mask_of(unsigned size) { return size == 8 ? UINT64_MAX : (UINT64_C(1) << 8 * size) - 1; }

/* A write of 32 bits clears the upper half; one of less leaves the rest. */
static void set_register(struct hv_call *c, uint64_t *reg, unsigned shift, unsigned size, uint64_t value) {
    uint64_t mask = mask_of(size) << shift;
    hv_set64(c, reg, size == 4 ? (uint32_t)value : (*reg & ~mask) | (value << shift & mask));
}

/* The flags of `result`, and of `a` - `b` where that is what it is. */
static void set_flags(struct hv_call *c, uint64_t result, unsigned size, bool is_difference, uint64_t a, uint64_t b) {
    uint64_t mask = mask_of(size), sign = (mask >> 1) + 1, flags = hv_read_eflags(c->e) & ~(uint64_t)EFLAGS_ARITHMETIC;
    if (!(result & mask))
        flags |= X86_EFLAGS_ZF;
    if (result & sign)
        flags |= X86_EFLAGS_SF;
    if (!__builtin_parity(result & 0xff))
        flags |= X86_EFLAGS_PF;
    if (is_difference) {
        if ((a & mask) < (b & mask))
            flags |= X86_EFLAGS_CF;
        if ((a ^ b ^ result) & 0x10)
            flags |= X86_EFLAGS_AF;
        if ((a ^ b) & (a ^ result) & sign)
            flags |= X86_EFLAGS_OF;
    }
    hv_write_eflags(c, flags);
}

static uint64_t cmpxchg8b(struct hv_call *c, uint64_t old) {
    uint64_t *regs = c->regs, flags = hv_read_eflags(c->e);
    bool is_equal = old == ((uint32_t)regs[RAX] | regs[RDX] << 32);
    uint64_t new = is_equal ? (uint32_t)regs[RBX] | regs[RCX] << 32 : old;
    hv_write_eflags(c, is_equal ? flags | X86_EFLAGS_ZF : flags & ~(uint64_t)X86_EFLAGS_ZF);
    if (!is_equal) {
        hv_set64(c, &regs[RAX], (uint32_t)old);
        hv_set64(c, &regs[RDX], old >> 32);
    }
    return new;
}

/* What `old` becomes; registers and flags are set. */
static uint64_t execute(struct hv_call *c, const struct store *s, uint64_t old) {
    uint64_t result = s->operand, accumulator = c->regs[RAX];
    switch (s->kind) {
    case MOV:
        break;
    case XCHG:
        set_register(c, s->reg, s->reg_shift, s->size, old);
        break;
    case CMPXCHG:
        if ((accumulator ^ old) & mask_of(s->size))
            result = old;
        set_register(c, &c->regs[RAX], 0, s->size, old);
        set_flags(c, accumulator - old, s->size, true, accumulator, old);
        break;
    case CMPXCHG8B:
        result = cmpxchg8b(c, old);
        break;
    case OR:
    case AND:
    case XOR:
        result = s->kind == OR ? old | result : s->kind == AND ? old & result : old ^ result;
        set_flags(c, result, s->size, false, 0, 0);
        break;
    }
    return result;
}

/* -- the table */

/* RoPageFault.try_start(): the L1 table that `cr2` maps read-only, or NULL. */
static uint64_t *l1_table_at(const struct hv_call *c, uint64_t cr2) {
    const struct hv_domain *d = c->d;
    uint64_t above;
    const uint64_t *pte = hv_l1_entry_of(d, c->v->cr3_mfn, cr2, &above);
    if (!pte || *hv_ptype(d, ((uintptr_t)pte - d->ram) >> PAGE_SHIFT) != PGT_l1_page_table)
        return NULL;
    if ((*pte & (PAGE_PRESENT | PAGE_RW)) != PAGE_PRESENT)
        return NULL;
    uint64_t pg = hv_frame(d, hv_mfn_of(*pte));
    if (!hv_is_own(d, pg) || *hv_ptype(d, pg) != PGT_l1_page_table || !*hv_tcount(d, pg))
        return NULL;
    return (uint64_t *)hv_page(d, pg);
}

/* Whether nothing else would come of the step that Python has the engine make. */
static bool is_plain_step(const struct hv_call *c) {
    uint32_t hflags = *hv_hflags(c);
    bool is_known_code = c->is_32bit ? hflags & HF_CS32 && !hv_segment(c, CS)->base : hflags & HF_CS64;
    if (!is_known_code || hflags & HF_INHIBIT_IRQ || c->regs[EFLAGS] & X86_EFLAGS_RF || c->regs[DR7] & 0xff)
        return false;
    return (int64_t)c->e->left > (int64_t)c->e->limit; /* or it leaves before the step */
}

/* Whether it stores into itself: the engine makes its block anew then, and pays for it once more. */
static bool changes_itself(const struct hv_call *c, const struct store *s, const uint8_t *to) {
    return to < s->code + (s->next_rip - c->regs[RIP]) && s->code < to + s->size;
}

bool hv_ro_page_fault(struct hv_call *c, uint64_t cr2) {
    struct store store = {0};
    if (!c->e->tlb_vaddr_to_host || !(c->d->vm_assist & VMASST_writable_pagetables) || !is_plain_step(c))
        return NOT_MINE;
    uint64_t *table = l1_table_at(c, cr2);
    if (!table || !decode(c, &store) || store.at != cr2 || cr2 % store.size)
        return NOT_MINE;
    if (changes_itself(c, &store, (const uint8_t *)table + cr2 % PAGE_SIZE))
        return NOT_MINE;
    uint64_t *entry = &table[cr2 % PAGE_SIZE / 8];
    unsigned shift = cr2 % 8 * 8;
    uint64_t mask = mask_of(store.size) << shift, old = *entry;
    hv_event(c, EVENT_page_table_store, c->regs[RIP], 0, 0);
    uint64_t part = execute(c, &store, (old & mask) >> shift);
    if (!hv_mod_entry(c, entry, (old & ~mask) | (part << shift & mask), PGT_l1_page_table, false, NULL))
        return NOT_MINE;
    hv_set64(c, &c->e->left, c->e->left - (store.next_rip - c->regs[RIP]));
    hv_spend(c, NS_PER_EXIT);
    hv_set64(c, &c->regs[RIP], store.next_rip);
    hv_count_up(c, &c->d->page_table_stores);
    return MINE;
}
