"""xen/include/public/sched.h: operations, shutdown reasons and argument layouts."""

from __future__ import annotations

import struct

SCHEDOP_yield = 0
SCHEDOP_block = 1
SCHEDOP_shutdown = 2
SCHEDOP_poll = 3
SCHEDOP_remote_shutdown = 4
SCHEDOP_shutdown_code = 5
SCHEDOP_watchdog = 6
SCHEDOP_pin_override = 7

SHUTDOWN_poweroff = 0
SHUTDOWN_reboot = 1
SHUTDOWN_suspend = 2
SHUTDOWN_crash = 3
SHUTDOWN_watchdog = 4
SHUTDOWN_soft_reset = 5

sched_shutdown = struct.Struct("<I")  # unsigned int reason
sched_poll = {
    4: struct.Struct("<IIQ"),  # ports; nr_ports; timeout
    8: struct.Struct("<QI4xQ"),
}
sched_remote_shutdown = struct.Struct("<H2xI")  # domid_t domain_id; unsigned int reason
sched_watchdog = struct.Struct("<II")  # uint32_t id, timeout
sched_pin_override = struct.Struct("<i")  # int32_t pcpu
