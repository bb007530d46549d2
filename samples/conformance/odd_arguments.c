/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Empty and odd arguments: no requests, null and unmapped pointers, every kind of domain number";

#define DOMID_COW 0x7ff3
#define DOMID_INVALID 0x7ff4
#define DOMID_IDLE 0x7fff
#define NOBODY 0x1234
#define HYPERCALL_dm_op_nr 41
#define PREEMPTED 0x80000000u /* MMU_UPDATE_PREEMPTED */
#define XEN_OWN_DOMID 0xfffe  /* in a table: this domain's number */

static u8 *data, *hole;
static pte_t entry;
static u16 own;

/* This domain's number, which a channel to itself tells. */
static u16 own_domid(void)
{
    struct { u16 dom, remote_dom; u32 port; } unbound = { DOMID_SELF, DOMID_SELF, 0 };
    struct { u16 remote_dom; u32 remote_port, local_port; } bind = { DOMID_SELF, 0, 0 };
    struct { u16 dom; u32 port, status, vcpu; u16 remote_dom; u32 remote_port; } status = { .dom = DOMID_SELF };
    EXPECT_OK(HYPERCALL2(event_channel_op, EVTCHNOP_alloc_unbound, &unbound));
    bind.remote_port = unbound.port;
    EXPECT_OK(HYPERCALL2(event_channel_op, EVTCHNOP_bind_interdomain, &bind));
    status.port = bind.local_port;
    EXPECT_OK(HYPERCALL2(event_channel_op, EVTCHNOP_status, &status));
    EXPECT_OK(HYPERCALL2(event_channel_op, EVTCHNOP_close, &bind.local_port));
    EXPECT_OK(HYPERCALL2(event_channel_op, EVTCHNOP_close, &unbound.port));
    return status.remote_dom;
}

/*
 * get_pg_owner() knows DOMID_SELF, DOMID_IO, DOMID_XEN and other domains, but not oneself by number. Whether one may
 * is asked inside the loop of mmu_update (xsm_mmu_update), and before that of mmuext_op, which for a 32-bit guest has
 * yet another loop around it (compat_mmuext_op).
 */
static const struct {
    u16 domid;
    u8 mmu_none, mmu_one;     /* mmu_update of no request, and of one that changes nothing */
    u8 ext_none64, ext_one;   /* mmuext_op likewise; of none a 32-bit guest hears 0 */
    u8 other;                 /* update_va_mapping_otherdomain */
} domains[] = {
    { DOMID_SELF, 0, 0, 0, 0, 0 },
    { XEN_OWN_DOMID, ESRCH, ESRCH, ESRCH, ESRCH, ESRCH },
    { DOMID_IO, 0, 0, EPERM, EPERM, EPERM },
    { DOMID_XEN, 0, EPERM, EPERM, EPERM, EPERM },
    { DOMID_COW, ESRCH, ESRCH, ESRCH, ESRCH, ESRCH },
    { DOMID_INVALID, ESRCH, ESRCH, ESRCH, ESRCH, ESRCH },
    { DOMID_IDLE, ESRCH, ESRCH, ESRCH, ESRCH, ESRCH },
    { NOBODY, ESRCH, ESRCH, ESRCH, ESRCH, ESRCH },
    { 0xffff, ESRCH, ESRCH, ESRCH, ESRCH, ESRCH },
    { 0, 0, EPERM, EPERM, EPERM, EPERM },
};

static long update(ulong count, ulong foreigndom)
{
    struct mmu_update request = { virt_to_machine(pte_of(data, 1)), entry };
    return HYPERCALL4(mmu_update, &request, count, 0, foreigndom);
}

static long extended(ulong count, ulong foreigndom)
{
    struct mmuext_op op = { MMUEXT_TLB_FLUSH_LOCAL, 0, 0 };
    return HYPERCALL4(mmuext_op, &op, count, 0, foreigndom);
}

