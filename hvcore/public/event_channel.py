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

EVTCHN_FIFO_CONTROL_BLOCK_SIZE = 72
