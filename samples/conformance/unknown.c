/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Hypercalls that do not exist, or not for this guest";

void conform(void)
{
    EXPECT_REFUSED(hypercall(11, 0, 0, 0, 0, 0), ENOSYS);
    EXPECT_REFUSED(hypercall(47, 0, 0, 0, 0, 0), ENOSYS);
    EXPECT_REFUSED(hypercall(63, 0, 0, 0, 0, 0), ENOSYS);
    EXPECT_REFUSED(hypercall(64, 0, 0, 0, 0, 0), ENOSYS);
    EXPECT_REFUSED(hypercall(127, 0, 0, 0, 0, 0), ENOSYS);
    EXPECT_REFUSED(HYPERCALL2(nmi_op, 99, 0), ENOSYS);
    EXPECT_REFUSED(HYPERCALL2(vm_assist, 99, 0), ENOSYS);
#ifdef __x86_64__
    EXPECT_REFUSED(HYPERCALL2(callback_op, 99, 0), ENOSYS); /* do_callback_op */
    EXPECT_REFUSED(HYPERCALL2(set_segment_base, 99, 0), EINVAL);
#else
    EXPECT_REFUSED(HYPERCALL2(callback_op, 99, 0), EINVAL); /* compat_callback_op */
    EXPECT_REFUSED(HYPERCALL2(set_segment_base, 0, 0), ENOSYS);
#endif
    if (start_info->flags & SIF_INITDOMAIN)
        return;
    EXPECT_REFUSED(HYPERCALL1(sysctl, 0), EFAULT);
    EXPECT_REFUSED(HYPERCALL1(domctl, 0), EFAULT);
    EXPECT_REFUSED(HYPERCALL1(platform_op, 0), EFAULT);
}
