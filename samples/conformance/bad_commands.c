/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Commands and hypercalls that there are none of: ENOSYS from each, with one exception";

static const struct {
    u8 number, first; /* the first command that is none */
    u8 error;
} rows[] = {
    { HYPERCALL_xen_version, 11, ENOSYS },
    { HYPERCALL_event_channel_op, 15, ENOSYS },
    { HYPERCALL_vcpu_op, 14, ENOSYS },
    { HYPERCALL_nmi_op, 2, ENOSYS },
    { HYPERCALL_sched_op, 8, ENOSYS },
    { HYPERCALL_sched_op_compat, 3, ENOSYS },
#ifdef __x86_64__
    { HYPERCALL_callback_op, 2, ENOSYS },
#else
    { HYPERCALL_callback_op, 2, EINVAL }, /* compat_callback_op */
#endif
    { HYPERCALL_physdev_op, 32, ENOSYS },
};

void conform(void)
{
    static u32 argument[64];
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        const ulong commands[] = { rows[i].first, rows[i].first + 1ul, 77, 0x10000, 0x7fffffff };
        for (unsigned j = 0; j < ARRAY_SIZE(commands); j++) {
            memset(argument, 0, sizeof(argument));
            int second = rows[i].number == HYPERCALL_vcpu_op; /* a vCPU comes before its argument */
            long rc = hypercall(rows[i].number, commands[j], second ? 0 : (ulong)argument, second ? (ulong)argument : 0,
                                0, 0);
            if (rc != -(long)rows[i].error)
                printf("hypercall %u, command %lu:\n", rows[i].number, commands[j]);
            EXPECT_REFUSED(rc, rows[i].error);
        }
    }
    for (ulong number = 43; number < 48; number++)
        EXPECT_REFUSED(hypercall(number, 0, 0, 0, 0, 0), ENOSYS);
    EXPECT_REFUSED(hypercall(49, 16, 0, 0, 0, 0), EFAULT); /* paging_domctl_cont */
    for (ulong number = 52; number < 128; number += 3)
        EXPECT_REFUSED(hypercall(number, 0, 0, 0, 0, 0), ENOSYS);
    EXPECT_REFUSED(hypercall(11, 0, 0, 0, 0, 0), ENOSYS);
    EXPECT_REFUSED(HYPERCALL1(tmem_op, 0), ENOSYS);
    EXPECT_RC(HYPERCALL2(xen_version, XENVER_pagesize, 0), 4096);
}
