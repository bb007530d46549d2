"""What a domU meets before it is refused: numbers, versions and sizes of the privileged interfaces.

Sources: xen/include/public/domctl.h, sysctl.h, platform.h, hvm/hvm_op.h, hvm/params.h, hvm/dm_op.h,
xenoprof.h, vm_event.h.
"""

from __future__ import annotations

import struct

XEN_DOMCTL_INTERFACE_VERSION = 0x15
XEN_DOMCTL_createdomain = 1
XEN_DOMCTL_getdomaininfo = 5
XEN_DOMCTL_shadow_op = 10
XEN_DOMCTL_irq_permission = 19
XEN_DOMCTL_iomem_permission = 20
XEN_DOMCTL_ioport_permission = 21
XEN_DOMCTL_assign_device = 37
XEN_DOMCTL_bind_pt_irq = 38
XEN_DOMCTL_memory_mapping = 39
XEN_DOMCTL_ioport_mapping = 40
XEN_DOMCTL_test_assign_device = 45
XEN_DOMCTL_set_target = 46
XEN_DOMCTL_deassign_device = 47
XEN_DOMCTL_unbind_pt_irq = 48
XEN_DOMCTL_get_device_group = 50
XEN_DOMCTL_vm_event_op = 56
XEN_VM_EVENT_GET_VERSION = 3
VM_EVENT_INTERFACE_VERSION = 7
xen_domctl = struct.Struct("<IIH134x")  # cmd; interface_version; domain; pad and union

XEN_SYSCTL_INTERFACE_VERSION = 0x15
xen_sysctl = struct.Struct("<II128x")  # cmd; interface_version; union

XENPF_INTERFACE_VERSION = 0x03000001
xen_platform_op = struct.Struct("<II128x")  # cmd; interface_version; union

HVMOP_set_param = 0
HVMOP_get_param = 1
HVMOP_flush_tlbs = 5
HVMOP_pagetable_dying = 9
HVMOP_get_time = 10
HVMOP_xentrace = 11
HVMOP_get_mem_type = 15
HVMOP_set_evtchn_upcall_vector = 23
HVMOP_guest_request_vm_event = 24
HVMOP_altp2m = 25
HVM_NR_PARAMS = 39
xen_hvm_param = struct.Struct("<H2xIQ")  # domid; index; value
xen_hvm_pagetable_dying = struct.Struct("<H6xQ")  # domid; gpa
xen_hvm_get_time = struct.Struct("<Q")  # now
xen_hvm_xentrace = struct.Struct("<HH28x")  # event; extra_bytes; extra
XEN_HVM_XENTRACE_EXTRA = 28
xen_hvm_get_mem_type = struct.Struct("<HHH2xQ")  # domid; mem_type; pad; pfn

XENOPROF_init = 0
XENOPROF_get_buffer = 14
XENOPROF_last_op = 17
XENOPROF_CPU_TYPE_SIZE = 64
xenoprof_init = struct.Struct(f"<ii{XENOPROF_CPU_TYPE_SIZE}s")  # num_events; is_primary; cpu_type

XEN_DM_OP_MAX_BUFS = 2
xen_dm_op_buf = {4: struct.Struct("<II"), 8: struct.Struct("<QQ")}  # h; size
