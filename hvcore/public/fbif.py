"""xen/include/public/io/fbif.h: the page that a framebuffer's two ends share, and its events."""

from __future__ import annotations

import struct

XENFB_TYPE_UPDATE = 2  # out events: frontend to backend
XENFB_TYPE_RESIZE = 3
XENFB_TYPE_REFRESH_PERIOD = 1  # in events: backend to frontend
XENFB_NO_REFRESH = 0

xenfb_update = struct.Struct("<B3x4i")  # type, x, y, width, height
xenfb_resize = struct.Struct("<B3x5i")  # type, width, height, stride, depth, offset
xenfb_refresh_period = struct.Struct("<B3xI")  # type, period in ms

XENFB_OUT_EVENT_SIZE = XENFB_IN_EVENT_SIZE = 40
XENFB_IN_RING_SIZE, XENFB_IN_RING_OFFS, XENFB_IN_RING_LEN = 1024, 1024, 25
XENFB_OUT_RING_SIZE, XENFB_OUT_RING_OFFS, XENFB_OUT_RING_LEN = 2048, 2048, 51

# Places in struct xenfb_page; that of its directory by the size of the words there.
XENFB_PAGE_WIDTH = 16
XENFB_PAGE_HEIGHT = 20
XENFB_PAGE_LINE_LENGTH = 24
XENFB_PAGE_MEM_LENGTH = 28
XENFB_PAGE_DEPTH = 32
XENFB_PAGE_PD = {4: 36, 8: 40}
XENFB_PAGE_PD_LEN = 256
