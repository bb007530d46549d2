/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Wall clock and system time: versions are even, and time only goes forward";

#define MILLISECOND 1000000ull

static long set_timer(u64 deadline)
{
#ifdef __x86_64__
    return HYPERCALL1(set_timer_op, deadline);
#else
    return HYPERCALL2(set_timer_op, deadline, deadline >> 32);
#endif
}

static u64 read_tsc(void)
{
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return ((u64)high << 32) | low;
}

void conform(void)
{
    volatile struct vcpu_time_info *time = &shared_info->vcpu_info[0].time;
    struct sched_poll poll = { NULL, 0, 0 };

    /* update_domain_wallclock_time, version_update_begin and _end */
    EXPECT(shared_info->wc_version != 0);
    EXPECT_EQUAL(shared_info->wc_version & 1, 0);
    EXPECT(shared_info->wc_sec > 1000000000u);
    EXPECT(shared_info->wc_nsec < 1000000000u);
    u32 seconds = shared_info->wc_sec, wc_version = shared_info->wc_version;

    EXPECT(time->version != 0);
    EXPECT_EQUAL(time->version & 1, 0);
    EXPECT(time->tsc_to_system_mul != 0);
    EXPECT(time->tsc_shift > -32 && time->tsc_shift < 32);
    u64 before = system_time(), stamp = time->tsc_timestamp;
    u32 version = time->version;
    for (int i = 0; i < 10; i++) {
        EXPECT(read_tsc() >= time->tsc_timestamp);
        u64 now = system_time();
        EXPECT(now >= before);
        before = now;
        poll.timeout = now + 3 * MILLISECOND;
        EXPECT_OK(HYPERCALL2(sched_op, SCHEDOP_poll, &poll));
        EXPECT(system_time() >= poll.timeout);
        EXPECT_EQUAL(time->version & 1, 0);
    }
    EXPECT(time->version >= version);
    EXPECT(time->tsc_timestamp >= stamp);
    /* The wall clock is that of the boot: it changes only when dom0 sets it. */
    EXPECT_EQUAL(shared_info->wc_sec, seconds);
    EXPECT_EQUAL(shared_info->wc_version, wc_version);

    /* Deadlines: none, past, and further than 2^50 ns are all taken (do_set_timer_op). */
    EXPECT_OK(set_timer(0));
    EXPECT_OK(set_timer(1));
    EXPECT_OK(set_timer(1ull << 60));
    EXPECT_OK(set_timer(~0ull));
    EXPECT_OK(set_timer(0));
    struct vcpu_set_singleshot_timer single = { 1, VCPU_SSHOTTMR_future };
    EXPECT_OK(HYPERCALL3(vcpu_op, VCPUOP_set_singleshot_timer, 0, &single)); /* the flag is not looked at */
    if (!(start_info->flags & SIF_INITDOMAIN))
        EXPECT_REFUSED(HYPERCALL1(platform_op, 16), EFAULT); /* nothing sets it from here */
}
