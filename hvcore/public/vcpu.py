"""xen/include/public/vcpu.h, and vcpu_time_info of xen.h: operations, run states and argument layouts."""

from __future__ import annotations

import struct

VCPUOP_initialise = 0
VCPUOP_up = 1
VCPUOP_down = 2
VCPUOP_is_up = 3
VCPUOP_get_runstate_info = 4
VCPUOP_register_runstate_memory_area = 5
VCPUOP_set_periodic_timer = 6
VCPUOP_stop_periodic_timer = 7
VCPUOP_set_singleshot_timer = 8
VCPUOP_stop_singleshot_timer = 9
VCPUOP_register_vcpu_info = 10
VCPUOP_send_nmi = 11
VCPUOP_get_physid = 12
VCPUOP_register_vcpu_time_memory_area = 13

XEN_RUNSTATE_UPDATE = 1 << 63

vcpu_runstate_info = {
    4: struct.Struct("<iQ4Q"),  # int state; uint64_t state_entry_time; uint64_t time[4]
    8: struct.Struct("<i4xQ4Q"),
}
RUNSTATE_STATE_ENTRY_TIME = {4: 4, 8: 8}  # offset of state_entry_time
vcpu_register_runstate_memory_area = {4: struct.Struct("<I4x"), 8: struct.Struct("<Q")}  # addr.h
vcpu_set_periodic_timer = struct.Struct("<Q")  # uint64_t period_ns
vcpu_set_singleshot_timer = {
    4: struct.Struct("<QI"),  # uint64_t timeout_abs_ns; uint32_t flags
    8: struct.Struct("<QI4x"),
}
vcpu_register_vcpu_info = struct.Struct("<QII")  # uint64_t mfn; uint32_t offset, rsvd
vcpu_get_physid = struct.Struct("<Q")  # uint64_t phys_id
vcpu_register_time_memory_area = {4: struct.Struct("<I4x"), 8: struct.Struct("<Q")}  # addr.h

# struct vcpu_time_info: version; pad0; tsc_timestamp; system_time; tsc_to_system_mul; tsc_shift; flags; pad1
vcpu_time_info = struct.Struct("<IIQQIbBH")
