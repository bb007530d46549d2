/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What the files of this kernel share. The ABI itself (numbers, structures) is in ../common/xen.h.
 */
#ifndef PVKERNEL_KERNEL_H
#define PVKERNEL_KERNEL_H

#include "segments.h"

#include "xen.h"

#define barrier() __asm__ volatile("" ::: "memory")
#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))
/* Whole pages that Xen will look at. It is pvkernel.lds that aligns them, as in 2007: see README. */
#define PAGE_ALIGNED_DATA __attribute__((section(".data.page_aligned")))

typedef u64 pte_t; /* PAE: eight bytes, also for a 32-bit kernel */
#define PTRS_PER_TABLE 512
#define TABLE_SPAN (PTRS_PER_TABLE * PAGE_SIZE) /* what one L1 table maps: 2 MiB */

/* hypercall.c */
extern char hypercall_page[]; /* head.S; Xen fills it in */
long hypercall(ulong nr, ulong a1, ulong a2, ulong a3, ulong a4, ulong a5);
#define HYPERCALL1(name, a) hypercall(HYPERCALL_##name, (ulong)(a), 0, 0, 0, 0)
#define HYPERCALL2(name, a, b) hypercall(HYPERCALL_##name, (ulong)(a), (ulong)(b), 0, 0, 0)
#define HYPERCALL3(name, a, b, c) hypercall(HYPERCALL_##name, (ulong)(a), (ulong)(b), (ulong)(c), 0, 0)
#define HYPERCALL4(name, a, b, c, d) \
    hypercall(HYPERCALL_##name, (ulong)(a), (ulong)(b), (ulong)(c), (ulong)(d), 0)
void shutdown(u32 reason) __attribute__((noreturn));
void panic(const char *why) __attribute__((noreturn));
void must(long rc, const char *what); /* panic unless rc is 0 */

/* multicall.c */
void mc_add(ulong op, ulong a1, ulong a2, ulong a3, ulong a4);
void mc_mmuext(u32 cmd, ulong arg1);
void mc_flush(const char *what);
extern ulong mc_batches, mc_calls;

/* console.c; ../common/print.c */
void console_init(void);
void console_write(const char *text, ulong count);
void console_drain(void);
void *memset(void *to, int byte, ulong count);
void *memcpy(void *to, const void *from, ulong count);
int strcmp(const char *a, const char *b);
int printf(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* main.c */
extern struct start_info *start_info;
extern volatile struct shared_info *shared_info;

/* cpu.c */
void cpuid(u32 leaf, u32 regs[4]);
int cpu_has_nx(void);
void cpu_report(void);
ulong read_cr0(void);

/* mm.c */
extern pte_t *init_l3;
extern ulong hypervisor_virt_start;
extern pte_t pte_nx; /* PTE_NX, or 0 on a processor without */
void mm_early_init(void);
void paging_init(void);
void map_shared_info(void);
void unmap_shared_info(void);
ulong virt_to_mfn(const void *address);
void *mfn_to_virt(ulong mfn);
u64 virt_to_machine(const void *address);
pte_t *pte_of(pte_t *l3, ulong va, int level);
pte_t mk_pte(const void *page, pte_t flags);
void mc_make_readonly(void *page); /* queued: see multicall.c */
void mc_make_writable(void *page);
#define PTE_KERNEL (PTE_PRESENT | PTE_ACCESSED | PTE_DIRTY)

/* pages.c */
void pages_init(ulong first, ulong mapped_end);
void pages_mapped(ulong end);
void *alloc_page(void);
void free_page(void *page);
ulong pages_free(void);

/* segments.c */
void segments_init(void);
u64 data_descriptor(ulong base, ulong limit);
void mc_load_tls(u64 descriptor);

/* traps.c; entry.S saves the registers in this order */
struct regs {
    ulong di, si, bp, unused_sp, bx, dx, cx, ax;
    ulong es, ds;
    ulong vector, error_code;
    ulong ip, cs, flags; /* bits 16-23 of cs: the event mask as it was; flags' IF: its negation */
    ulong sp, ss;        /* only when it came from ring 3 */
};
#define user_mode(regs) (((regs)->cs & 3) == 3)
void traps_init(void);
extern volatile ulong breakpoints;

/* events.c */
void events_init(void);
void irq_disable(void);
void irq_enable(void);
int irqs_disabled(void);
u32 bind_virq(u32 virq, void (*handler)(void));
void unbind(u32 port);
void upcall(void);
void events_report(void);

/* time.c */
u64 system_time(void);
void time_init(void);
void set_deadline(u64 when); /* 0: none */

/* user_memory.c */
struct mm {
    pte_t *l3, *l2_user, *l2_kernel, *l1;
};
void mm_create(struct mm *mm);
void mm_destroy(struct mm *mm);
int user_fault(struct mm *mm, ulong address, ulong error_code);
int user_range_okay(ulong address, ulong size);
extern ulong demand_faults, cow_faults;

/* sched.c */
struct task {
    ulong sp; /* of the kernel stack, while it does not run */
    u8 *stack;
    struct mm mm;
    u64 tls; /* its descriptor in the GDT */
    ulong gs;
    int pid;
    enum { UNUSED, RUNNABLE, SLEEPING, ZOMBIE } state;
    u64 wake_time;
    int status; /* what it exited with, or -1: killed */
    ulong preempted;
};
extern struct task *current;
extern volatile int need_resched;
void spawn(int pid);
void schedule(void);
void yield(void);
void sleep_until(u64 when);
void exit_task(int status) __attribute__((noreturn));
void run_until_all_exit(void);

/* suspend.c */
void suspend(void);

/* syscall.c */
void do_syscall(struct regs *regs);

#endif
