/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A 64-bit kernel's hypercall is a `syscall`, which saves neither CS nor SS: Xen's lstar_enter has FLAT_KERNEL_CS64 and
 * FLAT_KERNEL_SS for what it came from, and goes back by sysret, with RCX = RIP and R11 = RFLAGS. A 32-bit kernel's
 * is an interrupt, and goes back to all that it had.
 */
#include "conform.h"

const char test_title[] = "What a hypercall leaves of the caller's segments, flags and registers";

#define DESC_CODE 1 /* slots of our GDT */
#define DESC_DATA 2
#define DESC_ABSENT 3

static u64 *gdt;

static void own_gdt(u64 code, u64 data)
{
    gdt = alloc_page();
    gdt[DESC_CODE] = code;
    gdt[DESC_DATA] = data;
    gdt[DESC_ABSENT] = data & ~(1ull << 47);
    EXPECT_OK(make_readonly(gdt));
    ulong frame = virt_to_mfn(gdt);
    EXPECT_OK(HYPERCALL2(set_gdt, &frame, 512));
}

#define ARITHMETIC 0x8d5ul
#define DIRECTION 0x400ul

#ifdef __x86_64__
#define CS_OURS (DESC_CODE << 3 | 3)
#define SS_OURS (DESC_DATA << 3 | 3)

struct seen {
    ulong cs, ss, rip, rcx, r11, flags, rax;
};

/* Make hypercall `nr` with two arguments, CS, SS and flags being what is asked for. */
static struct seen call(ulong nr, ulong a, ulong b, ulong cs, ulong ss, ulong flags)
{
    struct seen seen;
    __asm__ volatile("movq %[ss], %%rcx\n\t movw %%cx, %%ss\n\t"
                     "pushq %[cs]\n\t leaq 1f(%%rip), %%rcx\n\t pushq %%rcx\n\t lretq\n"
                     "1: pushq %[flags]\n\t popfq\n\t"
                     "syscall\n"
                     "2: movq %%rcx, %[rcx]\n\t movq %%r11, %[r11]\n\t"
                     "pushfq\n\t popq %[seen_flags]\n\t cld\n\t"
                     "movq %%cs, %%rcx\n\t movq %%rcx, %[seen_cs]\n\t"
                     "movq %%ss, %%rcx\n\t movq %%rcx, %[seen_ss]\n\t"
                     "leaq 2b(%%rip), %%rcx\n\t movq %%rcx, %[rip]\n\t"
                     "movw $0xe02b, %%cx\n\t movw %%cx, %%ss\n\t"
                     "pushq $0xe033\n\t leaq 3f(%%rip), %%rcx\n\t pushq %%rcx\n\t lretq\n"
                     "3:"
                     : [rcx] "=m"(seen.rcx), [r11] "=m"(seen.r11), [seen_flags] "=m"(seen.flags),
                       [seen_cs] "=m"(seen.cs), [seen_ss] "=m"(seen.ss), [rip] "=m"(seen.rip), "=a"(seen.rax)
                     : "a"(nr), "D"(a), "S"(b), [cs] "r"(cs), [ss] "r"(ss), [flags] "r"(flags)
                     : "rcx", "rdx", "r8", "r9", "r10", "r11", "memory");
    return seen;
}

#define EXPECT_FLAT(seen)                                                          \
    do {                                                                           \
        count_refusal(); /* the segments are not kept */                           \
        EXPECT_EQUAL((seen).cs, FLAT_KERNEL_CS);                                   \
        count_refusal();                                                           \
        EXPECT_EQUAL((seen).ss, FLAT_KERNEL_SS);                                   \
        count_refusal(); /* nor are these registers */                             \
        EXPECT_EQUAL((seen).rcx, (seen).rip);                                      \
        count_refusal();                                                           \
        EXPECT_EQUAL((seen).r11, (seen).flags);                                    \
    } while (0)

static volatile ulong frame_cs, frame_ss;

