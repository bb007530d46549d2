"""Non-maskable interrupts: xen/include/public/nmi.h."""

from __future__ import annotations

import struct

XENNMI_register_callback = 0
XENNMI_unregister_callback = 1

xennmi_callback = {4: struct.Struct("<I4x"), 8: struct.Struct("<Q8x")}  # unsigned long handler_address, pad
