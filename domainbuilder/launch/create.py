"""`domainbuilder create`: the domain of a configuration, run in the foreground, and again where it says so.

Source: handle_domain_death() and create_domain() of tools/xl/xl_vmcontrol.c of Xen 4.17.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict
from uuid import UUID, uuid5

from domainbuilder.bootloader.disk import PartOfDisk
from domainbuilder.bootloader.pygrub import read_boot, survey, wanted
from domainbuilder.errors import BuildError, ExitCode
from domainbuilder.inputs import open_input
from domainbuilder.launch.boot_disk import open_boot_disk
from domainbuilder.launch.launch_options import LaunchOptions
from domainbuilder.launch.options import vfb_of, vifs_of
from domainbuilder.launch.run import run_launch
from domainbuilder.xl.config_json import is_json, parse_json
from domainbuilder.xl.config_syntax import ConfigError, Source, parse
from domainbuilder.xl.domain_config import DomainConfig, Read, read_config
from hvcore.backends.disk import Disk

if TYPE_CHECKING:
    from domainbuilder.launch.running import RunningDomain
    from domainbuilder.launch.session import Outcome
    from hvcore.backends.disk import Disk
    from hvcore.backends.vfb import Vfb
    from hvcore.backends.vif import Vif

# How a domain ended -> which of the configuration's actions that calls for.
_ACTIONS = {
    "poweroff": "on_poweroff",
    "reboot": "on_reboot",
    "watchdog": "on_watchdog",
    "soft_reset": "on_soft_reset",
    "crash": "on_crash",
    "crashed": "on_crash",
}
_UUIDS = UUID("6c0f8a5e-9d4b-4b7e-8f57-3d1c6a2e9b10")  # of names of domains
_LEAST_TIME = 0.001  # s: a limit has to be above 0
_PYGRUB_OPTIONS = ("kernel", "ramdisk", "args", "entry", "offset")


def load_config(name: str, more: list[str]) -> Read:
    """The configuration in the file `name`, with the settings of the command line behind it.

    Raises OSError, and ConfigError for what xl would not take or what cannot be had here.
    """
    try:
        data = bytes(open_input(name))
    except ValueError as error:
        raise ConfigError(f"{name}: cannot be read: {error}") from None
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}+{error.start:#x}: not UTF-8", found=data[error.start]) from error
    given = [Source(f"argument {number}", f"{word}\n") for number, word in enumerate(more, 1)]
    if is_json(text):
        return read_config(name, parse(given, parse_json(Source(name, text))))
    if given:
        text += "\n"  # as xl does: a comment at the end of the file has its newline then
    return read_config(name, parse([Source(name, text), *given], {}))


def create(config: DomainConfig, options: LaunchOptions, *, quiet: bool) -> ExitCode:
    """Run the domain, and again, until it is to end. `options` are those of the command line.

    Their `timeout` is for all the runs together. Raises BuildError for what cannot be built.
    """
    if config.on_crash.startswith("coredump"):
        options = options._replace(core=Path(f"{config.name}.core"))
    if not options.is_of_one_run:
        options = options._replace(at_end=lambda dom, outcome: _kept(config, dom, outcome, quiet=quiet))
    deadline = None if options.timeout is None else time.monotonic() + options.timeout
    while True:
        with booted(config) as (kernel, ramdisk, cmdline):
            ended = run_launch(
                options._replace(
                    file=kernel,
                    ramdisk=ramdisk,
                    cmdline=cmdline,
                    memory_mib=config.memory,
                    **asked_by(config),
                )
            )
        action = action_of(config, ended.reason)
        if not action.endswith("restart") or options.is_of_one_run:
            return ended.code
        if deadline is not None:
            options = options._replace(timeout=max(deadline - time.monotonic(), _LEAST_TIME))
        if not quiet:
            print(f"domainbuilder: {config.name} is started again: {ended.reason}", file=sys.stderr)


def _kept(config: DomainConfig, dom: RunningDomain, outcome: Outcome, *, quiet: bool) -> None:
    """Have a domain that ended kept in the background, where the configuration says so."""
    action = action_of(config, outcome.reason)
    if action not in ("preserve", "rename-restart"):
        return
    from domainbuilder.background.kept import keep

    kept = keep(dom, outcome, config, renamed=action == "rename-restart")
    if not quiet:
        print(
            f"domainbuilder: {config.name} is kept as it ended: {kept.name}, domain {kept.id}, "
            f"until `domainbuilder xl destroy {kept.id}`",
            file=sys.stderr,
        )


def action_of(config: DomainConfig, reason: str) -> str:
    """What the configuration wants done with a domain that ended for `reason`, an Outcome's."""
    return str(getattr(config, _ACTIONS[reason])) if reason in _ACTIONS else "destroy"


