/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fifo.h"

const char test_title[] = "FIFO event channels: queues of two vCPUs, and events that move between them";

#define DEFAULT EVTCHN_FIFO_PRIORITY_DEFAULT
#define PENDING EVTCHN_FIFO_PENDING
#define LINKED EVTCHN_FIFO_LINKED

static u8 stack[PAGE_SIZE] PAGE_ALIGNED;
static volatile struct evtchn_fifo_control_block *block[2];
static volatile u32 woken, second_port;

static long bind_vcpu(u32 port, u32 vcpu)
{
    struct { u32 port, vcpu; } argument = { port, vcpu };
    return OP(bind_vcpu, &argument);
}

/* A port that can move, and the one to send by. */
static u32 channel(u32 *sender)
{
    struct { u16 dom, remote_dom; u32 port; } unbound = { DOMID_SELF, DOMID_SELF, 0 };
    struct { u16 remote_dom; u32 remote_port, local_port; } bind = { DOMID_SELF, 0, 0 };
    EXPECT_OK(OP(alloc_unbound, &unbound));
    bind.remote_port = unbound.port;
    EXPECT_OK(OP(bind_interdomain, &bind));
    *sender = bind.local_port;
    return unbound.port;
}

/* vCPU 1: sleep until its port is pending. */
static void second(void)
{
    struct sched_poll poll = { (u32 *)&second_port, 1, 0 };
    while (!(words[second_port] & PENDING))
        HYPERCALL2(sched_op, SCHEDOP_poll, &poll);
    woken = 1;
    for (;;)
        HYPERCALL3(vcpu_op, VCPUOP_down, 1, 0);
}

void conform(void)
{
    if (HYPERCALL3(vcpu_op, VCPUOP_is_up, 1, 0) == -ENOENT)
        skip("needs two vCPUs");
    words = masked_words();
    block[0] = zeroed_block();
    block[1] = (void *)((ulong)block[0] + PAGE_SIZE - sizeof(*block[0])); /* the last place in the same page */
    u64 gfn = virt_to_mfn((void *)block[0]);

    EXPECT_OK(init_control(gfn, 0, 0));
    EXPECT_OK(expand_array(virt_to_mfn((void *)words)));
    u32 ipi = bind_ipi(1), sender, moving = channel(&sender), fixed = bind_ipi(0);
    words[ipi] = words[moving] = words[fixed] = 0;
    EXPECT_OK(OP(send, &ipi)); /* vCPU 1 has no control block: the event is lost, and nothing is written */
    EXPECT_EQUAL(words[ipi], 0);
    EXPECT_OK(init_control(gfn, PAGE_SIZE - sizeof(*block[0]), 1));
    EXPECT_REFUSED(init_control(gfn, 0, 1), EINVAL);
    EXPECT_OK(OP(send, &ipi));
    EXPECT_EQUAL(words[ipi], PENDING | LINKED);
    EXPECT_EQUAL(block[1]->head[DEFAULT], ipi);
    EXPECT_EQUAL(block[1]->ready, 1u << DEFAULT);
    EXPECT_EQUAL(block[0]->ready, 0);
    EXPECT_EQUAL(shared_info->vcpu_info[1].evtchn_upcall_pending, 1);

    /* An event that is linked stays on its queue when its port moves. */
    EXPECT_OK(OP(send, &sender));
    EXPECT_EQUAL(block[0]->head[DEFAULT], moving);
    EXPECT_OK(bind_vcpu(moving, 1));
    EXPECT_OK(OP(send, &sender));
    EXPECT_EQUAL(words[ipi], PENDING | LINKED);
    EXPECT_EQUAL(take(block[0], DEFAULT), moving);
    /* Then it goes to the new one, behind what is there; the old queue forgets that it was its last. */
    EXPECT_OK(OP(send, &sender));
    EXPECT_EQUAL(words[ipi], PENDING | LINKED | moving);
    EXPECT_EQUAL(words[moving], PENDING | LINKED);
    EXPECT_OK(OP(send, &fixed));
    EXPECT_EQUAL(block[0]->head[DEFAULT], fixed);
    EXPECT_EQUAL(words[moving], PENDING | LINKED);
    EXPECT_EQUAL(take(block[1], DEFAULT), ipi);
    EXPECT_EQUAL(take(block[1], DEFAULT), moving);
    EXPECT_EQUAL(take(block[0], DEFAULT), fixed);
    /* The same with a priority. */
    EXPECT_OK(set_priority(moving, 0));
    EXPECT_OK(OP(send, &sender));
    EXPECT_OK(OP(send, &ipi));
    EXPECT_EQUAL(block[1]->head[0], moving);
    EXPECT_EQUAL(block[1]->head[DEFAULT], ipi);
    EXPECT_EQUAL(words[moving], PENDING | LINKED);
    EXPECT_EQUAL(take(block[1], 0), moving);
    EXPECT_EQUAL(take(block[1], DEFAULT), ipi);

    /* A vCPU that polls is woken. */
    second_port = ipi;
    EXPECT_OK(vcpu_start(1, second, stack + sizeof(stack)));
    for (u64 end = system_time() + 20000000; system_time() < end;)
        HYPERCALL2(sched_op, SCHEDOP_yield, 0);
    EXPECT_EQUAL(woken, 0);
    words[ipi] |= EVTCHN_FIFO_MASKED; /* masked or not */
    EXPECT_OK(OP(send, &ipi));
    for (u64 end = system_time() + 2000000000ull; !woken && system_time() < end;)
        HYPERCALL2(sched_op, SCHEDOP_yield, 0);
    EXPECT_EQUAL(woken, 1);
}
