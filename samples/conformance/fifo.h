/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What the FIFO guests share. All event words start masked, as Linux has them: the console's port is one of them.
 */
#ifndef SAMPLES_FIFO_H
#define SAMPLES_FIFO_H

#include "conform.h"

#define OP(name, argument) HYPERCALL2(event_channel_op, EVTCHNOP_##name, argument)
#define WORDS_PER_PAGE (PAGE_SIZE / sizeof(u32))

struct evtchn_init_control { u64 control_gfn; u32 offset, vcpu; u8 link_bits, pad[7]; };

static volatile u32 *words; /* the event words of the first 1024 ports */

static inline long init_control(u64 gfn, u32 offset, u32 vcpu)
{
    struct evtchn_init_control argument = { gfn, offset, vcpu, 0, { 0 } };
    return OP(init_control, &argument);
}

static inline long expand_array(u64 gfn)
{
    return OP(expand_array, &gfn);
}

static inline long set_priority(u32 port, u32 priority)
{
    struct { u32 port, priority; } argument = { port, priority };
    return OP(set_priority, &argument);
}

static inline u32 bind_ipi(u32 vcpu)
{
    struct { u32 vcpu, port; } argument = { vcpu, 0 };
    EXPECT_OK(OP(bind_ipi, &argument));
    return argument.port;
}

static inline volatile u32 *masked_words(void)
{
    volatile u32 *page = alloc_page();
    for (unsigned i = 0; i < WORDS_PER_PAGE; i++)
        page[i] = EVTCHN_FIFO_MASKED;
    return page;
}

static inline volatile struct evtchn_fifo_control_block *zeroed_block(void)
{
    void *page = alloc_page();
    memset(page, 0, PAGE_SIZE);
    return page;
}

/* Take the first event off a queue as a kernel does, pending or not; its port, 0 where the queue is empty. */
static inline u32 take(volatile struct evtchn_fifo_control_block *block, unsigned priority)
{
    u32 port = block->head[priority];
    if (!port)
        return 0;
    u32 next = words[port] & EVTCHN_FIFO_LINK_MASK;
    words[port] &= ~(EVTCHN_FIFO_LINKED | EVTCHN_FIFO_PENDING | EVTCHN_FIFO_LINK_MASK);
    block->head[priority] = next;
    if (!next)
        block->ready &= ~(1u << priority);
    return port;
}

#endif
