/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "A watchdog that nobody renews ends the domain, for that reason";

void conform(void)
{
    struct {
        u32 id, timeout;
    } first = { 0, 1 }, second = { 0, 1 }, third = { 0, 1 };
    if (start_info->flags & SIF_INITDOMAIN)
        skip("it would take the machine down");
    long slot = HYPERCALL2(sched_op, SCHEDOP_watchdog, &first);
    EXPECT_EQUAL(slot, 1);
    EXPECT_RC(HYPERCALL2(sched_op, SCHEDOP_watchdog, &second), 2);
    /* There are two. domain_watchdog() chooses between -ENOSPC and a u32, so that a long is not negative. */
    count_refusal();
    EXPECT_EQUAL(HYPERCALL2(sched_op, SCHEDOP_watchdog, &third), (u32)-ENOSPC);
    second.id = 2;
    second.timeout = 0;
    EXPECT_OK(HYPERCALL2(sched_op, SCHEDOP_watchdog, &second));
    EXPECT_REFUSED(HYPERCALL2(sched_op, SCHEDOP_watchdog, 16), EFAULT);
    expect_end("watchdog"); /* domain_watchdog_timeout */
    struct sched_poll poll = { NULL, 0, system_time() + 5000000000ull };
    HYPERCALL2(sched_op, SCHEDOP_poll, &poll);
    give_up("no watchdog came in five seconds");
}
