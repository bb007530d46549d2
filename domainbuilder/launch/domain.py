"""Launch a domain and talk to it: the one module, beside the commands, where builder and hypervisor meet.

    with launch("grub-i386-xen.bin", memory_mib=64, timeout=60) as dom:
        dom.console.expect(r"grub> ")
        dom.console.send("halt\\n")
        assert dom.wait().reason == "poweroff"

Nothing that this host does reaches the guest, save what is typed: that arrives where the guest stands,
between two of its instructions. Limits on wall time are looked at now and then, and only ever end the run.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from domainbuilder.build.domain_image import DEFAULT_FIRST_MFN, DomainImage, build
from domainbuilder.build.image import is_image, load_image
from domainbuilder.errors import BuildError, ExitCode, LayoutError, Where
from domainbuilder.kernel.kernel_file import KernelFile
from domainbuilder.launch.bounded import TimeIsUp, until
from domainbuilder.launch.hypercall_names import hypercall_name
from domainbuilder.launch.record import InputRecord
from domainbuilder.launch.run_stats import HostUse, Statistics
from domainbuilder.launch.session import Console, ExpectEOF, ExpectError, ExpectTimeout, Outcome
from domainbuilder.launch.tape import Tape, subject
from domainbuilder.launch.transcript import Transcript
from domainbuilder.plan.domain_plan import DomainPlan, plan
from hvcore.abi import ABIS, XEN_LEGACY_MAX_VCPUS
from hvcore.clock import NEVER
from hvcore.errors import EngineError
from hvcore.host import Host
from hvcore.machine import BOOT_TIME_NS, Stop
from hvcore.machine_memory import MachineMemory
from hvcore.pv.traps import vector_name

if TYPE_CHECKING:
    from domainbuilder.kernel.elf import ElfImage
    from domainbuilder.launch.crash_report import CrashReport
    from domainbuilder.launch.stop_report import StopReport
    from domainbuilder.symbols.table import Symbols

__all__ = ["Console", "ExpectEOF", "ExpectError", "ExpectTimeout", "Outcome", "RunningDomain", "launch"]

_TICK = "launch"  # the name of our timer among the host's
_TICK_NS = 10_000_000
_RECENT_TICKS = 100
_GRACE = 0.5  # seconds by which a tick may be late for a limit on wall time
_PAGE = 4096
_ENDING_SIGNALS: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_FOREVER = 1e9  # seconds
_INPUT_ROOM = 4096
_ADDRESS = re.compile(r"\b0x[0-9a-f]{4,16}\b")


class Input(Protocol):
    """Where a domain's console input comes from, beside `Console.send`."""

    @property
    def open(self) -> bool:
        """Whether more can come."""

    @property
    def detached(self) -> bool:
        """Whether the user has had enough."""

    @property
    def real_time(self) -> bool:
        """Whether an idle guest's time is to pass as the user's does."""

    def read(self, seconds: float | None) -> bytes:
        """What came within so many seconds (None: without end); empty where nothing did."""


