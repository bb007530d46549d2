"""xen/include/public/grant_table.h: operations, flags, status codes and layouts, some by word size."""

from __future__ import annotations

import struct

GNTTABOP_map_grant_ref = 0
GNTTABOP_unmap_grant_ref = 1
GNTTABOP_setup_table = 2
GNTTABOP_dump_table = 3
GNTTABOP_transfer = 4
GNTTABOP_copy = 5
GNTTABOP_query_size = 6
GNTTABOP_unmap_and_replace = 7
GNTTABOP_set_version = 8
GNTTABOP_get_status_frames = 9
GNTTABOP_get_version = 10
GNTTABOP_swap_grant_ref = 11
GNTTABOP_cache_flush = 12
GNTTABOP_CMD_MASK = 0xFFF

GNTTAB_NR_RESERVED_ENTRIES = 8
GNTTAB_RESERVED_CONSOLE = 0
GNTTAB_RESERVED_XENSTORE = 1

GTF_invalid = 0
GTF_permit_access = 1
GTF_accept_transfer = 2
GTF_transitive = 3
GTF_type_mask = 3
GTF_readonly = 1 << 2
GTF_reading = 1 << 3
GTF_writing = 1 << 4
GTF_PWT = 1 << 5
GTF_PCD = 1 << 6
GTF_PAT = 1 << 7
GTF_sub_page = 1 << 8
GTF_transfer_committed = 1 << 2  # of an entry that accepts a frame
GTF_transfer_completed = 1 << 3

GNTMAP_device_map = 1 << 0
GNTMAP_host_map = 1 << 1
GNTMAP_readonly = 1 << 2
GNTMAP_application_map = 1 << 3
GNTMAP_contains_pte = 1 << 4

GNTCOPY_source_gref = 1 << 0
GNTCOPY_dest_gref = 1 << 1

GNTTAB_CACHE_CLEAN = 1 << 0
GNTTAB_CACHE_INVAL = 1 << 1
GNTTAB_CACHE_SOURCE_GREF = 1 << 31

GNTST_okay = 0
GNTST_general_error = -1
GNTST_bad_domain = -2
GNTST_bad_gntref = -3
GNTST_bad_handle = -4
GNTST_bad_virt_addr = -5
GNTST_bad_dev_addr = -6
GNTST_no_device_space = -7
GNTST_permission_denied = -8
GNTST_bad_page = -9
GNTST_bad_copy_arg = -10
GNTST_address_too_big = -11
GNTST_eagain = -12
GNTST_no_space = -13

grant_entry_v1 = struct.Struct("<HHI")  # flags; domid; frame
# hdr.flags; hdr.domid; page_off (pad0 of a full page); length; frame
grant_entry_v2 = struct.Struct("<HHHHQ")
grant_entry_v2_transitive = struct.Struct("<HHHHI4x")  # flags; domid; trans_domid; pad0; gref
grant_status = struct.Struct("<H")

# host_addr; flags; ref; dom; status; handle; dev_bus_addr
gnttab_map_grant_ref = struct.Struct("<QIIHhIQ")
gnttab_unmap_grant_ref = struct.Struct("<QQIh2x")  # host_addr; dev_bus_addr; handle; status
gnttab_unmap_and_replace = struct.Struct("<QQIh2x")  # host_addr; new_addr; handle; status
GNTTAB_UNMAP_STATUS = 20  # offset of status in both
# dom; nr_frames; status; frame_list
gnttab_setup_table = {4: struct.Struct("<H2xIh2xI"), 8: struct.Struct("<H2xIh6xQ")}
GNTTAB_SETUP_TABLE_STATUS = 8
GNTTAB_QUERY_SIZE_NR_FRAMES = 4  # max_nr_frames and status follow
gnttab_transfer = {4: struct.Struct("<IH2xIh2x"), 8: struct.Struct("<QH2xIh6x")}  # mfn; domid; ref; status
# source.u; source.domid; source.offset; dest.u; dest.domid; dest.offset; len; flags; status
gnttab_copy = {4: struct.Struct("<IHHIHHHHh2x"), 8: struct.Struct("<QHH4xQHH4xHHh2x")}
GNTTAB_COPY_STATUS = {4: 20, 8: 36}
gnttab_query_size = struct.Struct("<H2xIIh2x")  # dom; nr_frames; max_nr_frames; status
gnttab_set_version = struct.Struct("<I")  # version
gnttab_get_status_frames = {
    4: struct.Struct("<IHhI"),
    8: struct.Struct("<IHhQ"),
}  # nr_frames; dom; status; list
GNTTAB_GET_STATUS_FRAMES_STATUS = 6
gnttab_get_version = struct.Struct("<HHI")  # dom; pad; version
GNTTAB_GET_VERSION_VERSION = 4
gnttab_swap_grant_ref = struct.Struct("<IIh2x")  # ref_a; ref_b; status
GNTTAB_SWAP_STATUS = 8
gnttab_cache_flush = struct.Struct("<QHHI")  # dev_bus_addr; offset; length; op
