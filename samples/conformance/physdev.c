/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "physdev_op: what concerns the machine is refused to a guest without devices";

static u32 buffer[32];

static long op(unsigned command)
{
    return HYPERCALL2(physdev_op, command, buffer);
}

void conform(void)
{
    EXPECT_REFUSED(HYPERCALL2(physdev_op, 99, buffer), ENOSYS);
    EXPECT_REFUSED(HYPERCALL2(physdev_op, 1, buffer), ENOSYS);
    /* Each reads its argument before anything else (do_physdev_op). */
    static const u8 reading[] = { 5, 6, 7, 8, 10, 12, 13, 20, 21 };
    for (unsigned i = 0; i < ARRAY_SIZE(reading); i++)
        EXPECT_REFUSED(HYPERCALL2(physdev_op, reading[i], 16), EFAULT);
    buffer[0] = 1u << 20;
    EXPECT_REFUSED(op(5), EINVAL);  /* irq_status_query of no irq */
    EXPECT_REFUSED(op(12), EINVAL); /* eoi */
    if (start_info->flags & SIF_INITDOMAIN)
        return;
    memset(buffer, 0, sizeof(buffer));
    EXPECT_REFUSED(op(8), EPERM);  /* apic_read */
    EXPECT_REFUSED(op(9), EPERM);  /* apic_write */
    EXPECT_REFUSED(op(10), EPERM); /* alloc_irq_vector */
    buffer[0] = DOMID_SELF;
    EXPECT_REFUSED(op(13), EPERM); /* map_pirq */
    EXPECT_REFUSED(op(14), EPERM); /* unmap_pirq */
    buffer[0] = 0x1234;
    EXPECT_REFUSED(op(13), ESRCH);
    EXPECT_REFUSED(op(14), ESRCH);
    buffer[0] = 0;
    EXPECT_REFUSED(op(15), EPERM);  /* manage_pci_add */
    EXPECT_REFUSED(op(16), EPERM);  /* manage_pci_remove */
    buffer[0] = 0xffff;
    EXPECT_REFUSED(op(19), ENODEV); /* restore_msi, of a device that there is none of */
    buffer[0] = 0;
    EXPECT_REFUSED(op(25), EPERM);  /* pci_device_add */
    EXPECT_REFUSED(op(26), EPERM);  /* pci_device_remove */
    EXPECT_REFUSED(op(30), EPERM);  /* prepare_msix */
    EXPECT_REFUSED(op(31), EPERM);  /* release_msix */
    EXPECT_REFUSED(op(29), EPERM);  /* dbgp_op */
    /* The older way to say the same, the command in front (do_physdev_op_compat). */
    EXPECT_REFUSED(HYPERCALL1(physdev_op_compat, 16), EFAULT);
    buffer[0] = 99;
    EXPECT_REFUSED(HYPERCALL1(physdev_op_compat, buffer), ENOSYS);
}
