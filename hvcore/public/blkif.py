"""xen/include/public/io/blkif.h: requests and responses of block devices, by word size where they differ."""

from __future__ import annotations

import struct

BLKIF_OP_READ = 0
BLKIF_OP_WRITE = 1
BLKIF_OP_WRITE_BARRIER = 2
BLKIF_OP_FLUSH_DISKCACHE = 3
BLKIF_OP_DISCARD = 5
BLKIF_OP_INDIRECT = 6

BLKIF_RSP_OKAY = 0
BLKIF_RSP_ERROR = -1
BLKIF_RSP_EOPNOTSUPP = -2

BLKIF_MAX_SEGMENTS_PER_REQUEST = 11
BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST = 8

VDISK_CDROM = 1
VDISK_REMOVABLE = 2
VDISK_READONLY = 4

SECTOR_SIZE = 512

blkif_request_segment = struct.Struct("<IBB2x")  # grant_ref_t gref; uint8_t first_sect, last_sect

# operation, nr_segments, handle, id, sector_number, seg[11].
blkif_request = {4: struct.Struct("<BBHQQ88s"), 8: struct.Struct("<BBHxxxxQQ88s")}
# operation, flag, handle, id, sector_number, nr_sectors.
blkif_request_discard = {4: struct.Struct("<BBHQQQ"), 8: struct.Struct("<BBHxxxxQQQ")}
# operation, indirect_op, nr_segments, id, sector_number, handle, indirect_grefs[8].
blkif_request_indirect = {4: struct.Struct("<BBHQQHxx32s8x"), 8: struct.Struct("<BBHxxxxQQHxx32s4x")}
# id, operation, status.
blkif_response = {4: struct.Struct("<QBxh"), 8: struct.Struct("<QBxhxxxx")}
BLKIF_RING_ENTRY = {4: 108, 8: 112}  # sizeof(union blkif_sring_entry)
