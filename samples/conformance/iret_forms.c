/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "iret to where it cannot go, bad selectors, VM86, flags that are not the guest's; and back by sysret";

void enter_regs(struct regs *regs) __attribute__((noreturn));

static void go(void *regs)
{
    enter_regs(regs);
}

static ulong flags_seen;
static u8 stack[2 * PAGE_SIZE] PAGE_ALIGNED;

static void show_flags(void)
{
    ulong flags;
#ifdef __x86_64__
    __asm__ volatile("pushfq; popq %0" : "=r"(flags));
#else
    __asm__ volatile("pushfl; popl %0" : "=r"(flags));
#endif
    flags_seen = flags;
    __asm__ volatile("ud2");
}

static struct trap iret(ulong cs, ulong flags, ulong ss)
{
    /* Ring 1 goes on on the stack that its frame was on: not ours, where the return from probe() lies. */
    struct regs *regs = (struct regs *)(stack + PAGE_SIZE);
    memset(regs, 0, sizeof(*regs));
    regs->ip = (ulong)show_flags;
    regs->cs = cs;
    regs->flags = flags;
    regs->sp = (ulong)(stack + sizeof(stack) - sizeof(ulong));
    regs->ss = ss;
    return probe(go, regs);
}

#define FLAGS_TF 0x100
#define FLAGS_IF 0x200
#define FLAGS_IOPL 0x3000
#define FLAGS_VM 0x20000

#define EXPECT_IRET(cs, flags, ss, wanted, error)            \
    do {                                                     \
        struct trap trap = iret(cs, flags, ss);              \
        count_refusal();                                     \
        EXPECT_EQUAL(trap.vector, wanted);                   \
        EXPECT_EQUAL(trap.error_code, error);                \
    } while (0)

#ifdef __x86_64__
#define VGCF_IN_SYSCALL (1 << 8)
#define FLAGS_DF 0x400
#define BIT_40 (1ul << 40)

/* What the iret hypercall reads at the stack pointer (struct iret_context). */
struct context {
    ulong ax, r11, cx, flags, ip, cs, rflags, sp, ss;
};

extern u8 landing[], called_from[];
__asm__("landing: nop; ud2");

static void leave(void *context)
{
    __asm__ volatile("movq %0, %%rsp; xorl %%r11d, %%r11d; movl $23, %%eax; syscall; called_from: ud2" : : "r"(context));
}

static struct trap sysret(ulong ip, ulong cs, ulong rflags, ulong ss)
{
    struct context context = { 0x1234567, 1, 2, VGCF_IN_SYSCALL, ip, cs, rflags, (ulong)(stack + PAGE_SIZE), ss };
    return probe(leave, &context);
}

/* Flat segments, whatever the frame says; rcx is where, and r11 the flags (do_iret, restore_all_guest). */
#define EXPECT_SYSRET(trap, where, cs_shown)                    \
    do {                                                        \
        EXPECT_EQUAL((trap).vector, TRAP_UD);                   \
        EXPECT_EQUAL((trap).regs.ax, 0x1234567);                \
        EXPECT_EQUAL((trap).regs.cx, where);                    \
        EXPECT_EQUAL((trap).regs.cs & 0xffff, cs_shown);        \
        EXPECT_EQUAL((trap).regs.ss & 0xffff, FLAT_KERNEL_SS);  \
        EXPECT_EQUAL((trap).regs.sp, (ulong)(stack + PAGE_SIZE)); \
    } while (0)

