"""The domain of a kernel or of a built file, as the command line asks for it: planned, and launched."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from domainbuilder.build.domain_image import DomainImage
from domainbuilder.build.image import is_image, load_image
from domainbuilder.errors import BuildError, KernelFormatError, Where
from domainbuilder.kernel.kernel_file import load_kernel
from domainbuilder.kernel.unpacked import users_kernels
from domainbuilder.launch.domain import launch
from domainbuilder.launch.launch_options import LaunchOptions, asked_of
from domainbuilder.launch.options import Options
from domainbuilder.plan.domain_plan import DEFAULT_MEMORY_MIB, DomainPlan, plan
from domainbuilder.plan.findings import warn
from hvcore.public.xen import PAGE_SHIFT

if TYPE_CHECKING:
    from domainbuilder.launch.record import InputRecord
    from domainbuilder.launch.running import RunningDomain
    from domainbuilder.progress import Progress


def launched(
    options: LaunchOptions,
    progress: Progress,
    output: Callable[[bytes], None],
    replay: InputRecord | None,
) -> RunningDomain:
    """The domain, ready to run; `output` is given what it prints. Raises BuildError."""
    more = Options(console_output=output, record=options.record is not None, replay=replay)
    dom = launch(_planned(options, progress), **asked_of(options) | more)
    if dom.machine.domain.abi.pt_levels == 2 and not options.json:
        progress.close()
        sys.stderr.write(
            f"domainbuilder: {options.file} does not ask for PAE and gets two-level page tables, "
            "as under Xen 3; later ones do not run it\n"
        )
    return dom


def _planned(options: LaunchOptions, progress: Progress) -> DomainPlan | DomainImage:
    """The plan of a kernel, with what is to be said of it said; or the domain that was built before."""
    if is_image(options.file):
        if (options.memory_mib, options.ramdisk, options.cmdline) != (None, None, ""):
            raise BuildError("a built domain has its memory, ramdisk and command line already")
        return load_image(options.file)
    try:
        kernel = load_kernel(options.file, kept=users_kernels(cache=options.cache))
    except KernelFormatError as error:
        from domainbuilder.saved.frozen import is_frozen

        if is_frozen(options.file):
            message = "a saved domain, which `domainbuilder restore` goes on with"
            raise BuildError(message, where=Where(options.file)) from error
        raise
    planned = plan(kernel, options.memory_mib, ramdisk=options.ramdisk, cmdline=options.cmdline)
    progress.heard(b"\n")
    mib = planned.nr_pages >> 20 - PAGE_SHIFT
    if options.memory_mib is None and mib != DEFAULT_MEMORY_MIB and not options.json:
        print(f"domainbuilder: {options.file} gets {mib} MB of memory; -m MB says otherwise", file=sys.stderr)
    if not options.json:
        warn(planned)
    return planned
