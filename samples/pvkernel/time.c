/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Time: Xen publishes the system time of some moment and the TSC's rate, we add what the TSC counted since. The
 * timer is one-shot, an absolute time in nanoseconds; it comes as the virtual interrupt VIRQ_TIMER.
 */
#include "kernel.h"

static u64 read_tsc(void)
{
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (u64)high << 32 | low;
}

u64 system_time(void)
{
    volatile struct vcpu_time_info *time = &shared_info->vcpu_info[0].time;
    u32 version;
    u64 now;
    do { /* an odd version: Xen is writing; a changed one: it has written */
        version = time->version;
        barrier();
        u64 delta = read_tsc() - time->tsc_timestamp;
        delta = time->tsc_shift < 0 ? delta >> -time->tsc_shift : delta << time->tsc_shift;
        u32 mul = time->tsc_to_system_mul;
        now = time->system_time + (((delta & 0xffffffff) * mul) >> 32) + (delta >> 32) * mul;
        barrier();
    } while ((version & 1) || version != time->version);
    return now;
}

/* A vCPU starts with a periodic tick, which we have no use for. */
void time_init(void)
{
    HYPERCALL3(vcpu_op, VCPUOP_stop_periodic_timer, 0, 0);
}

void set_deadline(u64 when)
{
    must(HYPERCALL2(set_timer_op, when, when >> 32), "set_timer_op");
}
