/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Which of the two instructions a processor has depends on its maker: in long mode AMD's has no sysenter, and
 * Intel's no syscall from 32-bit code. What is expected here follows the vendor that cpuid tells.
 */
#include "conform.h"

const char test_title[] = "System calls of processes: syscall and sysenter from 64-bit and 32-bit code, with and without callbacks";

static const u8 by_syscall[] = { 0xfd, 0x0f, 0x05 };  /* std; syscall */
static const u8 by_sysenter[] = { 0xfd, 0x0f, 0x34 }; /* std; sysenter */
#define FLAGS_DF 0x400

extern const ulong entry_syscall, trap_entries[];
extern u8 callback[];
ulong entry_flags, entry_cx, entry_r11;

/* What the callback starts with; then as a row of the trap table would. */
#ifdef __x86_64__
__asm__("callback: movq %rcx, entry_cx; movq %r11, entry_r11; pushfq; popq entry_flags; jmp *entry_syscall");
#else
__asm__("callback: pushfl; popl entry_flags; jmp *entry_syscall");
#endif

static int is_intel(void)
{
    u32 a = 0, b, c, d;
    __asm__ volatile(".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2" : "+a"(a), "=b"(b), "=c"(c), "=d"(d));
    return b == 0x756e6547; /* "Genu" */
}

static long install(u16 type, u16 flags, ulong address)
{
    struct callback_register row = {
        .type = type,
        .flags = flags,
#ifndef __x86_64__
        .cs = address ? FLAT_KERNEL_CS : 0,
#endif
        .address = address,
    };
    return HYPERCALL2(callback_op, CALLBACKOP_register, &row);
}

/* No system call at all: `wanted` at the instruction, on the context as it was. */
#define EXPECT_NONE(call, wanted, cs_shown)                            \
    do {                                                               \
        struct trap trap = call;                                       \
        count_refusal();                                               \
        EXPECT_EQUAL(trap.vector, wanted);                             \
        EXPECT_EQUAL(trap.error_code, 0);                              \
        count_refusal();                                               \
        EXPECT_EQUAL(trap.ip & 0xffff, (user_code() + 1) & 0xffff);    \
        EXPECT_EQUAL(trap.regs.cs & 0xffff, cs_shown);                 \
        EXPECT_EQUAL(trap.regs.flags & FLAGS_DF, FLAGS_DF);            \
    } while (0)

#define EXPECT_CALL(call, after, cs_shown, ss_shown, masked)           \
    do {                                                               \
        struct trap trap = call;                                       \
        EXPECT_EQUAL(trap.vector, 0x80);                               \
        EXPECT_EQUAL(trap.regs.ax, 0x1234);                            \
        EXPECT_EQUAL(trap.ip & 0xffff, (after) & 0xffff);              \
        EXPECT_EQUAL(trap.regs.cs & 0xffff, cs_shown);                 \
        EXPECT_EQUAL(trap.regs.ss & 0xffff, ss_shown);                 \
        EXPECT_EQUAL(trap.regs.flags & FLAGS_DF, FLAGS_DF);            \
        EXPECT_EQUAL(shared_info->vcpu_info[0].evtchn_upcall_mask, masked); \
        events_enable();                                               \
    } while (0)

static struct trap user(const u8 *code)
{
    return run_user(code, sizeof(by_syscall), 0x1234);
}

#ifdef __x86_64__
void enter_regs(struct regs *regs) __attribute__((noreturn));

static u8 *code32, *stack32; /* the page of code and one of stack, within 32 bits */

static void go(void *regs)
{
    enter_regs(regs);
}

/* The kernel's first gigabyte once more, at address 0. */
static void map_low(void)
{
    pte_t *table = alloc_page(), flags = PTE_PRESENT | PTE_RW | PTE_USER | PTE_ACCESSED | PTE_DIRTY;
    u8 *page = alloc_page();
    table[0] = *pte_of((void *)VIRT_BASE, 3);
    EXPECT_OK(make_readonly(table));
    EXPECT_OK(mmu_update_one(pte_of(NULL, 4), virt_to_machine(table) | flags, 0));
    EXPECT_OK(set_va(page, *pte_of(page, 1) | PTE_USER, UVMF_INVLPG));
    code32 = (u8 *)(user_code() - VIRT_BASE);
    stack32 = page - VIRT_BASE;
}

static struct trap user32(const u8 *code)
{
    struct regs regs;
    memset(&regs, 0, sizeof(regs));
    memcpy((void *)user_code(), code, sizeof(by_syscall));
    regs.ax = 0x1234;
    regs.ip = (ulong)code32;
    regs.cs = FLAT_USER_CS32;
    regs.flags = 0x202;
    regs.sp = (ulong)stack32 + PAGE_SIZE;
    regs.ss = FLAT_USER_SS;
    return probe(go, &regs);
}

