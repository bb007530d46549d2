/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fifo.h"

const char test_title[] = "FIFO event channels: arguments, queues, priorities, mask and unmask on one vCPU";

#define DEFAULT EVTCHN_FIFO_PRIORITY_DEFAULT
#define PENDING EVTCHN_FIFO_PENDING
#define MASKED EVTCHN_FIFO_MASKED
#define LINKED EVTCHN_FIFO_LINKED
#define BUSY EVTCHN_FIFO_BUSY

static volatile struct evtchn_fifo_control_block *block;
static u32 early, late;

static void *a_table(void)
{
    return (void *)((ulong)pte_of((void *)words, 1) & ~(PAGE_SIZE - 1));
}

/* evtchn_fifo_init_control(), evtchn_fifo_expand_array(), evtchn_set_priority(): while there are two levels. */
static void refused(void)
{
    u64 gfn = virt_to_mfn((void *)block);
    EXPECT_REFUSED(init_control(gfn, 0, 4096), ENOENT); /* the vCPU first, then the place of the control block */
    EXPECT_REFUSED(init_control(gfn, 4096, 4096), ENOENT);
    EXPECT_REFUSED(init_control(gfn, PAGE_SIZE - 64, 0), EINVAL); /* it would cross the page's end */
    EXPECT_REFUSED(init_control(gfn, 0xfffffff8, 0), EINVAL);
    EXPECT_REFUSED(init_control(gfn, 12, 0), EINVAL);
    EXPECT_REFUSED(init_control(~0ull, 0, 0), EINVAL); /* map_guest_page() */
    EXPECT_REFUSED(init_control(1ull << 52, 0, 0), EINVAL);
    EXPECT_REFUSED(init_control(virt_to_mfn(a_table()), 0, 0), EINVAL);
    EXPECT_REFUSED(OP(init_control, 16), EFAULT);
    EXPECT_REFUSED(expand_array(virt_to_mfn((void *)words)), EOPNOTSUPP); /* no control block yet */
    EXPECT_REFUSED(expand_array(~0ull), EOPNOTSUPP);
    EXPECT_REFUSED(OP(expand_array, 16), EFAULT);
    EXPECT_REFUSED(set_priority(1u << 20, 7), EINVAL);
    EXPECT_REFUSED(set_priority(early, 3), ENOSYS); /* two levels have no priorities */
    EXPECT_REFUSED(set_priority(early, 16), ENOSYS);
    EXPECT_REFUSED(set_priority(0, 3), ENOSYS);
    EXPECT_REFUSED(OP(set_priority, 16), EFAULT);
}

/* What was pending in two levels is raised again when its event word is there (setup_ports()). */
static void change_of_abi(void)
{
    struct evtchn_init_control argument = { virt_to_mfn((void *)block), 0, 0, 0, { 0 } };
    EXPECT_OK(OP(send, &early));
    EXPECT(shared_info->evtchn_pending[0] & (1ul << early));
    EXPECT_OK(OP(init_control, &argument));
    EXPECT_EQUAL(argument.link_bits, EVTCHN_FIFO_LINK_BITS);
    EXPECT_REFUSED(OP(init_control, &argument), EINVAL); /* map_control_block(): it has one */
    EXPECT_OK(OP(send, &late)); /* has no event word yet: kept */
    EXPECT_EQUAL(block->ready, 0);

    EXPECT_REFUSED(expand_array(~0ull), EINVAL);
    EXPECT_REFUSED(expand_array(virt_to_mfn(a_table())), EINVAL);
    words[early] = words[late] = 0;
    EXPECT_OK(expand_array(virt_to_mfn((void *)words)));
    EXPECT_EQUAL(words[early], PENDING | LINKED | late);
    EXPECT_EQUAL(words[late], PENDING | LINKED);
    EXPECT_EQUAL(block->head[DEFAULT], early);
    EXPECT_EQUAL(block->ready, 1u << DEFAULT);
    EXPECT(shared_info->vcpu_info[0].evtchn_upcall_pending);
    EXPECT_EQUAL(take(block, DEFAULT), early);
    EXPECT_EQUAL(take(block, DEFAULT), late);
    EXPECT_EQUAL(take(block, DEFAULT), 0);
    EXPECT_OK(expand_array(virt_to_mfn((void *)masked_words())));
}

static void priorities(void)
{
    EXPECT_REFUSED(set_priority(early, 16), EINVAL);
    EXPECT_REFUSED(set_priority(1u << 20, 16), EINVAL);
    EXPECT_REFUSED(set_priority(0, 3), EACCES); /* reserved, and so not the guest's */
    EXPECT_REFUSED(set_priority(60, 3), EACCES);
    EXPECT_OK(set_priority(early, 3));
    shared_info->vcpu_info[0].evtchn_upcall_pending = 0;
    EXPECT_OK(OP(send, &early));
    EXPECT_EQUAL(block->head[3], early);
    EXPECT_EQUAL(block->ready, 1u << 3);
    EXPECT_EQUAL(shared_info->vcpu_info[0].evtchn_upcall_pending, 1);
    EXPECT_OK(set_priority(early, 15)); /* for the next time: it stays where it is linked */
    EXPECT_OK(OP(send, &early));
    EXPECT_EQUAL(block->ready, 1u << 3);
    EXPECT_OK(OP(send, &late));
    EXPECT_EQUAL(block->ready, 1u << 3 | 1u << DEFAULT);
    EXPECT_EQUAL(words[early], PENDING | LINKED); /* another queue's event is not linked to it */
    EXPECT_EQUAL(take(block, 3), early);
    EXPECT_EQUAL(take(block, DEFAULT), late);
    EXPECT_OK(OP(send, &early));
    EXPECT_EQUAL(block->head[15], early);
    EXPECT_EQUAL(take(block, 15), early);
    EXPECT_OK(set_priority(early, DEFAULT));
}

