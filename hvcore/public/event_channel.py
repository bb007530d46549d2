"""xen/include/public/event_channel.h: operations, states and argument layouts (the same for both widths)."""

from __future__ import annotations

import struct

EVTCHNOP_bind_interdomain = 0
EVTCHNOP_bind_virq = 1
EVTCHNOP_bind_pirq = 2
EVTCHNOP_close = 3
EVTCHNOP_send = 4
EVTCHNOP_status = 5
EVTCHNOP_alloc_unbound = 6
EVTCHNOP_bind_ipi = 7
EVTCHNOP_bind_vcpu = 8
EVTCHNOP_unmask = 9
EVTCHNOP_reset = 10
EVTCHNOP_init_control = 11
EVTCHNOP_expand_array = 12
EVTCHNOP_set_priority = 13
EVTCHNOP_reset_cont = 14

EVTCHNSTAT_closed = 0
EVTCHNSTAT_unbound = 1
EVTCHNSTAT_interdomain = 2
EVTCHNSTAT_pirq = 3
EVTCHNSTAT_virq = 4
EVTCHNSTAT_ipi = 5

BIND_PIRQ__WILL_SHARE = 1

evtchn_alloc_unbound = struct.Struct("<HHI")  # domid_t dom, remote_dom; evtchn_port_t port
evtchn_bind_interdomain = struct.Struct("<H2xII")  # domid_t remote_dom; remote_port; local_port
evtchn_bind_virq = struct.Struct("<III")  # uint32_t virq, vcpu; evtchn_port_t port
evtchn_bind_pirq = struct.Struct("<III")  # uint32_t pirq, flags; evtchn_port_t port
evtchn_bind_ipi = struct.Struct("<II")  # uint32_t vcpu; evtchn_port_t port
evtchn_close = struct.Struct("<I")  # evtchn_port_t port
evtchn_send = struct.Struct("<I")  # evtchn_port_t port
evtchn_status = struct.Struct("<H2xIIIII")  # dom; port; status; vcpu; u (two words)
evtchn_bind_vcpu = struct.Struct("<II")  # evtchn_port_t port; uint32_t vcpu
evtchn_unmask = struct.Struct("<I")  # evtchn_port_t port
evtchn_reset = struct.Struct("<H")  # domid_t dom
evtchn_init_control = struct.Struct("<QIIB7x")  # control_gfn; offset; vcpu; link_bits
evtchn_expand_array = struct.Struct("<Q")  # array_gfn
evtchn_set_priority = struct.Struct("<II")  # evtchn_port_t port; uint32_t priority
evtchn_op = struct.Struct("<I24x")  # uint32_t cmd; union u
EVTCHN_OP_U = 4  # offset of u in evtchn_op


# The FIFO ABI: priorities from 0 (highest) to 15, a queue for each; and the bits of an event_word_t.
EVTCHN_FIFO_PRIORITY_MAX = 0
EVTCHN_FIFO_PRIORITY_DEFAULT = 7
EVTCHN_FIFO_PRIORITY_MIN = 15
EVTCHN_FIFO_MAX_QUEUES = EVTCHN_FIFO_PRIORITY_MIN + 1
EVTCHN_FIFO_PENDING = 31
EVTCHN_FIFO_MASKED = 30
EVTCHN_FIFO_LINKED = 29
EVTCHN_FIFO_BUSY = 28
EVTCHN_FIFO_LINK_BITS = 17
EVTCHN_FIFO_LINK_MASK = (1 << EVTCHN_FIFO_LINK_BITS) - 1
EVTCHN_FIFO_NR_CHANNELS = 1 << EVTCHN_FIFO_LINK_BITS
evtchn_fifo_control_block = struct.Struct("<II16I")  # uint32_t ready, _rsvd; head of each queue
EVTCHN_FIFO_READY = 0  # offsets in it
EVTCHN_FIFO_HEAD = 8