static long map_other(u16 domid)
{
#ifdef __x86_64__
    return HYPERCALL4(update_va_mapping_otherdomain, data, entry, UVMF_INVLPG, domid);
#elif PT_LEVELS == 2
    return hypercall(HYPERCALL_update_va_mapping_otherdomain, (ulong)data, entry, 0, UVMF_INVLPG, domid);
#else
    return hypercall(HYPERCALL_update_va_mapping_otherdomain, (ulong)data, (ulong)entry, (ulong)(entry >> 32), UVMF_INVLPG,
                     domid);
#endif
}

static void domain_numbers(void)
{
    for (unsigned i = 0; i < ARRAY_SIZE(domains); i++) {
        ulong domid = domains[i].domid == XEN_OWN_DOMID ? own : domains[i].domid;
        if (start_info->flags & SIF_INITDOMAIN && (!domid || domid == DOMID_IO || domid == DOMID_XEN))
            continue;
        EXPECT_REFUSED(update(0, domid), domains[i].mmu_none);
        EXPECT_REFUSED(update(1, domid), domains[i].mmu_one);
        EXPECT_REFUSED(extended(0, domid), PT_LEVELS == 3 ? 0 : domains[i].ext_none64);
        EXPECT_REFUSED(extended(1, domid), domains[i].ext_one);
        EXPECT_REFUSED(extended(1, domid | 0x50000), domains[i].ext_one); /* a domid_t has 16 bits */
        EXPECT_REFUSED(map_other(domid), domains[i].other);
    }
}

/* The domain of the page tables stands above that of the frame, one too large. */
static void page_table_domains(void)
{
    EXPECT_OK(update(1, (own + 1ul) << 16 | DOMID_SELF));
    EXPECT_REFUSED(update(0, (NOBODY + 1ul) << 16 | DOMID_SELF), ESRCH);
    EXPECT_REFUSED(update(1, (DOMID_SELF + 1ul) << 16 | DOMID_SELF), ESRCH); /* by number alone */
    if (start_info->flags & SIF_INITDOMAIN)
        return;
    EXPECT_OK(update(0, 1ul << 16 | DOMID_SELF));
    EXPECT_REFUSED(update(1, 1ul << 16 | DOMID_SELF), EPERM);
    EXPECT_REFUSED(update(0, 1ul << 16 | NOBODY), ESRCH);
}

static void commands(void)
{
    for (ulong command = 4; command < 8; command++) { /* looked at before the domain is (do_mmu_update) */
        struct mmu_update request = { virt_to_machine(pte_of(data, 1)) | command, entry };
        if (PT_LEVELS == 2)
            break;
        EXPECT_REFUSED(HYPERCALL4(mmu_update, &request, 1, 0, DOMID_SELF), ENOSYS);
        EXPECT_REFUSED(HYPERCALL4(mmu_update, &request, 1, 0, DOMID_IO), ENOSYS);
    }
    struct mmuext_op none = { 24, 0, 0 }, user = { 15, 0, 0 };
    EXPECT_REFUSED(HYPERCALL4(mmuext_op, &none, 1, 0, DOMID_SELF), ENOSYS);
#ifndef __x86_64__
    EXPECT_REFUSED(HYPERCALL4(mmuext_op, &user, 1, 0, DOMID_SELF), EINVAL); /* compat_mmuext_op() */
#else
    EXPECT_OK(HYPERCALL4(mmuext_op, &user, 1, 0, DOMID_SELF)); /* as it is */
#endif
}