static void by_sysret(void)
{
    static const u8 undefined[] = { 0x90, 0x0f, 0x0b }; /* nop; ud2 */
    const ulong kernel = (ulong)landing, user = user_code(), kernel_cs = FLAT_KERNEL_CS & ~3, compat_cs = FLAT_USER_CS32;
    struct trap trap = sysret(kernel, kernel_cs, FLAGS_IF, FLAT_KERNEL_SS);
    EXPECT_SYSRET(trap, kernel, kernel_cs);
    EXPECT_EQUAL(trap.regs.r11, FLAGS_IF);
    trap = sysret(kernel, 0x7008, FLAGS_IF | FLAGS_DF | FLAGS_IOPL | FLAGS_VM | BIT_40, 0x1234);
    EXPECT_SYSRET(trap, kernel, kernel_cs);
    EXPECT_EQUAL(trap.regs.r11, FLAGS_IF | FLAGS_DF | BIT_40);
    EXPECT_EQUAL(trap.regs.flags & (FLAGS_IOPL | FLAGS_VM | FLAGS_DF), FLAGS_DF);
    trap = sysret(kernel, kernel_cs, 0, FLAT_KERNEL_SS);
    EXPECT_EQUAL(trap.regs.r11, FLAGS_IF); /* the CPU's is always set */
    EXPECT_EQUAL(shared_info->vcpu_info[0].evtchn_upcall_mask, 1);
    memcpy((void *)user, undefined, sizeof(undefined));
    trap = sysret(user, 0x7008 | 3, FLAGS_IF, 0);
    EXPECT_SYSRET(trap, user, FLAT_USER_CS);

    /* The flat 32-bit code segment is told apart: sysretl, and no more than 32 bits of the address. */
    trap = sysret(kernel, compat_cs & ~3, FLAGS_IF, FLAT_KERNEL_SS);
    EXPECT_EQUAL(trap.vector, TRAP_PF);
    EXPECT_EQUAL(trap.ip, (u32)kernel);
    EXPECT_EQUAL(trap.cr2, (u32)kernel);
    EXPECT_EQUAL(trap.regs.cs & 0xffff, compat_cs & ~3);
    EXPECT_EQUAL(trap.regs.cx, kernel);

    /* TF traps at once after sysret, and after an instruction after iret. */
    trap = sysret(kernel, kernel_cs, FLAGS_IF | FLAGS_TF, FLAT_KERNEL_SS);
    EXPECT_EQUAL(trap.vector, TRAP_DB);
    EXPECT_EQUAL(trap.ip, kernel);
    struct context context = { 0, 0, 0, 0, kernel, kernel_cs, FLAGS_IF | FLAGS_TF, (ulong)(stack + PAGE_SIZE), FLAT_KERNEL_SS };
    trap = probe(leave, &context);
    EXPECT_EQUAL(trap.vector, TRAP_DB);
    EXPECT_EQUAL(trap.ip, kernel + 1);

    /* No sysret to an address that is not canonical: iret, which takes the frame's segments. */
    trap = sysret(1ul << 47, kernel_cs, FLAGS_IF, FLAT_KERNEL_SS);
    count_refusal();
    EXPECT_EQUAL(trap.vector, TRAP_GP);
    EXPECT_EQUAL(trap.error_code, 0);
    EXPECT_EQUAL(trap.ip, 1ul << 47);
    EXPECT_EQUAL(trap.regs.cx, 1ul << 47);
    EXPECT_EQUAL(trap.regs.r11, FLAGS_IF);
}

/* An event that comes first sees the context as it is so far: the frame's segments, the hypercall's rcx. */
static void an_event_before_sysret(void)
{
    struct { u32 vcpu, port; } ipi = { 0, 0 };
    EXPECT_OK(HYPERCALL2(event_channel_op, EVTCHNOP_bind_ipi, &ipi));
    event_unmask(ipi.port);
    events_disable();
    EXPECT_OK(HYPERCALL2(event_channel_op, EVTCHNOP_send, &ipi.port));
    ulong before = upcalls;
    struct trap trap = sysret((ulong)landing, FLAT_KERNEL_CS & ~3, FLAGS_IF, FLAT_KERNEL_SS);
    EXPECT_SYSRET(trap, (ulong)called_from, FLAT_KERNEL_CS & ~3);
    EXPECT_EQUAL(trap.regs.r11 & (FLAGS_IF | FLAGS_TF), FLAGS_IF);
    EXPECT_EQUAL(upcalls, before + 1);
    events_disable();
    EXPECT_OK(HYPERCALL2(event_channel_op, EVTCHNOP_send, &ipi.port));
    trap = sysret((ulong)landing, 0x7008, FLAGS_IF, FLAT_KERNEL_SS); /* the handler's iret cannot go there */
    count_refusal();
    EXPECT_EQUAL(trap.vector, TRAP_GP);
    EXPECT_EQUAL(trap.error_code, 0x7008);
    EXPECT_EQUAL(trap.ip, (ulong)landing);
    EXPECT_EQUAL(upcalls, before + 2);
}
#endif

