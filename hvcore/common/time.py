"""System time as the guest sees it: xen/arch/x86/time.c and xen/common/time.c.

The time stamp counter runs at TSC_PER_NS ticks a nanosecond from system time 0 on, so a record published at
`now` reads (now * TSC_PER_NS, now), and no later TSC read is below it. Records are versioned: odd while they
are written. The version lives in the guest's memory and is taken from there, as Xen takes it.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hvcore.abi import VCPU_TIME
from hvcore.clock import TSC_PER_NS
from hvcore.errors import GuestError
from hvcore.public.vcpu import vcpu_time_info

if TYPE_CHECKING:
    from hvcore.domain import Domain
    from hvcore.vcpu import Vcpu

EPOCH_NS = 1_000_000_000  # Xen calibrates its clocks, and moves its time stamps, once a second
TSC_TO_SYSTEM_MUL = (1 << 32) // TSC_PER_NS
TSC_SHIFT = 0
_TSC_TIMESTAMP = 8  # offset in vcpu_time_info
_STAMPS = struct.Struct("<QQ")  # tsc_timestamp, system_time
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_WALLCLOCK = struct.Struct("<II")  # wc_sec, wc_nsec


def version_update_begin(version: int) -> int:
    """The odd version that says "do not read"."""
    return (version + 1 | 1) & 0xFFFFFFFF


def version_update_end(version: int) -> int:
    """The even version that follows."""
    return (version + 1) & 0xFFFFFFFF


def force_update_vcpu_system_time(v: Vcpu) -> None:
    """Publish the present time in vcpu_info and in the secondary area, if one is registered."""
    info = v.info
    system_time = v.domain.clock.now()
    version = version_update_begin(_U32.unpack_from(info, VCPU_TIME)[0])
    record = (0, system_time * TSC_PER_NS, system_time, TSC_TO_SYSTEM_MUL, TSC_SHIFT, 0, 0)
    vcpu_time_info.pack_into(info, VCPU_TIME, version, *record)
    _U32.pack_into(info, VCPU_TIME, version_update_end(version))
    if v.time_info_guest:
        update_secondary_system_time(v, version, record)


def next_update_of_system_time(v: Vcpu) -> int:
    """When the record is to be published again: a second after the last time, at once if it was damaged."""
    tsc, published = _STAMPS.unpack_from(v.info, VCPU_TIME + _TSC_TIMESTAMP)
    return int(published) + EPOCH_NS if tsc and tsc == published * TSC_PER_NS else 0


def update_vcpu_system_time(v: Vcpu) -> None:
    """Publish when a new second has begun since the last time, or when the guest damaged the record."""
    if next_update_of_system_time(v) <= v.domain.clock.now():
        force_update_vcpu_system_time(v)


def update_secondary_system_time(v: Vcpu, version: int, record: tuple[int, ...]) -> None:
    """The same record where the guest registered it (`v` is current); a fault there is its loss."""
    guest = v.domain.guest
    at = v.time_info_guest
    try:
        guest.write_u32(at, version)
        guest.pack(vcpu_time_info, at, version, *record)
        guest.write_u32(at, version_update_end(version))
    except GuestError:
        return


def update_domain_wallclock_time(d: Domain) -> None:
    """Publish Unix time at system time 0, with the domain's offset, in shared_info."""
    shared = d.shared_info
    at = d.abi.wallclock
    sec, nsec = divmod(d.wallclock_ns, 1_000_000_000)
    sec += d.time_offset
    version = version_update_begin(_U32.unpack_from(shared, at)[0])
    _U32.pack_into(shared, at, version)
    _WALLCLOCK.pack_into(shared, at + 4, sec & 0xFFFFFFFF, nsec)
    _U32.pack_into(shared, d.abi.wc_sec_hi, sec >> 32 & 0xFFFFFFFF)
    _U32.pack_into(shared, at, version_update_end(version))