class RunningDomain:
    """A domain that runs whenever it is asked to: by `console.expect` and `wait`, and not in between.

    A context manager; leaving it destroys the domain. `machine` and its `host` are the hypervisor, for
    experts. Where the domain shares its host with others, they run beside it.
    """

    def __init__(
        self,
        image: DomainImage,
        host: Host,
        *,
        shares_host: bool,
        vcpus: int,
        upper_ptwr: bool,
        cap: int,
        timeout: float | None,
        max_guest_seconds: float | None,
        console_output: Callable[[bytes], None] | None,
        started: float,
        record: bool,
        replay: InputRecord | None,
        symbols: Symbols | None = None,
    ) -> None:
        self._started = started
        self._symbols = symbols
        self._counts: deque[tuple[int, bytes]] = deque(maxlen=_RECENT_TICKS)  # of hypercalls, now and then
        self._limit = None if timeout is None else started + timeout
        self._deadline = self._limit
        self._guest_limit = NEVER
        if max_guest_seconds is not None:
            self._guest_limit = BOOT_TIME_NS + int(max_guest_seconds * 1e9)
        self._sink = console_output
        self._wanted: Callable[[], bool] | None = None
        self._expired = ""
        self._outcome: Outcome | None = None
        self._input: Input | None = None
        self._transcript = Transcript()
        self._console_bytes = 0
        self._closed = False
        self._running = False  # within Machine.run()
        self._may_raise = False  # within it, but where an exception is not lost
        self._interruption: BaseException | None = None
        self._shares_host = shares_host
        self.image = image
        self.machine = host.create(
            image.boot_image(), vcpus=vcpus, console_output=self._output, upper_ptwr=upper_ptwr, cap=cap
        )
        self.console = Console(self._run, self._send, self._transcript)
        self._tape: Tape | None = None
        if record or replay is not None:
            domain = subject(image, vcpus, upper_ptwr=upper_ptwr)
            self._tape = Tape(self.machine, domain, replay, self._interrupt_run)

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
        if self._shares_host:
            self.machine.host.destroy(self.machine)
            return
        self.machine.host.close()
        self.machine.mem.release()

    def interrupt(self, error: BaseException) -> None:
        """For signal handlers: have `error` raised out of the `expect` or `wait` that is under way, or here.

        A signal handler that raises by itself may do so in a callback of the emulator, where it gets lost.
        """
        if not self._running or self._may_raise:
            raise error
        self._interrupt_run(error)

    def _interrupt_run(self, error: BaseException) -> None:
        self._interruption = error
        self.machine.host.pause()

    def attach(self, source: Input) -> None:
        """Take console input from `source` too."""
        self._input = source

    def wait(self, timeout: float | None = None) -> Outcome:
        """Run until the guest ends, is idle for good, or time is up; how that came about.

        After "idle" and "timeout" the domain is still there: more input can be sent, and `wait` again.
        """
        outcome = self._run(None, timeout)
        assert outcome is not None
        return outcome

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

    def stats(self) -> Statistics:
        """The counts so far."""
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
            self.image.plan,
            symbols=self._symbols,
            console=self._transcript.tail(),
            before=(before[0], memoryview(before[1]).cast("Q")),
        )

    # -- running

    def _run(self, wanted: Callable[[], bool] | None, timeout: float | None) -> Outcome | None:
        """Run until `wanted` is true (None), or for another reason (that)."""
        now = time.monotonic()
        limits = [self._limit] if self._limit is not None else []
        self._deadline = min([*limits, now + timeout] if timeout is not None else limits, default=None)
        self._wanted, self._expired = wanted, ""
        if self._met():
            return None
        if self._outcome is not None:
            return self._outcome
        self._check_open()
        with self._watchdog(), self._signals():
            outcome = None
            while outcome is None:
                if self._expired:
                    return Outcome("timeout", self._expired)
                outcome = self._resume()
                if self._met():
                    return None
        return outcome

    def _met(self) -> bool:
        """Whether what is wanted has come. A pattern that takes for ever ends with the time, or a signal."""
        if self._wanted is None:
            return False
        try:
            with self._interruptible(), until(self._deadline):
                return self._wanted()
        except TimeIsUp:
            self._expire("wall time ran out while a pattern was looked for")
            return False

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        self._may_raise = True
        try:
            if self._interruption is not None:
                raise self._interruption
            yield
        finally:
            self._may_raise = False

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """While the block runs, signal handlers raise where that is not lost."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        found = {number: signal.getsignal(number) for number in _ENDING_SIGNALS}
        handlers = {number: handler for number, handler in found.items() if callable(handler)}

        def handle(number: int, frame: FrameType | None) -> None:
            try:
                handlers[number](number, frame)
            except BaseException as error:
                self.interrupt(error)

        for number in handlers:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    @contextmanager
    def _watchdog(self) -> Iterator[None]:
        """While the block runs, see to it that limits on wall time hold.

        They are looked at once every tick of the guest's time. A guest can make that last (with hypercalls
        that cost it nothing and this host much): then the machine is told to look at once.
        """
        done, thread = threading.Event(), None
        if self._deadline is not None:
            thread = threading.Thread(target=self._watch, args=(done, self._deadline), daemon=True)
            thread.start()
        try:
            yield
        finally:
            self._wanted = None
            done.set()
            if thread is not None:
                thread.join()

    def _watch(self, done: threading.Event, deadline: float) -> None:
        delay = deadline + _GRACE - time.monotonic()
        while not done.wait(max(delay, 0.0)):
            self.machine.host.nudge()
            delay = _GRACE / 10

    def _resume(self) -> Outcome | None:
        """One `Machine.run()`; None where there is nothing to say about its end."""
        host = self.machine.host
        host.idle, host.attend = self._idle, self._check_limits
        self._arm_tick()
        self._running, self._interruption = True, None
        try:
            stop = self.machine.run()
            if stop is not Stop.PAUSED:
                self.machine.console.drain()
        except EngineError as error:  # of the plain profile, first of all, which cannot trap everything
            raise BuildError(f"the emulator cannot run this guest: {error}") from error
        finally:
            self._running = False
        if self._interruption is not None:
            raise self._interruption
        if stop is Stop.PAUSED:
            if self._expired:
                return Outcome("timeout", self._expired)
            if self._tape is not None and self._tape.is_over:
                return Outcome("replayed")
            return Outcome("detached") if self._input is not None and self._input.detached else None
        if stop is Stop.IDLE:
            if self._expired:
                return Outcome("timeout", self._expired)
            return None if self._input is not None and self._input.open else Outcome("idle")
        self._outcome = self._shut_down() if stop is Stop.SHUTDOWN else self._crashed()
        return self._outcome

    def _shut_down(self) -> Outcome:
        outcome = Outcome(self.machine.shutdown_reason)
        if outcome.exit_code is not ExitCode.DOMAIN_CRASHED:
            return outcome
        text = f"SCHEDOP_shutdown: {outcome}"
        cr2 = self.machine.domain.current.ctrlreg[2]
        return replace(outcome, report=self._report(text, cr2 or None, "address of the last page fault"))

    def _crashed(self) -> Outcome:
        crash = self.machine.crash
        reason = crash.reason if crash is not None else ""
        named = _ADDRESS.search(reason)
        address = int(named[0], 16) if named else None
        if "#PF" in reason:
            address = self.machine.domain.current.ctrlreg[2]
        return Outcome("crashed", reason, self._report(reason, address, "faulting address"))

    def _report(self, reason: str, address: int | None, role: str) -> CrashReport:
        from domainbuilder.launch.crash_report import capture

        guest_ns = self.machine.clock.now() - BOOT_TIME_NS
        return capture(
            self.machine,
            self.image.plan,
            reason,
            address=address,
            role=role,
            guest_ns=guest_ns,
            symbols=self._symbols,
        )

    # -- what the machine calls

    def _output(self, data: bytes) -> None:
        self._console_bytes += len(data)
        self._transcript.append(data)
        if self._sink is not None:
            try:
                with self._interruptible():
                    self._sink(data)
            except BaseException as error:  # which must not end the guest's hypercall half done
                self._interruption = error
                self.machine.host.pause()
        try:
            if self._met():
                self.machine.host.pause()
        except BaseException as error:
            self._interruption = error
            self.machine.host.pause()

    def _arm_tick(self) -> None:
        now = self.machine.clock.now()
        self.machine.host.set_timer(_TICK, min(now + _TICK_NS, self._guest_limit), self._tick)

    def _tick(self) -> None:
        """Every ten milliseconds of the guest's time: are limits passed, has something been typed?"""
        self._counts.append((self.machine.clock.now(), bytes(self.machine.domain.trace.hypercalls)))
        self._check_limits()
        if not self._expired:
            self._take_input(0.0)
            self._arm_tick()

    def _check_limits(self) -> None:
        if self.machine.clock.now() >= self._guest_limit:
            self._expire("the guest has used up its own time")
        elif self._deadline is not None and time.monotonic() >= self._deadline:
            self._expire("wall time ran out")

    def _expire(self, why: str) -> None:
        self._expired = why
        self.machine.host.pause()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the domain was closed")

    def _send(self, data: bytes) -> None:
        self._check_open()
        self.machine.input(data)

    def _take_input(self, seconds: float | None) -> bool:
        """Pass on what was typed within so many seconds; whether something was."""
        source = self._input
        if source is None or not source.open or self.machine.pending_input >= _INPUT_ROOM:
            return False
        if seconds != 0 and self._deadline is not None:
            left = max(self._deadline - time.monotonic(), 0.0)
            seconds = left if seconds is None else min(seconds, left)
        with self._interruptible():
            data = source.read(seconds)
        if source.detached:
            self.machine.host.pause()
        elif data:
            self.machine.input(data)
        return bool(data)

    def _idle(self, deadline: int) -> None:
        """Every vCPU is blocked: pass the time until `deadline`, which may be our own tick's."""
        host = self.machine.host
        host.timers.stop(_TICK)
        due = host.next_deadline()
        if due == NEVER and deadline != NEVER:
            return  # the tick was all there was: the machine looks again, and finds that out
        due = due if due == NEVER else min(due, self._guest_limit)
        if self._input is not None and self._input.real_time:
            self._wait(due)
        else:
            # A pipe is waited for only where nothing else can ever happen.
            host.advance_to(due)
            self._take_input(None if due == NEVER else 0.0)
        self._check_limits()
        if not self._expired:
            self._arm_tick()

    def _wait(self, due: int) -> None:
        """Wait for input as long as the guest would."""
        now, started = self.machine.clock.now(), time.monotonic_ns()
        typed = self._take_input(None if due == NEVER else max(due - now, 0) / 1e9)
        passed = now + time.monotonic_ns() - started
        self.machine.host.advance_to(min(passed, due) if typed or due == NEVER else due)


