"""Domains kept for `launch --resume-at`, found again by a digest of all that made them what they are.

A kept domain is two files: KEY.domain, a frozen domain (frozen.py) without its memory, and the memory beside
it, which is mapped and not read, so that the domain stands there at once. The key is a digest of the contents
of the kernel and the ramdisk, of every option that the guest can notice, of this very program, and of the
place. An entry says its key, too, and which file its memory is: one that was renamed, altered or cut short is
not used. It may come from anybody all the same: its domain can do no more than a guest can.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from domainbuilder.errors import BuildError, SavedError, Where
from domainbuilder.inputs import LIMITS, open_input
from domainbuilder.kept_files import DOMAINS_FOLDER, NAMED_FOLDER, cache_folder, is_ours, private_folder, tidy
from domainbuilder.launch.options import Chosen, Options
from domainbuilder.output import atomic_output, write_at
from domainbuilder.saved.domain import freeze, thaw
from domainbuilder.saved.frozen import read_frozen, write_frozen
from hvcore.cpu.library import identity
from hvcore.public.xen import PAGE_SIZE

if TYPE_CHECKING:
    from domainbuilder.launch.running import RunningDomain

MOST_BYTES = 4 << 30
MOST_DOMAINS = 64
_FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]{0,63}")


def named(name: str) -> Path:
    """The file of a domain that is kept by that name. Raises BuildError for what is no name."""
    if not _NAME.fullmatch(name):
        raise BuildError("no name to keep a domain by", found=name, expected="letters, digits, _, + and -")
    return cache_folder(NAMED_FOLDER) / f"{name}.domain"


class KeptDomains:
    """The kept domains of one folder. Several processes may use it at a time."""

    def __init__(
        self, folder: Path, *, most_bytes: int = MOST_BYTES, most_domains: int = MOST_DOMAINS
    ) -> None:
        self.folder = folder
        self._most_bytes = most_bytes
        self._most_domains = most_domains

    def find(self, key: str, started: float, options: Chosen) -> tuple[RunningDomain, bytes] | None:
        """The domain of that key, and what it had printed; None where none is kept.

        Limits count from where it was launched. Raises SavedError for an entry that cannot be used.
        """
        path = self.folder / f"{key}.domain"
        try:
            with path.open("rb") as file:
                if not is_ours(file.fileno()):
                    raise SavedError("others may have written it", where=Where(str(path)))
                os.utime(file.fileno())  # used now
            frozen = read_frozen(path)
        except FileNotFoundError:
            return None
        memory, printed = frozen.session.get("memory"), frozen.session.get("output")
        if frozen.about.get("key") != key or type(printed) is not bytes or type(memory) is not list:
            raise SavedError("the entry is of something else", where=Where(str(path)))
        fd = self._open_memory(path, memory)
        try:
            seconds = _guest_seconds_left(options, frozen.about.get("guest_ns"), path)
            dom = thaw(
                frozen, str(path), started, replace(options, max_guest_seconds=seconds), memory_file=fd
            )
        finally:
            os.close(fd)
        return dom, printed

    def _open_memory(self, path: Path, memory: list[Any]) -> int:
        """The file that an entry says its memory is."""
        name = memory[0] if memory and type(memory[0]) is str else ""
        if not re.fullmatch(r"[0-9a-f]+\.[0-9a-f]+\.memory", name):
            raise SavedError("the entry names no memory", where=Where(str(path)))
        beside = self.folder / name
        try:
            fd = os.open(beside, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise SavedError(
                f"its memory cannot be read: {error.strerror}", where=Where(str(beside))
            ) from None
        if memory != [name, *_identity(fd)] or not is_ours(fd):
            os.close(fd)
            raise SavedError("the memory is not what was kept", where=Where(str(beside)))
        return fd

    def keep(self, key: str, dom: RunningDomain, printed: bytes, until: str) -> None:
        """Keep the domain as it stands, for find(). Raises RuntimeError where it cannot be, OSError."""
        frozen = freeze(dom)
        private_folder(self.folder)
        tidy(self.folder, most_bytes=self._most_bytes, most_files=self._most_domains - 1)
        memory = self.folder / f"{key}.{os.urandom(8).hex()}.memory"
        with atomic_output(memory) as fd:
            os.fchmod(fd, 0o600)
            os.ftruncate(fd, len(dom.machine.mem.view))
            for index, run in frozen.state.pages.items():
                write_at(fd, run, index * PAGE_SIZE)
            os.fsync(fd)
        session = frozen.session | {"output": printed, "memory": [memory.name, *_identity(memory)]}
        about = frozen.about | {"key": key, "until": until}
        path = self.folder / f"{key}.domain"
        entry = replace(frozen, about=about, session=session, state=replace(frozen.state, pages={}))
        try:
            write_frozen(entry, path, mode=0o600)
        except BaseException:
            memory.unlink(missing_ok=True)
            raise
        self._remove_older(key, memory)

    def _remove_older(self, key: str, memory: Path) -> None:
        """The memory of an entry that this one has replaced; not that of who writes the same right now."""
        for other in self.folder.glob(f"{key}.*.memory"):
            with contextlib.suppress(OSError):
                if other != memory and other.stat().st_mtime < time.time() - 60:
                    other.unlink()


def _identity(file: int | str | Path) -> list[int]:
    """What changes when somebody writes to a file, or puts another in its place."""
    state = os.stat(file)  # noqa: PTH116 (of a descriptor, too)
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]


def _guest_seconds_left(options: Chosen, guest_ns: Any, path: Path) -> float | None:
    if options.max_guest_seconds is None:
        return None
    if type(guest_ns) is not int:
        raise SavedError("the entry does not say how long its guest ran", where=Where(str(path)))
    return max(options.max_guest_seconds - guest_ns / 1e9, 1e-9)


# --- keys ---------------------------------------------------------------------------------------------------


class Inputs:
    """What a run is a function of, as a key; and whether the files are still what they were then."""

    def __init__(
        self, kernel: str | os.PathLike[str], memory_mib: int | None, until: str, options: Chosen
    ) -> None:
        self._files: list[tuple[str, list[int]]] = []
        ramdisk = options.ramdisk
        cmdline = options.cmdline if isinstance(options.cmdline, str) else options.cmdline.decode("latin-1")
        plain = options.plain if options.plain is not None else os.environ.get("DOMAINBUILDER_PLAIN") == "1"
        self.key = _digest(
            json.dumps(
                [
                    _FORMAT, program_digest(), self._content(kernel),
                    None if ramdisk is None else self._content(ramdisk),
                    cmdline, type(options.cmdline).__name__, memory_mib, options.guest_type, options.vcpus,
                    options.upper_ptwr, options.cap, options.name, plain, until,
                    options.maxmem_mib, options.max_vcpus, options.uuid, str(options.parsed_vfb),
                    options.build_info.date_ns, options.time_offset,
                ]
            ).encode("utf-8", "surrogateescape")
        )  # fmt: skip

    def _content(self, file: str | os.PathLike[str] | bytes) -> str:
        if isinstance(file, bytes):
            return _digest(file)
        name = os.fspath(file)
        if not Path(name).is_file():
            if not Path(name).exists():
                raise BuildError("No such file or directory", where=Where(name))
            raise BuildError("a pipe cannot be read twice, and --resume-at has to", where=Where(name))
        self._files.append((name, _identity(name)))
        return _digest(open_input(name))

    @property
    def are_the_same(self) -> bool:
        """Whether no file has changed since the key was made."""
        try:
            return all(_identity(name) == was for name, was in self._files)
        except OSError:
            return False


def _digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def program_digest() -> str:
    """The very program, told by its version and files; the emulator; the core that runs guests."""
    from domainbuilder import __version__
    from domainbuilder.launch.core import describe_core

    root = Path(__file__).resolve().parent.parent.parent
    parts = [__version__, sys.implementation.name, describe_core(), identity()]
    for package in ("domainbuilder", "hvcore"):
        for folder, _folders, files in sorted(os.walk(root / package)):
            for name in sorted(files):
                if name.endswith((".py", ".so", ".c", ".h")):
                    state = os.stat(os.path.join(folder, name))  # noqa: PTH116, PTH118 (this is for speed)
                    parts.append(f"{name} {state.st_size} {state.st_mtime_ns}")
    return _digest("\n".join(parts).encode())


# --- from Python --------------------------------------------------------------------------------------------


class _Printed:
    """What a domain prints until it is kept, on its way to where it is wanted."""

    def __init__(self, wanted: Callable[[bytes], None] | None) -> None:
        self._wanted = wanted
        self._so_far: bytearray | None = bytearray()

    def stop(self) -> bytes:
        """Note no more; what was noted."""
        so_far, self._so_far = bytes(self._so_far or b""), None
        return so_far

    def __call__(self, data: bytes) -> None:
        if self._so_far is not None:
            self._so_far += data
        if self._wanted is not None:
            self._wanted(data)


class Resumption:
    """A domain on its way to where the console matches `until`, or there already; see resume_at()."""

    def __init__(
        self,
        kernel: str | os.PathLike[str],
        until: str,
        memory_mib: int | None,
        chosen: Chosen,
        *,
        kept: KeptDomains | None = None,
        tell: Callable[[str], None] = lambda _message: None,
    ) -> None:
        if chosen.record or chosen.replay is not None:
            raise BuildError(
                "what is resumed cannot be recorded or replayed: that begins at the guest's start"
            )
        if chosen.vifs:
            raise BuildError("a domain with interfaces is not kept: others may have sent it something")
        if chosen.disks:
            raise BuildError("a domain with disks is not kept: what is on them may have changed since")
        self._started = time.monotonic()
        self._until = until
        self._chosen = chosen
        self._kept = kept or KeptDomains(cache_folder(DOMAINS_FOLDER))
        self._tell = tell
        self._inputs = Inputs(kernel, memory_mib, until, chosen)
        self._printed = _Printed(None)
        self._so_far: bytes | None = None

    def start(
        self,
        output: Callable[[bytes], None] | None,
        launch_it: Callable[[Callable[[bytes], None]], RunningDomain],
    ) -> RunningDomain:
        """The domain: kept, or launched by `launch_it`, which is told where its output goes."""
        self._printed = _Printed(output)
        try:
            options = replace(self._chosen, console_output=self._printed)
            found = self._kept.find(self._inputs.key, self._started, options)
        except (SavedError, OSError) as error:
            self._tell(f"a kept domain is not used: {' '.join(str(error).split())}")
            found = None
        if found is None:
            return launch_it(self._printed)
        dom, self._so_far = found
        return dom

    def reach(self, dom: RunningDomain) -> None:
        """Be there: what was printed on the way is printed, and the domain is kept. Raises ExpectError."""
        if self._so_far is not None:
            self._printed.stop()
            self._printed(self._so_far)
            return
        dom.console.expect(self._until)
        so_far = self._printed.stop()
        if not self._inputs.are_the_same or len(so_far) > LIMITS["transcript"].size:
            return
        try:
            self._kept.keep(self._inputs.key, dom, so_far, self._until)
        except (OSError, RuntimeError) as error:
            self._tell(f"the domain is not kept: {error}")


def resume_at(
    kernel: str | os.PathLike[str],
    until: str,
    memory_mib: int | None = None,
    *,
    kept: KeptDomains | None = None,
    tell: Callable[[str], None] = lambda _message: None,
    **options: Unpack[Options],
) -> RunningDomain:
    """`launch(kernel, memory_mib, ...)`, and on until the console matches the regular expression `until`.

    The first time that takes as long as it takes. From then on a domain with the same inputs stands there at
    once, with the same console, counts and guest time, and goes on as the first did: it is kept in the user's
    cache folder (or `kept`). What is damaged there is not used, and `tell` is given a line about it.
    `max_guest_seconds` counts from the guest's start. Raises what `launch` and `expect` do, BuildError for
    `record` and `replay`, which want a run from its start, for disks, and for inputs that are no files.
    """
    from domainbuilder.launch.domain import launch  # where the domain is kept there is nothing to build

    resumption = Resumption(kernel, until, memory_mib, Chosen(**options), kept=kept, tell=tell)
    dom = resumption.start(
        options.get("console_output"),
        lambda output: launch(kernel, memory_mib, **options | Options(console_output=output)),
    )
    try:
        resumption.reach(dom)
    except BaseException:
        dom.close()
        raise
    return dom
