"""A domain that runs: its clock, the turns of its vCPUs, and the two backends that every domain has.

No stop is seen. What is done to the guest (timers, another vCPU's turn, its time, its events) is done where
the guest's turn is over, and only the guest's acts, its timers and its input decide when that is. Stops for
whoever holds the host lie anywhere between, as often as they like, and only read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING

from hvcore.abi import ABIS
from hvcore.backends.console import ConsoleBackend
from hvcore.backends.domain_devices import DomainDevices
from hvcore.backends.libxl_nodes import Rings, add_domain
from hvcore.backends.xenstore import XenstoreBackend
from hvcore.boot_image import WALLCLOCK_NS
from hvcore.clock import TURN_NS, Clock
from hvcore.common.grant_map import map_for_backend
from hvcore.common.schedule import schedule_in, schedule_out, timer_action
from hvcore.common.time import update_domain_wallclock_time, update_vcpu_system_time
from hvcore.cpu.processor import RAX
from hvcore.domain import SHUTDOWN_NAMES, Domain
from hvcore.errors import DomainCrash, EngineError, GuestFault
from hvcore.given import Given, Key, OutsideFrame, Pointer, size_of
from hvcore.public.grant_table import GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE
from hvcore.pv.arch_memory import set_memmap_limit
from hvcore.pv.frames32 import Frames32
from hvcore.pv.frames64 import Frames64
from hvcore.pv.hypercall import HypercallTable, init_hypercall_page
from hvcore.pv.lanes import Lanes
from hvcore.pv.mmuext_op import pin_table
from hvcore.pv.ro_page_fault import RoPageFault
from hvcore.pv.traps import Traps
from hvcore.pv.vcpu_context import arch_set_info_guest
from hvcore.rounds import leave_out_rounds
from hvcore.stats import Stats, count
from hvcore.vcpu import Vcpu
from hvcore.wiring import NewDomain, connect_domains, connect_processor, create_domain, fill_m2p

if TYPE_CHECKING:
    from hvcore.boot_image import BootImage
    from hvcore.cpu.engine import EngineContext
    from hvcore.cpu.inner_stops import Access, Watcher
    from hvcore.host import Host
    from hvcore.pv.frames import Frames

BOOT_TIME_NS = 1_000_000_000  # system time when the guest's first instruction runs
_SLICE_NS = 10_000_000  # how long the engine runs until a loop is looked for
_PROBE_NS = 20_000  # where a loop has been left out, its next run is near
_CAP_PERIOD_NS = 30_000_000  # over which a cap is kept, as by Xen's credit scheduler


class Stop(Enum):
    """Why `Host.run()` came back."""

    SHUTDOWN = "shutdown"  # the guest asked for it; `machine.shutdown_reason`
    CRASHED = "crashed"  # Xen would have crashed it; `machine.crash`
    IDLE = "idle"  # every vCPU of the host is blocked and nothing is due, ever
    PAUSED = "paused"  # `host.pause()` was called


class Machine:
    """One domain of `host`, as `Host.create()` makes it. `clock` stands still while another domain runs.

    `cap` is how much of its time the domain may have at most, in percent (0: all of it).
    """

    WIRING = frozenset(
        (
            "host", "mem", "engine", "clock", "domain", "xenstore", "console", "devices",
            "frames", "traps", "hypercalls", "ro_page_fault", "lanes", "typed", "context",
            "crash", "skip_loops", "watcher", "is_held", "listeners", "_has_lanes", "_running", "boot",
            "heap_top",
        )
    )  # fmt: skip

    def __init__(
        self,
        host: Host,
        image: BootImage,
        new: NewDomain,
        console_output: Callable[[bytes], None],
    ) -> None:
        self.host = host
        self.mem, self.engine = host.mem, host.engine
        self.clock = Clock(host.engine.cell, new.start_ns)
        self.name = new.name
        self.cap = new.cap
        self._cap_since = self.clock.now()  # the cap is kept from here on, where so much had been used
        self._cap_used = 0
        self.crash: DomainCrash | None = None
        self.is_over = False  # the domain has shut down or crashed
        self._has_lanes = new.lanes
        self._slice = _SLICE_NS
        self._next_look = self.clock.now() + _SLICE_NS  # for a loop to leave out
        self.context: EngineContext | None = None  # what it left in the engine, while it is not there
        self.skip_loops = True  # tests compare with what happens otherwise
        self.watcher: Watcher | None = None  # a debugger, where there is one
        self.is_held = False  # by it: others of the host may go on without this one
        self.listeners = 0  # who are told of events (debug/taps.py)
        self._running: Vcpu | None = None  # whose registers are in the engine
        self._is_idle = False  # and which has left the processor all the same
        self._input: deque[Given] = deque()
        # Told of input as the guest gets it: when, and what.
        self.typed: Callable[[int, Given], None] = lambda _when, _given: None
        self.boot = image.places()
        self.heap_top = self.mem.heap_top
        self.domain = self._create_domain(image, new)
        self._create_backends(image, new, console_output)
        self._connect(new.upper_ptwr)
        if new.is_new:
            self._start_boot_vcpu(image)

    # -- building

    def _create_domain(self, image: BootImage, new: NewDomain) -> Domain:
        mem, host, info = self.mem, self.host, new.info
        d = create_domain(
            ABIS[image.guest_type], mem, host.frames, self.clock, host.domain_list,
            domain_id=new.domain_id, first_mfn=image.first_mfn, nr_pages=image.nr_pages, vcpus=new.vcpus,
            reschedule=self._reschedule,
        )  # fmt: skip
        if d.shared_info_mfn != image.shared_info_mfn:
            raise EngineError(f"shared_info is built for frame {image.shared_info_mfn:#x}")
        d.shared_info[:] = image.shared_info
        d.handle = (new.domain_id - 1).to_bytes(16, "big") if info.handle is None else info.handle
        d.wallclock_ns = WALLCLOCK_NS if info.date_ns is None else info.date_ns - self.clock.now()
        d.time_offset = info.time_offset
        if info.max_pages is not None:
            set_memmap_limit(d, info.max_pages)
        connect_processor(d, self.engine)
        fill_m2p(mem, image)
        if image.hypercall_page_mfn is not None:
            init_hypercall_page(mem.frame(image.hypercall_page_mfn), ring1=d.abi.is_32bit)
        return d

    def _create_backends(
        self, image: BootImage, new: NewDomain, console_output: Callable[[bytes], None]
    ) -> None:
        d = self.domain
        dom0 = connect_domains(d)
        for ref, mfn in (
            (GNTTAB_RESERVED_XENSTORE, image.store_mfn),
            (GNTTAB_RESERVED_CONSOLE, image.console_mfn),
        ):
            d.grant_table.preset(ref, dom0.domain_id, mfn)
            if map_for_backend(dom0, d, ref, readonly=False)[0] < 0:
                raise EngineError(f"the ring in frame {mfn:#x} cannot be granted")
        store = self.host.xenstored
        rings = Rings(image.store_mfn, image.store_evtchn, image.console_mfn, image.console_evtchn)
        add_domain(store, d, new.name, rings, new.info)
        self.xenstore = XenstoreBackend(self.mem.frame(image.store_mfn), d, store)
        self.console = ConsoleBackend(self.mem.frame(image.console_mfn), d, console_output)
        ports = (self.xenstore.connect(dom0), self.console.connect(dom0))
        self.devices = DomainDevices(d, dom0, store, self.host.switches)
        self.devices.add(new.devices)
        store.introduce(d.domain_id, self.xenstore)
        if ports != (image.store_evtchn, image.console_evtchn):
            those = (image.store_evtchn, image.console_evtchn)
            raise EngineError(f"the image wants event channels {those} for store and console, not {ports}")

    def remove_devices(self) -> None:
        """The domain goes: its backends are closed, and let go of what they have mapped."""
        self.devices.remove()
        for ring in (self.console, self.xenstore):
            ring.disconnect()

    def timer_action(self, kind: str, number: int) -> Callable[[], None]:
        """What the timer (kind, number) of this domain does."""
        device = self.devices.backends.get(f"{kind}{number}")
        return device.answer_due if device is not None else timer_action(self.domain, kind, number)

    def _connect(self, upper_ptwr: bool) -> None:
        d = self.domain
        self.frames: Frames = (Frames32 if d.abi.is_32bit else Frames64)(d.vcpus)
        self.hypercalls = HypercallTable(d, self.frames)
        entry = self.hypercalls.entry32 if d.abi.is_32bit else self.hypercalls.entry64
        ro = RoPageFault(d, upper_tables=upper_ptwr)
        self.traps = Traps(d, self.frames, ro, entry)
        ro.reject = self.traps.inject
        self.ro_page_fault = ro
        self.engine.set_handlers(self.traps)
        self.lanes = Lanes(d)

    def _start_boot_vcpu(self, image: BootImage) -> None:
        d = self.domain
        rc = pin_table(d.vcpus[0], image.root_mfn)
        if rc:
            raise EngineError(f"the built page tables do not validate: error {rc}")
        v = d.vcpus[0]
        rc = arch_set_info_guest(v, image.context)
        if rc:
            raise EngineError(f"the built vCPU context is refused: error {rc}")
        v.pause_flags = 0
        self.clock.restart()  # what the work above took is not the guest's time
        update_domain_wallclock_time(d)

    # -- running

    @property
    def shutdown_reason(self) -> str:
        """Why the guest shut down: poweroff, reboot, suspend, crash, ...; empty while it has not."""
        code = self.domain.shutdown_code
        if code is None:
            return ""
        return SHUTDOWN_NAMES[code] if code < len(SHUTDOWN_NAMES) else f"reason {code}"

    def input(self, given: Given) -> None:
        """Type bytes, have a frame come or a key pressed; the guest gets it when it next could."""
        self._input.append(given)
        self.engine.want_out()

    @property
    def pending_input(self) -> int:
        """Bytes that the guest was not given yet: a ring had no room for them, or it has not run since."""
        there = self.console.pending_input + self.devices.pending_input
        return sum(map(size_of, self._input)) + there

    def run(self) -> Stop:
        """Run the host until this domain stops or crashes, all are idle for good, or the host is paused."""
        while not self.is_over:
            machine, stop = self.host.run()
            if machine is None:
                return stop
        return Stop.CRASHED if self.crash is not None else Stop.SHUTDOWN

    # -- what the host asks

    def turn_is_over(self) -> bool:
        """Whether the guest's turn is over.

        Nothing may come within a half-done store (ro_page_fault.py) or a block of code (cpu/inner_stops.py).
        """
        return self.clock.turn_is_over() and not self.is_within()

    def keeps_processor(self) -> bool:
        """Whether others have to wait: the turn is not over, or a timer of the domain's own cut it short.

        Then the next turn is the rest of this one, and no clock gets more than a turn ahead by that.
        """
        if not self.turn_is_over():
            return True
        end, now = self.clock.turn_end, self.clock.now()
        return end % TURN_NS != 0 and now // TURN_NS == end // TURN_NS and self.clock.next_deadline() <= now

    def is_within(self) -> bool:
        """Whether the domain stands within a half-done store, or within a block of code."""
        return self.ro_page_fault.pending or (bool(self.engine.words.paid) and self.context is None)

    @property
    def running(self) -> Vcpu | None:
        """The vCPU whose registers are in the engine and which has not left the processor."""
        return None if self._is_idle else self._running

    @property
    def in_engine(self) -> Vcpu | None:
        """The vCPU whose registers are in the engine, though it may be blocked."""
        return self._running

    def state_of(self, v: Vcpu) -> bytes:
        """The processor's state of a vCPU, wherever it is kept; empty where it has none yet."""
        if v is not self._running:
            return v.saved_state or b""
        return self.engine.save_state() if self.context is None else self.context.state

    @property
    def may_run(self) -> bool:
        """Whether there is a turn for it: it is not over, nor held; half a store is carried out first."""
        return not self.is_over and (not self.is_held or self.ro_page_fault.pending)

    def waits(self) -> bool:
        """Every vCPU is blocked, and there is nothing to wake one but time and others."""
        return self._is_idle and not self._input and self._pick() is None

    def due(self) -> tuple[int, int]:
        """When this domain has something to do next; of two with the same time the lower domid is first."""
        when = self.clock.next_deadline() if self.waits() else self.clock.now()
        return when, self.domain.domain_id

    def begin_turn(self) -> bool:
        """The next turn, unless the domain is over: whether it is."""
        self.clock.run_due()
        if self.domain.is_shutting_down:
            self.is_over = True
            return True
        if self.cap:
            self._keep_cap()
        self._schedule()
        return False

    def go_on(self) -> None:
        """Input, or a piece of the guest's code."""
        clock = self.clock
        if self._input and not self.is_within():
            self._give(self._input.popleft())
        elif self._is_idle:
            clock.end_turn()  # somebody woke a vCPU
        elif clock.now() >= self._next_look and not self.is_within():
            self._look_for_loop()
        else:
            self._enter()

    def resume(self) -> None:
        """A domain that has suspended goes on, and its SCHEDOP_shutdown says 1: that nothing came of it."""
        d = self.domain
        d.shutdown_code, d.is_shutting_down, self.is_over = None, False, False
        v = d.vcpus[0]
        if v is self._running and self.context is None:
            self.engine.q[RAX] = 1
        elif v is not self._running and v.saved_state is not None:
            v.saved_state = (1).to_bytes(8, "little") + v.saved_state[8:]

    def crashed(self, crash: DomainCrash) -> None:
        """The guest did what Xen crashes a domain for."""
        self.crash = crash
        self.is_over = True

    def _keep_cap(self) -> None:
        """Let time pass until the domain has had no more of it than its cap allows."""
        clock, cap = self.clock, self.cap
        now, used = clock.now(), clock.busy_ns
        left = (now - self._cap_since) * cap // 100 - (used - self._cap_used)
        if left > _CAP_PERIOD_NS * cap // 100:  # what was not used is not saved up
            self._cap_since, self._cap_used = now - _CAP_PERIOD_NS, used
        elif left < 0:
            clock.advance_to(now - left * 100 // cap)
            clock.run_due()

    # -- for the guest

    def _reschedule(self) -> None:
        """The vCPU gives up what is left of its turn."""
        self.clock.end_turn()
        self.engine.stop()

    def _give(self, given: Given) -> None:
        """Input is a reason for the guest's turn to end, as the interrupt that announces it is under Xen."""
        if isinstance(given, OutsideFrame):
            self.devices.frame_in(self.clock.now(), given)
        elif isinstance(given, Key | Pointer):
            self.devices.give(given)
        else:
            self.console.input(given)
        self.clock.end_turn()
        self.typed(self.clock.now(), given)

    def _schedule(self) -> None:
        """The next turn begins: whose it is, what that vCPU is to know, and until when."""
        clock = self.clock
        v = self._pick()
        if v is None:
            if self._running is not None and not self._is_idle:
                schedule_out(self._running)
            self._is_idle = True
            clock.begin_turn(clock.next_deadline())
            return
        if v is not self._running or self._is_idle:
            self.switch_to(v)
        update_vcpu_system_time(v)
        info = v.info
        if (info[0] and not info[1]) or v.nmi_pending:
            self.traps.test_all_events()
        self.set_turn_end()

    def set_turn_end(self) -> None:
        """Say until when the turn that begins lasts: to the next timer, or a multiple of TURN_NS."""
        clock = self.clock
        deadline, end = clock.timers.next_deadline(), (clock.now() // TURN_NS + 1) * TURN_NS
        clock.begin_turn(deadline if deadline < end else end)

    def _enter(self) -> None:
        """Let the guest run to the end of its turn, or until somebody outside wants to be heard."""
        clock = self.clock
        end = min(self._next_look, clock.turn_end, self.host.timers.next_deadline())
        if self.watcher is not None and self.watcher.wants_one_block():
            end = clock.now() + (not self.engine.words.paid)
        if self.ro_page_fault.pending:  # whatever the time is, its one instruction is executed
            end = max(end, clock.now() + 1)
        elif self.engine.words.paid:  # and so is the rest of a block, for which this is time enough
            end = max(end, clock.now())
        clock.set_horizon(end)
        self.engine.run()
        stop = self.engine.take_stop()
        if stop is not None and stop.access is not None and self.engine.meets_data_breakpoint(stop.access):
            self._data_breakpoint(stop.access)
        elif self.watcher is not None:
            self.watcher.left(stop)
        elif stop is not None:  # it is about another domain
            self.engine.pass_instruction()

    def _data_breakpoint(self, access: Access) -> None:
        """The guest's own DR0 to DR3: #DB comes behind the instruction that makes the access."""
        engine, clock = self.engine, self.clock

        def one_block() -> None:
            clock.set_horizon(clock.now() + (not engine.words.paid))
            engine.run()

        met = engine.execute_past(access, one_block)
        if met:
            engine.words.paid = 0  # the handler comes first, and the rest is a block of its own
            self.traps.data_breakpoint(met)

    def _look_for_loop(self) -> None:
        """Where a loop was left out the next one is near; where none was, for longer and longer, far."""
        skipped = self.skip_loops and leave_out_rounds(self)
        self._slice = _PROBE_NS if skipped else min(8 * self._slice, _SLICE_NS)
        self._next_look = self.clock.now() + self._slice

    def _pick(self) -> Vcpu | None:
        """The next runnable vCPU, in turn."""
        d = self.domain
        count = len(d.vcpus)
        if count == 1:
            v = d.vcpus[0]
            return v if v.is_initialised and not v.pause_flags else None
        for i in range(count):
            v = d.vcpus[(d.current_id + 1 + i) % count]
            if v.is_initialised and not v.pause_flags:
                return v
        return None

    @contextmanager
    def without_lanes(self) -> Iterator[None]:
        """While the block runs every exit goes to Python; all counts come out the same."""
        before, self._has_lanes = self._has_lanes, False
        self._set_lanes()
        try:
            yield
        finally:
            self._has_lanes = before
            self._set_lanes()

    def _set_lanes(self) -> None:
        if self.context is not None:
            self.context = self.context._replace(vcpu=0)  # until its next turn on the engine
        else:
            self.lanes.run(self._running if self._has_lanes else None)

    def switch_to(self, v: Vcpu) -> None:
        """Give `v` the engine, whoever of the domain had it."""
        d, engine = self.domain, self.engine
        old, was_idle = self._running, self._is_idle
        self._is_idle = False
        if old is v:
            if was_idle:
                schedule_in(v)
            return
        if old is not None:
            old.saved_state = engine.save_state()
            if not was_idle:
                schedule_out(old)
        if v.saved_state is not None:
            engine.load_state(v.saved_state)
        d.current_id = v.vcpu_id
        self._running = v
        self.lanes.run(v if self._has_lanes else None)
        engine.close_ports()
        d.mm.xen.load_descriptor_tables(v)
        d.mm.xen.write_ptbase(v)
        schedule_in(v)
        if old is not None and not self.frames.reload_data_segments(v):
            try:
                self.frames.failsafe(v)
            except GuestFault as fault:
                raise DomainCrash(f"the failsafe callback cannot be entered: {fault}") from None

    # -- what happened

    def stats(self) -> Stats:
        """The counts so far."""
        words = self.context or self.engine.words
        return count(
            self.domain.trace,
            port_reads=words.port_reads,
            port_writes=words.port_writes,
            page_table_stores=self.ro_page_fault.stores,
            events_delivered=self.domain.words.events_delivered,
            tlb_flushes=words.tlb_flushes,
            code_bytes=self.clock.code_bytes,
            system_time_ns=self.clock.now(),
        )
