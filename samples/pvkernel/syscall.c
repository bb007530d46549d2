/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * System calls: `int $0x80`, number in eax, arguments in ebx, ecx and edx, result in eax; numbers are Linux's.
 */
#include "kernel.h"

#define SYS_exit 1
#define SYS_write 4
#define SYS_time 13
#define SYS_getpid 20
#define SYS_sched_yield 158
#define SYS_nanosleep 162
#define SYS_set_thread_area 243
#define TLS_LIMIT 0xfff

static u64 milliseconds(void)
{
    return (system_time() >> 6) * 274878 >> 32; /* 64 / 1000000, without a 64-bit division */
}

static long sys_write(ulong buffer, ulong size)
{
    if (!user_range_okay(buffer, size))
        return -EFAULT;
    console_write((const char *)buffer, size); /* in the process's own address space: it is just there */
    return (long)size;
}

/* A segment for thread-local storage at `base`; its selector. It is loaded with each switch to this process. */
static long sys_set_thread_area(ulong base)
{
    irq_disable();
    current->tls = data_descriptor(base, TLS_LIMIT);
    mc_load_tls(current->tls);
    mc_flush("update_descriptor");
    irq_enable();
    return TLS_SELECTOR;
}

void do_syscall(struct regs *regs)
{
    switch (regs->ax) {
    case SYS_exit:
        exit_task((int)(regs->bx & 0xff));
    case SYS_write:
        regs->ax = (ulong)sys_write(regs->cx, regs->dx);
        break;
    case SYS_time:
        regs->ax = (ulong)milliseconds();
        break;
    case SYS_getpid:
        regs->ax = (ulong)current->pid;
        break;
    case SYS_sched_yield:
        yield();
        regs->ax = 0;
        break;
    case SYS_nanosleep:
        sleep_until(system_time() + regs->bx);
        regs->ax = 0;
        break;
    case SYS_set_thread_area:
        regs->ax = (ulong)sys_set_thread_area(regs->bx);
        break;
    default:
        regs->ax = (ulong)-ENOSYS;
    }
}
