/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * MULTICALL BATCHING. Each way into Xen costs a trap; a batch of hypercalls costs one. Calls are queued and go
 * together at mc_flush(); Xen does them in order and leaves each one's result in its entry. Most of what we
 * queue are changes of memory management, which may wait as long as nobody looks at their effect: whoever
 * does has to flush first.
 */
#include "kernel.h"

#define MC_BATCH 32

static struct multicall_entry queue[MC_BATCH];
static struct mmuext_op extended[MC_BATCH]; /* an argument has to outlive the queueing */
static ulong queued;
ulong mc_batches, mc_calls; /* how many traps were taken, for how many calls */

void mc_flush(const char *what)
{
    ulong count = queued;
    if (!count)
        return;
    queued = 0;
    mc_batches++;
    mc_calls += count;
    must(HYPERCALL2(multicall, queue, count), "multicall");
    for (ulong i = 0; i < count; i++)
        must(queue[i].result, what);
}

void mc_add(ulong op, ulong a1, ulong a2, ulong a3, ulong a4)
{
    if (queued == MC_BATCH)
        mc_flush("a full batch");
    queue[queued++] = (struct multicall_entry){ .op = op, .args = { a1, a2, a3, a4 } };
}

/* One mmuext_op, as an entry of its own. */
void mc_mmuext(u32 cmd, ulong arg1)
{
    if (queued == MC_BATCH)
        mc_flush("a full batch");
    struct mmuext_op *op = &extended[queued];
    *op = (struct mmuext_op){ .cmd = cmd, .arg1 = arg1 };
    mc_add(HYPERCALL_mmuext_op, (ulong)op, 1, 0, DOMID_SELF);
}
