/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Runstate: where a vCPU's time went, asked for and written by Xen";

#define MILLISECOND 1000000ull

static struct vcpu_runstate_info area;
static struct vcpu_time_info time_area __attribute__((aligned(8)));

static u64 sum(const struct vcpu_runstate_info *info)
{
    return info->time[0] + info->time[1] + info->time[2] + info->time[3];
}

void conform(void)
{
    struct vcpu_runstate_info first, second;
    struct sched_poll poll = { NULL, 0, 0 };

    EXPECT_OK(HYPERCALL3(vcpu_op, VCPUOP_get_runstate_info, 0, &first));
    EXPECT_EQUAL(first.state, 0); /* RUNSTATE_running: it asks */
    poll.timeout = system_time() + 20 * MILLISECOND;
    EXPECT_OK(HYPERCALL2(sched_op, SCHEDOP_poll, &poll));
    EXPECT_OK(HYPERCALL3(vcpu_op, VCPUOP_get_runstate_info, 0, &second));
    EXPECT_EQUAL(second.state, 0);
    EXPECT(sum(&second) >= sum(&first));
    EXPECT(second.time[2] > first.time[2]); /* RUNSTATE_blocked, while it polled */
    EXPECT(second.state_entry_time >= first.state_entry_time);

    struct {
        void *where;
        u64 rest;
    } request = { &area, 0 };
    EXPECT_OK(HYPERCALL3(vcpu_op, VCPUOP_register_runstate_memory_area, 0, &request));
    EXPECT_EQUAL(area.state, 0);
    poll.timeout = system_time() + 20 * MILLISECOND;
    u64 before = area.time[2];
    EXPECT_OK(HYPERCALL2(sched_op, SCHEDOP_poll, &poll));
    EXPECT(area.time[2] > before);

    request.where = &time_area;
    EXPECT_OK(HYPERCALL3(vcpu_op, VCPUOP_register_vcpu_time_memory_area, 0, &request));
    EXPECT(time_area.tsc_to_system_mul != 0);
    EXPECT_EQUAL(time_area.version & 1, 0);

    EXPECT_REFUSED(HYPERCALL3(vcpu_op, VCPUOP_get_runstate_info, 0, 16), EFAULT);
    EXPECT_REFUSED(HYPERCALL3(vcpu_op, VCPUOP_get_runstate_info, 4096, &first), ENOENT);
    EXPECT_REFUSED(HYPERCALL3(vcpu_op, VCPUOP_register_runstate_memory_area, 0, 16), EFAULT);
    EXPECT_REFUSED(HYPERCALL3(vcpu_op, VCPUOP_register_vcpu_time_memory_area, 0, 16), EFAULT);
}
