"""xen/include/public/io/ring.h: the shared part of a ring, of which the entries follow."""

from __future__ import annotations

RING_REQ_PROD = 0
RING_REQ_EVENT = 4
RING_RSP_PROD = 8
RING_RSP_EVENT = 12
RING_ENTRIES = 64
