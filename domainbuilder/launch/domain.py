"""Launch a domain and talk to it: the one module, beside the commands, where builder and hypervisor meet.

with launch("grub-i386-xen.bin", memory_mib=64, timeout=60) as dom:
    dom.console.expect(r"grub> ")
    dom.console.send("halt\\n")
    assert dom.wait().reason == "poweroff"
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Unpack

from domainbuilder.build.domain_image import DEFAULT_FIRST_MFN, DomainImage, build
from domainbuilder.build.image import is_image, load_image
from domainbuilder.errors import BuildError, LayoutError, Where
from domainbuilder.kernel.kernel_file import KernelFile, load_kernel
from domainbuilder.kernel.unpacked import users_kernels
from domainbuilder.launch.options import Chosen, Options, options_by_name
from domainbuilder.launch.running import RunningDomain
from domainbuilder.launch.session import Console, ExpectEOF, ExpectError, ExpectTimeout, Outcome
from domainbuilder.launch.start import built
from domainbuilder.plan.domain_plan import DomainPlan, plan
from hvcore.abi import ABIS
from hvcore.errors import EngineError
from hvcore.host import Host
from hvcore.machine_memory import MachineMemory

if TYPE_CHECKING:
    from domainbuilder.kernel.elf import ElfImage
    from domainbuilder.symbols.table import Symbols

__all__ = ["Console", "ExpectEOF", "ExpectError", "ExpectTimeout", "Outcome", "RunningDomain", "launch"]

_PAGE = 4096
_Kernel = DomainPlan | DomainImage | KernelFile | str | os.PathLike[str]


@options_by_name(Options)
def launch(
    kernel: DomainPlan | DomainImage | KernelFile | str | os.PathLike[str],
    memory_mib: int | None = None,
    **options: Unpack[Options],
) -> RunningDomain:
    """The domain of a kernel, of a plan, or that `build` made (in memory or as a file), ready to run.

    memory_mib, ramdisk, cmdline, guest_type: see `plan`; a plan and a built domain have these already.

    - maxmem_mib: how much memory it may come to have by `set_memory_target()` (as much as it begins with).
    - vcpus: how many virtual processors (1); max_vcpus: how many it may come to have by `set_vcpus()`.
    - uuid: its UUID, for the guest to see (one that says its number on its host).
    - date: when it begins by its wall clock, a datetime or ISO 8601, in UTC where it names no zone (a day in
      2007, every run the same); time_offset: how many seconds its clock is ahead of that (0).
    - upper_ptwr: let the guest store to page tables of all levels, where Xen lets it store to L1 tables alone
      (False).
    - cap: how much of the host's time the domain has at most, in percent; 0 (the default) for all of it.
    - timeout: seconds of wall time for everything from now on, a guard that only ends the run (None);
      max_guest_seconds: the same in the guest's own time, which is the same every run (None).
    - console_output: called with the guest's output, bytes, as it is printed (None).
    - disks: as text in xl's syntax ("debian.img,raw,xvda,w"), or as domainbuilder.xl.disk.parse_disk() gives
      them (none); name: what the store calls the domain ("guest").
    - vfb: a framebuffer with keyboard and pointer, as text in xl's syntax (none): "vnc=0" for one that
      `screenshot()` shows alone.
    - symbols: a file with the kernel's symbols (vmlinux, also with debug information, or System.map), for
      reports; without it they are the kernel's own.
    - cache: find a packed kernel as an earlier launch has unpacked it under the user's cache folder, and keep
      it there (True).
    - record: note what is typed, with the guest's time, for `input_record()` (False); replay: type what such
      a record has, when it has it: the same run again (None).
    - plain: use nothing of Unicorn but its documented API, slower and with the same results; None (the
      default): as the environment's DOMAINBUILDER_PLAIN=1 says.

    - past: keep copies of the domain as it runs, up to 400 MB of them, so that it can go back: `at()`,
      `last_write()`, `last_change()`, `last_event()`, `back()` (False).

    Raises BuildError: not a kernel that Xen would start, or that this hypervisor runs; the record is of
    another domain.
    """
    return launch_on(None, kernel, memory_mib, **options)


def launch_on(
    host: Host | None,
    kernel: _Kernel,
    memory_mib: int | None,
    **options: Unpack[Options],
) -> RunningDomain:
    """`launch` on a host that others may share, or on one of its own (None).

    A run in company is no function of its own input alone: `record` and `replay` want a host of its own.
    """
    started = time.monotonic()
    chosen = Chosen(**options)
    source = _planned(kernel, memory_mib, chosen)
    planned = source if isinstance(source, DomainPlan) else source.plan
    most = chosen.build_info.max_pages
    if most is not None and most < planned.nr_pages:
        raise BuildError(
            "maxmem is below memory", found=f"{most >> 8} MB", expected=f"{planned.nr_pages >> 8} MB or more"
        )
    symbols = _symbols(chosen.symbols, planned.elf)
    shares_host = host is not None
    image, host = (
        _move(source, host, chosen) if isinstance(source, DomainImage) else _build(source, host, chosen)
    )
    del kernel, source, planned  # and with them the unpacked kernel
    try:
        return RunningDomain(
            built(image, host, chosen), chosen, shares_host=shares_host, started=started, symbols=symbols
        )
    except EngineError as error:
        raise _not_started(error, image.plan) from error


def _planned(kernel: _Kernel, memory_mib: int | None, chosen: Chosen) -> DomainPlan | DomainImage:
    """The plan of a kernel; what is planned or built already as it is."""
    if not isinstance(kernel, DomainPlan | DomainImage | KernelFile):
        kernel = _opened(kernel, cache=chosen.cache)
    ramdisk, cmdline, guest_type = chosen.ramdisk, chosen.cmdline, chosen.guest_type
    if isinstance(kernel, DomainPlan | DomainImage):
        if (memory_mib, ramdisk, cmdline, guest_type) != (None, None, "", None):
            raise BuildError(
                "a domain that is planned or built has its memory, ramdisk and command line already"
            )
        return kernel
    return plan(kernel, memory_mib, ramdisk=ramdisk, cmdline=cmdline, guest_type=guest_type)


def _opened(path: str | os.PathLike[str], *, cache: bool) -> DomainImage | KernelFile:
    """A file: a domain that was built, or a kernel, unpacked if need be or found unpacked."""
    if is_image(path):
        return load_image(path)
    return load_kernel(path, kept=users_kernels(cache=cache))


def _build(planned: DomainPlan, host: Host | None, options: Chosen) -> tuple[DomainImage, Host]:
    """The domain, in a host's memory, without its unpacked kernel, of which the guest has its copy."""
    _check_guest_type(planned)
    host = host or _new_host(planned, DEFAULT_FIRST_MFN, options)
    first_mfn, ram = _room(host, planned.nr_pages)
    image = build(planned, ram=ram, first_mfn=first_mfn, shared_info_mfn=host.mem.next_xenheap_mfn)
    return replace(image, plan=replace(planned, elf=None, ramdisk=None)), host


