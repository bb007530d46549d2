/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A guest that suspends as `xl save` asks it to, and goes on wherever it is resumed: what of itself a guest has
 * to hand back, give up and find again. `rounds=N` on the command line: how often, before it powers off.
 */
#include "guest.h"

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
#define WITNESSES 16

static volatile struct xenstore_interface *store;

/* -- xenstore: a request at a time */

static void store_notify(void)
{
    HYPERCALL2(event_channel_op, EVTCHNOP_send, &start_info->store_evtchn);
}

static void sleep_until(u64 when)
{
    struct sched_poll poll = { .timeout = when };
    HYPERCALL2(sched_op, SCHEDOP_poll, &poll);
}

static void store_put(const void *data, ulong size)
{
    const char *from = data;
    for (ulong i = 0; i < size; i++) {
        while (store->req_prod - store->req_cons == STORE_RING)
            sleep_until(system_time() + 1000000);
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
            sleep_until(system_time() + 1000000);
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

/* -- what Xen's tools look for in a suspended guest */

static ulong *frame_lists[16], *frame_list_list;

/* The tree of frames that hold the p2m list: shared_info names its top. */
static void publish_p2m(void)
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

static void map_shared_info(u64 machine)
{
    set_va(shared_info, machine | PTE_PRESENT | PTE_RW | PTE_ACCESSED | PTE_DIRTY, UVMF_INVLPG);
}

/* Everything that names a machine frame and is in nobody's p2m list goes, or becomes a pfn; then Xen's word. */
static long suspend(void)
{
    u32 reason = SHUTDOWN_suspend;
    events_disable();
    start_info->store_mfn = mfn_to_pfn(start_info->store_mfn);
    start_info->console.domU.mfn = mfn_to_pfn(start_info->console.domU.mfn);
    map_shared_info(virt_to_machine(shared_info)); /* the page of our own that lies under it */
    long cancelled = HYPERCALL3(sched_op, SCHEDOP_shutdown, &reason, virt_to_mfn(start_info));
    if (cancelled) {
        start_info->store_mfn = pfn_to_mfn(start_info->store_mfn);
        start_info->console.domU.mfn = pfn_to_mfn(start_info->console.domU.mfn);
    }
    map_shared_info(start_info->shared_info);
    memset(shared_info->evtchn_mask, 0xff, sizeof(shared_info->evtchn_mask));
    store = mfn_to_virt(start_info->store_mfn);
    console_init();
    publish_p2m();
    return cancelled;
}

/* -- what has to be there afterwards */

static u64 *witnesses[WITNESSES];
static u8 own_l1[PAGE_SIZE] PAGE_ALIGNED, read_only[PAGE_SIZE] PAGE_ALIGNED;

static u64 witness(u64 page, u64 word)
{
    return page << 32 | word << 4 | 5;
}

static void prepare_witnesses(void)
{
    for (ulong i = 0; i < WITNESSES; i++) {
        witnesses[i] = alloc_page();
        for (ulong word = 0; word < PAGE_SIZE / 8; word++)
            witnesses[i][word] = witness(i, word);
    }
    ((pte_t *)own_l1)[7] = virt_to_machine(witnesses[3]) | PTE_PRESENT;
    make_readonly(own_l1);
    mmuext(MMUEXT_PIN_L1_TABLE, virt_to_mfn(own_l1), 0);
    make_readonly(read_only);
}

static void write_to(void *address)
{
    *(volatile u8 *)address = 1;
}

static int check(const char *what, int holds)
{
    if (!holds)
        printf("FAILED: %s\n", what);
    return !holds;
}

static int count_failures(void)
{
    int failures = 0;
    for (ulong i = 0; i < WITNESSES; i++)
        for (ulong word = 0; word < PAGE_SIZE / 8; word++)
            if (witnesses[i][word] != witness(i, word)) {
                failures += check("a page holds what it held", 0);
                break;
            }
    for (ulong pfn = 0; pfn < start_info->nr_pages; pfn++)
        if (mfn_to_pfn(pfn_to_mfn(pfn)) != pfn)
            return failures + check("p2m and m2p agree", 0);
    failures += check("a page table names the frame of today", PTE_MFN(((pte_t *)own_l1)[7]) == virt_to_mfn(witnesses[3]));
    failures += check("a pinned table is read-only", probe(write_to, own_l1).vector == TRAP_PF);
    failures += check("it is pinned", mmuext(MMUEXT_PIN_L1_TABLE, virt_to_mfn(own_l1), 0) != 0);
    failures += check("a page that was read-only is", probe(write_to, read_only).vector == TRAP_PF);
    failures += check("system time goes on", system_time() > 0);
    return failures;
}

int main(void)
{
    long rounds = command_line_number("rounds", 1);
    int failures = 0;
    char value[64];
    store = mfn_to_virt(start_info->store_mfn);
    publish_p2m();
    prepare_witnesses();
    failures += count_failures();
    for (long round = 1; round <= rounds; round++) {
        printf("ready for round %ld\n", round);
        while (store_ask(XS_READ, "control/shutdown", NULL, value, sizeof(value)) < 0 || strcmp(value, "suspend"))
            sleep_until(system_time() + POLL_NS);
        store_ask(XS_WRITE, "control/shutdown", "", value, sizeof(value));
        printf("suspending\n");
        console_drain();
        long cancelled = suspend();
        printf("%s round %ld\n", cancelled ? "cancelled in" : "resumed after", round);
        failures += count_failures();
    }
    printf("Test result: %s\n", failures ? "FAILURE" : "SUCCESS");
    return failures ? SHUTDOWN_crash : SHUTDOWN_poweroff;
}
