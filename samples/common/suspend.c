/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What a guest does that suspends: it hears of it by xenstore, has told where its p2m list is, and hands back
 * what names machine frames, for the next host has others.
 */
#include "suspend.h"

#define barrier() __asm__ volatile("" ::: "memory")
ulong strlen(const char *text);
int strcmp(const char *a, const char *b);

#define STORE_RING 1024
struct xenstore_interface {
    char req[STORE_RING], rsp[STORE_RING];
    u32 req_cons, req_prod, rsp_cons, rsp_prod;
};
struct xs_message {
    u32 type, req_id, tx_id, len;
};
#define XS_READ 2
#define XS_WRITE 11
#define XS_ERROR 16

#define POLL_NS 10000000 /* between two looks at control/shutdown */
#define FRAMES_PER_PAGE (PAGE_SIZE / sizeof(ulong))

static volatile struct xenstore_interface *store;

/* -- xenstore: a request at a time */

static void store_notify(void)
{
    hypercall(HYPERCALL_event_channel_op, EVTCHNOP_send, (ulong)&start_info->store_evtchn, 0, 0, 0);
}

static void poll_until(u64 when)
{
    struct sched_poll poll = { .timeout = when };
    hypercall(HYPERCALL_sched_op, SCHEDOP_poll, (ulong)&poll, 0, 0, 0);
}

static void store_put(const void *data, ulong size)
{
    const char *from = data;
    for (ulong i = 0; i < size; i++) {
        while (store->req_prod - store->req_cons == STORE_RING)
            poll_until(system_time() + 1000000);
        store->req[store->req_prod % STORE_RING] = from[i];
        barrier();
        store->req_prod++;
    }
}

static void store_get(void *data, ulong size)
{
    char *to = data;
    for (ulong i = 0; i < size; i++) {
        while (store->rsp_prod == store->rsp_cons) {
            store_notify();
            poll_until(system_time() + 1000000);
        }
        to[i] = store->rsp[store->rsp_cons % STORE_RING];
        barrier();
        store->rsp_cons++;
    }
}

/* Ask for `path` (with a value, to be written, or NULL); the answer's length, or -1 for an error. */
static long store_ask(u32 type, const char *path, const char *value, char *answer, ulong room)
{
    static u32 serial;
    struct xs_message message = { type, ++serial, 0, (u32)(strlen(path) + 1 + (value ? strlen(value) : 0)) };
    store_put(&message, sizeof(message));
    store_put(path, strlen(path) + 1);
    if (value)
        store_put(value, strlen(value));
    store_notify();
    store_get(&message, sizeof(message));
    for (u32 i = 0; i < message.len; i++) {
        char byte;
        store_get(&byte, 1);
        if (i + 1 < room)
            answer[i] = byte;
    }
    answer[message.len < room ? message.len : room - 1] = 0;
    return message.type == XS_ERROR ? -1 : (long)message.len;
}

void store_init(void)
{
    store = mfn_to_virt(start_info->store_mfn);
}

/* Until xl asks for it; the word is taken away, which tells that it was seen. */
void wait_for_suspend_request(void)
{
    char value[64];
    while (store_ask(XS_READ, "control/shutdown", NULL, value, sizeof(value)) < 0 || strcmp(value, "suspend"))
        poll_until(system_time() + POLL_NS);
    store_ask(XS_WRITE, "control/shutdown", "", value, sizeof(value));
}

/* -- what Xen's tools look for in a suspended guest */

static ulong *frame_lists[16], *frame_list_list;

/* The tree of frames that hold the p2m list: shared_info names its top. */
void publish_p2m(volatile struct shared_info *shared_info)
{
    const ulong *p2m = (const ulong *)start_info->mfn_list;
    ulong leaves = (start_info->nr_pages + FRAMES_PER_PAGE - 1) / FRAMES_PER_PAGE;
    if (!frame_list_list)
        frame_list_list = alloc_page();
    for (ulong leaf = 0; leaf < leaves; leaf++) {
        ulong list = leaf / FRAMES_PER_PAGE;
        if (!frame_lists[list])
            frame_lists[list] = alloc_page();
        frame_lists[list][leaf % FRAMES_PER_PAGE] = virt_to_mfn(p2m + leaf * FRAMES_PER_PAGE);
        frame_list_list[list] = virt_to_mfn(frame_lists[list]);
    }
    shared_info->max_pfn = start_info->nr_pages;
    shared_info->pfn_to_mfn_frame_list_list = virt_to_mfn(frame_list_list);
}

static ulong pfn_of(ulong mfn)
{
    return ((ulong)mfn_to_virt(mfn) - VIRT_BASE) >> PAGE_SHIFT;
}

/* Everything that names a machine frame and is in nobody's p2m list becomes a pfn; then Xen's word. */
long hand_back_and_suspend(void)
{
    u32 reason = SHUTDOWN_suspend;
    ulong store_mfn = start_info->store_mfn, console_mfn = start_info->console.domU.mfn;
    start_info->store_mfn = pfn_of(store_mfn);
    start_info->console.domU.mfn = pfn_of(console_mfn);
    long cancelled = hypercall(HYPERCALL_sched_op, SCHEDOP_shutdown, (ulong)&reason, virt_to_mfn(start_info), 0, 0);
    if (cancelled) {
        start_info->store_mfn = store_mfn;
        start_info->console.domU.mfn = console_mfn;
    }
    return cancelled;
}
