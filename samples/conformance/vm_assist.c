/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "vm_assist: the assists there are, switched on and off";

static long assist(unsigned command, unsigned type)
{
    return HYPERCALL2(vm_assist, command, type);
}

static void disable_interrupts(void *unused)
{
    (void)unused;
    __asm__ volatile("cli");
}

void conform(void)
{
    EXPECT_OK(assist(VMASST_CMD_enable, VMASST_TYPE_writable_pagetables));
    EXPECT_OK(assist(VMASST_CMD_disable, VMASST_TYPE_writable_pagetables));
    EXPECT_OK(assist(VMASST_CMD_enable, VMASST_TYPE_runstate_update_flag));
    EXPECT_OK(assist(VMASST_CMD_disable, VMASST_TYPE_runstate_update_flag));
    EXPECT_OK(assist(VMASST_CMD_enable, VMASST_TYPE_pae_extended_cr3));
    EXPECT_OK(assist(VMASST_CMD_enable, VMASST_TYPE_4gb_segments));
    EXPECT_OK(assist(VMASST_CMD_enable, VMASST_TYPE_4gb_segments_notify));

    /* With architectural_iopl the kernel counts as CPL 0 against its IOPL (iopl_ok). */
    EXPECT_TRAP(disable_interrupts, NULL, TRAP_GP, 0);
    EXPECT_OK(assist(VMASST_CMD_enable, VMASST_TYPE_architectural_iopl));
    EXPECT_NO_TRAP(disable_interrupts, NULL);
    EXPECT_OK(assist(VMASST_CMD_disable, VMASST_TYPE_architectural_iopl));
    EXPECT_TRAP(disable_interrupts, NULL, TRAP_GP, 0);

    /* Types beyond those of this build, and commands beyond two (vm_assist). */
    EXPECT_REFUSED(assist(VMASST_CMD_enable, 31), EINVAL);
    EXPECT_REFUSED(assist(VMASST_CMD_enable, 64), EINVAL);
    EXPECT_REFUSED(assist(VMASST_CMD_disable, 31), EINVAL);
    EXPECT_REFUSED(assist(2, VMASST_TYPE_writable_pagetables), ENOSYS);
#ifdef __x86_64__
    EXPECT_OK(assist(VMASST_CMD_enable, VMASST_TYPE_m2p_strict));
#else
    EXPECT_REFUSED(assist(VMASST_CMD_enable, VMASST_TYPE_m2p_strict), EINVAL);
#endif
}
