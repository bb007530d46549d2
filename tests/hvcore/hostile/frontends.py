"""Hostile frontends by the hundred thousand: `python -m tests.hvcore.hostile.frontends --seed S`.

A domain with disks, an interface, a framebuffer, its store and a tool beside it does what it likes with
rings, grants, nodes, channels and time, hypercalls between; another domain on the same host and the same
switch has to notice nothing.
Rounds and shards are those of shards.py; an act is at least one lie, or one request.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import TypeVar

from hvcore.backends.block import MAX_PERSISTENT_GRANTS, MAX_UNDER_WAY, BlockBackend
from hvcore.backends.disk import Disk
from hvcore.backends.net import NetBackend
from hvcore.backends.net_rx import MAX_WAITING_BYTES, MAX_WAITING_FRAMES
from hvcore.backends.net_switch import MAX_ADDRESSES
from hvcore.backends.net_tx import MAX_MULTICAST
from hvcore.backends.vfb import Vfb
from hvcore.backends.vif import Vif
from hvcore.backends.xenbus import XenbusDevice
from hvcore.backends.xenfb import MAX_FB_LEN
from hvcore.backends.xenkbd import MAX_WAITING
from hvcore.backends.xenstore_nodes import Quotas, XenstoreError
from hvcore.common.domain import DOM0
from hvcore.host import Host
from hvcore.host_state import HostState
from tests.hvcore.hostile import shards
from tests.hvcore.hostile.block_acts import Vbd
from tests.hvcore.hostile.display_acts import Screen
from tests.hvcore.hostile.frontend_side import PAGES, REF, Side
from tests.hvcore.hostile.fuzz import Fuzzer
from tests.hvcore.hostile.neighbour import Neighbour
from tests.hvcore.hostile.net_acts import Netif
from tests.hvcore.hostile.shards import ROUND
from tests.hvcore.hostile.store_acts import StoreRing, Tool
from tests.hvcore.hostile.world import GUESTS, World
from tests.hvcore.wire import Wire

T = TypeVar("T")

DISK_BYTES = 1 << 20
_SAVED = 4  # every so many rounds the host is saved and restored, too
_DATA = 24  # pages of rings: 8 for each disk, 2 of the interface; data from there on
_SCREEN = 64  # and 11 more: of the framebuffer, in use for data as well
_ODD = (0, 1, 2, 31, 32, 33, 255, 256, 1000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE)
_NEAR = (-33, -8, -3, -2, -1, -1, 1, 2, 3, 8, 33)
_TEXTS = (b"", b"0", b"1", b"-1", b"4294967295", b"4294967304", b"99999999999999999999999", b"0x8", b" 8",
    b"x86_32-abi", b"x86_64-abi", b"arm-abi", b"\xff\xfe", b"\0", b"7" * 1500, b"%n", b"3", b"6")  # fmt: skip
_STATES = (0, 1, 2, 3, 4, 5, 6, 7, 8, -1)
_NODES = ("state", "ring_ref", "ring_ref0", "ring_page_order", "event_channel", "event_channel_tx",
    "protocol", "feature_persistent", "feature_sg", "feature_gso_tcpv4", "request_rx_copy", "backend",
    "multi_queue_num_queues", "request_multicast_control", "tx_ring_ref", "rx_ring_ref",
    "virtual_device", "page_ref", "videoram", "feature_update", "request_abs_pointer",
    "request_raw_pointer")  # fmt: skip
_HYPERCALLS = ("mmu_update", "update_va_mapping", "mmuext_op", "new_tables", "remap", "remap", "unpin",
    "unpin", "reservation", "exchange", "grant_map", "grant_unmap", "store")  # fmt: skip


class Hostile:
    """The domain, with all that it has to lie with. `act()` does one thing."""

    def __init__(self, world: World, wire: Wire, rng: Random) -> None:
        self.w = world
        self.wire = wire
        self.rng = rng
        self.random = rng.random
        self.fuzzer = Fuzzer(world, rng)
        self.counts: Counter[str] = self.fuzzer.counts
        self.side = Side(world)
        devices = world.machine.devices.backends.values()
        disks = [d for d in devices if isinstance(d, BlockBackend)]
        self.disks = [Vbd(self, disk, 7 * i) for i, disk in enumerate(disks)]
        self.netif = Netif(self, next(d for d in devices if isinstance(d, NetBackend)), 22)
        held = world.machine.devices
        assert held.screen is not None
        assert held.keyboard is not None
        self.screen = Screen(self, held.screen, held.keyboard, _SCREEN)
        self.store = StoreRing(self)
        self.tool = Tool(self)
        self._id = 0
        self.fronts: list[Vbd | Netif | Screen] = [*self.disks, self.netif, self.screen]
        for front in self.fronts:
            front.connect()
        self.acts: list[Callable[[], None]] = []
        for name, weight in _WEIGHTS.items():
            self.acts += [getattr(self, name)] * weight

    def act(self) -> None:
        """One of them, and what it did to rings that were connected is counted now and then."""
        with suppress(XenstoreError):  # it may not write that node any more, or has too many
            self.acts[int(self.random() * len(self.acts))]()
            if self.random() < 0.2:
                self._look_after()

    def _look_after(self) -> None:
        """Count what was answered; what does not work any more is begun anew, most of the time."""
        for front in self.fronts:
            front.count_answers()
            if front.is_at_its_end and self.random() < 0.3:
                front.connect()

    # -- values

    def pick(self, values: Sequence[T]) -> T:
        return values[int(self.random() * len(values))]

    def id(self) -> int:
        self._id += 1
        return self._id

    def lie_in_ring(self, page: int, notify: Callable[[], None]) -> None:
        """One of a ring's four indices is wrong, by a little or altogether, and mostly made good again."""
        at = 4 * int(self.random() * 4)
        before = self.side.load(page, at, 4)
        near = int.from_bytes(before, "little") + self.pick(_NEAR) & 0xFFFFFFFF
        lie = near if self.random() < 0.5 else self.odd_word()
        self.side.store(page, at, lie.to_bytes(4, "little"))
        notify()
        if self.random() < 0.7:
            self.side.store(page, at, before)
            notify()

    def now(self) -> int:
        return self.w.machine.clock.now()

    def data_page(self) -> int:
        return _DATA + int(self.random() * (PAGES - _DATA))

    def ref(self) -> int:
        """A reference: of a page of data mostly, or of a ring's, or of nothing."""
        r = self.random()
        if r < 0.98:
            return REF + self.data_page()
        return REF + int(self.random() * PAGES) if r < 0.99 else self.odd_word()

    def odd_word(self) -> int:
        return self.pick(_ODD) if self.random() < 0.7 else self.rng.getrandbits(32)

    def odd_text(self) -> bytes:
        return self.pick(_TEXTS)

    def forget(self, device: XenbusDevice, name: str) -> None:
        """Remove a node of the frontend's side, if it is there."""
        path = f"{device.front}/{name}"
        if path in device.store.tree.nodes:
            device.store.tree.rm(None, path, self.w.d.domain_id)
            device.store.run()

    # -- acts

    def block_requests(self) -> None:
        self.pick(self.disks).requests()

    def block_bytes(self) -> None:
        self.pick(self.disks).bytes_in_entries()

    def block_index(self) -> None:
        self.pick(self.disks).index()

    def block_connect(self) -> None:
        self.pick(self.disks).connect()

    def net_frames(self) -> None:
        self.netif.frames()

    def net_slots(self) -> None:
        self.netif.slots()

    def net_offers(self) -> None:
        self.netif.offers()

    def net_arrivals(self) -> None:
        self.netif.arrivals()

    def net_index(self) -> None:
        self.netif.index()

    def net_link(self) -> None:
        self.netif.link()

    def net_connect(self) -> None:
        self.netif.connect()

    def display_connect(self) -> None:
        self.screen.connect()

    def display_events(self) -> None:
        self.screen.events()

    def display_used(self) -> None:
        self.screen.used()

    def display_index(self) -> None:
        self.screen.index()

    def store_requests(self) -> None:
        self.store.requests()

    def store_pieces(self) -> None:
        self.store.pieces()

    def store_flood(self) -> None:
        self.store.flood()

    def store_ruin(self) -> None:
        if self.random() < 0.02:  # for good
            self.store.ruin()
        else:
            self.store.take()

    def tool_requests(self) -> None:
        self.tool.requests()

    def node(self) -> None:
        """Any node of a frontend's with any text, at any time."""
        front = self.pick(self.fronts)
        name = self.pick(_NODES)
        value = self.pick(_STATES) if name == "state" else self.odd_text()
        self.side.tell(front.device, **{name: value})

    def grant(self) -> None:
        """An entry that says something else, in use or not; and another that is right again."""
        frame = self.fuzzer.frame() if self.random() < 0.6 else self.side.pages[self.data_page()].mfn
        flags = self.pick((0, 1, 1, 1, 5, 2, 3, 9, 25, 0xFFFF))
        self.side.grant(self.ref() & 0x1FF, frame, flags, self.pick((0, 0, 0, 1, 2, 0x7FF0)))
        for _ in range(3):
            page = int(self.random() * PAGES)
            self.side.grant(REF + page, self.side.pages[page].mfn)

    def channel(self) -> None:
        """Close a port of a device's, or any but those of the console and the store."""
        self.side.close_port(
            self.pick((self.disks[0].port, self.netif.ports[0], 3 + int(self.random() * 12)))
        )

    def hypercall(self) -> None:
        """One about the frames that are granted, or another that changes what they are."""
        self.fuzzer.do(self.pick(_HYPERCALLS))
        m = self.pick(self.side.pages)
        self.fuzzer.map(m.va, m.mfn << 12 | 0x67)

    def time(self) -> None:
        self.w.pass_time(self.pick((1_000, 20_000, 50_000, 200_000, 10_000_000)))
        self.w.revive()


