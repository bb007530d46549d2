/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Which exception it is: #SS for the stack segment, by a selector or by an address that is not canonical, and what
 * else the tables of the manuals (APM volume 2, 8.2; SDM volume 3, 6.15) tell apart. QEMU's TCG raises #GP for every
 * such address and for control registers that do not exist, and reads far pointers as Intel's processors do: there
 * that is what is expected.
 */
#include "conform.h"

const char test_title[] = "#SS, #GP, #NP and #UD where the manuals have them: the stack, far pointers, what is no register";

#define ABSENT 0x0b     /* a data segment that is not present */
#define PRESENT 0x13
#define BEYOND 0xeff3   /* in Xen's part of the GDT there is nothing behind its own selectors */

static int tcg;

static int under_tcg(void)
{
    u32 a = 0x40000000, b, c, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "=c"(c), "=d"(d));
    return b == 0x54474354; /* "TCGT" */
}

static void load_ss(void *selector)
{
    __asm__ volatile("mov %w0, %%ss" : : "r"(selector));
}

static void load_es(void *selector)
{
    __asm__ volatile("mov %w0, %%es" : : "r"(selector));
}

static struct {
    ulong offset;
    u16 selector;
} far_pointer;

static void far_ss(void *selector)
{
    far_pointer.selector = (u16)(ulong)selector;
    __asm__ volatile("lss %0, %%eax" : : "m"(*(u8 *)&far_pointer) : "eax");
}

static void selectors(void)
{
    u64 *gdt = alloc_page();
    ulong frame = virt_to_mfn(gdt), dpl = FLAT_KERNEL_SS & 3;
    gdt[ABSENT >> 3] = 0x00cf13000000ffffull | (u64)dpl << 45;
    gdt[PRESENT >> 3] = 0x00cf93000000ffffull | (u64)dpl << 45;
    EXPECT_OK(make_readonly(gdt));
    EXPECT_OK(HYPERCALL2(set_gdt, &frame, 512));
    EXPECT_NO_TRAP(load_es, (PRESENT & ~3) | dpl);
    EXPECT_NO_TRAP(load_es, FLAT_KERNEL_DS);
    EXPECT_TRAP(load_ss, (ABSENT & ~3) | dpl, TRAP_SS, ABSENT & ~3); /* not #NP, for this one */
    EXPECT_TRAP(load_es, (ABSENT & ~3) | dpl, TRAP_NP, ABSENT & ~3);
    EXPECT_TRAP(load_ss, PRESENT & ~3, TRAP_GP, PRESENT & ~3); /* another privilege level */
    EXPECT_TRAP(load_ss, 3, TRAP_GP, 0);
    EXPECT_TRAP(load_es, BEYOND, TRAP_GP, BEYOND & ~3);
    EXPECT_TRAP(load_ss, BEYOND, TRAP_GP, BEYOND & ~3);
    if (sizeof(ulong) == 4) {
        far_pointer.offset = 0;
        EXPECT_TRAP(far_ss, (ABSENT & ~3) | dpl, TRAP_SS, ABSENT & ~3);
        EXPECT_TRAP(far_ss, BEYOND, TRAP_GP, BEYOND & ~3);
    }
}

struct row {
    u8 code[24];
    u8 size, vector;
};
#define ROW(vector, ...) { { __VA_ARGS__ }, sizeof((u8[]){ __VA_ARGS__ }), vector }

/* Run each row in user mode, where the stack may be anywhere; all end with error code 0. */
static void rows(const struct row *row, u32 count)
{
    for (; count--; row++) {
        struct trap trap = run_user(row->code, row->size, 0);
        count_refusal();
        if (tcg && row->vector == TRAP_SS)
            EXPECT_EQUAL(trap.vector, TRAP_GP);
        else
            EXPECT_EQUAL(trap.vector, row->vector);
        EXPECT_EQUAL(trap.error_code, 0);
        if (trap.vector != row->vector && !tcg)
            printf("%u from the end\n", count);
    }
}

#ifdef __x86_64__
#define BAD(opcode) 0x48, opcode, 0, 0, 0, 0, 0, 0, 0, 0x80 /* mov $1 << 63 to a register */
#define BAD_AX BAD(0xb8)
#define BAD_BX BAD(0xbb)
#define BAD_SP BAD(0xbc)
#define BAD_BP BAD(0xbd)
#define BAD_SI BAD(0xbe)
#define BAD_DI BAD(0xbf)