def launch(
    kernel: DomainPlan | DomainImage | KernelFile | str | os.PathLike[str],
    memory_mib: int | None = None,
    *,
    ramdisk: str | os.PathLike[str] | bytes | None = None,
    cmdline: str | bytes = "",
    guest_type: str | None = None,
    vcpus: int = 1,
    upper_ptwr: bool = False,
    timeout: float | None = None,
    max_guest_seconds: float | None = None,
    console_output: Callable[[bytes], None] | None = None,
    symbols: str | os.PathLike[str] | None = None,
    record: bool = False,
    replay: InputRecord | None = None,
    plain: bool | None = None,
) -> RunningDomain:
    """The domain of a kernel, of a plan, or that `build` made (in memory or as a file), ready to run.

    memory_mib, ramdisk, cmdline, guest_type: see `plan`; a plan and a built domain have these already.
    upper_ptwr: let the guest store to page tables of all levels, where Xen lets it store to L1 tables alone.
    timeout: seconds of wall time for everything from now on, a guard
    that only ends the run; max_guest_seconds: the same in the guest's own time, which is the same every run.
    console_output: called with the guest's output as it is printed. symbols: a file with the kernel's symbols
    (vmlinux, also with debug information, or System.map), for reports; without it they are the kernel's own.
    record: note what is typed, with the guest's time, for `input_record()`. replay: type what such a record
    has, when it has it: the same run again. plain: use nothing of Unicorn but its documented API, slower and
    with the same results; None: as the environment's DOMAINBUILDER_PLAIN=1 says.

    Raises BuildError: not a kernel that Xen would start, or that this hypervisor runs; the record is of
    another domain.
    """
    return launch_on(
        None,
        kernel,
        memory_mib,
        ramdisk=ramdisk,
        cmdline=cmdline,
        guest_type=guest_type,
        vcpus=vcpus,
        upper_ptwr=upper_ptwr,
        timeout=timeout,
        max_guest_seconds=max_guest_seconds,
        console_output=console_output,
        symbols=symbols,
        record=record,
        replay=replay,
        plain=plain,
    )