# How often each act is chosen.
_WEIGHTS = {
    "block_requests": 30, "block_bytes": 4, "block_index": 3, "block_connect": 5, "net_frames": 14,
    "net_slots": 4, "net_offers": 6, "net_arrivals": 6, "net_index": 2, "net_link": 1, "net_connect": 3,
    "display_connect": 2, "display_events": 3, "display_used": 3, "display_index": 1,
    "store_requests": 8, "store_pieces": 1, "store_flood": 1, "store_ruin": 3, "tool_requests": 4,
    "node": 4, "grant": 6, "channel": 1, "hypercall": 5, "time": 16,
}  # fmt: skip


def unbounded(hostile: Hostile) -> list[str]:
    """What is kept for the domain and is more than may be."""
    w = hostile.w
    host, store, vif = w.machine.host, w.machine.host.xenstored, hostile.netif.device
    learned = sum(len(port.learned) for switch in host.switches.values() for port in switch.ports.values())
    account = store.tree.accounts[w.d.domain_id]
    sizes = {
        "frames that wait": (len(vif.rx.waiting), MAX_WAITING_FRAMES),
        "bytes of them": (vif.rx.waiting_bytes, MAX_WAITING_BYTES),
        "answers to frames": (len(vif.tx.answers), 256),
        "multicast addresses": (len(vif.tx.multicast), MAX_MULTICAST),
        "addresses": (learned, MAX_ADDRESSES),
        "nodes": (account.nbentry, Quotas().nb_entry_per_domain),
        "memory in the store": (account.memory, Quotas().memory_per_domain_hard + 8192),
        "requests to the store": (len(store.requests), 64),
        "messages of the store": (len(w.machine.xenstore.out), 4096),
        "frames that dom0 maps": (sum(host.domain_list[DOM0].foreign_maps.values()), 2 + (MAX_FB_LEN >> 12)),
        "keys that wait": (len(hostile.screen.vkbd.waiting), MAX_WAITING),
        "what dom0 maps": (len(host.domain_list[DOM0].grant_table.maptrack), 3 * MAX_PERSISTENT_GRANTS),
    }
    for i, disk in enumerate(hostile.disks):
        sizes[f"requests of disk {i}"] = (len(disk.device.answers), MAX_UNDER_WAY)
        sizes[f"grants of disk {i}"] = (len(disk.device.persistent or ()), MAX_PERSISTENT_GRANTS)
    return [f"{name}: {size}, more than {most}" for name, (size, most) in sizes.items() if size > most]


