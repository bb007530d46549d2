"""What a caller can ask of a launch: each option by name and type, and what it is where nothing is asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from domainbuilder.errors import BuildError
from domainbuilder.launch.record import InputRecord
from hvcore.abi import XEN_LEGACY_MAX_VCPUS
from hvcore.boot_image import BuildInfo
from hvcore.public.xen import PAGE_SHIFT

if TYPE_CHECKING:
    from datetime import datetime

    from hvcore.backends.disk import Disk
    from hvcore.backends.vfb import Vfb
    from hvcore.backends.vif import Vif

MAX_CAP = 100
FOREVER = 1e9  # seconds
TIME_OFFSETS = range(-(1 << 31), 1 << 31)  # seconds: xc_domain_set_time_offset() takes an int32_t
_DATES = range(1, 9_214_646_400)  # Unix time, up to 2261: nanoseconds of it fit 63 bits


def check_limit(seconds: float | None) -> None:
    """Raise BuildError for a limit that is none."""
    if seconds is not None and not 0 < seconds < FOREVER:
        raise BuildError("a limit in seconds has to be above 0 and finite", found=seconds)


def disks_of(disks: Sequence[Disk | str], *, snapshot: bool = False) -> tuple[Disk, ...]:
    """The disks as data, those that are text with `snapshot`. Raises BuildError for text that is no disk."""
    if not disks:
        return ()  # most domains have none, and do not pay for the reader of their syntax
    from domainbuilder.xl.disk import parse_disk

    return tuple(parse_disk(disk, snapshot=snapshot) if isinstance(disk, str) else disk for disk in disks)


def vifs_of(vifs: Sequence[Vif | str]) -> tuple[Vif, ...]:
    """The network interfaces as data, with numbers. Raises BuildError: text that is none, a number twice."""
    if not vifs:
        return ()
    from domainbuilder.xl.vif import parse_vif
    from hvcore.backends.vif import numbered

    try:
        return numbered([parse_vif(vif) if isinstance(vif, str) else vif for vif in vifs])
    except ValueError as error:
        raise BuildError(str(error)) from None


def vfb_of(vfb: Vfb | str | None) -> Vfb | None:
    """The framebuffer as data. Raises BuildError for text that is none."""
    if not isinstance(vfb, str):
        return vfb
    from domainbuilder.xl.vfb import parse_vfb

    return parse_vfb(vfb)


class HostOptions(TypedDict, total=False):
    """What `Host.launch` takes; the defaults are those of `Chosen`."""

    ramdisk: str | os.PathLike[str] | bytes | None
    cmdline: str | bytes
    guest_type: str | None
    maxmem_mib: int | None
    vcpus: int
    max_vcpus: int | None
    uuid: str | None
    date: datetime | str | None
    time_offset: int
    upper_ptwr: bool
    cap: int
    timeout: float | None
    max_guest_seconds: float | None
    console_output: Callable[[bytes], None] | None
    symbols: str | os.PathLike[str] | None
    name: str
    disks: Sequence[Disk | str]
    vifs: Sequence[Vif | str]
    vfb: Vfb | str | None
    cache: bool


class Options(HostOptions, total=False):
    """What `launch` takes: what belongs to a host of the domain's own, too."""

    record: bool
    replay: InputRecord | None
    plain: bool | None
    past: bool


