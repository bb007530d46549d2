/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "The event mask stands for the interrupt flag";

static volatile unsigned arrived, mask_in_handler;
static u32 port;

static void on_event(u32 at)
{
    arrived += at == port;
    mask_in_handler = shared_info->vcpu_info[0].evtchn_upcall_mask;
}

static long send(void)
{
    return HYPERCALL2(event_channel_op, EVTCHNOP_send, &port);
}

void conform(void)
{
    volatile struct vcpu_info *vcpu = &shared_info->vcpu_info[0];
    struct {
        u32 vcpu, port;
    } ipi = { 0, 0 };
    EXPECT_OK(HYPERCALL2(event_channel_op, EVTCHNOP_bind_ipi, &ipi));
    port = ipi.port;
    event_handler(port, on_event);

    /* A masked port stays pending and raises nothing. */
    EXPECT_OK(send());
    EXPECT(shared_info->evtchn_pending[0] & (1ul << port));
    EXPECT_EQUAL(arrived, 0);
    shared_info->evtchn_pending[0] &= ~(1ul << port);
    event_unmask(port);

    /* With the upcall masked it is announced, not delivered. */
    vcpu->evtchn_upcall_pending = 0;
    EXPECT_OK(send());
    EXPECT_EQUAL(arrived, 0);
    EXPECT_EQUAL(vcpu->evtchn_upcall_pending, 1);
    EXPECT(vcpu->evtchn_pending_sel & 1);
    /* Clearing the mask alone delivers nothing: the guest has to look, and ask. */
    vcpu->evtchn_upcall_mask = 0;
    barrier();
    HYPERCALL2(xen_version, XENVER_version, 0);
    EXPECT_EQUAL(arrived, 1);
    EXPECT_EQUAL(mask_in_handler, 1);
    EXPECT_EQUAL(vcpu->evtchn_upcall_mask, 0);

    /* Unmasked, the hypercall that raises it delivers it on its way back. */
    EXPECT_OK(send());
    EXPECT_EQUAL(arrived, 2);
    events_disable();
    EXPECT_OK(send());
    EXPECT_EQUAL(arrived, 2);
    events_enable();
    EXPECT_EQUAL(arrived, 3);

    /* EVTCHNOP_unmask delivers what came in while the port was masked (evtchn_unmask). */
    shared_info->evtchn_mask[0] |= 1ul << port;
    EXPECT_OK(send());
    EXPECT_EQUAL(arrived, 3);
    event_unmask(port);
    EXPECT_EQUAL(arrived, 4);

    /* Two sends of a pending port are one event. */
    events_disable();
    EXPECT_OK(send());
    EXPECT_OK(send());
    events_enable();
    EXPECT_EQUAL(arrived, 5);

    /* block returns at once when something is pending, and leaves events unmasked (do_block). */
    events_disable();
    EXPECT_OK(send());
    EXPECT_OK(HYPERCALL2(sched_op, SCHEDOP_block, 0));
    EXPECT_EQUAL(arrived, 6);
    EXPECT_EQUAL(vcpu->evtchn_upcall_mask, 0);
}