class Asked(TypedDict):
    """What a configuration asks of a launch beside kernel and memory, by the names of launch's options."""

    maxmem_mib: int | None
    vcpus: int
    max_vcpus: int
    uuid: str
    cap: int
    time_offset: int
    disks: tuple[Disk, ...]
    vifs: tuple[Vif, ...]
    vfb: Vfb | None
    name: str


def asked_by(config: DomainConfig) -> Asked:
    """The domain of the configuration. Its UUID is of its name where it says none, where xl draws one."""
    return Asked(
        maxmem_mib=config.maxmem,
        vcpus=config.vcpus,
        max_vcpus=config.maxvcpus,
        uuid=config.uuid or str(uuid5(_UUIDS, config.name)),
        cap=config.cap if config.cap <= 100 else 0,  # more than one processor is as good as none
        time_offset=config.rtc_timeoffset,
        disks=config.disks,
        vifs=vifs_of(config.vifs),
        vfb=vfb_of(config.vfb),
        name=config.name,
    )


@contextmanager
def booted(config: DomainConfig) -> Iterator[tuple[str, str | None, str]]:
    """The kernel, the ramdisk and the command line, as files: the configuration's, or what pygrub finds."""
    if config.bootloader is None:
        yield str(config.kernel), config.ramdisk, config.cmdline
        return
    options = _pygrub_options(config)
    offset = options.pop("offset", None)
    if offset is not None and not (offset.isascii() and offset.isdigit()):
        raise BuildError("bootloader_args: --offset is a number of bytes", found=repr(offset))
    disk = _boot_disk(config)
    with open_boot_disk(disk.target, disk.format) as whole:
        found = survey(whole if offset is None else PartOfDisk(whole, int(offset), whole.size))
        title, boot = wanted(found, **options)
        chosen = read_boot(found, title, boot)
    with tempfile.TemporaryDirectory(prefix="pygrub-") as folder:
        kernel, ramdisk = Path(folder, "vmlinuz"), Path(folder, "initrd")
        kernel.write_bytes(chosen.kernel)
        ramdisk.write_bytes(chosen.ramdisk or b"")
        yield str(kernel), str(ramdisk) if chosen.ramdisk is not None else None, boot.args


def _boot_disk(config: DomainConfig) -> Disk:
    """The first disk, as libxl has it (bootloader_gotptys and libxl__bootloader_run)."""
    if not config.disks:
        raise BuildError(f"{config.name}: pygrub needs a disk, and there is none")
    return config.disks[0]


def _pygrub_options(config: DomainConfig) -> dict[str, str]:
    """make_bootloader_args(), and what bootloader_args= says. Raises BuildError for others."""
    options = {"kernel": config.kernel, "ramdisk": config.ramdisk, "args": config.cmdline or None}
    words = iter(config.bootloader_args)
    for word in words:
        name, sign, value = word.removeprefix("--").partition("=")
        if word in ("-q", "--quiet"):
            continue
        if not word.startswith("--") or name not in _PYGRUB_OPTIONS:
            raise BuildError(
                "bootloader_args: no such option of pygrub",
                found=repr(word),
                expected=", ".join(f"--{one}=" for one in _PYGRUB_OPTIONS),
            )
        options[name] = value if sign else next(words, "")
    return {name: value for name, value in options.items() if value is not None}
