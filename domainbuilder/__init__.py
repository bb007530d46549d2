"""From a kernel file to a Xen PV domain, and the domain running, on a machine without Xen.

The four steps, each a function that returns a frozen value (`launch` returns a running domain):

    >>> import domainbuilder
    >>> report = domainbuilder.inspect("vmlinuz")
    >>> plan = domainbuilder.plan("vmlinuz", memory_mib=256)
    >>> image = domainbuilder.build("vmlinuz", memory_mib=256)
    >>> with domainbuilder.launch("vmlinuz", memory_mib=256) as dom:
    ...     dom.console.expect("login:")

`plan`, `build` and `launch` take the same kernel, memory, ramdisk, command line and kind of guest; each also
takes what an earlier step has made. What they return and raise is here as well:

- values: Inspection, KernelFile, Finding, Severity, DomainPlan, DomainImage (`save_image`, `load_image` keep
  it in a file), RunningDomain, Console, Outcome, Statistics, CrashReport, ExitCode;
- errors in the input: BuildError with its kinds KernelFormatError, ElfError, NotesError, LayoutError,
  ImageError and SavedError;
- expectations that were not met: ExpectError with its kinds ExpectTimeout and ExpectEOF.

A domain launched with `past=True` says where it was and who did what: Moment, Write, FrameChange, Happened.
`dom.fork()` copies a running domain: a Clone, or CloneLost where its process has ended by itself. `save()`
writes one to a file as it stands, and `restore` goes on with it, anywhere. `Host` holds several domains that
run beside each other, `initramfs` makes a ramdisk for Linux guests. All is imported when first used: `import
domainbuilder` alone costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from domainbuilder.build.domain_image import DomainImage, build
    from domainbuilder.build.image import load_image, save_image
    from domainbuilder.clones.clone import Clone
    from domainbuilder.clones.process import CloneLost
    from domainbuilder.errors import (
        BuildError,
        ElfError,
        ExitCode,
        ImageError,
        KernelFormatError,
        LayoutError,
        NotesError,
        SavedError,
    )
    from domainbuilder.initramfs import initramfs
    from domainbuilder.kernel.findings import Finding, Severity
    from domainbuilder.kernel.inspection import Inspection, inspect
    from domainbuilder.kernel.kernel_file import KernelFile
    from domainbuilder.launch.crash_report import CrashReport
    from domainbuilder.launch.domain import RunningDomain, launch
    from domainbuilder.launch.host import Host
    from domainbuilder.launch.past import FrameChange, Happened, Moment, Write
    from domainbuilder.launch.run_stats import Statistics
    from domainbuilder.launch.session import Console, ExpectEOF, ExpectError, ExpectTimeout, Outcome
    from domainbuilder.plan.domain_plan import DomainPlan, plan
    from domainbuilder.saved.domain import restore
    from domainbuilder.saved.kept import resume_at

__version__ = "0.1.0"

__all__ = [
    "BuildError",
    "Clone",
    "CloneLost",
    "Console",
    "CrashReport",
    "DomainImage",
    "DomainPlan",
    "ElfError",
    "ExitCode",
    "ExpectEOF",
    "ExpectError",
    "ExpectTimeout",
    "Finding",
    "FrameChange",
    "Happened",
    "Host",
    "ImageError",
    "Inspection",
    "KernelFile",
    "KernelFormatError",
    "LayoutError",
    "Moment",
    "NotesError",
    "Outcome",
    "RunningDomain",
    "SavedError",
    "Severity",
    "Statistics",
    "Write",
    "__version__",
    "build",
    "initramfs",
    "inspect",
    "launch",
    "load_image",
    "plan",
    "restore",
    "resume_at",
    "save_image",
]

_HOMES = {
    name: module
    for module, names in {
        "build.domain_image": "DomainImage build",
        "build.image": "load_image save_image",
        "clones.clone": "Clone",
        "clones.process": "CloneLost",
        "errors": (
            "BuildError ElfError ExitCode ImageError KernelFormatError LayoutError NotesError SavedError"
        ),
        "initramfs": "initramfs",
        "kernel.findings": "Finding Severity",
        "kernel.inspection": "Inspection inspect",
        "kernel.kernel_file": "KernelFile",
        "launch.crash_report": "CrashReport",
        "launch.domain": "RunningDomain launch",
        "launch.host": "Host",
        "launch.past": "FrameChange Happened Moment Write",
        "launch.run_stats": "Statistics",
        "launch.session": "Console ExpectEOF ExpectError ExpectTimeout Outcome",
        "plan.domain_plan": "DomainPlan plan",
        "saved.domain": "restore",
        "saved.kept": "resume_at",
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'domainbuilder' has no attribute {name!r}")
    return getattr(import_module(f"domainbuilder.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__file__", "__name__", "__path__"]


class _Package(ModuleType):
    """Keeps `domainbuilder.build` the function: importing the submodule of that name would hide it."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