static void masks(void)
{
    struct sched_poll poll = { &early, 1, 0 };
    words[early] |= MASKED;
    EXPECT_OK(OP(send, &early));
    EXPECT_EQUAL(words[early], PENDING | MASKED);
    EXPECT_EQUAL(block->ready, 0);
    EXPECT_OK(HYPERCALL2(sched_op, SCHEDOP_poll, &poll)); /* it is pending: evtchn_fifo_is_pending() */
    EXPECT_OK(OP(unmask, &early));
    EXPECT_EQUAL(words[early], PENDING | LINKED);
    EXPECT_EQUAL(take(block, DEFAULT), early);
    words[early] |= MASKED;
    EXPECT_OK(OP(unmask, &early)); /* nothing was held back */
    EXPECT_EQUAL(words[early], 0);
    words[early] = PENDING; /* unmasked by the guest without asking: Xen links it when asked */
    EXPECT_OK(OP(send, &early));
    EXPECT_EQUAL(words[early], PENDING | LINKED);
    words[early] |= MASKED; /* a linked event may be masked; it is then on the queue all the same */
    EXPECT_OK(OP(unmask, &early));
    EXPECT_EQUAL(words[early], PENDING | LINKED);
    EXPECT_EQUAL(take(block, DEFAULT), early);
    EXPECT_REFUSED(OP(unmask, &(u32){ 1u << 20 }), EINVAL);
}

/* evtchn_fifo_set_link() */
static void links(void)
{
    EXPECT_OK(OP(send, &early));
    words[early] |= BUSY; /* the guest may not have it any more once the tail has a link */
    EXPECT_OK(OP(send, &late));
    EXPECT_EQUAL(words[early], PENDING | LINKED | late);
    EXPECT_EQUAL(take(block, DEFAULT), early);
    EXPECT_OK(OP(send, &early));
    EXPECT_EQUAL(words[late], PENDING | LINKED | early);
    EXPECT_EQUAL(take(block, DEFAULT), late);
    EXPECT_EQUAL(take(block, DEFAULT), early);
    EXPECT_OK(OP(send, &late)); /* the tail, early, is no longer linked: the queue was empty */
    EXPECT_EQUAL(words[early], 0);
    EXPECT_EQUAL(block->head[DEFAULT], late);
    EXPECT_EQUAL(take(block, DEFAULT), late);

    EXPECT_OK(OP(send, &early)); /* a head that the guest has ruined is the guest's loss */
    words[early] |= EVTCHN_FIFO_LINK_MASK;
    block->head[DEFAULT] = ~0u;
    EXPECT_OK(OP(send, &late));
    EXPECT_EQUAL(words[early], PENDING | LINKED | late);
    words[early] = words[late] = 0;
    block->head[DEFAULT] = block->ready = 0;
}

/* A port that was closed on a queue is not given out until the guest has taken it off (evtchn_is_busy()). */
static void closed_while_linked(void)
{
    u32 other = bind_ipi(0), next;
    words[other] = 0;
    EXPECT_OK(OP(send, &other));
    EXPECT_OK(OP(close, &other));
    EXPECT_EQUAL(words[other], LINKED);
    EXPECT_OK(OP(close, &late));
    EXPECT_EQUAL(bind_ipi(0), late); /* the lowest free port that is not busy */
    next = bind_ipi(0);
    EXPECT(next != other);
    EXPECT_EQUAL(take(block, DEFAULT), other);
    EXPECT_EQUAL(bind_ipi(0), other);
    EXPECT_OK(OP(close, &next));
    EXPECT_REFUSED(OP(send, &next), EINVAL);
}

/* An event ends a block, and comes as an upcall. */
static void upcall_comes(void)
{
    ulong before = upcalls;
    words[early] = words[late] = 0;
    shared_info->vcpu_info[0].evtchn_upcall_pending = 0;
    EXPECT_OK(OP(send, &early));
    event_wait();
    EXPECT_EQUAL(upcalls, before + 1);
    EXPECT_OK(OP(send, &late)); /* its queue was not empty: nothing new to tell */
    EXPECT_EQUAL(shared_info->vcpu_info[0].evtchn_upcall_pending, 0);
    EXPECT_EQUAL(take(block, DEFAULT), early);
    EXPECT_EQUAL(take(block, DEFAULT), late);
}

void conform(void)
{
    block = zeroed_block();
    words = masked_words();
    early = bind_ipi(0);
    late = bind_ipi(0);
    refused();
    change_of_abi();
    priorities();
    masks();
    links();
    closed_while_linked();
    upcall_comes();
    /* What Xen writes to stays writable: it can become no page table. */
    EXPECT_OK(make_readonly((void *)words));
    EXPECT_REFUSED(mmuext(MMUEXT_PIN_L1_TABLE, virt_to_mfn((void *)words), 0), EINVAL);
    EXPECT_OK(make_readonly((void *)block));
    EXPECT_REFUSED(mmuext(MMUEXT_PIN_L1_TABLE, virt_to_mfn((void *)block), 0), EINVAL);
}
