/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Output only. A domU shares a ring with the console's back end (public/io/console.h); dom0 is the back end
 * itself, and has HYPERVISOR_console_io.
 */
#include "kernel.h"

static volatile struct xencons_interface *ring;

void console_init(void)
{
    if (!(start_info->flags & SIF_INITDOMAIN))
        ring = mfn_to_virt(start_info->console.domU.mfn);
}

static void notify(void)
{
    u32 port = start_info->console.domU.evtchn;
    HYPERCALL2(event_channel_op, EVTCHNOP_send, &port);
}

void console_write(const char *text, ulong count)
{
    if (!ring) {
        HYPERCALL3(console_io, CONSOLEIO_write, count, text);
        return;
    }
    for (ulong i = 0; i < count; i++) {
        while (ring->out_prod - ring->out_cons == sizeof(ring->out)) {
            notify();
            HYPERCALL2(sched_op, SCHEDOP_yield, 0);
        }
        ring->out[ring->out_prod % sizeof(ring->out)] = text[i];
        barrier(); /* the byte before the index that tells of it */
        ring->out_prod++;
    }
    notify();
}

/* Wait, but not for ever, until the back end has taken everything. */
void console_drain(void)
{
    for (int tries = 0; ring && ring->out_prod != ring->out_cons && tries < 10000; tries++) {
        notify();
        HYPERCALL2(sched_op, SCHEDOP_yield, 0);
    }
}
