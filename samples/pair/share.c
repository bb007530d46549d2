/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Two domains share pages and an event channel. The one with `offer` on its command line grants and listens, the
 * other with `take` maps and calls; `peer=N` is the other's number. Both end as conformance guests do.
 */
#include "grants.h"

const char test_title[] = "Two domains: a channel, grants mapped, copied, refused, and a frame that changes its owner";

enum { PORT = 3, SHARED = 8, READ_ONLY, FOR_ANOTHER, ACCEPT, PATIENCE = 100000 };

struct bind { u16 remote_dom; u32 remote_port, local_port; };
struct unbound { u16 dom, remote_dom; u32 port; };
struct transfer { ulong mfn; u16 domid; u32 ref; short status; };

static volatile struct entry *table;
static u16 peer;
static u32 port;
static volatile unsigned heard;

static void hear(u32 from)
{
    EXPECT_EQUAL(from, port);
    heard++;
}

static void call_peer(void)
{
    EXPECT_OK(HYPERCALL2(event_channel_op, EVTCHNOP_send, &port));
}

static void wait_for(unsigned times)
{
    while (heard < times)
        event_wait();
}

static void listen_to(u32 own)
{
    port = own;
    shared_info->evtchn_pending[0] &= ~(1ul << port); /* binding raises it */
    event_handler(port, hear);
    event_unmask(port);
}

static void map_table(void)
{
    ulong frames[1] = { 0 };
    struct setup_table setup = { DOMID_SELF, 1, 99, frames };
    EXPECT_OK(OP(setup_table, &setup, 1));
    EXPECT_EQUAL(setup.status, GNTST_okay);
    table = alloc_page();
    EXPECT_OK(set_va((void *)table, ((u64)frames[0] << PAGE_SHIFT) | PTE_PRESENT | PTE_RW, UVMF_INVLPG));
}

static void grant(u32 ref, u16 to, u16 flags, const void *page)
{
    table[ref] = (struct entry){ flags, to, (u32)virt_to_mfn(page) };
}

static void offer(void)
{
    u8 *shared = alloc_page(), *read_only = alloc_page();
    struct unbound unbound = { DOMID_SELF, peer, 0 };
    map_table();
    shared[0] = 'a';
    memcpy(read_only, "look, but do not touch", 23);
    grant(SHARED, peer, GTF_permit_access, shared);
    grant(READ_ONLY, peer, GTF_permit_access | GTF_readonly, read_only);
    grant(FOR_ANOTHER, 77, GTF_permit_access, shared);
    table[ACCEPT] = (struct entry){ GTF_accept_transfer, peer, (u32)start_info->nr_pages };
    EXPECT_OK(HYPERCALL2(event_channel_op, EVTCHNOP_alloc_unbound, &unbound));
    EXPECT_EQUAL(unbound.port, PORT); /* which the other relies on */
    listen_to(unbound.port);

    wait_for(1); /* the page is mapped and written to */
    EXPECT_EQUAL(shared[0], 'b');
    EXPECT_EQUAL(table[SHARED].flags & (GTF_reading | GTF_writing), GTF_reading | GTF_writing);
    shared[1] = 'c';
    call_peer();

    wait_for(2); /* everything is unmapped, and a frame has come */
    EXPECT_EQUAL(table[SHARED].flags & (GTF_reading | GTF_writing), 0);
    EXPECT_EQUAL(table[READ_ONLY].flags & (GTF_reading | GTF_writing), 0);
    EXPECT_EQUAL(memcmp(read_only, "look, but do not touch", 23), 0);
    EXPECT_EQUAL(table[ACCEPT].flags, GTF_accept_transfer | 4 | 8); /* committed, completed */
    u8 *window = alloc_page();
    EXPECT_OK(set_va(window, ((u64)table[ACCEPT].frame << PAGE_SHIFT) | PTE_PRESENT | PTE_RW, UVMF_INVLPG));
    EXPECT_EQUAL(memcmp(window, "a present", 10), 0);
    EXPECT_EQUAL(mfn_to_pfn(table[ACCEPT].frame), start_info->nr_pages);
    call_peer();
}

static struct map last;

static int map(const void *where, u32 flags, u32 ref, u16 dom)
{
    last = (struct map){ (ulong)where, flags, ref, dom, 99, 0, 0 };
    EXPECT_OK(OP(map_grant_ref, &last, 1));
    return last.status;
}

static int unmap(const void *where, u32 handle)
{
    struct unmap op = { (ulong)where, 0, handle, 99 };
    EXPECT_OK(OP(unmap_grant_ref, &op, 1));
    return op.status;
}

