/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "SCHEDOP_shutdown_code: the reason that was given first is the reason";

void conform(void)
{
    u32 first = SHUTDOWN_reboot, second = SHUTDOWN_crash;
    if (start_info->flags & SIF_INITDOMAIN)
        skip("its end is the machine's");
    EXPECT_REFUSED(HYPERCALL2(sched_op, SCHEDOP_shutdown_code, 16), EFAULT);
    EXPECT_REFUSED(HYPERCALL2(sched_op, SCHEDOP_shutdown, 16), EFAULT);
    EXPECT_OK(HYPERCALL2(sched_op, SCHEDOP_shutdown_code, &first));
    EXPECT_OK(HYPERCALL2(sched_op, SCHEDOP_shutdown_code, &second));
    expect_end("reboot"); /* domain_shutdown: d->shutdown_code unless it is set */
    shutdown(SHUTDOWN_poweroff);
}
