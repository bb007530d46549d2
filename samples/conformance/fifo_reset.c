/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fifo.h"

const char test_title[] = "EVTCHNOP_reset: all ports closed, two levels again, and the next kernel can begin anew";

#define DEFAULT EVTCHN_FIFO_PRIORITY_DEFAULT
#define PENDING EVTCHN_FIFO_PENDING
#define LINKED EVTCHN_FIFO_LINKED

struct status { u16 dom; u32 port, status, vcpu; u16 remote_dom; u32 remote_port; };

static long status_of(u32 port, struct status *status)
{
    *status = (struct status){ .dom = DOMID_SELF, .port = port };
    return OP(status, status);
}

static long reset(u16 domid)
{
    return OP(reset, &domid);
}

/* The reset closes the console's port: what it is bound to waits for this domain, and is bound again. */
static struct status console;

static void console_again(void)
{
    struct { u16 remote_dom; u32 remote_port, local_port; } bind = { console.remote_dom, console.remote_port, 0 };
    struct { u16 dom, remote_dom; u32 port; } unbound = { DOMID_SELF, DOMID_SELF, 0 };
    if (start_info->flags & SIF_INITDOMAIN)
        return;
    while (unbound.port + 1 < start_info->console.domU.evtchn)
        EXPECT_OK(OP(alloc_unbound, &unbound));
    EXPECT_OK(OP(bind_interdomain, &bind));
    EXPECT_EQUAL(bind.local_port, start_info->console.domU.evtchn);
    EXPECT_REFUSED(OP(bind_interdomain, &bind), EINVAL); /* once */
}

void conform(void)
{
    struct status status;
    words = masked_words();
    volatile struct evtchn_fifo_control_block *block = zeroed_block();
    u64 block_gfn = virt_to_mfn((void *)block), words_gfn = virt_to_mfn((void *)words);
    if (!(start_info->flags & SIF_INITDOMAIN)) {
        EXPECT_OK(status_of(start_info->console.domU.evtchn, &console));
        EXPECT_EQUAL(console.status, EVTCHNSTAT_interdomain);
        EXPECT_REFUSED(reset(0), EPERM);
    }
    EXPECT_REFUSED(reset(0x1234), ESRCH);
    EXPECT_REFUSED(OP(reset, 16), EFAULT);
    EXPECT_REFUSED(HYPERCALL2(event_channel_op, 14, &(u16){ DOMID_SELF }), EBUSY); /* reset_cont, with nothing begun */

    u32 port = bind_ipi(0);
    for (u32 i = port; i < 40; i++)
        EXPECT_EQUAL(bind_ipi(0), i + 1);
    port = 40;
    EXPECT_OK(init_control(block_gfn, 0, 0));
    EXPECT_OK(expand_array(words_gfn));
    words[port] = 0;
    EXPECT_OK(OP(send, &port));
    EXPECT_EQUAL(words[port], PENDING | LINKED);

    EXPECT_OK(reset(DOMID_SELF));
    EXPECT_EQUAL(words[port], LINKED); /* closed: no longer pending */
    console_again();
    EXPECT_OK(status_of(port, &status));
    EXPECT_EQUAL(status.status, EVTCHNSTAT_closed);
    EXPECT_REFUSED(OP(send, &port), EINVAL);
    EXPECT_REFUSED(expand_array(words_gfn), EOPNOTSUPP);

    /* Two levels work, and the frames are free for other use. */
    u32 two_level = bind_ipi(0);
    EXPECT_REFUSED(set_priority(two_level, 1), ENOSYS);
    EXPECT_OK(OP(send, &two_level));
    EXPECT(shared_info->evtchn_pending[0] & (1ul << two_level));
    EXPECT_EQUAL(words[two_level] & PENDING, 0);
    memset((void *)words, 0, PAGE_SIZE);
    EXPECT_OK(make_readonly((void *)words));
    EXPECT_OK(mmuext(MMUEXT_PIN_L1_TABLE, words_gfn, 0));
    EXPECT_OK(mmuext(MMUEXT_UNPIN_TABLE, words_gfn, 0));
    EXPECT_OK(make_writable((void *)words));

    /* Once more, with what is pending taken along. */
    for (unsigned i = 0; i < WORDS_PER_PAGE; i++)
        words[i] = EVTCHN_FIFO_MASKED;
    words[two_level] = 0;
    block->ready = block->head[DEFAULT] = 0;
    EXPECT_OK(init_control(block_gfn, 8, 0));
    EXPECT_OK(expand_array(words_gfn));
    EXPECT_EQUAL(words[two_level], PENDING | LINKED);
    EXPECT_EQUAL(((volatile struct evtchn_fifo_control_block *)((ulong)block + 8))->head[DEFAULT], two_level);
    EXPECT_OK(OP(close, &two_level));
    EXPECT_OK(reset(DOMID_SELF));
    console_again();

    /* Xen keeps for good that an event once waited for its event word: another use of the port finds it pending. */
    if (start_info->flags & SIF_INITDOMAIN)
        EXPECT_EQUAL(bind_ipi(0), 1);
    for (unsigned i = 0; i < WORDS_PER_PAGE; i++)
        words[i] = EVTCHN_FIFO_MASKED;
    shared_info->evtchn_pending[0] = 0;
    EXPECT_OK(init_control(block_gfn, 0, 0));
    EXPECT_OK(expand_array(words_gfn));
    EXPECT_EQUAL(words[two_level], PENDING | EVTCHN_FIFO_MASKED);
}
