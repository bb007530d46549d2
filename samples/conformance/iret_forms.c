/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "iret to where it cannot go: bad selectors, VM86, flags that are not the guest's";

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
