"""The host: memory, a processor, and the domains that share them.

Domains run in turn on the one engine, but each as if it had a processor of its own: its clock is its own, and
stands still while another has its turn. The one that is behind is next, so no clock is ahead of another by
more than a turn (10 ms), whatever the domains do; that is their fair share. A timer of its own takes no
domain off the processor before that, as each change costs all translations. A domain that has nothing to do
waits until the others have reached its next timer, or until one of them notifies it, at the time of who does.
So a domain that meets no other runs in company exactly as it would alone, and all of it is always the same.

A cap (`Machine.cap`, in percent) keeps a domain from more than that part of each 30 ms of its own time.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hvcore.backends.domain_devices import Wanted
from hvcore.backends.libxl_nodes import add_dom0, remove_domain
from hvcore.backends.xenstored import Xenstored
from hvcore.boot_image import AS_BUILT, BootImage, BuildInfo
from hvcore.clock import NEVER, Timers
from hvcore.common.domain import DOM0, domain_destroyed, domain_kill
from hvcore.common.grant_map import unmap_all_for_backends
from hvcore.cpu.engine import Engine, EngineContext
from hvcore.errors import DomainCrash, EngineError
from hvcore.machine import BOOT_TIME_NS, Machine, Stop
from hvcore.machine_memory import MachineMemory
from hvcore.page_info import NO_OWNER, FrameTable
from hvcore.page_marks import MarkedPages
from hvcore.wiring import NewDomain

if TYPE_CHECKING:
    from hvcore.backends.block_image import BlockImage
    from hvcore.backends.disk import Disk
    from hvcore.backends.net_switch import Switch
    from hvcore.backends.vfb import Vfb
    from hvcore.backends.vif import Vif
    from hvcore.domain import Domain
    from hvcore.host_state import HostState
    from hvcore.marks import Mark

_EXTENT = 512  # frames: a domain's memory begins on a 2 MB boundary


class Host:
    """A host with so much memory and no domain yet; `machines` are those that it runs, by domid.

    `idle(when)` is how it passes time until `when` (NEVER: nothing is due) with every vCPU blocked: a front
    end may wait for input instead, give it to `Machine.input()`, and come back early. `attend()` is what
    `nudge()` asks for.
    """

    def __init__(
        self,
        memory: MachineMemory,
        *,
        live_window: bool = True,
        use_core: bool = True,
        plain: bool | None = None,
    ) -> None:
        self.mem = memory
        start = memory.base_mfn << 12
        self.engine = Engine(memory.buffer, start, live_window=live_window, use_core=use_core, plain=plain)
        self.frames = FrameTable(memory.base_mfn, memory.end_mfn - memory.base_mfn)
        self.domain_list: dict[int, Domain] = {}
        self.machines: dict[int, Machine] = {}
        self.switches: dict[str, Switch] = {}  # bridges of domain 0, by name
        self.xenstored = Xenstored(self.domain_list.__contains__)
        add_dom0(self.xenstored)
        self.timers = Timers()  # of whoever holds the host; no guest knows of them
        self.idle: Callable[[int], None] = self.advance_to
        self.attend: Callable[[], None] = lambda: None
        self.pages = MarkedPages(memory)
        self._pristine: EngineContext = self.engine.save_context()
        self._on_cpu: Machine | None = None
        self._next_domid = 1
        self._paused = False
        self._nudged = False
        self._asked: deque[Callable[[], None]] = deque()

    # -- domains come and go

    def room_for(self, nr_pages: int) -> int:
        """The first of `nr_pages` frames in a row, for the next domain; MemoryError where there are none."""
        mem, owner = self.mem, self.frames.owner
        free = array("H", [NO_OWNER]) * nr_pages
        for first in range(mem.first_mfn, mem.end_mfn - nr_pages + 1, _EXTENT):
            if owner[first - mem.base_mfn : first - mem.base_mfn + nr_pages] == free:
                return first
        raise MemoryError(f"the host's memory has no {nr_pages:#x} frames in a row left")

    def create(
        self,
        image: BootImage,
        *,
        vcpus: int = 1,
        console_output: Callable[[bytes], None] = lambda _data: None,
        upper_ptwr: bool = False,
        lanes: bool = True,
        cap: int = 0,
        name: str = "guest",
        disks: Sequence[Disk] = (),
        vifs: Sequence[Vif] = (),
        vfb: Vfb | None = None,
        info: BuildInfo = AS_BUILT,
        is_new: bool = True,
    ) -> Machine:
        """Create the domain of an image that was built into frames from `room_for()` on.

        Raises EngineError when it was not, or when Xen would refuse what was built; OSError for a disk that
        cannot be opened, and nothing has changed then.
        """
        images = _opened(disks) if disks else []
        frames = self.frames
        first, last = (mfn - frames.base_mfn for mfn in (image.first_mfn, image.first_mfn + image.nr_pages))
        frames.free_frames = [pg for pg in frames.free_frames if not first <= pg < last]
        start_ns = max((m.clock.now() for m in self.machines.values()), default=BOOT_TIME_NS)
        new = NewDomain(
            self._next_domid, vcpus, name, info, Wanted(images, vifs, vfb), start_ns,
            upper_ptwr=upper_ptwr, lanes=lanes, cap=cap, is_new=is_new,
        )  # fmt: skip
        self._leave()
        self.engine.load_context(self._pristine)
        machine = Machine(self, image, new, console_output)
        self._on_cpu = self.machines[self._next_domid] = machine
        self._next_domid += 1
        if info.max_pages is not None and is_new:
            self._extend_heap(info.max_pages - image.nr_pages)
        return machine

    def _extend_heap(self, nr_pages: int) -> None:
        """Have so many frames that no domain has had yet for those who grow, the last ones there are."""
        frames, mem = self.frames, self.mem
        known = set(frames.free_frames)
        first, end = mem.first_mfn - frames.base_mfn, mem.end_mfn - frames.base_mfn
        unused = [pg for pg in range(first, end) if frames.owner[pg] == NO_OWNER and pg not in known]
        frames.free_frames += unused[-nr_pages:][::-1] if nr_pages > 0 else []

    def switch(self, bridge: str) -> Switch:
        """The bridge of that name, which is made where there is none yet."""
        from hvcore.backends.net_switch import bridge_of

        return bridge_of(self.switches, bridge)

    # -- back within this process

    def mark(self) -> Mark:
        """Where the host stands, between two runs. Raises EngineError where memory is short."""
        from hvcore.marks import Mark

        handlers = self._on_cpu.traps if self._on_cpu is not None else None
        return Mark(self, self.engine, self.mem, self.pages, handlers)

    def rewind(self, mark: Mark) -> None:
        """Be where the host was at the mark, whatever its domains did since; the mark can be used again."""
        mark.go_back()

    # -- as plain values

    def save(self) -> HostState:
        """All that the host and its domains are, between two runs; nothing is changed by it.

        Raises EngineError for a host that a domain has left: what it left behind cannot be made again.
        """
        from hvcore.host_state import HostState
        from hvcore.save import save_dom0, save_domain, save_owner, save_pages, store_owners

        if sorted(self.machines) != list(range(1, self._next_domid)):
            raise EngineError("a host that a domain has left cannot be saved")
        domains = []
        for m in self.machines.values():
            context = self.engine.save_context() if m is self._on_cpu else m.context
            assert context is not None
            domains.append(save_domain(m, context))
        return HostState(
            memory=self.mem.save(),
            pages=save_pages(self.mem),
            frames=save_owner(self.frames),
            xenstored={name: save_owner(owner) for name, owner in store_owners(self.xenstored)},
            dom0=save_dom0(self.domain_list[DOM0]) if DOM0 in self.domain_list else {},
            domains=tuple(domains),
            on_cpu=self._on_cpu.domain.domain_id if self._on_cpu is not None else None,
            next_domid=self._next_domid,
        )

    @classmethod
    def restore(
        cls,
        state: HostState,
        console_output: Callable[[int, bytes], None] = lambda _domid, _data: None,
        memory_file: int | None = None,
        *,
        plain: bool | None = None,
        **options: bool,
    ) -> Host:
        """A host that goes on where the saved one was. `options` are those of Host, of how it is run.

        `console_output` is called with the domain's number and what it writes. `memory_file` is a file of the
        memory's size that holds it, instead of the state's pages, and is not written to. The state may come
        from anybody: it makes a host whose domains misbehave, at worst. Raises StateError for one that no
        host has, and EngineError, MemoryError or OSError where there is no such host here.
        """
        from hvcore.save_check import check_memory, check_shape

        check_shape(state)
        shape = state.memory
        mem = MachineMemory(shape["nr_pages"], first_mfn=shape["first_mfn"], domains=shape["domains"])
        check_memory(state, mem)
        host = cls(mem, plain=plain, **options)
        try:
            host._restore(state, console_output, memory_file)
        except BaseException:
            host.close()
            raise
        return host

    def _restore(
        self, state: HostState, console_output: Callable[[int, bytes], None], memory_file: int | None
    ) -> None:
        from hvcore import save
        from hvcore.save_check import OwnerKinds, check_owner

        mem, shape = self.mem, state.memory
        for saved in state.domains:
            mem.restore_heap(saved.heap_top, [])
            image = BootImage.from_places(saved.boot)
            output = partial(console_output, saved.domid)
            m = self.create(image, console_output=output, is_new=False, **_options(saved.options))
            save.check_saved_domain(m, saved)
            save.load_saved_context(self.engine, saved.context)
            running = saved.owners["machine"]["running"]
            m.lanes.run(m.domain.vcpus[running] if running is not None else None)
        save.check_saved_dom0(self.domain_list.get(DOM0), state.dom0)
        save.check_saved_store(self.xenstored, state.xenstored, mem)
        check_owner("frames", save.save_owner(self.frames), state.frames, OwnerKinds(mem, 0))
        mem.restore_heap(shape["heap_top"], shape["freed"])
        if memory_file is None:
            save.restore_pages(mem, state.pages)
        else:
            mem.map_from(memory_file)
        save.restore_owner(self.frames, state.frames)
        for name, owner in save.store_owners(self.xenstored):
            save.restore_owner(owner, state.xenstored[name])
        for m, saved in zip(self.machines.values(), state.domains, strict=True):
            save.restore_domain(m, saved)
        if state.dom0:
            save.restore_domain_owners(self.domain_list[DOM0], state.dom0)
        if state.on_cpu is not None:
            self._enter(self.machines[state.on_cpu])

    def destroy(self, machine: Machine) -> None:
        """domain_kill(): the domain is gone; its frames are the heap's as far as nobody else holds them."""
        domid = machine.domain.domain_id
        if self.machines.get(domid) is not machine:
            return
        self._enter(machine)
        d = machine.domain
        machine.xenstore.serve()
        machine.remove_devices()
        self.xenstored.release(domid)
        remove_domain(self.xenstored, d)
        unmap_all_for_backends(self.domain_list[DOM0], domid)
        domain_kill(d)
        self._leave()
        self.engine.load_context(self._pristine)
        self.engine.flush_code()
        del self.machines[domid]
        for other in [d for d in self.domain_list.values() if d.is_dying]:
            domain_destroyed(other)

    def close(self) -> None:
        """Give the engine's memory back, and close the images of disks."""
        for m in self.machines.values():
            for device in m.devices.backends.values():
                device.close()
        self.engine.close()
        self.pages.close()

    # -- running

    def run(self) -> tuple[Machine | None, Stop]:
        """Run until something happens that whoever holds the host wants to know, and to which domain.

        None, and Stop.IDLE or Stop.PAUSED, is about all of them.
        """
        while True:
            m = self._next()
            if m is None:
                return None, Stop.IDLE
            try:
                stop = self._go_on(m)
            except DomainCrash as crash:
                m.crashed(crash)
                stop = Stop.CRASHED
            if stop is not None:
                return (m if m.is_over else None), stop

    def _go_on(self, m: Machine) -> Stop | None:
        """A piece of the domain's turn, or the next turn's beginning."""
        if m.turn_is_over() and m.begin_turn():
            return Stop.SHUTDOWN
        if self._serve(m):
            return Stop.PAUSED
        if m.waits():  # perhaps it alone: a timer need not wake anybody
            return Stop.IDLE if self._all_wait() and self._pass_idle_time() else None
        m.go_on()
        return None

    def _next(self) -> Machine | None:
        """Whose turn it is: that of the domain in the engine to its end, then of the one that is behind."""
        m = self._on_cpu
        alone = len(self.machines) == 1
        if m is not None and m.may_run and (alone or (not m.waits() and m.keeps_processor())):
            return m
        alive = [m for m in self.machines.values() if m.may_run]
        if not alive:
            return None
        m = min(alive, key=Machine.due)
        if m.waits() and not self._all_wait():
            m.clock.advance_to(m.clock.next_deadline())
        self._enter(m)
        return m

    def _all_wait(self) -> bool:
        return all(m.waits() for m in self.machines.values() if m.may_run)

    def others_due(self, m: Machine) -> int:
        """When another domain has something to do next; NEVER, if none ever has."""
        others = (other.due()[0] for other in self.machines.values() if other is not m and other.may_run)
        return min(others, default=NEVER)

    def _enter(self, m: Machine) -> None:
        if m is self._on_cpu:
            return
        self._leave()
        assert m.context is not None
        v = m.in_engine
        self.engine.load_context(m.context, v.root_mfn if v is not None else 0)
        m.context = None
        m.clock.attach(self.engine.cell)
        self.engine.set_handlers(m.traps)
        self._on_cpu = m
        if m.watcher is not None:
            m.watcher.comes()

    def _leave(self) -> None:
        m, self._on_cpu = self._on_cpu, None
        if m is not None:
            if m.watcher is not None:
                m.watcher.goes()
            m.clock.detach()
            m.context = self.engine.save_context()

    # -- for whoever holds the host. The flag is set before the engine is told: who sees the stop finds it.

    def pause(self) -> None:
        """Make `run()` return as soon as the guest is between two instructions. Any thread may."""
        self._paused = True
        self.engine.want_out()

    @property
    def is_to_pause(self) -> bool:
        """Whether `pause()` was called, and `run()` has not come back for it yet."""
        return self._paused

    def nudge(self) -> None:
        """Have `attend()` called as soon as the guest is between two instructions. Any thread may."""
        self._nudged = True
        self.engine.want_out()

    def ask(self, action: Callable[[], None]) -> None:
        """Have `action` done to whichever domain stands between two blocks of code next.

        What it does to guests is a reason for a turn to end, as what is typed is.
        """
        self._asked.append(action)
        self.engine.want_out()

    @property
    def is_asked(self) -> bool:
        """Whether something that was asked for is not done yet."""
        return bool(self._asked)

    def set_timer(self, key: object, when: int, action: Callable[[], None]) -> None:
        """Arm (or move) a timer of the holder's: it comes between two instructions of whoever runs then."""
        self.timers.set(key, when, action)
        if self._on_cpu is not None:
            self._on_cpu.clock.look_at(when)

    def now(self) -> int:
        """The time that the holder's timers go by: that of the domain on the processor; 0 without one."""
        return self._on_cpu.clock.now() if self._on_cpu is not None else 0

    def next_deadline(self) -> int:
        """When the next timer of a domain is due, or one of the holder's; or NEVER."""
        deadlines = (m.clock.next_deadline() for m in self.machines.values() if m.may_run)
        return min(min(deadlines, default=NEVER), self.timers.next_deadline())

    def advance_to(self, when: int) -> None:
        """Let time pass until `when` on a host where every vCPU is blocked; NEVER is no time."""
        if when == NEVER:
            return
        for m in self.machines.values():
            if m.may_run:
                m.clock.advance_to(min(when, m.clock.next_deadline()))

    def _serve(self, m: Machine) -> bool:
        """Do what was asked for from outside; whether it was to stop."""
        self.timers.run_due(m.clock.now)
        if self._nudged:
            self._nudged = False
            self.attend()
        if self._asked and not m.is_within():
            m.xenstore.serve()
            for _ in range(len(self._asked)):
                self._asked.popleft()()
            m.clock.end_turn()
        paused, self._paused = self._paused, False
        return paused

    def _pass_idle_time(self) -> bool:
        """Every vCPU is blocked; whether nothing can change that any more."""
        when = self.next_deadline()
        self.idle(when)
        if when != NEVER or self._paused or self._asked:
            return False
        return all(m.waits() and not m.turn_is_over() for m in self.machines.values() if m.may_run)


def _opened(disks: Sequence[Disk]) -> list[tuple[Disk, BlockImage]]:
    """The disks with their images. Most domains have none, and no start pays for what reads them."""
    from hvcore.backends.images import open_images

    return open_images(disks)


def _options(saved: dict[str, Any]) -> dict[str, Any]:
    """The options of create() as they were before they were plain values."""
    from hvcore.backends.disk import Disk
    from hvcore.backends.vfb import Vfb
    from hvcore.backends.vif import Vif

    disks, vifs = [Disk(**disk) for disk in saved["disks"]], [Vif(**vif) for vif in saved["vifs"]]
    vfb = None if saved["vfb"] is None else Vfb(**saved["vfb"])
    return saved | {"disks": disks, "vifs": vifs, "vfb": vfb}