def _symbols(path: str | os.PathLike[str] | None, kernel: ElfImage | None) -> Symbols | None:
    if path is None:
        return None
    from domainbuilder.symbols.read import read_symbols

    return read_symbols(path, kernel)


def _check_guest_type(plan: DomainPlan) -> None:
    if plan.guest_type not in ABIS:
        raise BuildError("launch does not run such guests", where=Where(plan.kernel), found=plan.guest_type)


def _new_host(plan: DomainPlan, first_mfn: int, options: Chosen) -> Host:
    """A host for that domain alone, with as much memory as it may come to have."""
    most = options.build_info.max_pages
    try:
        return Host(_allocate(max(plan.nr_pages, most or 0), first_mfn), plain=options.plain)
    except EngineError as error:
        raise _not_started(error, plan) from error


def _not_started(error: EngineError, plan: DomainPlan) -> LayoutError:
    return LayoutError(f"the domain cannot be started: {error}", where=Where(plan.kernel))


def _allocate(nr_pages: int, first_mfn: int = DEFAULT_FIRST_MFN) -> MachineMemory:
    try:
        return MachineMemory(nr_pages, first_mfn=first_mfn)
    except (OSError, ValueError, OverflowError) as error:
        raise LayoutError(f"no memory for {nr_pages:#x} pages ({nr_pages >> 8:,} MB): {error}") from error


def _room(host: Host, nr_pages: int) -> tuple[int, memoryview]:
    """Where the next domain's memory begins, and that memory, zeroed."""
    try:
        first_mfn = host.room_for(nr_pages)
    except MemoryError as error:
        raise LayoutError(str(error)) from error
    host.mem.scrub(first_mfn, nr_pages)
    start = (first_mfn - host.mem.first_mfn) * _PAGE
    return first_mfn, host.mem.ram[start : start + nr_pages * _PAGE]


def _move(image: DomainImage, host: Host | None, options: Chosen) -> tuple[DomainImage, Host]:
    """A built domain, with its memory in a host's: pages of zeros are not copied."""
    _check_guest_type(image.plan)
    host = host or _new_host(image.plan, image.first_mfn, options)
    first_mfn, ram = _room(host, image.plan.nr_pages)
    if (first_mfn, host.mem.next_xenheap_mfn) != (image.first_mfn, image.shared_info_mfn):
        raise BuildError(
            "a built domain has its machine frames, and the host has others free",
            where=Where(image.plan.kernel), found=image.first_mfn, expected=first_mfn,
        )  # fmt: skip
    zero = bytes(_PAGE)
    for at in range(0, len(image.ram), _PAGE):
        page = image.ram[at : at + _PAGE]
        if page != zero:
            ram[at : at + _PAGE] = page
    return replace(image, ram=ram), host
