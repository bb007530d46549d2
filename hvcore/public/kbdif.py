"""xen/include/public/io/kbdif.h: the page that a keyboard's and pointer's two ends share, and its events."""

from __future__ import annotations

import struct

XENKBD_TYPE_MOTION = 1
XENKBD_TYPE_KEY = 3
XENKBD_TYPE_POS = 4

xenkbd_motion = struct.Struct("<B3x3i")  # type, rel_x, rel_y, rel_z
xenkbd_key = struct.Struct("<BB2xI")  # type, pressed, keycode of Linux
xenkbd_position = struct.Struct("<B3x3i")  # type, abs_x, abs_y, rel_z

XENKBD_IN_EVENT_SIZE = XENKBD_OUT_EVENT_SIZE = 40
XENKBD_IN_RING_SIZE, XENKBD_IN_RING_OFFS, XENKBD_IN_RING_LEN = 2048, 1024, 51
XENKBD_OUT_RING_SIZE, XENKBD_OUT_RING_OFFS, XENKBD_OUT_RING_LEN = 1024, 3072, 25

# Places in struct xenkbd_page, which are those of struct xenfb_page, too.
XENKBD_PAGE_IN_CONS = 0
XENKBD_PAGE_IN_PROD = 4
XENKBD_PAGE_OUT_CONS = 8
XENKBD_PAGE_OUT_PROD = 12
