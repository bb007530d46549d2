/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Timers: set_timer_op, periodic and singleshot, and the clock they go by";

static volatile u32 fired;

static void on_timer(u32 port)
{
    (void)port;
    fired++;
}

static long set_timer(u64 deadline)
{
#ifdef __x86_64__
    return HYPERCALL1(set_timer_op, deadline);
#else
    return HYPERCALL2(set_timer_op, deadline, deadline >> 32);
#endif
}

#define MILLISECOND 1000000ull

void conform(void)
{
    u64 start = system_time(), period = 2 * MILLISECOND, deadline;
    volatile struct vcpu_time_info *time = &shared_info->vcpu_info[0].time;

    EXPECT(time->tsc_to_system_mul != 0);
    EXPECT_EQUAL(time->version & 1, 0);
    EXPECT(system_time() >= start);
    EXPECT(event_bind_virq(VIRQ_TIMER, on_timer) > 0);

    /* A vCPU starts with a period of 10 ms (pv_vcpu_initialise). */
    EXPECT_OK(HYPERCALL3(vcpu_op, VCPUOP_stop_periodic_timer, 0, 0));
    shared_info->evtchn_pending[0] = 0;
    fired = 0;

    deadline = system_time() + 2 * MILLISECOND;
    EXPECT_OK(set_timer(deadline));
    event_wait();
    EXPECT_EQUAL(fired, 1);
    EXPECT(system_time() >= deadline);

    EXPECT_OK(set_timer(system_time() - MILLISECOND)); /* one in the past comes at once */
    event_wait();
    EXPECT_EQUAL(fired, 2);

    EXPECT_OK(HYPERCALL3(vcpu_op, VCPUOP_set_periodic_timer, 0, &period));
    /* It ticks while the vCPU runs; descheduled, as in a block, it stops (sched_context_switch). */
    events_enable();
    while (fired < 5)
        HYPERCALL2(xen_version, XENVER_version, 0);
    events_disable();
    EXPECT_OK(HYPERCALL3(vcpu_op, VCPUOP_stop_periodic_timer, 0, 0));
    period = MILLISECOND - 1; /* at least a millisecond (do_vcpu_op) */
    EXPECT_REFUSED(HYPERCALL3(vcpu_op, VCPUOP_set_periodic_timer, 0, &period), EINVAL);
    EXPECT_REFUSED(HYPERCALL3(vcpu_op, VCPUOP_set_periodic_timer, 0, 16), EFAULT);

    u32 before = fired;
    struct vcpu_set_singleshot_timer single = { system_time() + 2 * MILLISECOND, 0 };
    EXPECT_OK(HYPERCALL3(vcpu_op, VCPUOP_set_singleshot_timer, 0, &single));
    while (fired == before)
        event_wait();
    EXPECT(system_time() >= single.timeout_abs_ns);
    before = fired;
    single.timeout_abs_ns = start; /* in the past: the event comes with the hypercall */
    EXPECT_OK(HYPERCALL3(vcpu_op, VCPUOP_set_singleshot_timer, 0, &single));
    event_wait();
    EXPECT_EQUAL(fired, before + 1);
    EXPECT_OK(HYPERCALL3(vcpu_op, VCPUOP_stop_singleshot_timer, 0, 0));
    EXPECT_REFUSED(HYPERCALL3(vcpu_op, VCPUOP_set_singleshot_timer, 0, 16), EFAULT);
    EXPECT_REFUSED(HYPERCALL3(vcpu_op, VCPUOP_set_singleshot_timer, 1, &single), EINVAL); /* only its own */
}
