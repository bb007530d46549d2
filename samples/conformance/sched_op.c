/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "sched_op: yield, poll, block, watchdog, and what is refused";

void conform(void)
{
    struct {
        u32 vcpu, port;
    } ipi = { 0, 0 };
    EXPECT_OK(HYPERCALL2(sched_op, SCHEDOP_yield, 0));
    EXPECT_OK(HYPERCALL2(event_channel_op, EVTCHNOP_bind_ipi, &ipi));

    /* poll waits for a port that need not be unmasked, for a time, or not at all (do_poll). */
    u32 port = ipi.port;
    u64 start = system_time();
    struct sched_poll poll = { &port, 1, start + 3000000 };
    EXPECT_OK(HYPERCALL2(sched_op, SCHEDOP_poll, &poll));
    EXPECT(system_time() >= start + 3000000);
    EXPECT_OK(HYPERCALL2(event_channel_op, EVTCHNOP_send, &port));
    poll.timeout = 0;
    EXPECT_OK(HYPERCALL2(sched_op, SCHEDOP_poll, &poll));
    poll.nr_ports = 129;
    EXPECT_REFUSED(HYPERCALL2(sched_op, SCHEDOP_poll, &poll), EINVAL);
    poll = (struct sched_poll){ (u32 *)16, 1, 0 };
    EXPECT_REFUSED(HYPERCALL2(sched_op, SCHEDOP_poll, &poll), EFAULT);
    port = 1u << 20;
    poll = (struct sched_poll){ &port, 1, 0 };
    EXPECT_REFUSED(HYPERCALL2(sched_op, SCHEDOP_poll, &poll), EINVAL);
    EXPECT_REFUSED(HYPERCALL2(sched_op, SCHEDOP_poll, 16), EFAULT);

    /* The watchdog: a slot is handed out, renewed and given back (domain_watchdog). */
    struct {
        u32 id, timeout;
    } watchdog = { 0, 60 };
    long slot = HYPERCALL2(sched_op, SCHEDOP_watchdog, &watchdog);
    EXPECT(slot > 0);
    watchdog.id = (u32)slot;
    EXPECT_OK(HYPERCALL2(sched_op, SCHEDOP_watchdog, &watchdog));
    watchdog.timeout = 0;
    EXPECT_OK(HYPERCALL2(sched_op, SCHEDOP_watchdog, &watchdog));
    watchdog.timeout = 60;
    EXPECT_REFUSED(HYPERCALL2(sched_op, SCHEDOP_watchdog, &watchdog), EINVAL);
    watchdog.id = 99;
    EXPECT_REFUSED(HYPERCALL2(sched_op, SCHEDOP_watchdog, &watchdog), EINVAL);

    EXPECT_REFUSED(HYPERCALL2(sched_op, SCHEDOP_shutdown, 16), EFAULT);
    EXPECT_REFUSED(HYPERCALL2(sched_op, 99, 0), ENOSYS);
}
