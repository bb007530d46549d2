"""xen/include/public/version.h: operations and layouts; the bits of features are features.py's."""

from __future__ import annotations

import struct

XENVER_version = 0
XENVER_extraversion = 1
XENVER_compile_info = 2
XENVER_capabilities = 3
XENVER_changeset = 4
XENVER_platform_parameters = 5
XENVER_get_features = 6
XENVER_pagesize = 7
XENVER_guest_handle = 8
XENVER_commandline = 9
XENVER_build_id = 10

XEN_EXTRAVERSION_LEN = 16
XEN_CAPABILITIES_INFO_LEN = 1024
XEN_CHANGESET_INFO_LEN = 64

xen_compile_info = struct.Struct("<64s16s32s32s")  # compiler; compile_by; compile_domain; compile_date
xen_platform_parameters = {4: struct.Struct("<I"), 8: struct.Struct("<Q")}  # xen_ulong_t virt_start
xen_feature_info = struct.Struct("<II")  # unsigned int submap_idx; uint32_t submap