/* A pointer is looked at when something is read, not before; a count is 32 bits of which the highest is Xen's. */
static void pointers(void)
{
    const ulong bad[] = { 0, 16, (ulong)hole, VIRT_BASE + 0x20000000 };
    u32 done = 77;
    for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
        EXPECT_OK(HYPERCALL4(mmu_update, bad[i], 0, 0, DOMID_SELF));
        EXPECT_OK(HYPERCALL4(mmuext_op, bad[i], 0, 0, DOMID_SELF));
        EXPECT_OK(HYPERCALL2(multicall, bad[i], 0));
        EXPECT_OK(HYPERCALL4(mmu_update, data, 0, bad[i], DOMID_SELF));
        EXPECT_REFUSED(HYPERCALL4(mmu_update, bad[i], 1, 0, DOMID_SELF), EFAULT);
        EXPECT_REFUSED(HYPERCALL4(mmu_update, bad[i], 1, 0, NOBODY), ESRCH);
        EXPECT_REFUSED(HYPERCALL4(mmuext_op, bad[i], 1, 0, DOMID_SELF), EFAULT);
        EXPECT_REFUSED(HYPERCALL4(mmuext_op, bad[i], 1, 0, NOBODY), ESRCH);
        EXPECT_REFUSED(HYPERCALL2(multicall, bad[i], 1), EFAULT);
    }
    EXPECT_REFUSED(HYPERCALL4(mmu_update, bad[1], 0x7fffffff, 0, DOMID_SELF), EFAULT);
    EXPECT_REFUSED(HYPERCALL4(mmu_update, bad[1], 0xffffffff, bad[1], DOMID_SELF), EFAULT);
    EXPECT_OK(HYPERCALL4(mmu_update, bad[1], PREEMPTED, bad[1], DOMID_SELF));
    EXPECT_RC(HYPERCALL4(mmu_update, 0, PREEMPTED, 0, 5), 5); /* a continuation that only brings its result, an int */
    EXPECT_RC(HYPERCALL4(mmuext_op, 0, PREEMPTED, 0, 0xffffffff), -1);
    EXPECT_OK(HYPERCALL4(mmu_update, data, 0, &done, DOMID_SELF));
    EXPECT_EQUAL(done, 0);
}

/* VCPUOP_set_singleshot_timer of another vCPU; to a 32-bit guest's pointer Xen looks first (compat_common_vcpu_op). */
static void timers(void)
{
    struct { u64 timeout; u32 flags; } timer = { 0, 0 };
    if (HYPERCALL3(vcpu_op, VCPUOP_is_up, 1, 0) == -ENOENT)
        return;
    EXPECT_REFUSED(HYPERCALL3(vcpu_op, VCPUOP_set_singleshot_timer, 1, &timer), EINVAL);
    EXPECT_REFUSED(HYPERCALL3(vcpu_op, VCPUOP_set_singleshot_timer, 1, 16), sizeof(ulong) == 8 ? EINVAL : EFAULT);
}

static long device_model(u16 domid, ulong count, const void *buffers)
{
    return hypercall(HYPERCALL_dm_op_nr, domid, count, (ulong)buffers, 0, 0);
}

static void privileged(void)
{
    const u16 anybody[] = { 0, own, DOMID_SELF, DOMID_IO, NOBODY };
    for (unsigned i = 0; i < ARRAY_SIZE(anybody); i++) {
        EXPECT_REFUSED(device_model(anybody[i], 0, NULL), 61 /* ENODATA */);
        EXPECT_REFUSED(device_model(anybody[i], 3, NULL), E2BIG);
        EXPECT_REFUSED(device_model(anybody[i], 1, hole), EFAULT);
    }
    EXPECT_REFUSED(device_model(own, 1, data), EPERM);
    EXPECT_REFUSED(device_model(0, 1, data), EINVAL); /* a PV domain */
    EXPECT_REFUSED(device_model(NOBODY, 2, data), ESRCH);
    EXPECT_REFUSED(device_model(DOMID_SELF, 1, data), ESRCH);

    /* do_xenoprof_op: 0 to 17, of which 0 and 14 ask, and 8 and 11 are for those who take part. */
    for (ulong command = 1; command < 25; command++)
        if (command != 14)
            EXPECT_REFUSED(HYPERCALL2(xenoprof_op, command, data), command > 17 ? EINVAL : EPERM);
    EXPECT_REFUSED(HYPERCALL2(xenoprof_op, 0xffffffff, data), EINVAL);
    EXPECT_REFUSED(HYPERCALL2(xenoprof_op, 0, hole), EFAULT);
}

