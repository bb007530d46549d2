"""xen/include/public/io/netif.h: requests, responses and extra slots of network devices."""

from __future__ import annotations

import struct

NETTXF_csum_blank = 1
NETTXF_data_validated = 2
NETTXF_more_data = 4
NETTXF_extra_info = 8

NETRXF_data_validated = 1
NETRXF_csum_blank = 2
NETRXF_more_data = 4
NETRXF_extra_info = 8

NETIF_RSP_ERROR = -1
NETIF_RSP_OKAY = 0
NETIF_RSP_NULL = 1

XEN_NETIF_NR_SLOTS_MIN = 18

XEN_NETIF_EXTRA_TYPE_NONE = 0
XEN_NETIF_EXTRA_TYPE_GSO = 1
XEN_NETIF_EXTRA_TYPE_MCAST_ADD = 2
XEN_NETIF_EXTRA_TYPE_MCAST_DEL = 3
XEN_NETIF_EXTRA_TYPE_HASH = 4
XEN_NETIF_EXTRA_TYPE_MAX = 5
XEN_NETIF_EXTRA_FLAG_MORE = 1

XEN_NETIF_GSO_TYPE_NONE = 0
XEN_NETIF_GSO_TYPE_TCPV4 = 1
XEN_NETIF_GSO_TYPE_TCPV6 = 2

netif_tx_request = struct.Struct("<IHHHH")  # gref, offset, flags, id, size
netif_tx_response = struct.Struct("<Hh")  # id, status
netif_rx_request = struct.Struct("<H2xI")  # id, gref
netif_rx_response = struct.Struct("<HHHh")  # id, offset, flags, status
netif_extra_info = struct.Struct("<BB6s")  # type, flags, u

NETIF_TX_ENTRY, NETIF_RX_ENTRY = 12, 8  # sizeof(union netif_tx_sring_entry), and of rx: of both widths
