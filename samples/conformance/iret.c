/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "The iret hypercall: registers come back, and the event mask comes from the flags";

static volatile u32 mask_inside;
static ulong wanted_flags;

static void change_mask(struct regs *regs)
{
    mask_inside = shared_info->vcpu_info[0].evtchn_upcall_mask;
    regs->ip += 2;
    regs->ax = 0x1234567;
    regs->flags = (regs->flags & ~0x200ul) | wanted_flags;
}

static ulong trap(void)
{
    ulong ax = 1, cx = 2, dx = 3;
    __asm__ volatile("ud2" : "+a"(ax), "+c"(cx), "+d"(dx) : : "memory", "cc");
    EXPECT_EQUAL(cx, 2);
    EXPECT_EQUAL(dx, 3);
    return ax;
}

void conform(void)
{
    volatile struct vcpu_info *vcpu = &shared_info->vcpu_info[0];
    trap_handler(TRAP_UD, change_mask);
    /* Saved flags show the mask as the interrupt flag; what is returned sets it (do_iret, compat_iret). */
    events_disable();
    wanted_flags = 0x200;
    EXPECT_EQUAL(trap(), 0x1234567);
    EXPECT_EQUAL(mask_inside, 1);
    EXPECT_EQUAL(vcpu->evtchn_upcall_mask, 0);
    wanted_flags = 0;
    EXPECT_EQUAL(trap(), 0x1234567);
    EXPECT_EQUAL(mask_inside, 0);
    EXPECT_EQUAL(vcpu->evtchn_upcall_mask, 1);

    /* An event that was pending all the while is delivered when the mask goes. */
    struct {
        u32 vcpu, port;
    } ipi = { 0, 0 };
    EXPECT_OK(HYPERCALL2(event_channel_op, EVTCHNOP_bind_ipi, &ipi));
    event_unmask(ipi.port);
    EXPECT_OK(HYPERCALL2(event_channel_op, EVTCHNOP_send, &ipi.port));
    ulong before = upcalls;
    wanted_flags = 0x200;
    trap();
    EXPECT_EQUAL(upcalls, before + 1);
    EXPECT_EQUAL(vcpu->evtchn_upcall_mask, 0);
}