static void from_64_bits(void)
{
    ulong after = user_code() + sizeof(by_syscall);
    EXPECT_OK(install(CALLBACKTYPE_syscall, 0, 0));
    EXPECT_NONE(user(by_syscall), TRAP_UD, FLAT_USER_CS); /* switch_to_kernel */
    EXPECT_OK(install(CALLBACKTYPE_syscall, 0, (ulong)callback));
    EXPECT_CALL(user(by_syscall), after, FLAT_USER_CS, FLAT_USER_SS, 0);
    EXPECT_EQUAL(entry_flags & (FLAGS_DF | 0x200), 0x200); /* as if SYSCALL_MASK had DF, and nothing else */
    EXPECT_EQUAL(entry_cx, (ulong)callback); /* Xen comes by sysret */
    EXPECT_EQUAL(entry_r11, entry_flags);
    struct trap trap = user(by_syscall);
    EXPECT_EQUAL(trap.regs.cx, after);
    EXPECT_EQUAL(trap.regs.r11 & (FLAGS_DF | 0x200), FLAGS_DF | 0x200);
    EXPECT_OK(install(CALLBACKTYPE_syscall, CALLBACKF_mask_events, (ulong)callback));
    EXPECT_CALL(user(by_syscall), after, FLAT_USER_CS, FLAT_USER_SS, 1);
}

static void from_32_bits(int intel)
{
    ulong after = (ulong)code32 + sizeof(by_syscall);
    EXPECT_OK(install(CALLBACKTYPE_syscall, 0, (ulong)callback));
    EXPECT_OK(install(CALLBACKTYPE_syscall32, 0, 0));
    EXPECT_NONE(user32(by_syscall), TRAP_UD, FLAT_USER_CS32);
    EXPECT_OK(install(CALLBACKTYPE_syscall32, CALLBACKF_mask_events, (ulong)callback));
    if (intel) {
        EXPECT_NONE(user32(by_syscall), TRAP_UD, FLAT_USER_CS32);
        return;
    }
    EXPECT_CALL(user32(by_syscall), after, FLAT_USER_CS32, FLAT_USER_SS, 0); /* the other callback's flag decides */
    EXPECT_EQUAL(entry_flags & FLAGS_DF, 0);
    EXPECT_OK(install(CALLBACKTYPE_syscall, CALLBACKF_mask_events, 0));
    EXPECT_CALL(user32(by_syscall), after, FLAT_USER_CS32, FLAT_USER_SS, 1);
}

/* Intel's forgets where it came from (sysenter_entry). */
static void sysenter(int intel)
{
    EXPECT_OK(install(CALLBACKTYPE_sysenter, 0, (ulong)callback));
    if (intel) {
        EXPECT_CALL(user(by_sysenter), 0, 3, FLAT_USER_SS, 0);
        EXPECT_CALL(user32(by_sysenter), 0, 3, FLAT_USER_SS, 0);
    } else {
        EXPECT_NONE(user(by_sysenter), TRAP_UD, FLAT_USER_CS);
        EXPECT_NONE(user32(by_sysenter), TRAP_UD, FLAT_USER_CS32);
    }
}
#else
static void from_32_bits(int intel)
{
    ulong after = user_code() + sizeof(by_syscall);
    EXPECT_NONE(user(by_syscall), intel ? TRAP_UD : TRAP_GP, FLAT_USER_CS); /* compat_syscall */
    EXPECT_OK(install(CALLBACKTYPE_syscall32, 0, (ulong)callback));
    if (intel) {
        EXPECT_NONE(user(by_syscall), TRAP_UD, FLAT_USER_CS);
        return;
    }
    EXPECT_CALL(user(by_syscall), after, FLAT_USER_CS, FLAT_USER_SS, 0);
    EXPECT_EQUAL(entry_flags & FLAGS_DF, FLAGS_DF);
    EXPECT_OK(install(CALLBACKTYPE_syscall32, CALLBACKF_mask_events, (ulong)callback));
    EXPECT_CALL(user(by_syscall), after, FLAT_USER_CS, FLAT_USER_SS, 1);
    EXPECT_OK(install(CALLBACKTYPE_syscall32, 0, 0));
    EXPECT_NONE(user(by_syscall), TRAP_GP, FLAT_USER_CS);
}

static void sysenter(int intel)
{
    EXPECT_OK(install(CALLBACKTYPE_sysenter, 0, (ulong)callback));
    if (intel)
        EXPECT_CALL(user(by_sysenter), 0, 3, FLAT_USER_SS, 0);
    else
        EXPECT_NONE(user(by_sysenter), TRAP_UD, FLAT_USER_CS);
}
#endif

void conform(void)
{
    int intel = is_intel();
    user_code();
    events_enable();
#ifdef __x86_64__
    map_low();
    from_64_bits();
#endif
    from_32_bits(intel);
    sysenter(intel);
}
