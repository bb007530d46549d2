/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Arguments that cannot be read: every operation says EFAULT, wherever the pointer points";

/* A hypercall by number; its command where it has one; and which of its arguments is the pointer. */
static const struct {
    u8 number, command, pointer;
} rows[] = {
    { HYPERCALL_set_trap_table, 0, 0 },
    { HYPERCALL_memory_op, XENMEM_current_reservation, 1 },
    { HYPERCALL_memory_op, XENMEM_maximum_reservation, 1 },
    { HYPERCALL_memory_op, XENMEM_maximum_gpfn, 1 },
    { HYPERCALL_memory_op, XENMEM_machphys_mfn_list, 1 },
    { HYPERCALL_memory_op, XENMEM_memory_map, 1 },
    { HYPERCALL_memory_op, XENMEM_exchange, 1 },
    { HYPERCALL_memory_op, XENMEM_machphys_mapping, 1 },
    { HYPERCALL_xen_version, XENVER_extraversion, 1 },
    { HYPERCALL_xen_version, XENVER_compile_info, 1 },
    { HYPERCALL_xen_version, XENVER_capabilities, 1 },
    { HYPERCALL_xen_version, XENVER_changeset, 1 },
    { HYPERCALL_xen_version, XENVER_platform_parameters, 1 },
    { HYPERCALL_xen_version, XENVER_get_features, 1 },
    { HYPERCALL_event_channel_op, EVTCHNOP_bind_interdomain, 1 },
    { HYPERCALL_event_channel_op, EVTCHNOP_bind_virq, 1 },
    { HYPERCALL_event_channel_op, EVTCHNOP_bind_pirq, 1 },
    { HYPERCALL_event_channel_op, EVTCHNOP_close, 1 },
    { HYPERCALL_event_channel_op, EVTCHNOP_send, 1 },
    { HYPERCALL_event_channel_op, EVTCHNOP_status, 1 },
    { HYPERCALL_event_channel_op, EVTCHNOP_alloc_unbound, 1 },
    { HYPERCALL_event_channel_op, EVTCHNOP_bind_ipi, 1 },
    { HYPERCALL_event_channel_op, EVTCHNOP_bind_vcpu, 1 },
    { HYPERCALL_event_channel_op, EVTCHNOP_unmask, 1 },
    { HYPERCALL_event_channel_op, EVTCHNOP_reset, 1 },
    { HYPERCALL_event_channel_op, EVTCHNOP_init_control, 1 },
    { HYPERCALL_event_channel_op, EVTCHNOP_expand_array, 1 },
    { HYPERCALL_event_channel_op, EVTCHNOP_set_priority, 1 },
    { HYPERCALL_vcpu_op, VCPUOP_get_runstate_info, 2 },
    { HYPERCALL_vcpu_op, VCPUOP_register_runstate_memory_area, 2 },
    { HYPERCALL_vcpu_op, VCPUOP_set_periodic_timer, 2 },
    { HYPERCALL_vcpu_op, VCPUOP_set_singleshot_timer, 2 },
    { HYPERCALL_vcpu_op, VCPUOP_register_vcpu_info, 2 },
    { HYPERCALL_vcpu_op, VCPUOP_register_vcpu_time_memory_area, 2 },
    { HYPERCALL_nmi_op, 0, 1 },
    { HYPERCALL_sched_op, SCHEDOP_shutdown, 1 },
    { HYPERCALL_sched_op, SCHEDOP_poll, 1 },
    { HYPERCALL_sched_op, SCHEDOP_remote_shutdown, 1 },
    { HYPERCALL_sched_op, SCHEDOP_shutdown_code, 1 },
    { HYPERCALL_sched_op, SCHEDOP_watchdog, 1 },
    { HYPERCALL_callback_op, CALLBACKOP_register, 1 },
    { HYPERCALL_callback_op, CALLBACKOP_unregister, 1 },
    { HYPERCALL_physdev_op, 5, 1 },
    { HYPERCALL_physdev_op, 6, 1 },
    { HYPERCALL_physdev_op, 7, 1 },
    { HYPERCALL_physdev_op, 12, 1 },
    { HYPERCALL_physdev_op, 13, 1 },
    { HYPERCALL_physdev_op, 21, 1 },
};

static u8 *hole;

void conform(void)
{
    hole = alloc_page();
    EXPECT_OK(set_va(hole, 0, UVMF_INVLPG));
    const ulong pointers[] = {
        16, (ulong)hole, VIRT_BASE + 0x20000000,
#ifdef __x86_64__
        0x8000000000000000, 0xffff830000000000, /* not canonical; Xen's own */
#endif
    };
    for (unsigned i = 0; i < ARRAY_SIZE(rows); i++)
        for (unsigned j = 0; j < ARRAY_SIZE(pointers); j++) {
            ulong arguments[3] = { rows[i].pointer ? rows[i].command : pointers[j],
                                   rows[i].pointer == 1 ? pointers[j] : 0, pointers[j] };
            long rc = hypercall(rows[i].number, arguments[0], arguments[1], arguments[2], 0, 0);
            if (rc != -EFAULT)
                printf("hypercall %u, command %u, pointer %lx:\n", rows[i].number, rows[i].command, pointers[j]);
            EXPECT_REFUSED(rc, EFAULT);
        }
}
