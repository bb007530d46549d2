"""Constants of xen/include/public/arch-x86/xen-x86_64.h."""

from __future__ import annotations

# HYPERVISOR_set_segment_base: which base.
SEGBASE_FS = 0
SEGBASE_GS_USER = 1
SEGBASE_GS_KERNEL = 2
SEGBASE_GS_USER_SEL = 3
