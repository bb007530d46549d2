/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "callback_op: registering, unregistering, and addresses that cannot be";

extern u8 event_entry[], failsafe_entry[];

static long install(u16 type, ulong address)
{
    struct callback_register row = {
        .type = type,
#ifndef __x86_64__
        .cs = FLAT_KERNEL_CS,
#endif
        .address = address,
    };
    return HYPERCALL2(callback_op, CALLBACKOP_register, &row);
}

static long remove(u16 type)
{
    struct callback_unregister row = { type, 0 };
    return HYPERCALL2(callback_op, CALLBACKOP_unregister, &row);
}

void conform(void)
{
    EXPECT_OK(install(CALLBACKTYPE_event, (ulong)event_entry));
    EXPECT_OK(install(CALLBACKTYPE_failsafe, (ulong)failsafe_entry));
    EXPECT_OK(install(CALLBACKTYPE_nmi, (ulong)event_entry));
    EXPECT_OK(remove(CALLBACKTYPE_nmi));
    /* Those that a guest lives by stay (unregister_guest_callback). */
    EXPECT_REFUSED(remove(CALLBACKTYPE_event), EINVAL);
    EXPECT_REFUSED(remove(CALLBACKTYPE_failsafe), EINVAL);
#ifdef __x86_64__
    EXPECT_OK(install(CALLBACKTYPE_syscall, (ulong)event_entry));
    EXPECT_REFUSED(install(CALLBACKTYPE_event, 0x8000000000000000ul), EINVAL);
    EXPECT_REFUSED(install(CALLBACKTYPE_syscall, 0x8000000000000000ul), EINVAL);
#else
    EXPECT_REFUSED(install(CALLBACKTYPE_syscall, (ulong)event_entry), ENOSYS);
#endif
    EXPECT_REFUSED(install(3, (ulong)event_entry), ENOSYS);
    EXPECT_REFUSED(install(99, (ulong)event_entry), ENOSYS);
    EXPECT_REFUSED(remove(99), ENOSYS);
    EXPECT_REFUSED(HYPERCALL2(callback_op, CALLBACKOP_register, 16), EFAULT);
    EXPECT_REFUSED(HYPERCALL2(callback_op, CALLBACKOP_unregister, 16), EFAULT);
    /* The older way, for both at once. */
#ifdef __x86_64__
    EXPECT_OK(HYPERCALL3(set_callbacks, event_entry, failsafe_entry, 0));
#else
    EXPECT_OK(HYPERCALL4(set_callbacks, FLAT_KERNEL_CS, event_entry, FLAT_KERNEL_CS, failsafe_entry));
#endif
}
