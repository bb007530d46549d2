/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "multicall: events and a block between entries, and entries that cannot be read or answered";

#define ENTRY(name, ...) { HYPERCALL_##name, 0x5a5a, { __VA_ARGS__ } }
#define MILLISECOND 1000000ull

static volatile u32 arrived;
static struct multicall_entry *watched;
static long answered_at_arrival;

static void on_event(u32 port)
{
    (void)port;
    arrived++;
    if (watched)
        answered_at_arrival = watched->result;
}

static void a_block_inside(void)
{
    struct vcpu_set_singleshot_timer single = { system_time() + 5 * MILLISECOND, 0 };
    struct multicall_entry calls[] = {
        ENTRY(xen_version, XENVER_pagesize, 0),
        ENTRY(vcpu_op, VCPUOP_set_singleshot_timer, 0, (ulong)&single),
        ENTRY(sched_op, SCHEDOP_block, 0),
        ENTRY(xen_version, XENVER_pagesize, 0),
    };
    watched = calls + 3;
    EXPECT(event_bind_virq(VIRQ_TIMER, on_event) > 0);
    EXPECT_OK(HYPERCALL3(vcpu_op, VCPUOP_stop_periodic_timer, 0, 0));
    EXPECT_OK(HYPERCALL2(multicall, calls, ARRAY_SIZE(calls)));
    events_disable();
    EXPECT_EQUAL(arrived, 1);
    EXPECT(system_time() >= single.timeout_abs_ns);
    EXPECT_EQUAL(answered_at_arrival, 0x5a5a); /* the rest was made after the wait (hypercall_preempt_check) */
    EXPECT_EQUAL(calls[0].result, 4096);
    EXPECT_OK(calls[1].result);
    EXPECT_OK(calls[2].result);
    EXPECT_EQUAL(calls[3].result, 4096);
    watched = NULL;
}

static void an_event_inside(void)
{
    struct {
        u32 vcpu, port;
    } ipi = { 0, 0 };
    EXPECT_OK(HYPERCALL2(event_channel_op, EVTCHNOP_bind_ipi, &ipi));
    event_handler(ipi.port, on_event);
    event_unmask(ipi.port);
    struct multicall_entry calls[] = {
        ENTRY(event_channel_op, EVTCHNOP_send, (ulong)&ipi.port),
        ENTRY(xen_version, XENVER_pagesize, 0),
    };
    arrived = 0;
    watched = calls + 1;
    answered_at_arrival = 0;
    EXPECT_OK(HYPERCALL2(multicall, calls, 2)); /* masked: it waits */
    EXPECT_EQUAL(arrived, 0);
    EXPECT_EQUAL(calls[1].result, 4096);
    events_enable();
    EXPECT_EQUAL(arrived, 1);
    calls[1].result = 0x5a5a;
    EXPECT_OK(HYPERCALL2(multicall, calls, 2)); /* unmasked: it interrupts the list */
    EXPECT_EQUAL(arrived, 2);
    EXPECT_EQUAL(answered_at_arrival, 0x5a5a);
    EXPECT_EQUAL(calls[1].result, 4096);
    events_disable();
    watched = NULL;
}

static void unreadable(void)
{
    struct multicall_entry *at, call = ENTRY(xen_version, XENVER_pagesize, 0);
    u8 *page = alloc_page(), *hole = alloc_page();
    pte_t own = *pte_of(hole, 1);
    at = (struct multicall_entry *)hole - 2;
    EXPECT_OK(set_va(hole, 0, UVMF_INVLPG));
    at[0] = at[1] = call;
    EXPECT_REFUSED(HYPERCALL2(multicall, at, 3), EFAULT); /* those before the hole are made */
    EXPECT_EQUAL(at[0].result, 4096);
    EXPECT_EQUAL(at[1].result, 4096);
    EXPECT_OK(set_va(hole, own, UVMF_INVLPG));

    /* A list that cannot be answered in: its first entry is made, and that is all (do_multicall). */
    struct multicall_entry *list = (struct multicall_entry *)page;
    list[0] = (struct multicall_entry)ENTRY(fpu_taskswitch, 1);
    list[1] = (struct multicall_entry)ENTRY(fpu_taskswitch, 0);
    EXPECT_OK(make_readonly(page));
    EXPECT_REFUSED(HYPERCALL2(multicall, list, 2), EFAULT);
    ulong cr0;
    __asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
    EXPECT_EQUAL(cr0 & 8, 8); /* TS */
    EXPECT_OK(HYPERCALL1(fpu_taskswitch, 0));
    EXPECT_EQUAL(list[0].result, 0x5a5a);
    EXPECT_OK(make_writable(page));

    struct multicall_entry bad[] = {
        ENTRY(memory_op, 63, 0), ENTRY(memory_op, XENMEM_machphys_mapping, 16), ENTRY(mmuext_op, 16, 1, 0, DOMID_SELF),
        ENTRY(event_channel_op, EVTCHNOP_send, 16), ENTRY(multicall, 0, 0), { 55, 0, { 0 } }, { ~0ul, 0, { 0 } },
        ENTRY(xen_version, XENVER_pagesize, 0),
    };
    EXPECT_OK(HYPERCALL2(multicall, bad, ARRAY_SIZE(bad)));
    EXPECT_REFUSED(bad[0].result, ENOSYS);
    EXPECT_REFUSED(bad[1].result, EFAULT);
    EXPECT_REFUSED(bad[2].result, EFAULT);
    EXPECT_REFUSED(bad[3].result, EFAULT);
    EXPECT_REFUSED(bad[4].result, EINVAL);
    EXPECT_REFUSED(bad[5].result, ENOSYS);
    EXPECT_REFUSED(bad[6].result, ENOSYS);
    EXPECT_EQUAL(bad[7].result, 4096);
}

void conform(void)
{
    a_block_inside();
    an_event_inside();
    unreadable();
}
