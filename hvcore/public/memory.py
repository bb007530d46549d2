"""xen/include/public/memory.h: operations, flags and argument layouts, by word size where they differ."""

from __future__ import annotations

import struct

XENMEM_increase_reservation = 0
XENMEM_decrease_reservation = 1
XENMEM_maximum_ram_page = 2
XENMEM_current_reservation = 3
XENMEM_maximum_reservation = 4
XENMEM_machphys_mfn_list = 5
XENMEM_populate_physmap = 6
XENMEM_add_to_physmap = 7
XENMEM_memory_map = 9
XENMEM_machine_memory_map = 10
XENMEM_exchange = 11
XENMEM_machphys_mapping = 12
XENMEM_set_memory_map = 13
XENMEM_maximum_gpfn = 14
XENMEM_remove_from_physmap = 15
XENMEM_set_pod_target = 16
XENMEM_get_pod_target = 17
XENMEM_get_sharing_freed_pages = 18
XENMEM_get_sharing_shared_pages = 19
XENMEM_paging_op = 20
XENMEM_access_op = 21
XENMEM_sharing_op = 22
XENMEM_add_to_physmap_batch = 23
XENMEM_claim_pages = 24
XENMEM_machphys_compat_mfn_list = 25
XENMEM_get_vnumainfo = 26
XENMEM_reserved_device_memory_map = 27
XENMEM_acquire_resource = 28

MEMOP_EXTENT_SHIFT = 6  # the commands' bits; those above carry the extent to start from
MEMOP_CMD_MASK = (1 << MEMOP_EXTENT_SHIFT) - 1

XENMEMF_populate_on_demand = 1 << 16
XENMEMF_exact_node_request = 1 << 17
XENMEMF_vnode = 1 << 18

XENMAPSPACE_shared_info = 0
XENMAPSPACE_grant_table = 1
XENMAPSPACE_gmfn = 2
XENMAPSPACE_gmfn_range = 3
XENMAPSPACE_gmfn_foreign = 4
XENMAPSPACE_dev_mmio = 5

XENMEM_RDM_ALL = 1

E820_RAM = 1
E820MAX = 1024
e820entry = struct.Struct("<QQI")  # uint64_t addr, size; uint32_t type

# extent_start; nr_extents; extent_order; mem_flags; domid
xen_memory_reservation = {4: struct.Struct("<IIIIH2x"), 8: struct.Struct("<QQIIH6x")}
# in; out (two reservations); nr_exchanged
xen_memory_exchange = {4: struct.Struct("<IIIIH2xIIIIH2xI"), 8: struct.Struct("<QQIIH6xQQIIH6xQ")}
XEN_MEMORY_EXCHANGE_NR_EXCHANGED = {4: 40, 8: 64}
xen_memory_domain = struct.Struct("<H")  # domid_t domid
# max_extents; extent_start; nr_extents
xen_machphys_mfn_list = {4: struct.Struct("<III"), 8: struct.Struct("<I4xQI4x")}
xen_machphys_mapping = {4: struct.Struct("<III"), 8: struct.Struct("<QQQ")}  # v_start; v_end; max_mfn
# domid; size; space; idx; gpfn
xen_add_to_physmap = {4: struct.Struct("<HHIII"), 8: struct.Struct("<HHIQQ")}
# domid; space; size; u; idxs; gpfns; errs
xen_add_to_physmap_batch = {4: struct.Struct("<HHHHIII"), 8: struct.Struct("<HHHHQQQ")}
xen_remove_from_physmap = {4: struct.Struct("<H2xI"), 8: struct.Struct("<H6xQ")}  # domid; gpfn
xen_memory_map = {4: struct.Struct("<II"), 8: struct.Struct("<I4xQ")}  # nr_entries; buffer
# domid; map.nr_entries; map.buffer
xen_foreign_memory_map = {4: struct.Struct("<H2xII"), 8: struct.Struct("<H6xI4xQ")}
# target_pages; tot_pages; pod_cache_pages; pod_entries; domid
xen_pod_target = {4: struct.Struct("<QQQQH2x"), 8: struct.Struct("<QQQQH6x")}
# op; access; domid; nr; pfn; pfn_list; access_list
xen_mem_access_op = {4: struct.Struct("<BBHIQII"), 8: struct.Struct("<BBHIQQQ")}
# domid; pad; nr_vnodes; nr_vcpus; nr_vmemranges; vdistance; vcpu_to_vnode; vmemrange
xen_vnuma_topology_info = struct.Struct("<HHIIIQQQ")
# flags; nr_entries; buffer; dev.pci
xen_reserved_device_memory_map = {4: struct.Struct("<IIII"), 8: struct.Struct("<IIQI4x")}
# domid; type; id; nr_frames; pad; frame; frame_list
xen_mem_acquire_resource = {4: struct.Struct("<HHIIIQI"), 8: struct.Struct("<HHIIIQQ")}