void conform(void)
{
    volatile struct vcpu_info *vcpu = &shared_info->vcpu_info[0];
    struct trap trap;
    user_code(); /* gives Xen a kernel stack, and on 64 bits user page tables */

    /* IF becomes the event mask, IOPL is dropped, TF is the guest's own. */
    trap = iret(FLAT_KERNEL_CS, FLAGS_IF | FLAGS_IOPL, FLAT_KERNEL_SS);
    EXPECT_EQUAL(trap.vector, TRAP_UD);
    EXPECT_EQUAL(flags_seen & FLAGS_IOPL, 0);
    EXPECT_EQUAL(flags_seen & FLAGS_IF, FLAGS_IF); /* the CPU's is always set */
    EXPECT_EQUAL(vcpu->evtchn_upcall_mask, 0);
    trap = iret(FLAT_KERNEL_CS, 0, FLAT_KERNEL_SS);
    EXPECT_EQUAL(trap.vector, TRAP_UD);
    EXPECT_EQUAL(flags_seen & FLAGS_IF, FLAGS_IF);
    EXPECT_EQUAL(trap.regs.flags & FLAGS_IF, 0); /* the frame shows the mask */
    EXPECT_EQUAL(vcpu->evtchn_upcall_mask, 1);
    EXPECT_IRET(FLAT_KERNEL_CS, FLAGS_TF, FLAT_KERNEL_SS, TRAP_DB, 0);

    /* A selector that does not load is the fault of the context that was entered (.Lft0, handle_exception). */
    EXPECT_IRET(0x7008 | 3, FLAGS_IF, FLAT_USER_SS, TRAP_GP, 0x7008);
    EXPECT_IRET(FLAT_USER_SS, FLAGS_IF, FLAT_USER_SS, TRAP_GP, FLAT_USER_SS & ~3);
    EXPECT_IRET(FLAT_USER_CS, FLAGS_IF, 0x7008 | 3, TRAP_GP, 0x7008);
    EXPECT_IRET(FLAT_USER_CS, FLAGS_IF, FLAT_USER_CS, TRAP_GP, FLAT_USER_CS & ~3);
#ifdef __x86_64__
    /* compat_iret's VM86 rule has no counterpart: the flag is dropped (do_iret). */
    trap = iret(FLAT_KERNEL_CS, FLAGS_IF | FLAGS_VM, FLAT_KERNEL_SS);
    EXPECT_EQUAL(trap.vector, TRAP_UD);
    EXPECT_EQUAL(flags_seen & FLAGS_VM, 0);
    by_sysret();
    an_event_before_sysret();
#else
    EXPECT_IRET(0x7008 | 1, FLAGS_IF, 0, TRAP_GP, 0x7008); /* ring 1 takes no ss from the frame */
    EXPECT_IRET(FLAT_USER_CS, FLAGS_IF, 0, TRAP_GP, 0);
    /* VM86: #GP at its first instruction, on the frame as it is (compat_iret). */
    trap = iret(0x1234, FLAGS_IF | FLAGS_VM, 0x2345);
    count_refusal();
    EXPECT_EQUAL(trap.vector, TRAP_GP);
    EXPECT_EQUAL(trap.error_code, 0);
    EXPECT_EQUAL(trap.ip, (ulong)show_flags);
    EXPECT_EQUAL(trap.regs.cs & 0xffff, 0x1234);
    EXPECT_EQUAL(trap.regs.flags & FLAGS_VM, FLAGS_VM);
    EXPECT_EQUAL(trap.regs.ss & 0xffff, 0x2345);
#endif
    events_disable();
}