class RestoreOptions(TypedDict, total=False):
    """What `restore` takes: how the domain is run, not what it is."""

    timeout: float | None
    max_guest_seconds: float | None
    console_output: Callable[[bytes], None] | None
    symbols: str | os.PathLike[str] | None
    plain: bool | None
    past: bool
    disks: Sequence[Disk | str]
    vifs: Sequence[Vif | str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """The options of one launch. Raises BuildError for a number that cannot be had."""

    ramdisk: str | os.PathLike[str] | bytes | None = None
    cmdline: str | bytes = ""
    guest_type: str | None = None
    maxmem_mib: int | None = None
    vcpus: int = 1
    max_vcpus: int | None = None
    uuid: str | None = None
    date: datetime | str | None = None
    time_offset: int = 0
    upper_ptwr: bool = False
    cap: int = 0
    timeout: float | None = None
    max_guest_seconds: float | None = None
    console_output: Callable[[bytes], None] | None = None
    symbols: str | os.PathLike[str] | None = None
    name: str = "guest"
    disks: Sequence[Disk | str] = ()
    vifs: Sequence[Vif | str] = ()
    vfb: Vfb | str | None = None
    cache: bool = True
    record: bool = False
    replay: InputRecord | None = None
    plain: bool | None = None
    past: bool = False

    def __post_init__(self) -> None:
        for limit in (self.timeout, self.max_guest_seconds):
            check_limit(limit)
        if not 1 <= self.vcpus <= XEN_LEGACY_MAX_VCPUS:
            raise BuildError(
                "that many vCPUs cannot be had",
                found=str(self.vcpus),
                expected=f"1-{XEN_LEGACY_MAX_VCPUS}",
            )
        if not self.vcpus <= self.most_vcpus <= XEN_LEGACY_MAX_VCPUS:
            raise BuildError(
                "a domain cannot come to have that many vCPUs",
                found=str(self.max_vcpus),
                expected=f"{self.vcpus}-{XEN_LEGACY_MAX_VCPUS}",
            )
        _ = self.build_info
        if not 0 <= self.cap <= MAX_CAP:
            raise BuildError(
                "that is no part of a processor, in percent", found=str(self.cap), expected="0-100"
            )
        if self.past and (self.plain or self.record or self.replay is not None):
            raise BuildError("the past is kept of a run that is neither plain nor recorded nor replayed")
        seen = set[int]()
        for disk in self.parsed_disks:
            if disk.devid in seen:
                raise BuildError("two disks have the same vdev", found=disk.vdev)
            seen.add(disk.devid)
        _ = self.parsed_vifs
        _ = self.parsed_vfb

    @property
    def most_vcpus(self) -> int:
        """How many vCPUs the domain may come to have."""
        return self.vcpus if self.max_vcpus is None else self.max_vcpus

    @property
    def build_info(self) -> BuildInfo:
        """What is said of the domain beside its image. Raises BuildError: a UUID or a date that is none."""
        try:
            handle = None if self.uuid is None else _uuid_bytes(self.uuid)
        except ValueError:
            raise BuildError("that is no UUID", found=self.uuid) from None
        pages = None if self.maxmem_mib is None else self.maxmem_mib << 20 - PAGE_SHIFT
        if self.time_offset not in TIME_OFFSETS:
            raise BuildError(
                "that is no offset of a clock, in seconds",
                found=str(self.time_offset),
                expected=f"{TIME_OFFSETS.start} to {TIME_OFFSETS.stop - 1}",
            )
        date_ns = None if self.date is None else _unix_ns(self.date)
        return BuildInfo(pages, self.vcpus, handle, date_ns, self.time_offset)

    @property
    def parsed_disks(self) -> tuple[Disk, ...]:
        """The disks as data. Raises BuildError for one that is text and no disk."""
        return disks_of(self.disks)

    @property
    def parsed_vifs(self) -> tuple[Vif, ...]:
        """The network interfaces as data. Raises BuildError for one that is text and none."""
        return vifs_of(self.vifs)

    @property
    def parsed_vfb(self) -> Vfb | None:
        """The framebuffer as data. Raises BuildError for one that is text and none."""
        return vfb_of(self.vfb)


def _unix_ns(date: datetime | str) -> int:
    """A date in ISO 8601 as nanoseconds of Unix time; UTC where it names no zone."""
    from datetime import UTC, datetime, timedelta  # few domains are given one

    try:
        when = datetime.fromisoformat(date) if isinstance(date, str) else date
    except ValueError:
        when = None
    if when is not None and when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    if when is None or not _DATES.start <= when.timestamp() < _DATES.stop:
        raise BuildError(
            "no date that a guest can begin at", found=str(date),
            expected="one from 1970 to 2261, such as 2026-11-30T12:00:00Z",
        )  # fmt: skip
    return (when - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1) * 1000


def _uuid_bytes(text: str) -> bytes:
    from uuid import UUID  # few domains are given one

    return UUID(text).bytes


Launcher = TypeVar("Launcher", bound=Callable[..., Any])


def options_by_name(takes: type[HostOptions]) -> Callable[[Launcher], Launcher]:
    """A decorator: help(), and whoever completes names, see each option of `takes` instead of `**options`."""

    def decorate(function: Launcher) -> Launcher:
        as_written = signature(function)
        options = [
            Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
            for field in fields(Chosen)
            if field.name in takes.__optional_keys__  # type: ignore[attr-defined]
        ]
        before = [one for one in as_written.parameters.values() if one.kind is not Parameter.VAR_KEYWORD]
        function.__signature__ = as_written.replace(parameters=[*before, *options])  # type: ignore[attr-defined]
        return function

    return decorate
