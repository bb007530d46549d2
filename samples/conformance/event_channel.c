/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "event_channel_op: every operation of the two-level ABI, argument by argument";

struct alloc_unbound { u16 dom, remote_dom; u32 port; };
struct bind_interdomain { u16 remote_dom; u32 remote_port, local_port; };
struct bind_virq { u32 virq, vcpu, port; };
struct bind_ipi { u32 vcpu, port; };
struct bind_vcpu { u32 port, vcpu; };
struct status { u16 dom; u32 port, status, vcpu; union { struct { u16 dom; } unbound; struct { u16 dom; u32 port; } interdomain; u32 pirq, virq; } u; };

#define OP(name, argument) HYPERCALL2(event_channel_op, EVTCHNOP_##name, argument)

static long status_of(u32 port, struct status *status)
{
    *status = (struct status){ .dom = DOMID_SELF, .port = port };
    return OP(status, status);
}

static void interdomain_loopback(void)
{
    struct alloc_unbound unbound = { DOMID_SELF, DOMID_SELF, 0 };
    struct status status;
    EXPECT_OK(OP(alloc_unbound, &unbound));
    EXPECT_OK(status_of(unbound.port, &status));
    EXPECT_EQUAL(status.status, EVTCHNSTAT_unbound);
    EXPECT_OK(OP(send, &unbound.port)); /* ECS_UNBOUND: silently dropped (evtchn_send) */

    struct bind_interdomain bind = { DOMID_SELF, unbound.port, 0 };
    EXPECT_OK(OP(bind_interdomain, &bind));
    EXPECT(bind.local_port != unbound.port);
    EXPECT_OK(status_of(bind.local_port, &status));
    EXPECT_EQUAL(status.status, EVTCHNSTAT_interdomain);
    EXPECT_EQUAL(status.u.interdomain.port, unbound.port);
    /* Binding marks the local end pending; sending one end marks the other. */
    EXPECT(shared_info->evtchn_pending[0] & (1ul << bind.local_port));
    shared_info->evtchn_pending[0] = 0;
    EXPECT_OK(OP(send, &unbound.port));
    EXPECT_EQUAL(shared_info->evtchn_pending[0], 1ul << bind.local_port);
    shared_info->evtchn_pending[0] = 0;
    EXPECT_OK(OP(send, &bind.local_port));
    EXPECT_EQUAL(shared_info->evtchn_pending[0], 1ul << unbound.port);
    shared_info->evtchn_pending[0] = 0;

    EXPECT_REFUSED(OP(bind_interdomain, &bind), EINVAL); /* its remote end is taken */
    EXPECT_OK(OP(close, &bind.local_port));
    EXPECT_OK(status_of(unbound.port, &status)); /* the other end is unbound again */
    EXPECT_EQUAL(status.status, EVTCHNSTAT_unbound);
    EXPECT_OK(OP(close, &unbound.port));
    EXPECT_OK(status_of(unbound.port, &status));
    EXPECT_EQUAL(status.status, EVTCHNSTAT_closed);
    EXPECT_REFUSED(OP(close, &unbound.port), EINVAL);
    EXPECT_REFUSED(OP(send, &unbound.port), EINVAL);
}

static void virq_and_ipi(void)
{
    struct bind_virq timer = { VIRQ_TIMER, 0, 0 }, again = timer;
    struct bind_ipi ipi = { 0, 0 }, nobody = { 4096, 0 };
    struct status status;
    EXPECT_OK(OP(bind_virq, &timer));
    EXPECT_OK(status_of(timer.port, &status));
    EXPECT_EQUAL(status.status, EVTCHNSTAT_virq);
    EXPECT_EQUAL(status.u.virq, VIRQ_TIMER);
    EXPECT_REFUSED(OP(bind_virq, &again), EEXIST);
    again.virq = 24;
    EXPECT_REFUSED(OP(bind_virq, &again), EINVAL);
    again = (struct bind_virq){ VIRQ_DEBUG, 4096, 0 };
    EXPECT_REFUSED(OP(bind_virq, &again), ENOENT);
    again = (struct bind_virq){ VIRQ_DOM_EXC, 1, 0 };
    EXPECT_REFUSED(OP(bind_virq, &again), EINVAL); /* a global one goes to vCPU 0 */

    EXPECT_OK(OP(bind_ipi, &ipi));
    EXPECT_OK(status_of(ipi.port, &status));
    EXPECT_EQUAL(status.status, EVTCHNSTAT_ipi);
    EXPECT_REFUSED(OP(bind_ipi, &nobody), ENOENT);

    struct bind_vcpu move = { timer.port, 0 };
    EXPECT_REFUSED(OP(bind_vcpu, &move), EINVAL); /* a per-vCPU virq stays, and so does an ipi */
    move.port = ipi.port;
    EXPECT_REFUSED(OP(bind_vcpu, &move), EINVAL);
    move.vcpu = 4096;
    EXPECT_REFUSED(OP(bind_vcpu, &move), ENOENT);
    EXPECT_OK(OP(close, &timer.port));
    EXPECT_OK(OP(close, &ipi.port));
}

static void refused(void)
{
    u32 port = 4000, outside = 1u << 20;
    struct alloc_unbound foreign = { 0x1234, DOMID_SELF, 0 };
    struct bind_interdomain bind = { DOMID_SELF, 4000, 0 };
    struct bind_vcpu move = { 4000, 0 };
    struct status status;
    EXPECT_REFUSED(OP(close, &port), EINVAL);
    EXPECT_REFUSED(OP(send, &port), EINVAL);
    EXPECT_REFUSED(OP(send, &outside), EINVAL);
    EXPECT_REFUSED(OP(unmask, &outside), EINVAL);
    EXPECT_REFUSED(OP(alloc_unbound, &foreign), ESRCH);
    EXPECT_REFUSED(OP(bind_interdomain, &bind), EINVAL);
    bind.remote_dom = 0x1234;
    EXPECT_REFUSED(OP(bind_interdomain, &bind), ESRCH);
    EXPECT_REFUSED(OP(bind_vcpu, &move), EINVAL);
    EXPECT_REFUSED(status_of(outside, &status), EINVAL);
    EXPECT_REFUSED(OP(send, 16), EFAULT);
    EXPECT_REFUSED(HYPERCALL2(event_channel_op, 99, &port), ENOSYS);
}

void conform(void)
{
    interdomain_loopback();
    virq_and_ipi();
    refused();
}
