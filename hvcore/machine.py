"""The machine: puts the parts together and runs the domain.

`Machine(image)` is what a host under Xen is to `xl create`: memory, processor, hypervisor, and the two
backends that every domain has, console and xenstore. `run()` goes on until something happens that whoever
holds the machine wants to know; it can be called again unless the domain is gone.

No stop is seen. What the run loop does to the guest (timers, another vCPU's turn, its time, its events) it
does where the guest's turn is over, and only the guest's acts, its timers and its input decide when that is.
Stops for whoever holds the machine lie anywhere between, as often as they like, and only read.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from hvcore.abi import ABIS, Abi
from hvcore.backends.console import ConsoleBackend
from hvcore.backends.xenstore import XenstoreBackend
from hvcore.clock import CELL_SPENT, NEVER, Clock
from hvcore.common.domain import DOM0, create_dom0
from hvcore.common.event import EvtchnTable
from hvcore.common.grant_table import GrantTable
from hvcore.common.schedule import schedule_in, schedule_out
from hvcore.common.time import (
    next_update_of_system_time,
    update_domain_wallclock_time,
    update_vcpu_system_time,
)
from hvcore.cpu.engine import RIP, Engine
from hvcore.cpu.loops import counting_loop
from hvcore.domain import SHUTDOWN_NAMES, Domain
from hvcore.errors import DomainCrash, EngineError, GuestError, GuestFault
from hvcore.guest_access import GuestAccess
from hvcore.machine_memory import MachineMemory
from hvcore.page_info import FrameTable
from hvcore.public.errno import EFAULT
from hvcore.public.grant_table import GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE
from hvcore.public.xen import PAGE_SIZE
from hvcore.pv.descriptor_tables import init_xen_gdt_page, validate_segdesc_page
from hvcore.pv.frames32 import Frames32
from hvcore.pv.frames64 import Frames64
from hvcore.pv.hypercall import HypercallTable, init_hypercall_page
from hvcore.pv.lanes import Lanes
from hvcore.pv.mm import PageTables
from hvcore.pv.mmuext_op import pin_table
from hvcore.pv.ro_page_fault import RoPageFault
from hvcore.pv.traps import TRAP_gp_fault, Traps
from hvcore.pv.vcpu_context import arch_set_info_guest
from hvcore.pv.xen_mappings import XenMappings
from hvcore.trace import Trace
from hvcore.vcpu import Vcpu

if TYPE_CHECKING:
    from domainbuilder.build.domain_image import DomainImage
    from hvcore.pv.frames import Frames
    from hvcore.refusal import Reason, Refusal

CR0 = 0x80050033  # PE MP ET NE WP AM PG
CR4_PAE = 0x660  # PAE MCE OSFXSR OSXMMEXCPT
CR4_2LEVEL = 0x640
DOMAIN_ID = 1
MAX_PAGES_SLACK = 0x100  # libxl allows a domain a little more than it starts with
BOOT_TIME_NS = 1_000_000_000  # system time when the guest's first instruction runs
WALLCLOCK_NS = 1_184_716_062 * 10**9  # 2007-07-17, the day the founding commit was written
_TURN_NS = 10_000_000  # turns end where system time is a multiple of it, if nothing ends them before
_SLICE_NS = 10_000_000  # how long the engine runs until a loop is looked for
_PROBE_NS = 20_000  # where a loop has been left out, its next run is near
_WORTH_BYTES = 500_000  # a shorter loop is faster executed


class Stop(Enum):
    """Why `Machine.run()` came back."""

    SHUTDOWN = "shutdown"  # the guest asked for it; `machine.shutdown_reason`
    CRASHED = "crashed"  # Xen would have crashed it; `machine.crash`
    IDLE = "idle"  # every vCPU is blocked and nothing is due, ever
    PAUSED = "paused"  # `machine.pause()` was called


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts of a run: the same for the same inputs."""

    hypercalls: dict[int, int]
    unknown_hypercalls: dict[int, int]
    exceptions: dict[int, int]
    emulated: dict[str, int]
    refused: dict[Reason, tuple[int, Refusal]]
    page_table_stores: int
    events_delivered: int
    tlb_flushes: int
    code_bytes: int
    system_time_ns: int


