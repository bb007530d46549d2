/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "What is for dom0 or for HVM guests alone: each refused with its own errno";

static u32 buffer[64];

#define EXPECT_VERSIONED(call, good)                              \
    do {                                                          \
        EXPECT_REFUSED(HYPERCALL1(call, 16), EFAULT);             \
        memset(buffer, 0, sizeof(buffer));                        \
        EXPECT_REFUSED(HYPERCALL1(call, buffer), EACCES);         \
        buffer[1] = good;                                         \
        EXPECT_REFUSED(HYPERCALL1(call, buffer), EPERM);          \
    } while (0)

static void for_dom0(void)
{
    EXPECT_VERSIONED(sysctl, 0x15);
    EXPECT_VERSIONED(platform_op, 0x03000001);
    buffer[0] = 1; /* XEN_DOMCTL_createdomain */
    buffer[1] = 0x15;
    EXPECT_REFUSED(HYPERCALL1(domctl, 16), EFAULT);
    EXPECT_REFUSED(HYPERCALL1(domctl, buffer), EPERM);
    buffer[0] = 2; /* XEN_DOMCTL_destroydomain */
    buffer[2] = 0x1234;
    EXPECT_REFUSED(HYPERCALL1(domctl, buffer), ESRCH);
    buffer[1] = 0;
    EXPECT_REFUSED(HYPERCALL1(domctl, buffer), EACCES);
    EXPECT_REFUSED(HYPERCALL2(kexec_op, 0, buffer), EPERM);
    EXPECT_REFUSED(hypercall(48, 0, (ulong)buffer, 0, 0, 0), EPERM); /* do_mca */
    u16 other = 0x1234;
    EXPECT_REFUSED(HYPERCALL2(memory_op, XENMEM_maximum_reservation, &other), ESRCH);
    struct xen_memory_map map = { 4, buffer };
    EXPECT_REFUSED(HYPERCALL2(memory_op, XENMEM_machine_memory_map, &map), EPERM);
    struct {
        u16 domid;
        u32 reason;
    } remote = { 0x1234, 0 };
    EXPECT_REFUSED(HYPERCALL2(sched_op, SCHEDOP_remote_shutdown, &remote), ESRCH);
    remote.domid = 0;
    EXPECT_REFUSED(HYPERCALL2(sched_op, SCHEDOP_remote_shutdown, &remote), EPERM);
}

static void for_hvm(void)
{
    /* hvm_op, as do_hvm_op answers a PV guest where Xen is built with CONFIG_HVM. */
    struct { u16 domid, pad; u32 index; u64 value; } parameter = { DOMID_SELF, 0, 0, 0 };
    EXPECT_REFUSED(HYPERCALL2(hvm_op, 0, &parameter), EINVAL);
    EXPECT_REFUSED(HYPERCALL2(hvm_op, 1, &parameter), EINVAL);
    parameter.index = 4096;
    EXPECT_REFUSED(HYPERCALL2(hvm_op, 1, &parameter), EINVAL);
    parameter.index = 0;
    parameter.domid = 0x1234;
    EXPECT_REFUSED(HYPERCALL2(hvm_op, 1, &parameter), ESRCH);
    EXPECT_REFUSED(HYPERCALL2(hvm_op, 1, 16), EFAULT);
    EXPECT_REFUSED(HYPERCALL2(hvm_op, 99, &parameter), ENOSYS);
}

void conform(void)
{
    /* Not built in, or not there in any guest. */
    EXPECT_REFUSED(HYPERCALL2(xsm_op, 0, 0), ENOSYS);
    EXPECT_REFUSED(HYPERCALL2(tmem_op, 0, 0), ENOSYS);
    EXPECT_REFUSED(HYPERCALL2(sched_op_compat, 99, 0), ENOSYS);
    EXPECT_OK(HYPERCALL2(sched_op_compat, 0, 0));
    EXPECT_REFUSED(HYPERCALL2(sched_op, SCHEDOP_remote_shutdown, 16), EFAULT);
    EXPECT_REFUSED(HYPERCALL2(sched_op, SCHEDOP_shutdown_code, 16), EFAULT);
    EXPECT_REFUSED(HYPERCALL2(sched_op, 7, 0), start_info->flags & SIF_INITDOMAIN ? EFAULT : EPERM); /* pin_override */
    if (!(start_info->flags & SIF_INITDOMAIN)) {
        for_hvm();
        for_dom0();
    }
}