def launch_on(
    host: Host | None,
    kernel: DomainPlan | DomainImage | KernelFile | str | os.PathLike[str],
    memory_mib: int | None,
    *,
    ramdisk: str | os.PathLike[str] | bytes | None,
    cmdline: str | bytes,
    guest_type: str | None,
    vcpus: int,
    upper_ptwr: bool,
    timeout: float | None,
    max_guest_seconds: float | None,
    console_output: Callable[[bytes], None] | None,
    symbols: str | os.PathLike[str] | None,
    cap: int = 0,
    record: bool = False,
    replay: InputRecord | None = None,
    plain: bool | None = None,
) -> RunningDomain:
    """`launch` on a host that others may share, or on one of its own (None).

    A run in company is no function of its own input alone: `record` and `replay` want a host of its own.
    """
    started = time.monotonic()
    for limit in (timeout, max_guest_seconds):
        if limit is not None and not 0 < limit < _FOREVER:
            raise BuildError("a limit in seconds has to be above 0 and finite", found=limit)
    if not 1 <= vcpus <= XEN_LEGACY_MAX_VCPUS:
        raise BuildError(
            "that many vCPUs cannot be had", found=str(vcpus), expected=f"1-{XEN_LEGACY_MAX_VCPUS}"
        )
    if not isinstance(kernel, DomainPlan | DomainImage | KernelFile) and is_image(kernel):
        kernel = load_image(kernel)
    if not isinstance(kernel, DomainPlan | DomainImage):
        kernel = plan(kernel, memory_mib, ramdisk=ramdisk, cmdline=cmdline, guest_type=guest_type)
    elif (memory_mib, ramdisk, cmdline, guest_type) != (None, None, "", None):
        raise BuildError("a domain that is planned or built has its memory, ramdisk and command line already")
    names = _symbols(symbols, kernel.elf if isinstance(kernel, DomainPlan) else kernel.plan.elf)
    shares_host = host is not None
    image, host = (
        _move(kernel, host, plain) if isinstance(kernel, DomainImage) else _build(kernel, host, plain)
    )
    del kernel
    try:
        return RunningDomain(
            image,
            host,
            shares_host=shares_host,
            vcpus=vcpus,
            upper_ptwr=upper_ptwr,
            cap=cap,
            timeout=timeout,
            max_guest_seconds=max_guest_seconds,
            console_output=console_output,
            started=started,
            symbols=names,
            record=record,
            replay=replay,
        )
    except EngineError as error:
        raise _not_started(error, image.plan) from error


def _build(planned: DomainPlan, host: Host | None, plain: bool | None) -> tuple[DomainImage, Host]:
    """The domain, in a host's memory, without its unpacked kernel, of which the guest has its copy."""
    _check_guest_type(planned)
    host = host or _new_host(planned, DEFAULT_FIRST_MFN, plain)
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


def _new_host(plan: DomainPlan, first_mfn: int, plain: bool | None) -> Host:
    """A host for that domain alone."""
    try:
        return Host(_allocate(plan.nr_pages, first_mfn), plain=plain)
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


def _move(image: DomainImage, host: Host | None, plain: bool | None) -> tuple[DomainImage, Host]:
    """A built domain, with its memory in a host's: pages of zeros are not copied."""
    _check_guest_type(image.plan)
    host = host or _new_host(image.plan, image.first_mfn, plain)
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