static const struct row table[] = {
    ROW(TRAP_SS, BAD_SP, 0x50),                         /* push %rax */
    ROW(TRAP_SS, BAD_SP, 0x58),                         /* pop %rax */
    ROW(TRAP_SS, BAD_SP, 0x6a, 1),                      /* push $1 */
    ROW(TRAP_SS, BAD_SP, 0x9c),                         /* pushf */
    ROW(TRAP_SS, BAD_SP, 0x9d),                         /* popf */
    ROW(TRAP_SS, BAD_SP, 0xe8, 0, 0, 0, 0),             /* call */
    ROW(TRAP_SS, BAD_SP, 0xc3),                         /* ret */
    ROW(TRAP_SS, BAD_SP, 0x48, 0xcb),                   /* lretq */
    ROW(TRAP_SS, BAD_SP, 0x48, 0xcf),                   /* iretq */
    ROW(TRAP_SS, BAD_SP, 0xc8, 8, 0, 0),                /* enter */
    ROW(TRAP_SS, BAD_BP, 0xc9),                         /* leave */
    ROW(TRAP_SS, BAD_SP, 0x0f, 0xa0),                   /* push %fs */
    ROW(TRAP_SS, BAD_SP, 0xff, 0x34, 0x24),             /* push (%rsp) */
    ROW(TRAP_SS, BAD_BP, 0x8f, 0x45, 0),                /* pop (%rbp) */
    ROW(TRAP_GP, BAD_BX, 0xff, 0x33),                   /* push (%rbx) */
    ROW(TRAP_GP, BAD_BX, 0x8f, 0x03),                   /* pop (%rbx) */
    ROW(TRAP_SS, BAD_SP, 0x8b, 0x04, 0x24),             /* mov (%rsp), %eax */
    ROW(TRAP_SS, BAD_BP, 0x8b, 0x45, 0),                /* mov (%rbp), %eax */
    ROW(TRAP_SS, BAD_BP, 0xc6, 0x44, 0x05, 0, 1),       /* movb $1, (%rbp,%rax) */
    ROW(TRAP_GP, BAD_BP, 0x8b, 0x04, 0x28),             /* mov (%rax,%rbp), %eax: the base decides */
    ROW(TRAP_GP, BAD_AX, 0x8b, 0x00),                   /* mov (%rax), %eax */
    ROW(TRAP_GP, BAD_AX, 0x36, 0x8b, 0x00),             /* mov %ss:(%rax), %eax: no such override */
    ROW(TRAP_SS, BAD_BP, 0x3e, 0x8b, 0x45, 0),          /* mov %ds:(%rbp), %eax */
    ROW(TRAP_GP, BAD_BP, 0x64, 0x8b, 0x45, 0),          /* mov %fs:(%rbp), %eax */
    ROW(TRAP_GP, BAD(0xbd), 0x49, 0x89, 0xed, 0x41, 0x8b, 0x45, 0), /* by %r13, which is encoded as %rbp is */
    ROW(TRAP_GP, BAD_SI, 0xac),                         /* lodsb */
    ROW(TRAP_GP, BAD_DI, 0xaa),                         /* stosb */
    ROW(TRAP_SS, BAD_BP, 0xf0, 0xff, 0x45, 0),          /* lock incl (%rbp) */
    ROW(TRAP_SS, BAD_BP, 0x0f, 0xae, 0x45, 0),          /* fxsave (%rbp) */
    ROW(TRAP_SS, BAD_BP, 0xdd, 0x45, 0),                /* fldl (%rbp) */
    ROW(TRAP_SS, BAD_BP, 0xff, 0x55, 0),                /* call *(%rbp) */
    ROW(TRAP_SS, BAD_BP, 0xff, 0x6d, 0),                /* ljmp *(%rbp) */
    ROW(TRAP_GP, BAD_BP, 0x0f, 0x01, 0x7d, 0),          /* invlpg (%rbp): its privilege comes first */
    ROW(TRAP_GP, 0x0f, 0x33),                           /* rdpmc */
    ROW(TRAP_GP, 0x48, 0x0f, 0x07),                     /* sysretq */
    ROW(TRAP_GP, 0xf4),                                 /* hlt */
    ROW(TRAP_UD, 0x0f, 0x0b),                           /* ud2 */
};

/* A far pointer with REX.W: AMD's processors take the selector from behind 32 bits of offset, others from 64. */
static void far_call(void *unused)
{
    static const u16 pointer[8] __attribute__((aligned(8))) = { 0, 0, 0xf013, 0, 0xf023, 0, 0, 0 };
    (void)unused;
    __asm__ volatile(".byte 0x48\n\tlcall *%0" : : "m"(pointer));
}

static int is_amd(void)
{
    u32 a = 0, b, c, d;
    __asm__ volatile(".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2" : "+a"(a), "=b"(b), "=c"(c), "=d"(d));
    return b == 0x68747541; /* "Auth" */
}

static void in_the_kernel(void)
{
    EXPECT_TRAP(far_call, NULL, TRAP_GP, is_amd() && !tcg ? 0xf010 : 0xf020);
}
#else
static const struct row table[] = {
    ROW(TRAP_GP, 0x0f, 0x33),             /* rdpmc */
    ROW(TRAP_GP, 0xf4),                   /* hlt */
    ROW(TRAP_UD, 0x0f, 0x0b),             /* ud2 */
    ROW(TRAP_OF, 0xb0, 0x7f, 0x04, 1, 0xce), /* add $1, %al; into */
    ROW(TRAP_DE, 0xd4, 0),                /* aam $0 */
    ROW(TRAP_DE, 0x31, 0xd2, 0xf7, 0xf2), /* div %edx */
};

/* -2**63 by -1, which QEMU's TCG lets the host's processor try. */
static const struct row division[] = {
    ROW(TRAP_DE, 0xba, 0, 0, 0, 0x80, 0x31, 0xc0, 0x83, 0xc9, 0xff, 0xf7, 0xf9),
};

static void in_the_kernel(void)
{
    if (!tcg)
        rows(division, 1);
}
#endif

static void control_register_5(void *unused)
{
    ulong value;
    (void)unused;
    __asm__ volatile("mov %%cr5, %0" : "=r"(value));
}

static void control_register_1(void *unused)
{
    (void)unused;
    __asm__ volatile("mov %0, %%cr1" : : "r"(0ul));
}

void conform(void)
{
    tcg = under_tcg();
    user_code();
    rows(table, ARRAY_SIZE(table));
    in_the_kernel();
    EXPECT_TRAP(control_register_5, NULL, tcg ? TRAP_GP : TRAP_UD, 0);
    EXPECT_TRAP(control_register_1, NULL, tcg ? TRAP_GP : TRAP_UD, 0);
    selectors();
}
