/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Two processes and an idle task, which is the boot stack's: it runs when nobody else can, and blocks in Xen.
 *
 * MULTICALL BATCHING at its best: what a context switch asks of Xen is the new kernel stack (esp0), the new TLS
 * descriptor, and the new base pointer. Queued, they are one hypercall instead of three.
 */
#include "kernel.h"

#define TASKS 2
#define SLICE_NS 10000000ull
#define USER_STACK_TOP 0x08200000ul
#define FLAGS_IF 0x200

extern u8 user_start[], return_from_trap[];
void switch_stacks(ulong *save, ulong load);

static struct task tasks[TASKS], idle;
struct task *current = &idle;
volatile int need_resched;
static u64 slice_end;
static ulong switches, switch_batches, switch_calls;

/* A task that has never run: as if it had been interrupted before its first instruction. */
void spawn(int pid)
{
    struct task *task = &tasks[pid - 1];
    mm_create(&task->mm);
    task->pid = pid;
    task->stack = alloc_page();
    struct regs *regs = (struct regs *)(task->stack + PAGE_SIZE) - 1;
    *regs = (struct regs){
        .ds = USER_DS,
        .es = USER_DS,
        .ip = (ulong)user_start,
        .cs = USER_CS,
        .flags = FLAGS_IF, /* to the iret hypercall: events unmasked */
        .sp = USER_STACK_TOP,
        .ss = USER_DS,
    };
    ulong *sp = (ulong *)regs;
    *--sp = (ulong)return_from_trap; /* where switch_stacks returns to, and the four registers it pops */
    task->sp = (ulong)(sp - 4);
    task->state = RUNNABLE;
}

static struct task *pick(void)
{
    ulong from = current == &idle ? 0 : (ulong)current->pid;
    for (ulong i = 0; i < TASKS; i++) {
        struct task *task = &tasks[(from + i) % TASKS];
        if (task->state == RUNNABLE)
            return task;
    }
    return &idle;
}

static void wake_sleepers(u64 now)
{
    for (ulong i = 0; i < TASKS; i++)
        if (tasks[i].state == SLEEPING && tasks[i].wake_time <= now) {
            tasks[i].state = RUNNABLE;
            need_resched = 1;
        }
}

/* The earliest of what is due: the end of the slice, the end of somebody's sleep. */
static void program_timer(const struct task *running)
{
    u64 when = running == &idle ? 0 : slice_end;
    for (ulong i = 0; i < TASKS; i++)
        if (tasks[i].state == SLEEPING && (!when || tasks[i].wake_time < when))
            when = tasks[i].wake_time;
    set_deadline(when);
}

static void on_timer(void)
{
    u64 now = system_time();
    wake_sleepers(now);
    if (now >= slice_end) {
        slice_end = now + SLICE_NS;
        need_resched = 1;
    }
    program_timer(current);
}

static void switch_to(struct task *prev, struct task *next)
{
    ulong batches = mc_batches, calls = mc_calls;
    __asm__ volatile("movl %%gs, %0" : "=r"(prev->gs));
    __asm__ volatile("movl %0, %%gs" : : "r"(0)); /* its descriptor is about to go */
    mc_add(HYPERCALL_stack_switch, KERNEL_DS, (ulong)next->stack + PAGE_SIZE, 0, 0);
    mc_load_tls(next->tls);
    mc_mmuext(MMUEXT_NEW_BASEPTR, virt_to_mfn(next->mm.l3 ? next->mm.l3 : init_l3));
    mc_flush("context switch");
    switches++;
    switch_batches += mc_batches - batches;
    switch_calls += mc_calls - calls;
    current = next;
    switch_stacks(&prev->sp, next->sp);
    /* Back, some time later, as `prev`: whoever switched to us has set `current` and our address space. */
    __asm__ volatile("movl %0, %%gs" : : "r"(prev->gs));
}

/* With events masked; returns when this task runs again. */
void schedule(void)
{
    struct task *prev = current, *next = pick();
    need_resched = 0;
    slice_end = system_time() + SLICE_NS;
    program_timer(next);
    if (next != prev)
        switch_to(prev, next);
}

void yield(void)
{
    irq_disable();
    schedule();
    irq_enable();
}

void sleep_until(u64 when)
{
    irq_disable();
    current->wake_time = when;
    current->state = SLEEPING;
    schedule();
    irq_enable();
}

void exit_task(int status)
{
    irq_disable();
    current->status = status;
    current->state = ZOMBIE;
    schedule();
    panic("a dead process runs");
}

static void reap(struct task *task)
{
    mm_destroy(&task->mm);
    free_page(task->stack);
    printf("process %d: %s, %s\n", task->pid, task->status < 0 ? "killed" : "exited",
           task->preempted ? "after having been preempted" : "never preempted");
    task->state = UNUSED;
    task->mm.l3 = NULL;
}

/* How many are left, after burying the dead. */
static int bury(void)
{
    int left = 0;
    for (ulong i = 0; i < TASKS; i++) {
        if (tasks[i].state == ZOMBIE)
            reap(&tasks[i]);
        left += tasks[i].state != UNUSED;
    }
    return left;
}

/* The idle task: while there is nobody to run, wait for an event. */
void run_until_all_exit(void)
{
    time_init();
    u32 port = bind_virq(VIRQ_TIMER, on_timer);
    for (schedule(); bury(); schedule())
        if (pick() == &idle) {
            HYPERCALL2(sched_op, SCHEDOP_block, 0); /* unmasks events, in one step with going to sleep */
            irq_disable();
        }
    set_deadline(0);
    unbind(port);
    printf("multicall: a context switch is %lu hypercalls in %lu\n", switch_calls / switches,
           switch_batches / switches);
}
