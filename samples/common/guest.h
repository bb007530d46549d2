/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What every sample can lean on: a console, printf, hypercalls, traps that can be caught, events, page tables.
 * A sample provides main(); the runtime has everything set up by then, with events masked, and shuts down with
 * the reason that main returns (0: poweroff).
 */
#ifndef SAMPLES_GUEST_H
#define SAMPLES_GUEST_H

#include "xen.h"

#define PAGE_ALIGNED __attribute__((aligned(4096), section(".bss.page_aligned")))
#define barrier() __asm__ volatile("" ::: "memory")
#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))

/* start.S */
long hypercall(ulong nr, ulong a1, ulong a2, ulong a3, ulong a4, ulong a5);
#define HYPERCALL0(name) hypercall(HYPERCALL_##name, 0, 0, 0, 0, 0)
#define HYPERCALL1(name, a) hypercall(HYPERCALL_##name, (ulong)(a), 0, 0, 0, 0)
#define HYPERCALL2(name, a, b) hypercall(HYPERCALL_##name, (ulong)(a), (ulong)(b), 0, 0, 0)
#define HYPERCALL3(name, a, b, c) hypercall(HYPERCALL_##name, (ulong)(a), (ulong)(b), (ulong)(c), 0, 0)
#define HYPERCALL4(name, a, b, c, d) \
    hypercall(HYPERCALL_##name, (ulong)(a), (ulong)(b), (ulong)(c), (ulong)(d), 0)

/* main.c */
extern struct start_info *start_info;
extern struct shared_info *shared_info;
int main(void);
void shutdown(u32 reason) __attribute__((noreturn));
long command_line_number(const char *key, long otherwise);
int on_command_line(const char *word);

/* print.c */
void *memset(void *to, int byte, ulong count);
void *memcpy(void *to, const void *from, ulong count);
int memcmp(const void *a, const void *b, ulong count);
ulong strlen(const char *text);
int strcmp(const char *a, const char *b);
int strncmp(const char *a, const char *b, ulong count);
int printf(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* console.c */
void console_init(void);
void console_write(const char *text, ulong count);
void console_drain(void);
int console_read_line(char *line, ulong size);

/* traps.c */
struct regs {
#ifdef __x86_64__
    ulong r15, r14, r13, r12, r11, r10, r9, r8, bp, di, si, dx, cx, bx, ax;
#else
    ulong di, si, bp, sp_ignored, bx, dx, cx, ax;
#endif
    ulong vector, error_code;
    ulong ip, cs, flags;
    ulong sp, ss; /* on i386 only when the trap came from ring 3 */
};
#define NO_TRAP 0xffu
struct trap {
    ulong vector; /* NO_TRAP: nothing happened */
    ulong error_code, cr2, ip;
    struct regs regs;
};
#define TRAP_DE 0
#define TRAP_DB 1
#define TRAP_BP 3
#define TRAP_OF 4
#define TRAP_BR 5
#define TRAP_UD 6
#define TRAP_NM 7
#define TRAP_TS 10
#define TRAP_NP 11
#define TRAP_SS 12
#define TRAP_GP 13
#define TRAP_PF 14
#define TRAP_MF 16
#define TRAP_AC 17
void traps_init(void);
/* Run function(argument); if it traps, the rest of it is abandoned and the trap is returned. */
struct trap probe(void (*function)(void *), void *argument);
/* A handler for a vector, instead of the report-and-crash default; it may change *regs. NULL: the default. */
void trap_handler(unsigned vector, void (*handler)(struct regs *regs));

/* events.c */
void events_init(void);
void events_enable(void);
void events_disable(void);
void event_handler(u32 port, void (*handler)(u32 port));
void event_unmask(u32 port);
long event_bind_virq(u32 virq, void (*handler)(u32 port));
void event_wait(void); /* block until an event has been handled; called, and returns, masked */
u64 system_time(void); /* nanoseconds since boot */
extern volatile ulong upcalls;

/* memory.c */
#if PT_LEVELS == 2
typedef u32 pte_t;
#define PT_SHIFT 10
#else
typedef u64 pte_t;
#define PT_SHIFT 9
#endif
void memory_init(void);
void *alloc_page(void);
ulong pfn_to_mfn(ulong pfn);
ulong mfn_to_pfn(ulong mfn);
ulong virt_to_mfn(const void *address);
u64 virt_to_machine(const void *address);
void *mfn_to_virt(ulong mfn);
/* The entry that maps `address` at `level` (1: the leaf), or NULL where a table above it is missing. */
pte_t *pte_of(const void *address, int level);
long mmu_update_one(pte_t *entry, pte_t value, unsigned command);
long mmuext(unsigned cmd, ulong arg1, ulong arg2);
long set_va(const void *address, pte_t value, ulong flags);
/* Map the page of `address` read-only or writable, as page tables and descriptor tables ask. */
long make_readonly(void *address);
long make_writable(void *address);

/* user.c */
ulong user_code(void); /* where run_user puts its code */
struct trap run_user(const void *code, ulong size, ulong ax);

/* smp.c */
struct vcpu_guest_context *vcpu_context(void (*function)(void), void *stack_end);
long vcpu_start(unsigned id, void (*function)(void), void *stack_end);

#endif
