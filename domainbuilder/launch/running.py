"""A domain that runs whenever it is asked to, and what its holder can do with it."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from domainbuilder.errors import BuildError
from domainbuilder.launch.hypercall_names import hypercall_name
from domainbuilder.launch.record import InputRecord
from domainbuilder.launch.rewinding import Rewinding
from domainbuilder.launch.runner import TICK
from domainbuilder.launch.session import Input, Outcome
from domainbuilder.launch.transcript import Transcript
from hvcore.machine import BOOT_TIME_NS
from hvcore.public.xen import PAGE_SIZE
from hvcore.x86 import vector_name

if TYPE_CHECKING:
    from domainbuilder.clones.clone import Clone
    from domainbuilder.launch.guest_control import GuestControl
    from domainbuilder.launch.options import Chosen
    from domainbuilder.launch.run_stats import Statistics
    from domainbuilder.launch.stop_report import StopReport
    from domainbuilder.launch.vnc_server import VncServer
    from domainbuilder.launch.xenstore_server import XenstoreServer
    from domainbuilder.saved.migrate import Migration
    from hvcore.backends.disk import Disk
    from hvcore.backends.vif import Vif
    from hvcore.debug.periodic import Periodic

_END = "end"  # the name of run_for()'s timer among the host's


class RunningDomain(Rewinding):
    """A domain that runs whenever it is asked to: by `console.expect` and `wait`, and not in between.

    A context manager; leaving it destroys the domain. `plan` is the domain's, None where its kernel is not
    known; `machine` and its `host` are the hypervisor, for experts. Where the domain shares its host with
    others, they run beside it.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Destroy the domain. What was printed, `stats()` and `outcome` stay."""
        if self._closed:
            return
        self._closed = True
        if self._tools is not None:
            self._tools.close()
        if self._viewers is not None:
            self._viewers.close()
        if self._past is not None:
            self._past.close()
        if self._outside is not None:
            self._outside.close()
        if self._shares_host:
            self.machine.host.destroy(self.machine)
            return
        self.machine.host.close()
        self.machine.mem.release()

    def interrupt(self, error: BaseException) -> None:
        """For signal handlers: have `error` raised out of the `expect` or `wait` that is under way, or here.

        A signal handler that raises by itself may do so in a callback of the emulator, where it gets lost.
        """
        self._interruptions.interrupt(error)

    @contextmanager
    def watching(self, timer: Periodic) -> Iterator[None]:
        """Let `timer` look while the block lasts. Idle time passes without it."""
        self._watchers.append(timer)
        timer.arm()
        try:
            yield
        finally:
            self._watchers.remove(timer)
            timer.stop()

    def end_run(self) -> None:
        """End the run that is under way, and any other, as who closes the console does."""
        self._is_to_end = True

    @property
    def takes_input(self) -> bool:
        """Whether somebody may still type."""
        return self._input is not None and self._input.open

    def attach(self, source: Input) -> None:
        """Take console input from `source` too."""
        self._input = source

    # -- the store, and what a guest is told by it

    def serve_xenstore(self, path: str | os.PathLike[str]) -> XenstoreServer:
        """Xenstored's socket at `path`, for xenstore-ls and its kin, as long as the domain or a `with` lasts.

        Tools are answered while the domain runs; one that is idle for good is not while a tool is connected.
        Raises BuildError where nobody can listen there, or the run is recorded, replayed or has a past kept.
        """
        from domainbuilder.launch.xenstore_server import XenstoreServer

        self._check_open()
        if self._tools is not None:
            raise RuntimeError(f"tools are served already, at {self._tools.path}")
        return XenstoreServer(self, os.fspath(path))

    def serve_tools(self, server: XenstoreServer | None) -> None:
        """Have tools heard while the domain is idle, by who serves them; None: nobody does any more."""
        self._tools = server

    def _begin(self, options: Chosen) -> None:
        try:
            super()._begin(options)
            vfb = self.machine.devices.vfb
            if vfb is not None and vfb.vnc and self._is_trusted:  # no file opens ports here
                from domainbuilder.launch.vnc_server import VncServer

                VncServer(self, vfb, hears=options.replay is None)
        except BuildError:
            self.close()
            raise

    @property
    def vnc_address(self) -> str:
        """Where its framebuffer is seen by VNC, as viewers take it; "" where it is not."""
        return self._viewers.address if self._viewers is not None else ""

    @property
    def vnc_is_local(self) -> bool:
        """Whether only users of this machine can come there."""
        return self._viewers is None or self._viewers.is_local

    def serve_viewers(self, server: VncServer | None) -> None:
        """Have those who see the framebuffer heard while the domain is idle; None: nobody does any more."""
        self._viewers = server

    def check_nobody_repeats(self, what: str) -> None:
        """Raise BuildError where `what` happens to a run that is to be had again from its input alone."""
        if self._tape is not None or self._past is not None:
            raise BuildError(f"{what}, which is no part of a record or of the past that is kept")

    def shutdown(self, reason: str = "poweroff") -> None:
        """Ask the guest to end, as `xl shutdown` does: "poweroff", "reboot" or "halt"; then `wait`.

        This and the next raise ValueError for what no guest can be told, RuntimeError where the domain runs,
        is destroyed or over, and BuildError as serve_xenstore() does.
        """
        self._guest_control().shutdown(reason)

    def sysrq(self, key: str) -> None:
        """Send a magic SysRq key, a letter or digit ("t": tasks, "m": memory, ...), as `xl sysrq` does."""
        self._guest_control().sysrq(key)

    def set_memory_target(self, mib: int) -> None:
        """Have the guest's balloon give memory back, or take it again, until it has so many MB.

        From then on it does so while it runs. Not above what it began with (memory/static-max).
        """
        self._guest_control().set_memory_target(mib << 10)

    def set_vcpus(self, count: int) -> None:
        """Have the guest use so many of its vCPUs, the first ones, as `xl vcpu-set` does."""
        self._guest_control().set_vcpus(count)

    def trigger_nmi(self, vcpu: int = 0) -> None:
        """Send a vCPU a non-maskable interrupt, as `xl trigger nmi` does."""
        self._guest_control().send_nmi(vcpu)

    # -- devices, of a domain that runs

    def attach_disk(self, disk: Disk | str) -> None:
        """Give the domain one more disk, which the guest finds while it runs: `xl block-attach`.

        This and the next raise as shutdown() does, BuildError for text that is no device too, OSError for a
        file that cannot be opened.
        """
        self._guest_control().attach_disk(disk)

    def detach_disk(self, vdev: str, *, force: bool = False) -> int:
        """Ask the guest to let go of a disk, which goes then; or take it away at once: `xl block-detach`.

        The disk's number in the store.
        """
        return self._guest_control().detach_disk(vdev, force=force)

    def attach_vif(self, vif: Vif | str) -> int:
        """Give the domain one more network interface; its number: `xl network-attach`."""
        devid = self._guest_control().attach_vif(vif)
        try:
            self._look_outside()
        except BuildError:
            self.detach_vif(str(devid), force=True)
            raise
        return devid

    def detach_vif(self, which: str, *, force: bool = False) -> int:
        """The same with an interface, which is named by its number or its address: `xl network-detach`."""
        return self._guest_control().detach_vif(which, force=force)

    def _guest_control(self) -> GuestControl:
        from domainbuilder.launch.guest_control import GuestControl

        self.check_at_rest()
        if self.machine.is_over:
            raise RuntimeError("the domain is over")
        self.check_nobody_repeats("a guest is told something from outside")
        return GuestControl(self.machine)

    def wait(self, timeout: float | None = None) -> Outcome:
        """Run until the guest ends, is idle for good, or time is up; how that came about.

        After "idle" and "timeout" the domain is still there: more input can be sent, and `wait` again.
        """
        outcome = self.run_until(None, timeout)
        assert outcome is not None
        return outcome

    def fork(
        self, *, console_output: Callable[[bytes], None] | None = None, timeout: float | None = None
    ) -> Clone:
        """A copy of the domain as it stands, in a process of its own, and told what to do as this one is.

        console_output: called with what the clone prints from now on. timeout: seconds of wall time for
        everything that the clone does; None: as many as `launch` was given, counted anew. What shares this
        domain's host is copied with it. Raises RuntimeError while the domain runs, or where it has a disk
        that is written and no snapshot; OSError where this machine has no room for a process.
        """
        from domainbuilder.clones.clone import fork

        return fork([self], console_output=console_output, timeout=timeout)[0]

    @property
    def is_unobserved(self) -> bool:
        """Whether nobody would notice a run and its undoing: no debugger, listener, record or capture."""
        machine = self.machine
        return (
            not any(switch.taps for switch in machine.host.switches.values())
            and not (self._watchers or self._runner or self._tape or machine.watcher or machine.listeners)
            and machine.engine.coverage is None
            and all(key == TICK for key, _ in machine.host.timers.live())
        )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While the block lasts nobody is told what is printed, and nobody types."""
        sink, source = self._sink, self._input
        self._sink = self._input = None
        try:
            yield
        finally:
            self._sink, self._input = sink, source

    def become_clone(self, console_output: Callable[[bytes], None], timeout: float | None) -> None:
        """In the process of a clone: no input but what is sent, and limits counted from now on."""
        if self._tools is not None:
            self._tools.forsake()
        if self._viewers is not None:
            self._viewers.forsake()
        self._started = time.monotonic()
        allowed = self._timeout if timeout is None else timeout
        self._limit = None if allowed is None else self._started + allowed
        self._input, self._sink = None, console_output
        self._interruptions.has_signals = False  # to look for handlers copies twenty pages
        for switch in self.machine.host.switches.values():
            switch.taps.clear()  # a capture is the holder's

    @property
    def transcript(self) -> Transcript:
        """What was printed, as `console` looks through it."""
        return self._transcript

    @property
    def closed(self) -> bool:
        """Whether the domain is destroyed."""
        return self._closed

    @property
    def domain_id(self) -> int:
        """The domain's number on its host."""
        return self.machine.domain.domain_id

    @property
    def outcome(self) -> Outcome | None:
        """How the domain ended; None while it has not."""
        return self._outcome

    def input_record(self, reason: str = "interrupted") -> InputRecord:
        """What was typed so far, for `launch(..., replay=...)`, where `record` was asked for.

        The replayed run ends where this one stands now, for `reason`, unless the guest ends it before.
        """
        if self._tape is None:
            raise RuntimeError("the domain was launched without record=True")
        return self._tape.record(self._outcome.reason if self._outcome is not None else reason)

    def run_for(self, guest_seconds: float, timeout: float | None = None) -> Outcome | None:
        """Run for so much of the guest's time, None; or until it ends before that, how that came about."""
        host = self.machine.host
        end = self.machine.clock.now() + int(guest_seconds * 1e9)
        host.set_timer(_END, end, host.pause)
        try:
            return self._run(lambda: self.machine.clock.now() >= end, timeout)
        finally:
            host.timers.stop(_END)

    def save(self, path: str | os.PathLike[str], form: Literal["frozen", "xen"] = "frozen") -> int:
        """Write the domain to a file, for `domainbuilder.restore`; the file's size.

        "frozen": as it stands, to the instruction; it does not notice and can go on. Of disks the file has
        what was written to memory (snapshot), and how their files were. "xen": the guest is asked to suspend,
        which ends it here (`resume()` has it go on), and what it is then is written as xl would, for Xen too;
        what it wrote to disks has to be in their files. The file is whole or not there. Raises RuntimeError
        for a domain that runs, has ended, is destroyed, or shares its host; SavedError for a guest that does
        not suspend, or cannot be saved so, and can go on; OSError.
        """
        from domainbuilder.saved.domain import save, save_stream

        return save(self, path) if form == "frozen" else save_stream(self, path)

    def migrate(self, address: str) -> Migration:
        """Move the domain, live, to the process that runs `restore(address)`: "unix:PATH", a socket's name.

        Afterwards it is closed here. Raises SavedError where that comes to nothing, and the guest goes on
        here; RuntimeError as `save` does.
        """
        from domainbuilder.saved.migrate import migrate

        return migrate(self, address)

    def dump_core(self, path: str | os.PathLike[str]) -> int:
        """Write the domain, alive or dead, in Xen's dump-core format, for `domainbuilder inspect` and others.

        Nothing of it changes; the bytes that are no holes. Raises RuntimeError for one that runs, or is
        destroyed; OSError.
        """
        from domainbuilder.saved.core_dump import dump_core

        self.check_at_rest()
        return dump_core(self, path)

    def resume(self) -> None:
        """Have a guest that has suspended go on here, which it is told: as `xl save -c` does.

        Raises RuntimeError for one that has not suspended, or is destroyed.
        """
        self.check_at_rest()
        if self._outcome is None or self._outcome.reason != "suspend":
            raise RuntimeError("the guest has not suspended")
        self._outcome = None
        self.machine.resume()

    def check_can_be_saved(self) -> None:
        """Raise RuntimeError where the domain cannot be saved as it stands."""
        self.check_at_rest()
        if self._outcome is not None:
            raise RuntimeError("the domain has ended")
        if self._shares_host:
            raise RuntimeError("a domain that shares its host cannot be saved alone")

    def console_state(self) -> dict[str, int | bytes]:
        """What of the console is this holder's: what was printed, and how much of it was matched or read."""
        text, held, dropped = self._transcript.save()
        return {
            "text": text, "held": held, "dropped": dropped,
            "printed": self._console_bytes, "used": self.console.used,
        }  # fmt: skip

    def stats(self) -> Statistics:
        """The counts so far."""
        from domainbuilder.launch.run_stats import HostUse, Statistics  # 1.4 ms, which few runs need to pay

        s = self.machine.stats()
        unit = 1 if sys.platform == "darwin" else 1024
        return Statistics(
            hypercalls={hypercall_name(number): count for number, count in s.hypercalls.items()},
            unknown_hypercalls=dict(s.unknown_hypercalls),
            traps={vector_name(vector): count for vector, count in s.exceptions.items()},
            emulated=dict(s.emulated),
            refused={reason.name.lower(): (count, str(last)) for reason, (count, last) in s.refused.items()},
            page_table_stores=s.page_table_stores,
            events_delivered=s.events_delivered,
            tlb_flushes=s.tlb_flushes,
            code_bytes=s.code_bytes,
            guest_ns=s.system_time_ns - BOOT_TIME_NS,
            console_bytes=self._console_bytes,
            host=HostUse(
                time.monotonic() - self._started,
                resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
                self.machine.lanes.counts(),
                self.machine.devices.disk_use(),
            ),
        )

    def look(self) -> StopReport:
        """Where every vCPU stands, what is pending, which timer is next, what was done and printed last.

        Nothing of the guest changes: it can go on as if nobody had looked.
        """
        from domainbuilder.launch.stop_report import look

        self._check_open()
        machine = self.machine
        before = (
            self._counts[0]
            if self._counts
            else (BOOT_TIME_NS, bytes(8 * len(machine.domain.trace.hypercalls)))
        )
        return look(
            machine,
            self.names(),
            console=self._transcript.tail(),
            before=(before[0], memoryview(before[1]).cast("Q")),
        )

    def screenshot(self, path: str | os.PathLike[str] | None = None) -> bytes:
        """What the framebuffer shows, as the bytes of a PNG file, which is written to `path`, too, if given.

        One that its guest has closed shows what it showed last. Nothing of the guest changes. Raises
        BuildError where there is no framebuffer, or nothing was drawn yet; OSError.
        """
        from domainbuilder.launch.display import save_screenshot

        self._check_open()
        return save_screenshot(self.machine, path)

    def memory_sha256(self) -> str:
        """The digest of the guest's memory, which two runs that are the same have in common.

        It is of the frames that the domain began with, and then of others that it came to have, each with its
        number.
        """
        self._check_open()
        import hashlib  # 2.6 ms, which few runs need to pay

        digest, mem, boot = hashlib.sha256(), self.machine.mem, self.machine.boot
        first = boot["first_mfn"] - mem.base_mfn
        end = first + boot["nr_pages"]
        digest.update(mem.view[first * PAGE_SIZE : end * PAGE_SIZE])
        frames, heap = self.machine.host.frames, mem.first_mfn - mem.base_mfn
        for low, high in ((heap, first), (end, frames.nr)):
            for pg in frames.owned(self.domain_id, low, high):
                digest.update(pg.to_bytes(8, "little"))
                digest.update(mem.view[pg * PAGE_SIZE : (pg + 1) * PAGE_SIZE])
        return digest.hexdigest()