class Machine:
    """One domain on its machine. `console_output` is called with what the guest writes, as it writes it.

    `upper_ptwr` lets the guest store to L2 to L4 tables where Xen would not (pv/ro_page_fault.py).
    """

    def __init__(
        self,
        image: DomainImage,
        *,
        memory: MachineMemory | None = None,
        vcpus: int = 1,
        console_output: Callable[[bytes], None] = lambda _data: None,
        live_window: bool = True,
        upper_ptwr: bool = False,
        lanes: bool = True,
    ) -> None:
        abi = ABIS[image.plan.guest_type]
        mem = memory if memory is not None else _adopt_ram(image, abi)
        self.image = image
        self.mem = mem
        self.engine = Engine(mem.buffer, mem.base_mfn << 12, live_window=live_window)
        self.clock = Clock(self.engine.cell, BOOT_TIME_NS)
        self.crash: DomainCrash | None = None
        self._paused = False
        self._nudged = False
        self._upper_ptwr = upper_ptwr
        self._has_lanes = lanes
        self._slice = _SLICE_NS
        self._next_look = BOOT_TIME_NS + _SLICE_NS  # for a loop to leave out
        self.skip_loops = True  # tests compare with what happens otherwise
        self._running: Vcpu | None = None  # whose registers are in the engine
        self._is_idle = False  # and which has left the processor all the same
        self._input: deque[bytes] = deque()
        # How an idle machine passes time until `when` (NEVER: nothing is due). A front end may wait for
        # input instead, give it to `input()`, and come back early.
        self.idle: Callable[[int], None] = self._skip_idle_time
        self.attend: Callable[[], None] = lambda: None  # what `nudge()` asks for
        self.domain = self._create_domain(abi, vcpus)
        self._create_backends(console_output)
        self._connect()
        self._start_boot_vcpu()

    # -- building

    def _create_domain(self, abi: Abi, vcpus: int) -> Domain:
        image, mem = self.image, self.mem
        frames = FrameTable(mem.base_mfn, mem.end_mfn - mem.base_mfn)
        frames.assign(mem.first_mfn, mem.nr_pages, DOMAIN_ID)
        shared_info_mfn = mem.alloc_xenheap_page()
        if shared_info_mfn != image.shared_info_mfn:
            raise EngineError(f"shared_info is built for frame {image.shared_info_mfn:#x}")
        shared_info = mem.frame(shared_info_mfn)
        shared_info[:] = image.shared_info
        d = Domain(
            abi=abi,
            mem=mem,
            frames=frames,
            clock=self.clock,
            shared_info_mfn=shared_info_mfn,
            shared_info=shared_info,
            domain_id=DOMAIN_ID,
            nr_pages=mem.nr_pages,
            max_pages=mem.nr_pages + MAX_PAGES_SLACK,
            max_vcpus=vcpus,
            wallclock_ns=WALLCLOCK_NS,
        )
        d.engine = self.engine
        d.trace = Trace()
        d.reschedule = self._reschedule
        d.close_ports = self.engine.close_ports
        d.vcpus = [Vcpu(d, i) for i in range(vcpus)]
        self._create_memory_management(d)
        return d

    def _create_memory_management(self, d: Domain) -> None:
        image, mem, engine = self.image, self.mem, self.engine
        xen = XenMappings(d, engine)
        d.guest = GuestAccess(d.abi, mem, lambda va, write: d.mm.walk(d.current_root(), va, write))
        d.mm = PageTables(d.abi, mem, d.frames, engine, d.guest, xen)
        d.mm.validate_segdesc_page = lambda mfn: validate_segdesc_page(mem, mfn, d.abi)
        d.frames.share_xen_page_with_guest(d.shared_info_mfn, d.domain_id, writable=True)
        _fill_m2p(mem, image.first_mfn, image.p2m)
        init_xen_gdt_page(mem.frame(xen.gdt_page_mfn), d.abi)
        if image.plan.hypercall_page_pfn is not None:
            page = mem.frame(image.p2m[image.plan.hypercall_page_pfn])
            init_hypercall_page(page, ring1=d.abi.is_32bit)
        engine.set_long_mode(d.abi.pt_levels != 2)
        engine.set_control(0, CR0)
        engine.set_control(4, CR4_2LEVEL if d.abi.pt_levels == 2 else CR4_PAE)
        xen.initial_state = engine.save_state()

    def _create_backends(self, console_output: Callable[[bytes], None]) -> None:
        d, start_info = self.domain, self.image.start_info
        d.evtchn = EvtchnTable(d)
        d.grant_table = GrantTable(d)
        create_dom0(d.mem, d.frames, d.clock, d.domain_list)
        for ref, mfn in (
            (GNTTAB_RESERVED_XENSTORE, start_info.store_mfn),
            (GNTTAB_RESERVED_CONSOLE, start_info.console_mfn),
        ):
            if not d.grant_table.grant_to_backend(ref, mfn):
                raise EngineError(f"the ring in frame {mfn:#x} cannot be granted")
        self.xenstore = XenstoreBackend(self.mem.frame(start_info.store_mfn), d)
        self.console = ConsoleBackend(self.mem.frame(start_info.console_mfn), console_output)
        dom0 = d.domain_list[DOM0]
        ports = (self.xenstore.connect(d, dom0), self.console.connect(d, dom0))
        if ports != (start_info.store_evtchn, start_info.console_evtchn):
            wanted = (start_info.store_evtchn, start_info.console_evtchn)
            raise EngineError(f"the image wants event channels {wanted} for store and console, not {ports}")

    def _connect(self) -> None:
        d = self.domain
        self.frames: Frames = (Frames32 if d.abi.is_32bit else Frames64)(d.vcpus)
        table = HypercallTable(d, self.frames)
        entry = table.entry32 if d.abi.is_32bit else table.entry64
        ro = RoPageFault(d, upper_tables=self._upper_ptwr)
        self.traps = Traps(d, self.frames, ro, entry)
        ro.reject = self.traps.inject
        self.ro_page_fault = ro
        self.engine.install(self.traps)
        self.lanes = Lanes(d)

    def _start_boot_vcpu(self) -> None:
        d, image = self.domain, self.image
        rc = pin_table(d.vcpus[0], image.p2m[image.plan.pgtables_pfn])
        if rc:
            raise EngineError(f"the built page tables do not validate: error {rc}")
        v = d.vcpus[0]
        rc = arch_set_info_guest(v, image.context.pack(d.abi.word))
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

    # What the engine is told is told last: whoever is overtaken by its leaving finds the flag.

    def pause(self) -> None:
        """Make `run()` return as soon as the guest is between two instructions. Any thread may."""
        self._paused = True
        self.engine.want_out()

    def nudge(self) -> None:
        """Have `attend()` called as soon as the guest is between two instructions. Any thread may."""
        self._nudged = True
        self.engine.want_out()

    def input(self, data: bytes) -> None:
        """Type `data` on the console; the guest gets it where it stands when it next could."""
        self._input.append(data)
        self.engine.want_out()

    @property
    def pending_input(self) -> int:
        """Bytes typed that the console's ring had no room for yet."""
        return sum(map(len, self._input)) + self.console.pending_input

    def run(self) -> Stop:
        """Run the domain until it stops, crashes, idles for good, or `pause()` is called."""
        if self.crash is not None:
            return Stop.CRASHED
        try:
            return self._run()
        except DomainCrash as crash:
            self.crash = crash
            return Stop.CRASHED

    def _run(self) -> Stop:
        d, clock, ro = self.domain, self.clock, self.ro_page_fault
        while True:
            if clock.turn_is_over() and not ro.pending:  # nothing may come within a store
                clock.run_due()
                if d.is_shutting_down:
                    return Stop.SHUTDOWN
                self._schedule()
            if self._serve_host():
                return Stop.PAUSED
            if self._input and not ro.pending:
                self._type(self._input.popleft())
            elif self._is_idle:
                if self._pass_idle_time():
                    return Stop.IDLE
            elif clock.now() >= self._next_look:
                self._look_for_loop()
            else:
                self._enter()

    # -- for whoever holds the machine

    def _serve_host(self) -> bool:
        """Do what was asked for from outside; whether it was to stop."""
        clock = self.clock
        clock.host.run_due(clock.now)
        if self._nudged:
            self._nudged = False
            self.attend()
        paused, self._paused = self._paused, False
        return paused

    def _pass_idle_time(self) -> bool:
        """Every vCPU is blocked; whether nothing can change that any more."""
        clock = self.clock
        if self._pick() is not None:  # a backend had news for the guest
            clock.end_turn()
            return False
        when = min(clock.next_deadline(), clock.host.next_deadline())
        self.idle(when)
        return when == NEVER and not (self._input or self._paused or self._pick() or clock.turn_is_over())

    def _skip_idle_time(self, when: int) -> None:
        if when != NEVER:
            self.clock.advance_to(when)

    # -- for the guest

    def _reschedule(self) -> None:
        """The vCPU gives up what is left of its turn."""
        self.clock.end_turn()
        self.engine.stop()

    def _type(self, data: bytes) -> None:
        """Input is a reason for the guest's turn to end, as the interrupt that announces it is under Xen."""
        self.console.input(data)
        self.clock.end_turn()

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
        self._switch_to(v)
        update_vcpu_system_time(v)
        self.traps.test_all_events()
        self._begin_turn()

    def _begin_turn(self) -> None:
        clock = self.clock
        clock.begin_turn(min(clock.next_deadline(), (clock.now() // _TURN_NS + 1) * _TURN_NS))

    def _enter(self) -> None:
        """Let the guest run to the end of its turn, or until somebody outside wants to be heard."""
        clock = self.clock
        end = min(self._next_look, clock.turn_end, clock.host.next_deadline())
        if self.ro_page_fault.pending:  # whatever the time is, its one instruction is executed
            end = max(end, clock.now() + 1)
        clock.set_horizon(end)
        self.engine.run()

    def _execute_round(self, size: int) -> None:
        """Execute `size` bytes of code, whoever wants the engine out."""
        clock = self.clock
        end = clock.now() + size
        while clock.now() < end and not clock.turn_is_over():
            clock.set_horizon(end)
            self.engine.run()

    def _look_for_loop(self) -> None:
        """Where a loop was left out the next one is near; where none was, for longer and longer, far."""
        skipped = self.skip_loops and self._leave_out_rounds()
        self._slice = _PROBE_NS if skipped else min(8 * self._slice, _SLICE_NS)
        self._next_look = self.clock.now() + self._slice

    def _leave_out_rounds(self) -> bool:
        """Where the guest is in a loop that only counts or waits, go ahead to its end or to the next event.

        The engine executes the first of those rounds, which has to come out as was worked out, and one after
        the last, which leaves the flags as they are then.
        """
        engine, clock, q = self.engine, self.clock, self.engine.q
        v = self.domain.current
        if self.ro_page_fault.pending or not engine.is_flat:
            return False
        loop = counting_loop(q[:16].tolist(), q[RIP], engine.code_is_64bit, self._look)
        if loop is None or loop.rounds * loop.size < _WORTH_BYTES:
            return False
        end = min(self._next_event(v), clock.host.next_deadline())
        if (end - clock.now()) // loop.size < 4:
            return False
        rip, spent = q[RIP], clock.cell[CELL_SPENT]
        self._execute_round(loop.size)
        if q[RIP] != rip or tuple(q[:16]) != loop.after or clock.cell[CELL_SPENT] != spent:
            return False
        rounds = min(loop.rounds - 2, (end - clock.now()) // loop.size - 1)
        if rounds > 0:
            for i, step in enumerate(loop.step):
                q[i] += rounds * step
            clock.leave_out(rounds * loop.size)
            self._begin_turn()  # those that would have ended by now would have changed nothing
            self._execute_round(loop.size)
        return True

    def _look(self, va: int, size: int) -> bytes:
        """Memory of the running vCPU, with no trace of having been read. Raises GuestError."""
        d = self.domain
        data = bytearray()
        while size:
            va &= d.abi.word_mask
            page, fitting = d.mm.look(d.current_root(), va), min(size, PAGE_SIZE - va % PAGE_SIZE)
            if page < 0:
                raise GuestError(EFAULT)
            start = page + va % PAGE_SIZE
            data += self.mem.view[start : start + fitting]
            va, size = va + fitting, size - fitting
        return bytes(data)

    def _next_event(self, v: Vcpu) -> int:
        """When something may happen to `v` where it only executes code: the end of a turn that matters."""
        clock = self.clock
        others = any(w.is_initialised and not w.pause_flags for w in self.domain.vcpus if w is not v)
        due = next_update_of_system_time(v)
        if others or v.nmi_pending or v.event_needs_delivery() or due <= clock.turn_end:
            return clock.turn_end
        return min(clock.next_deadline(), -(-due // _TURN_NS) * _TURN_NS)

    def _pick(self) -> Vcpu | None:
        """The next runnable vCPU, in turn."""
        d = self.domain
        count = len(d.vcpus)
        for i in range(count):
            v = d.vcpus[(d.current_id + (count > 1) + i) % count]
            if v.is_initialised and not v.pause_flags:
                return v
        return None

    def _switch_to(self, v: Vcpu) -> None:
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
        trace = self.domain.trace
        reads, writes = self.engine.port_accesses
        exceptions, emulated = trace.exceptions.tolist(), trace.emulated.copy()
        exceptions[TRAP_gp_fault] += reads + writes  # which is what they are under Xen
        for name, count in (("in", reads), ("out", writes)):
            if count:
                emulated[name] = emulated.get(name, 0) + count
        return Stats(
            hypercalls={i: n for i, n in enumerate(trace.hypercalls) if n},
            unknown_hypercalls=dict(sorted(trace.unknown_hypercalls.items())),
            exceptions={i: n for i, n in enumerate(exceptions) if n},
            emulated=dict(sorted(emulated.items())),
            refused=dict(trace.refused),
            page_table_stores=self.ro_page_fault.stores,
            events_delivered=self.domain.words.events_delivered,
            tlb_flushes=self.engine.tlb_flushes,
            code_bytes=self.clock.code_bytes,
            system_time_ns=self.clock.now(),
        )

    def close(self) -> None:
        """Give the engine's memory back."""
        self.engine.close()


def _adopt_ram(image: DomainImage, abi: Abi) -> MachineMemory:
    """Machine memory with the image's contents, for an image that was built somewhere else."""
    mem = MachineMemory(image.plan.nr_pages, first_mfn=image.first_mfn)
    zero = bytes(4096)
    for start in range(0, len(image.ram), 4096):
        page = image.ram[start : start + 4096]
        if page != zero:
            mem.ram[start : start + 4096] = page
    return mem


def _fill_m2p(mem: MachineMemory, first_mfn: int, p2m: array[int]) -> None:
    inverse = array("Q", bytes(8 * len(p2m)))
    for pfn, mfn in enumerate(p2m):
        inverse[mfn - first_mfn] = pfn
    for table in mem.m2p.values():
        if table.in_use:
            table.fill(first_mfn, inverse)
