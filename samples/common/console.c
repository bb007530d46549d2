/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The console: a domU has a ring shared with its back end (io/console.h), dom0 has HYPERVISOR_console_io.
 */
#include "guest.h"

static volatile struct xencons_interface *ring;
static u32 ring_port;

#define IN_INDEX(at) ((at) & (sizeof(ring->in) - 1))
#define OUT_INDEX(at) ((at) & (sizeof(ring->out) - 1))

void console_init(void)
{
    if (start_info->flags & SIF_INITDOMAIN)
        return;
    ring = mfn_to_virt(start_info->console.domU.mfn);
    ring_port = start_info->console.domU.evtchn;
}

static void notify(void)
{
    HYPERCALL2(event_channel_op, EVTCHNOP_send, &ring_port);
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
        ring->out[OUT_INDEX(ring->out_prod)] = text[i];
        barrier();
        ring->out_prod++;
    }
    notify();
}

void console_drain(void)
{
    for (int tries = 0; ring && ring->out_prod != ring->out_cons && tries < 10000; tries++) {
        notify();
        HYPERCALL2(sched_op, SCHEDOP_yield, 0);
    }
}

static int read_byte(void)
{
    if (ring->in_cons == ring->in_prod)
        return -1;
    char c = ring->in[IN_INDEX(ring->in_cons)];
    barrier();
    ring->in_cons++;
    notify();
    return (u8)c;
}

static void ignore(u32 port)
{
    (void)port; /* its arrival has ended the wait; the ring says what there is to read */
}

/* Read a line with echo and backspace, without its end; the length, or -1 where there is no console to read. */
int console_read_line(char *line, ulong size)
{
    ulong used = 0;
    if (!ring)
        return -1;
    event_handler(ring_port, ignore);
    event_unmask(ring_port);
    for (;;) {
        int c = read_byte();
        if (c < 0) {
            event_wait();
        } else if (c == '\r' || c == '\n') {
            line[used] = 0;
            console_write("\r\n", 2);
            return (int)used;
        } else if ((c == 8 || c == 127) && used) {
            used--;
            console_write("\b \b", 3);
        } else if (c >= ' ' && c < 127 && used + 1 < size) {
            char echo = (char)c;
            line[used++] = echo;
            console_write(&echo, 1);
        }
    }
}