static void debug(struct regs *regs)
{
    frame_cs = regs->cs, frame_ss = regs->ss;
    regs->flags &= ~0x100ul;
}

static volatile u32 upcalls_seen;

static void on_event(u32 port)
{
    (void)port;
    upcalls_seen++;
}

static void segments_differ(void)
{
    static const struct {
        u16 cs, ss;
    } pairs[] = { { FLAT_KERNEL_CS, FLAT_KERNEL_SS }, { CS_OURS, FLAT_KERNEL_SS }, { FLAT_KERNEL_CS, SS_OURS }, { CS_OURS, SS_OURS } };
    for (u32 i = 0; i < ARRAY_SIZE(pairs); i++) {
        struct seen seen = call(HYPERCALL_xen_version, XENVER_version, 0, pairs[i].cs, pairs[i].ss, 0x202);
        EXPECT_FLAT(seen);
        EXPECT_EQUAL(seen.rax >> 16, 4); /* Xen 4 */
        seen = call(63, 0, 0, pairs[i].cs, pairs[i].ss, 0x202); /* no such hypercall */
        EXPECT_FLAT(seen);
        count_refusal();
        EXPECT_EQUAL(seen.rax, -ENOSYS);
    }
}

static void flags_are_kept(void)
{
    static const ulong some[] = { 0, ARITHMETIC, DIRECTION, 0x41, 0x890, 0x4 };
    for (u32 i = 0; i < ARRAY_SIZE(some); i++) {
        struct seen seen = call(HYPERCALL_xen_version, XENVER_version, 0, CS_OURS, FLAT_KERNEL_SS, 0x202 | some[i]);
        EXPECT_FLAT(seen);
        EXPECT_EQUAL(seen.flags & (ARITHMETIC | DIRECTION), some[i]);
        EXPECT_EQUAL(seen.r11 & (ARITHMETIC | DIRECTION | 0x200), some[i] | 0x200);
    }
}

/* An event that a hypercall brings about is delivered on its way out: the frame is the hypercall's. */
static void a_frame_on_the_way_out(void)
{
    struct {
        u32 vcpu, port;
    } ipi = { 0, 0 };
    EXPECT_OK(HYPERCALL2(event_channel_op, EVTCHNOP_bind_ipi, &ipi));
    u32 send[1] = { ipi.port };
    event_handler(ipi.port, on_event);
    event_unmask(ipi.port);
    trap_handler(TRAP_DB, debug);
    events_enable();
    u32 before = upcalls_seen;
    struct seen seen = call(HYPERCALL_event_channel_op, EVTCHNOP_send, (ulong)send, CS_OURS, SS_OURS, 0x202 | ARITHMETIC);
    EXPECT_EQUAL(upcalls_seen, before + 1);
    EXPECT_FLAT(seen);
    EXPECT_EQUAL(seen.rax, 0);
    EXPECT_EQUAL(seen.flags & ARITHMETIC, ARITHMETIC);
    events_disable();

    /* The trap flag: #DB behind the hypercall, on a frame with the flat segments. */
    seen = call(HYPERCALL_xen_version, XENVER_version, 0, CS_OURS, SS_OURS, 0x302);
    count_refusal();
    EXPECT_EQUAL(frame_cs & 0xffff, FLAT_KERNEL_CS & ~3u);
    count_refusal();
    EXPECT_EQUAL(frame_ss & 0xffff, FLAT_KERNEL_SS);
    trap_handler(TRAP_DB, NULL);
}

static void kinds(void)
{
    own_gdt(0x00affb000000ffffull, 0x00cff3000000ffffull);
    segments_differ();
    flags_are_kept();
    a_frame_on_the_way_out();
}
#else
#define CS_OURS (DESC_CODE << 3 | 1)
#define SS_OURS (DESC_DATA << 3 | 1)
#define ABSENT (DESC_ABSENT << 3 | 1)

