/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "NMIs: nmi_op, VCPUOP_send_nmi, delivered with events masked and never inside one another";

#define XENNMI_register_callback 0
#define XENNMI_unregister_callback 1
#define TRAP_NMI 2

extern const ulong trap_entries[];

static volatile unsigned handled, again, inside, deepest;
static volatile u32 mask_inside;

static long send(void)
{
    return HYPERCALL3(vcpu_op, VCPUOP_send_nmi, 0, 0);
}

static void on_nmi(struct regs *regs)
{
    (void)regs;
    handled++;
    inside++;
    deepest = inside > deepest ? inside : deepest;
    mask_inside = shared_info->vcpu_info[0].evtchn_upcall_mask;
    if (again) {
        again--;
        send(); /* waits for this one's iret (async_exception_mask) */
    }
    inside--;
}

static long install(ulong address)
{
    struct {
        ulong handler_address, pad;
    } callback = { address, 0 };
    return HYPERCALL2(nmi_op, XENNMI_register_callback, &callback);
}

void conform(void)
{
    volatile struct vcpu_info *vcpu = &shared_info->vcpu_info[0];
    trap_handler(TRAP_NMI, on_nmi);
    EXPECT_OK(install(trap_entries[TRAP_NMI]));
    EXPECT_OK(send());
    EXPECT_EQUAL(handled, 1); /* although events are masked */
    EXPECT_EQUAL(mask_inside, 1);
    EXPECT_EQUAL(vcpu->evtchn_upcall_mask, 1);
    events_enable();
    EXPECT_OK(send());
    EXPECT_EQUAL(handled, 2);
    EXPECT_EQUAL(mask_inside, 1); /* register_guest_nmi_callback: TI_SET_IF */
    EXPECT_EQUAL(vcpu->evtchn_upcall_mask, 0);
    again = 1;
    EXPECT_OK(send());
    EXPECT_EQUAL(handled, 4);
    EXPECT_EQUAL(deepest, 1);
    events_disable();

    /* Without a callback one is lost (set_guest_nmi_trapbounce). */
    EXPECT_OK(HYPERCALL2(nmi_op, XENNMI_unregister_callback, 0));
    EXPECT_OK(send());
    EXPECT_EQUAL(handled, 4);
    EXPECT_OK(install(trap_entries[TRAP_NMI]));
    EXPECT_EQUAL(handled, 4);

    EXPECT_REFUSED(HYPERCALL3(vcpu_op, VCPUOP_send_nmi, 0, &handled), EINVAL); /* arch_do_vcpu_op */
    EXPECT_REFUSED(HYPERCALL3(vcpu_op, VCPUOP_send_nmi, 4096, 0), ENOENT);
    EXPECT_REFUSED(HYPERCALL2(nmi_op, XENNMI_register_callback, 16), EFAULT);
    EXPECT_REFUSED(HYPERCALL2(nmi_op, 2, 0), ENOSYS);
#ifdef __x86_64__
    EXPECT_REFUSED(install(0x8000000000000000ul), EINVAL);
#endif
    EXPECT_OK(send());
    EXPECT_EQUAL(handled, 5);
}