def run_round(seed: int, number: int, folder: str, acts: int = ROUND) -> Counter[str]:
    """One round; what was done. Raises shards.Failure."""
    rng = Random(f"frontends/{seed}/{number}")
    paths = [str(Path(folder, f"disk{i}")) for i in range(4)]
    for path in paths:
        Path(path).write_bytes(b"")
        os.truncate(path, DISK_BYTES)
    disks = (
        Disk("xvda", paths[0]),
        Disk("xvdb", paths[1], snapshot=True),
        Disk("xvdc", paths[2], is_cdrom=True, readwrite=False),
    )
    vif = Vif(rate=rng.choice((0, 0, 10000)))
    world = World(GUESTS[number % len(GUESTS)], folder, domains=2, disks=disks, vifs=(vif,), vfb=Vfb())
    host = world.machine.host
    wire, states = Wire(most=16), list[HostState]()
    again = f"tests.hvcore.hostile.frontends --seed {seed} --round {number}"
    try:
        beside = World(
            GUESTS[int(rng.random() * len(GUESTS))],
            folder,
            beside=world,
            disks=(Disk("xvda", paths[3]),),
            vifs=(Vif(),),
        )
        host.switch("xenbr0").plug(wire)
        neighbour = Neighbour(beside, wire, rng)
        world.enter()
        hostile = Hostile(world, wire, rng)

        def problems() -> list[str]:
            found = [*world.problems(), *unbounded(hostile), *neighbour.problems(hostile.now())]
            world.enter()
            return found

        shards.run_acts(hostile.act, acts, problems, again)
        if not number % _SAVED:
            shards.run_acts(lambda: states.append(host.save()), 1, list, again)
        shards.run_acts(lambda: _end(host, hostile, neighbour), 1, lambda: neighbour.problems(0), again)
    finally:
        host.close()
    for state in states:  # the disks are free now
        shards.run_acts(partial(_restored, state), 1, list, again)
    return hostile.counts


def _restored(state: HostState) -> None:
    """What a hostile domain has made of a host is a host's."""
    Host.restore(state).close()


def _end(host: Host, hostile: Hostile, neighbour: Neighbour) -> None:
    """The domain goes: nothing of it stays but with the neighbour."""
    hostile.tool.close()
    host.destroy(hostile.w.machine)
    left = host.domain_list[DOM0].grant_table.maptrack.values()
    assert {m.domid for m in left} <= {neighbour.w.d.domain_id}, "something of the domain stays mapped"
    assert not host.domain_list[DOM0].foreign_maps, "a frame of the domain stays mapped"
    assert not host.xenstored.tools


if __name__ == "__main__":
    sys.exit(shards.main("Hostile frontends of disks, interfaces and the store.", run_round))