static int copy(u32 ref, const void *page, u16 flags)
{
    struct copy op = { { { 0 }, DOMID_SELF, 0 }, { { 0 }, DOMID_SELF, 0 }, 23, flags, 99 };
    op.source.u.gmfn = op.dest.u.gmfn = virt_to_mfn(page);
    if (flags & GNTCOPY_source_gref) {
        op.source.u.ref = ref;
        op.source.domid = peer;
    } else {
        op.dest.u.ref = ref;
        op.dest.domid = peer;
    }
    EXPECT_OK(OP(copy, &op, 1));
    return op.status;
}

static int transfer(ulong mfn, u16 to)
{
    struct transfer op = { mfn, to, ACCEPT, 99 };
    EXPECT_OK(OP(transfer, &op, 1));
    return op.status;
}

static void store(void *address)
{
    *(volatile u8 *)address = 1;
}

#define EXPECT_STATUS(call, wanted) (count_refusal(), EXPECT_EQUAL(call, wanted))

static u32 bind_to_peer(void)
{
    struct bind bind = { peer, PORT, 0 };
    unsigned tries = 0;
    long rc;
    do
        rc = HYPERCALL2(event_channel_op, EVTCHNOP_bind_interdomain, &bind);
    while (rc && ++tries < PATIENCE && !HYPERCALL2(sched_op, SCHEDOP_yield, 0));
    EXPECT_OK(rc);
    EXPECT_REFUSED(HYPERCALL2(event_channel_op, EVTCHNOP_bind_interdomain, &bind), EINVAL); /* it is taken */
    bind.remote_dom = 77;
    EXPECT_REFUSED(HYPERCALL2(event_channel_op, EVTCHNOP_bind_interdomain, &bind), ESRCH);
    return bind.local_port;
}

static void take(void)
{
    u8 *window = alloc_page(), *other = alloc_page(), *page = alloc_page(), *present = alloc_page();
    ulong gift = virt_to_mfn(present);
    listen_to(bind_to_peer());
    EXPECT_OK(set_va(window, 0, UVMF_INVLPG));
    EXPECT_OK(set_va(other, 0, UVMF_INVLPG));
    EXPECT_EQUAL(map(window, GNTMAP_host_map, SHARED, peer), GNTST_okay);
    u32 shared = last.handle;
    EXPECT_EQUAL(window[0], 'a');
    window[0] = 'b';
    call_peer();
    wait_for(1);
    EXPECT_EQUAL(window[1], 'c');

    EXPECT_STATUS(map(other, GNTMAP_host_map, READ_ONLY, peer), GNTST_general_error);
    EXPECT_STATUS(map(other, GNTMAP_host_map, FOR_ANOTHER, peer), GNTST_general_error);
    EXPECT_STATUS(map(other, GNTMAP_host_map, SHARED, 77), GNTST_bad_domain);
    EXPECT_EQUAL(map(other, GNTMAP_host_map | GNTMAP_readonly, READ_ONLY, peer), GNTST_okay);
    u32 read_only = last.handle;
    EXPECT_EQUAL(memcmp(other, "look, but do not touch", 23), 0);
    EXPECT_TRAP(store, other, TRAP_PF, 3);
    EXPECT_EQUAL(copy(READ_ONLY, page, GNTCOPY_source_gref), GNTST_okay);
    EXPECT_EQUAL(memcmp(page, "look, but do not touch", 23), 0);
    EXPECT_STATUS(copy(READ_ONLY, page, GNTCOPY_dest_gref), GNTST_general_error);
    /* A frame of the other's is no frame to put into a page table oneself (get_page_from_l1e). */
    EXPECT_REFUSED(set_va(page, (last.dev_bus_addr & -4096ull) | PTE_PRESENT, UVMF_INVLPG), EBUSY);
    EXPECT_EQUAL(unmap(other, read_only), GNTST_okay);
    EXPECT_EQUAL(unmap(window, shared), GNTST_okay);

    memcpy(present, "a present", 10);
    EXPECT_STATUS(transfer(gift, peer), GNTST_bad_page); /* it is mapped */
    EXPECT_OK(set_va(present, 0, UVMF_INVLPG));
    EXPECT_EQUAL(transfer(gift, peer), GNTST_okay);
    EXPECT_STATUS(transfer(gift, peer), GNTST_bad_page); /* no longer one's own */
    call_peer();
    wait_for(2);
}

void conform(void)
{
    peer = command_line_number("peer", 0);
    if (on_command_line("offer"))
        offer();
    else
        take();
}
