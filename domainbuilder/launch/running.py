"""A domain that runs whenever it is asked to, and what its holder can do with it."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from domainbuilder.closing import Closing
from domainbuilder.errors import BuildError
from domainbuilder.hypercall_names import hypercall_name
from domainbuilder.launch.record import InputRecord
from domainbuilder.launch.rewinding import Rewinding
from domainbuilder.launch.session import Outcome
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
    from domainbuilder.launch.xenstore_server import XenstoreServer
    from domainbuilder.saved.migrate import Migration
    from hvcore.backends.disk import Disk
    from hvcore.backends.vif import Vif

_END = "end"  # the name of run_for()'s timer among the host's


class RunningDomain(Rewinding, Closing):
    """A domain that runs whenever it is asked to: by `console.expect` and `wait`, and not in between.

    A context manager; leaving it destroys the domain. `console` is its console; `plan` the DomainPlan of its
    kernel, None where that is not known; `machine` and its `host` are the hypervisor, for experts. Domains
    that share its host run beside it. docs/python.md goes through all of it.
    """

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

    @property
    def closed(self) -> bool:
        """Whether the domain was closed: by `close()`, its `with`, its host, or `migrate()`."""
        return self._closed

    @property
    def domain_id(self) -> int:
        """The domain's number on its host."""
        return self.machine.domain.domain_id

    # -- its runs

    def wait(self, timeout: float | None = None) -> Outcome:
        """Run until the guest ends, is idle for good, or time is up. Returns how that came about.

        timeout: seconds of wall time; None: as many as `launch` allowed. After "idle" and "timeout" the
        domain is still there: more can be typed, and `wait` called again. Raises RuntimeError where the
        domain was closed before it ended.
        """
        outcome = self.run_until(None, timeout)
        assert outcome is not None
        return outcome

    def run_for(self, guest_seconds: float, timeout: float | None = None) -> Outcome | None:
        """Run for so many seconds of the guest's time. Returns None, or how the run ended before that.

        timeout: seconds of wall time, as for `wait`.
        """
        host = self.machine.host
        end = self.machine.clock.now() + int(guest_seconds * 1e9)
        host.set_timer(_END, end, host.pause)
        try:
            return self._run(lambda: self.machine.clock.now() >= end, timeout)
        finally:
            host.timers.stop(_END)

    def interrupt(self, error: BaseException) -> None:
        """For signal handlers: have `error` raised out of the `expect` or `wait` that is under way, or here.

        A signal handler that raises by itself may do so in a callback of the emulator, where it gets lost.
        """
        self._interruptions.interrupt(error)

    @property
    def outcome(self) -> Outcome | None:
        """How the domain ended; None while it has not."""
        return self._outcome

    def input_record(self, reason: str = "interrupted") -> InputRecord:
        """What was typed so far, for `launch(..., replay=...)`.

        The replayed run ends where this one stands now, for `reason`, unless the guest ends it before. Raises
        RuntimeError where the domain was launched without record=True.
        """
        if self._tape is None:
            raise RuntimeError("the domain was launched without record=True")
        return self._tape.record(self._outcome.reason if self._outcome is not None else reason)

    # -- what it is like

    @property
    def transcript(self) -> Transcript:
        """What was printed, as `console` looks through it."""
        return self._transcript

    def stats(self) -> Statistics:
        """The counts so far, which two runs of the same inputs have in common; also of a closed domain."""
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
                time.monotonic() - self._limits.started,
                resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
                self.machine.lanes.counts(),
                self.machine.devices.disk_use(),
            ),
        )

    def look(self) -> StopReport:
        """Where every vCPU stands, what is pending, which timer is next, what was done and printed last.

        Nothing of the guest changes: it can go on as if nobody had looked. Raises RuntimeError for a domain
        that was closed.
        """
        from domainbuilder.launch.stop_report import look

        self._check_open()
        machine = self.machine
        before = (BOOT_TIME_NS, bytes(len(machine.domain.trace.counts())))
        if self._counts and self._counts[0][0] < machine.clock.now():
            before = self._counts[0]
        return look(
            machine,
            self.names(),
            console=self._transcript.tail(),
            before=before,
        )

    def screenshot(self, path: str | os.PathLike[str] | None = None) -> bytes:
        """What the framebuffer shows, as the bytes of a PNG file; with `path` they are written there, too.

        A framebuffer that the guest has closed shows what it showed last. Nothing of the guest changes.
        Raises BuildError where there is no framebuffer or nothing was drawn yet, RuntimeError for a domain
        that was closed, OSError for a file that cannot be written.
        """
        from domainbuilder.launch.display import save_screenshot

        self._check_open()
        return save_screenshot(self.machine, path)

    def memory_sha256(self) -> str:
        """The digest of the guest's memory, in hexadecimal, which two runs that are the same have in common.

        It covers the frames that the domain began with, and then each that it came to have, with its number.
        Raises RuntimeError for a domain that was closed.
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

    # -- what its guest is asked, by the store

    def shutdown(self, reason: str = "poweroff") -> None:
        """Ask the guest to end, as `xl shutdown` does: "poweroff", "reboot" or "halt"; then `wait`.

        Raises ValueError for what no guest can be told, RuntimeError where the domain runs, has ended or was
        closed, BuildError where the run is recorded, replayed or has a past kept.
        """
        self._guest_control().shutdown(reason)

    def sysrq(self, key: str) -> None:
        """Send a SysRq key, a letter or digit ("t": tasks), as `xl sysrq` does. Raises as shutdown()."""
        self._guest_control().sysrq(key)

    def trigger_nmi(self, vcpu: int = 0) -> None:
        """Send a vCPU a non-maskable interrupt, as `xl trigger nmi` does. Raises as shutdown()."""
        self._guest_control().send_nmi(vcpu)

    def set_memory_target(self, mib: int) -> None:
        """Have the guest's balloon give memory back, or take it again, until it has `mib` MiB: `xl mem-set`.

        The guest does so while it runs. It cannot have more than `launch` allowed (memory_mib, or
        maxmem_mib). Raises as shutdown().
        """
        self._guest_control().set_memory_target(mib << 10)

    def set_vcpus(self, count: int) -> None:
        """Have the guest use its first `count` vCPUs, as `xl vcpu-set` does. Raises as shutdown()."""
        self._guest_control().set_vcpus(count)

    # -- devices that come and go

    def attach_disk(self, disk: Disk | str) -> None:
        """Give the domain one more disk, which the guest finds while it runs: `xl block-attach`.

        The disk is as for `launch`. Raises as shutdown(); BuildError also for text that is no disk, OSError
        for a file that cannot be opened.
        """
        self._guest_control().attach_disk(disk)

    def detach_disk(self, vdev: str, *, force: bool = False) -> int:
        """Ask the guest to let go of a disk ("xvdb"), which goes away then: `xl block-detach`.

        force: take it away at once. Returns the disk's number in the store. Raises as shutdown(); ValueError
        also where the domain has no such disk.
        """
        return self._guest_control().detach_disk(vdev, force=force)

    def attach_vif(self, vif: Vif | str) -> int:
        """Give the domain one more network interface: `xl network-attach`. Returns its number.

        The interface is as for `launch`. Raises as shutdown(); BuildError also for text that is no interface.
        """
        devid = self._guest_control().attach_vif(vif)
        try:
            self._look_outside()
        except BuildError:
            self.detach_vif(str(devid), force=True)
            raise
        return devid

    def detach_vif(self, which: str, *, force: bool = False) -> int:
        """Ask the guest to let go of an interface, by its number or address: `xl network-detach`.

        force: take it away at once. Returns its number. Raises as detach_disk().
        """
        return self._guest_control().detach_vif(which, force=force)

    def _guest_control(self) -> GuestControl:
        from domainbuilder.launch.guest_control import GuestControl

        self.check_at_rest()
        if self.machine.is_over:
            raise RuntimeError("the domain is over")
        self.check_nobody_repeats("a guest is told something from outside")
        return GuestControl(self.machine)

    # -- who else may look

    def serve_xenstore(self, path: str | os.PathLike[str]) -> XenstoreServer:
        """Xenstored's socket at `path`, for xenstore-ls and its kin, as long as the domain or a `with` lasts.

        Tools are answered while the domain runs, and no wait ends with "idle" while a tool is connected.
        Raises BuildError where nobody can listen there, or where the run is recorded, replayed or has a past
        kept; RuntimeError where tools are served already or the domain was closed.
        """
        from domainbuilder.launch.xenstore_server import XenstoreServer

        self._check_open()
        if self._tools is not None:
            raise RuntimeError(f"tools are served already, at {self._tools.path}")
        return XenstoreServer(self, os.fspath(path))

    @property
    def vnc_address(self) -> str:
        """Where its framebuffer is seen by VNC, as viewers take it; "" where it is not."""
        return self._viewers.address if self._viewers is not None else ""

    @property
    def vnc_is_local(self) -> bool:
        """Whether only users of this machine can come there."""
        return self._viewers is None or self._viewers.is_local

    # -- copies of it, here, in a file and elsewhere

    def fork(
        self, *, console_output: Callable[[bytes], None] | None = None, timeout: float | None = None
    ) -> Clone:
        """A copy of the domain as it stands, in a process of its own, with the methods that this one has.

        console_output: called with what the clone prints from now on. timeout: seconds of wall time for
        everything that the clone does; None: as many as `launch` was given, counted anew. Domains that share
        this one's host are copied with it. Raises RuntimeError while the domain runs, or where it has a disk
        that is written and no snapshot; OSError where this machine has no room for a process.
        """
        from domainbuilder.clones.clone import fork

        return fork([self], console_output=console_output, timeout=timeout)[0]

    def save(self, path: str | os.PathLike[str], form: Literal["frozen", "xen"] = "frozen") -> int:
        """Write the domain to a file, for `domainbuilder.restore`. Returns the file's size in bytes.

        - "frozen": as it stands, to the instruction. The guest does not notice, and can go on. The file has
          what the guest wrote to snapshots of disks, and how the disks' files were.
        - "xen": the guest is asked to suspend, which ends it here (`resume()` has it go on). The file is what
          `xl save` writes, for Xen, too. What the guest wrote to disks has to be in their files.

        The file is whole or not there. Raises RuntimeError for a domain that runs, has ended, was closed, or
        shares its host; SavedError for a guest that does not suspend, or that Xen's format has no room for,
        and that can go on here; OSError.
        """
        from domainbuilder.saved.domain import save, save_stream

        return save(self, path) if form == "frozen" else save_stream(self, path)

    def migrate(self, address: str) -> Migration:
        """Move the domain, live, to the process that runs `restore(address)`, and close it here.

        address: "unix:PATH", a socket. Returns the rounds, bytes and seconds that it took. Raises SavedError
        where the other end does not take the domain, which then goes on here; RuntimeError as `save` does.
        """
        from domainbuilder.saved.migrate import migrate

        return migrate(self, address)

    def dump_core(self, path: str | os.PathLike[str]) -> int:
        """Write the domain, alive or dead, in Xen's dump-core format, for `domainbuilder inspect` and others.

        Nothing of the guest changes. Returns how many bytes of the file are no holes. Raises RuntimeError for
        a domain that runs or was closed; OSError.
        """
        from domainbuilder.saved.core_dump import dump_core

        self.check_at_rest()
        return dump_core(self, path)

    def resume(self) -> None:
        """Have a guest that has suspended go on here, as `xl save -c` does. The guest is told.

        Raises RuntimeError for a guest that has not suspended, or a domain that was closed.
        """
        self.check_at_rest()
        if self._outcome is None or self._outcome.reason != "suspend":
            raise RuntimeError("the guest has not suspended")
        self._outcome = None
        self.machine.resume()