/* do_domctl(): what is looked at before the caller is. The argument is all zeros but for command and domain. */
static void domctls(void)
{
    static const struct { u8 command; u8 own, nobody, invalid; } rows[] = {
        { 1, EPERM, EPERM, EPERM },           /* createdomain */
        { 2, EPERM, ESRCH, ESRCH },           /* destroydomain */
        { 5, EPERM, ESRCH, EINVAL },          /* getdomaininfo: the next one that there is */
        { 19, EPERM, ESRCH, ESRCH },          /* irq_permission */
        { 20, EPERM, ESRCH, ESRCH },          /* iomem_permission */
        { 21, EINVAL, ESRCH, ESRCH },         /* ioport_permission, of no ports */
        { 37, EPERM, ESRCH, ESRCH },          /* assign_device */
        { 38, EINVAL, ESRCH, ESRCH },         /* bind_pt_irq, of a PV domain */
        { 39, EINVAL, ESRCH, ESRCH },         /* memory_mapping, of no frames */
        { 40, EOPNOTSUPP, ESRCH, ESRCH },     /* ioport_mapping, of a PV domain */
        { 45, EPERM, ESRCH, EPERM },          /* test_assign_device */
        { 46, EOPNOTSUPP, ESRCH, ESRCH },     /* set_target, domain 0 */
        { 48, EINVAL, ESRCH, ESRCH },         /* unbind_pt_irq */
        { 50, EOPNOTSUPP, ESRCH, ESRCH },     /* get_device_group, without an IOMMU */
        { 56, EPERM, ESRCH, ESRCH },          /* vm_event_op */
        { 88, EPERM, ESRCH, ESRCH },          /* none */
    };
    u32 *words = (u32 *)data;
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
        memset(data, 0, 256);
        words[0] = rows[i].command;
        words[1] = 0x15;
        words[2] = own;
        EXPECT_REFUSED(HYPERCALL1(domctl, data), rows[i].own);
        words[2] = NOBODY;
        EXPECT_REFUSED(HYPERCALL1(domctl, data), rows[i].nobody);
        words[2] = DOMID_INVALID;
        EXPECT_REFUSED(HYPERCALL1(domctl, data), rows[i].invalid);
        words[2] = own;
        EXPECT_REFUSED(hypercall(49, (ulong)data, 0, 0, 0, 0), EOPNOTSUPP); /* paging_domctl_cont: for shadow_op */
    }
    words[0] = 10;
    EXPECT_REFUSED(hypercall(49, (ulong)data, 0, 0, 0, 0), EPERM);
    words[2] = NOBODY;
    EXPECT_REFUSED(hypercall(49, (ulong)data, 0, 0, 0, 0), ESRCH);
    words[0] = 56; /* vm_event_op: its version may be asked by all, of whom they like */
    words[2] = own;
    words[4] = 3;
    EXPECT_OK(HYPERCALL1(domctl, data));
    EXPECT_EQUAL(words[6], 7);
}

/* To a 64-bit Xen every 32-bit address is a good one: what Xen itself has there is copied, too. */
static void machine_to_phys_is_readable(void)
{
#if PT_LEVELS == 3
    void *m2p = (void *)0xf5800000, *beyond = (void *)0xfffffff0;
    EXPECT_OK(HYPERCALL4(mmu_update, m2p, 0, 0, DOMID_SELF));
    EXPECT_REFUSED(HYPERCALL2(sched_op, SCHEDOP_poll, beyond), EFAULT);
    EXPECT_REFUSED(HYPERCALL2(event_channel_op, EVTCHNOP_alloc_unbound, beyond), EFAULT);
    EXPECT_REFUSED(HYPERCALL2(xen_version, XENVER_extraversion, m2p), EFAULT); /* it is not written to */
    long rc = HYPERCALL2(event_channel_op, EVTCHNOP_expand_array, m2p);
    EXPECT_REFUSED(rc, EOPNOTSUPP);
#endif
}

void conform(void)
{
    data = alloc_page();
    hole = alloc_page();
    entry = *pte_of(data, 1);
    own = own_domid();
    EXPECT_OK(set_va(hole, 0, UVMF_INVLPG));
    domain_numbers();
    page_table_domains();
    commands();
    pointers();
    timers();
    machine_to_phys_is_readable();
    if (!(start_info->flags & SIF_INITDOMAIN)) {
        memset(data, 0, 256);
        privileged();
        domctls();
    }
}