struct seen {
    ulong cs, ss, ds, flags, ax, cx;
};

/* Make hypercall `nr` with two arguments, the segments and flags being what is asked for. */
static struct seen call(ulong nr, ulong a, ulong b, ulong cs, ulong ss, ulong flags)
{
    struct seen seen = { cs, ss, ss, flags, nr, 0 };
    void *at = &seen;
    __asm__ volatile("pushl %%ebx\n\t pushl %%ebp\n\t movl %%eax, %%ebp\n\t"
                     "movl 8(%%ebp), %%edx\n\t movl 4(%%ebp), %%ecx\n\t movl %%edx, %%ds\n\t movl %%ecx, %%ss\n\t"
                     "pushl (%%ebp)\n\t pushl $1f\n\t lretl\n"
                     "1: movl %%edi, %%ebx\n\t movl %%esi, %%ecx\n\t movl 16(%%ebp), %%eax\n\t"
                     "pushl 12(%%ebp)\n\t popfl\n\t"
                     "int $0x82\n\t"
                     "pushfl\n\t popl 12(%%ebp)\n\t cld\n\t"
                     "movl %%eax, 16(%%ebp)\n\t movl %%ecx, 20(%%ebp)\n\t"
                     "movl %%cs, %%ecx\n\t movl %%ecx, (%%ebp)\n\t"
                     "movl %%ss, %%ecx\n\t movl %%ecx, 4(%%ebp)\n\t"
                     "movl %%ds, %%ecx\n\t movl %%ecx, 8(%%ebp)\n\t"
                     "movl $0xe021, %%ecx\n\t movl %%ecx, %%ss\n\t movl %%ecx, %%ds\n\t"
                     "pushl $0xe019\n\t pushl $2f\n\t lretl\n"
                     "2: popl %%ebp\n\t popl %%ebx"
                     : "+a"(at)
                     : "D"(a), "S"(b)
                     : "ecx", "edx", "memory", "cc");
    return seen;
}

static void load_absent(void *selector)
{
    load_gs(selector);
}

static void kinds(void)
{
    own_gdt(0x00cfbb000000ffffull, 0x00cfb3000000ffffull);
    static const struct {
        u16 cs, ss;
    } pairs[] = { { FLAT_KERNEL_CS, FLAT_KERNEL_SS }, { CS_OURS, FLAT_KERNEL_SS }, { FLAT_KERNEL_CS, SS_OURS }, { CS_OURS, SS_OURS } };
    for (u32 i = 0; i < ARRAY_SIZE(pairs); i++) {
        ulong flags = i & 1 ? 0x202 | ARITHMETIC | DIRECTION : 0x202;
        struct seen seen = call(HYPERCALL_xen_version, XENVER_version, 7, pairs[i].cs, pairs[i].ss, flags);
        EXPECT_EQUAL(seen.cs, pairs[i].cs);
        EXPECT_EQUAL(seen.ss, pairs[i].ss);
        EXPECT_EQUAL(seen.ds, pairs[i].ss);
        EXPECT_EQUAL(seen.flags & (ARITHMETIC | DIRECTION | 0x200), flags & ~2ul);
        EXPECT_EQUAL(seen.cx, 7); /* no register is lost */
        EXPECT_EQUAL(seen.ax >> 16, 4);
        for (ulong nr = 50; nr < 64; nr++) { /* numbers that no hypercall has lose nothing either */
            seen = call(nr, 0, 7, pairs[i].cs, pairs[i].ss, flags);
            count_refusal();
            EXPECT(seen.ax == (ulong)-ENOSYS && seen.cs == pairs[i].cs && seen.ss == pairs[i].ss && seen.cx == 7);
        }
    }
    EXPECT_TRAP(load_absent, ABSENT, TRAP_NP, ABSENT & ~3);
    EXPECT_TRAP(load_absent, 0x40 | 1, TRAP_GP, 0x40);
}
#endif

void conform(void)
{
    kinds();
}
