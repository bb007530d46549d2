/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A kernel with a bug: it runs three tasks by a timer, and dies long after the mistake was made. docs/backwards.md finds
 * it with gdb, from the crash back. Look there before you look for it here.
 */
#include "guest.h"

#define TICK_NS 10000000ull
#define DUE_EVERY 8 /* ticks: how often a task that sleeps has its turn */

struct task {
    char name[8];
    void (*run)(struct task *task);
    u32 due; /* the tick of its next turn */
    u32 runs;
};

static struct task tasks[3];
static volatile u32 ticks;

static void count(struct task *task)
{
    task->runs++;
}

static void report(struct task *task)
{
    task->runs++;
    printf("tick %u: %s had %u turns\n", ticks, task->name, task->runs);
}

static void set_name(struct task *task, const char *name)
{
    char *to = task->name;
    while (*name)
        *to++ = *name++;
    *to = 0;
}

static void add(struct task *task, const char *name, void (*run)(struct task *task))
{
    set_name(task, name);
    task->run = run;
    task->due = 1 + (u32)(task - tasks);
}

/* A task that has proved itself is given a better name. */
static void promote(struct task *task)
{
    if (task->runs == 2)
        set_name(task, "inspector");
}

static void run_due_tasks(void)
{
    for (struct task *task = tasks; task < tasks + ARRAY_SIZE(tasks); task++) {
        if (task->due != ticks)
            continue;
        task->due = ticks + DUE_EVERY;
        task->run(task);
        if (task->run == report)
            promote(task);
    }
}

static void on_timer(u32 port)
{
    (void)port;
    ticks++;
}

static void sleep_until(u64 deadline)
{
    u32 before = ticks;
    HYPERCALL2(set_timer_op, deadline, deadline >> 32);
    while (ticks == before)
        event_wait();
}

int main(void)
{
    add(&tasks[0], "count", count);
    add(&tasks[1], "report", report);
    add(&tasks[2], "idle", count);
    if (event_bind_virq(VIRQ_TIMER, on_timer) < 0)
        return SHUTDOWN_crash;
    u64 start = system_time();
    for (u32 tick = 1; tick <= 100; tick++) {
        sleep_until(start + tick * TICK_NS);
        run_due_tasks();
    }
    printf("a hundred ticks, and no crash\n");
    return SHUTDOWN_poweroff;
}
