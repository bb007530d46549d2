"""The framebuffer, keyboard and pointer on a bench: layouts of the page, events, and frontends that lie."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from hvcore import abi as abi_module
from hvcore.backends.libxl_nodes import Rings, add_domain
from hvcore.backends.vfb import Vfb
from hvcore.backends.vif import Vif
from hvcore.backends.xenfb import MAX_FB_LEN, VfbBackend
from hvcore.backends.xenkbd import MAX_WAITING, VkbdBackend
from hvcore.backends.xenstored import Xenstored
from hvcore.common.event_channel import do_event_channel_op, evtchn_send
from hvcore.given import Key, Pointer
from hvcore.public.event_channel import EVTCHNOP_alloc_unbound
from hvcore.pv.audit import audit
from tests.hvcore.conftest import Guest
from tests.hvcore.hostile.world import GUESTS, World

PAGE, DIRECTORY, FB, KEYS = (
    8,
    9,
    16,
    40,
)  # pages: vfb's, its directory, the picture from FB on, vkbd's
WIDTH, HEIGHT = 64, 40
STRIDE = 4 * WIDTH
LENGTH = STRIDE * HEIGHT


class Screen:
    """A guest with a framebuffer, as its frontends; `bits` are those of the words of its page directory."""

    def __init__(self, guest: Guest, vfb: Vfb | None = None) -> None:
        self.guest = guest
        engine: Any = SimpleNamespace(wrote_frame=lambda _mfn: None)
        guest.d.engine = engine
        self.store = Xenstored(guest.d.domain_list.__contains__)
        add_domain(self.store, guest.d, "guest", Rings(0, 1, 0, 2))
        self.dom0 = guest.d.domain_list[0]
        self.vfb = VfbBackend(guest.d, self.dom0, self.store, vfb or Vfb())
        self.vkbd = VkbdBackend(guest.d, self.dom0, self.store, self.vfb)
        self.ports = [0, 0]

    def mfn(self, page: int) -> int:
        return self.guest.first_mfn + page

    def tell(self, device: VfbBackend | VkbdBackend, **nodes: object) -> None:
        for name, value in nodes.items():
            path = f"{device.front}/{name.replace('_', '-')}"
            data = value if isinstance(value, bytes) else str(value).encode()
            self.store.tree.write(None, path, data, self.guest.d.domain_id)
        self.store.run()

    def open_port(self) -> int:
        assert self.guest.call(do_event_channel_op, EVTCHNOP_alloc_unbound, "HHI", 0x7FF0, 0, 0) == 0
        return int(self.guest.result("HHI")[2])

    def draw_page(self, bits: int, **other: int) -> None:
        """The shared page and the directory, with other values than the usual ones."""
        usual = {"width": WIDTH, "height": HEIGHT, "line": STRIDE, "length": LENGTH, "depth": 32}
        v = usual | other
        page, code = self.guest.memory(PAGE), "I" if bits == 32 else "Q"
        page[:] = bytes(4096)
        struct.pack_into("<iiiIB", page, 16, v["width"], v["height"], v["line"], v["length"], v["depth"])
        struct.pack_into(f"<{code}", page, 36 if bits == 32 else 40, self.mfn(DIRECTORY))
        frames = [self.mfn(FB + i) for i in range(8)]
        struct.pack_into(f"<8{code}", self.guest.memory(DIRECTORY), 0, *frames)

    def connect(self, bits: int = 64, **nodes: object) -> None:
        """vfb, as Linux does it: what it has to say, Initialised, and Connected when the backend is."""
        self.ports[0] = self.open_port()
        protocol = {"protocol": f"x86_{bits}-abi"}
        told = {"page_ref": self.mfn(PAGE), "event_channel": self.ports[0], "feature_update": 1}
        self.tell(self.vfb, **told | protocol | nodes)
        self.tell(self.vfb, state=3)
        if self.state(self.vfb) == "4":
            self.tell(self.vfb, state=4)

    def connect_keys(self, **nodes: object) -> None:
        self.ports[1] = self.open_port()
        self.guest.memory(KEYS)[:] = bytes(4096)
        self.tell(self.vkbd, page_ref=self.mfn(KEYS), page_gref=7, event_channel=self.ports[1])
        self.tell(self.vkbd, state=3)
        self.tell(self.vkbd, **nodes)
        self.tell(self.vkbd, state=4)

    def close(self, device: VfbBackend | VkbdBackend) -> None:
        for state in (5, 6):
            self.tell(device, state=state)

    def state(self, device: VfbBackend | VkbdBackend) -> str | None:
        return self.store.read(f"{device.back}/state")

    def event(self, *fields: int, kind: int = 2) -> None:
        """An out event of vfb's."""
        page = self.guest.memory(PAGE)
        (prod,) = struct.unpack_from("<I", page, 12)
        struct.pack_into(f"<B3x{len(fields)}i", page, 2048 + prod % 51 * 40, kind, *fields)
        struct.pack_into("<I", page, 12, prod + 1)
        evtchn_send(self.guest.d.evtchn, self.ports[0])

    def typed(self) -> list[tuple[int, ...]]:
        """The in events of vkbd that wait for the guest, which takes them."""
        page, found = self.guest.memory(KEYS), []
        cons, prod = struct.unpack_from("<II", page, 0)
        for index in range(cons, prod):
            data = bytes(page[1024 + index % 51 * 40 :][:40])
            layout = "<BB2xI" if data[0] == 3 else "<B3x3i"
            found.append(struct.unpack_from(layout, data))
        struct.pack_into("<I", page, 0, prod)
        evtchn_send(self.guest.d.evtchn, self.ports[1])
        return found

    def pixels(self) -> memoryview:
        """Of the picture, whose frames are in a row."""
        at = (self.mfn(FB) - self.guest.d.mem.base_mfn) << 12
        return self.guest.d.mem.view[at : at + 8 * 4096]


@pytest.mark.parametrize("bits", [32, 64])
def test_a_picture_is_seen_as_it_is_drawn(guest: Guest, bits: int) -> None:
    screen = Screen(guest)
    assert screen.vfb.picture() is None
    screen.draw_page(bits)
    screen.pixels()[:LENGTH] = bytes(range(256)) * (LENGTH // 256)
    screen.connect(bits)
    assert screen.state(screen.vfb) == "4"
    assert screen.store.read(f"{screen.vfb.back}/feature-resize") == "1"
    assert screen.store.read(f"{screen.vfb.back}/request-update") == "1"
    picture = screen.vfb.picture()
    assert picture is not None
    assert picture[:3] == (WIDTH, HEIGHT, 32)
    assert picture.rows == bytes(range(256)) * (LENGTH // 256)
    # Advice to refresh each 30 ms is in the ring once, whoever looks.
    page = guest.memory(PAGE)
    assert struct.unpack_from("<II", page, 0) == (0, 1)
    assert struct.unpack_from("<B3xI", page, 1024) == (1, 30)
    screen.pixels()[:4] = b"\xff\xee\xdd\xcc"
    assert (screen.vfb.picture() or picture).rows[:4] == b"\xff\xee\xdd\xcc"
    before = bytes(page)
    screen.event(0, 0, 1, 1)
    assert struct.unpack_from("<II", page, 8) == (1, 1)
    assert bytes(page)[16:2048] == before[16:2048]
    assert screen.vfb.updates == 1
    assert audit(guest.d) == []
    screen.close(screen.vfb)
    assert screen.state(screen.vfb) == "6"
    kept = screen.vfb.picture()
    assert kept is not None
    assert kept.rows[:4] == b"\xff\xee\xdd\xcc"
    assert (screen.dom0.foreign_maps, screen.vfb.pixels) == ({}, [])
    assert audit(guest.d) == []


def test_the_layout_of_a_frontend_that_does_not_say_it_is_guessed(guest: Guest) -> None:
    for bits in (32, 64):
        screen = Screen(guest)
        screen.draw_page(bits)
        screen.tell(screen.vfb, state=1)
        screen.ports[0] = screen.open_port()
        screen.tell(screen.vfb, page_ref=screen.mfn(PAGE), event_channel=screen.ports[0])
        screen.tell(screen.vfb, state=3)
        assert screen.state(screen.vfb) == "4", bits
        assert screen.vfb.pixels == [screen.mfn(FB + i) for i in range(-(-LENGTH // 4096))]
        assert screen.store.read(f"{screen.vfb.back}/request-update") is None  # it did not offer that
        screen.vfb.remove()


def test_a_picture_changes_its_shape_within_its_frames(guest: Guest) -> None:
    screen = Screen(guest)
    screen.draw_page(64)
    screen.connect()
    screen.event(16, 10, STRIDE, 32, 64, kind=3)  # width, height, stride, depth, offset
    picture = screen.vfb.picture()
    assert picture is not None
    assert picture[:2] == (16, 10)
    assert picture.rows == b"".join(bytes(screen.pixels()[64 + y * STRIDE :][:64]) for y in range(10))
    for wrong in ((16, 10, 0, 32, 0), (16, 10, STRIDE, 15, 0), (16, 10, STRIDE, 32, LENGTH), (1, 1, -1, 8, 0),
                  (1, 1, LENGTH + 1, 8, 0), (1, 1, STRIDE, 32, -4)):  # fmt: skip
        screen.event(*wrong, kind=3)
        assert screen.vfb.picture() == picture
    screen.event(9999, -1, STRIDE, 32, 0, kind=3)  # what is too much is limited
    assert (screen.vfb.picture() or picture)[:2] == (WIDTH, HEIGHT)
    screen.event(0, 5, STRIDE, 32, 0, kind=3)
    assert screen.vfb.picture() is None  # of no width
    screen.event(128, 24, STRIDE, 16, 0, kind=3)
    assert (screen.vfb.picture() or picture)[:3] == (128, 24, 16)
    assert audit(guest.d) == []


@pytest.mark.parametrize(
    "other",
    [{"depth": 0}, {"depth": 15}, {"line": 0}, {"line": -4}, {"length": 0}, {"length": STRIDE - 1},
     {"length": 0xFFFFFFFF}, {"length": 0x7FFFFFFF}],
    ids=str,
)  # fmt: skip
def test_a_page_that_cannot_be_is_refused_and_may_be_made_good(guest: Guest, other: dict[str, int]) -> None:
    screen = Screen(guest)
    screen.draw_page(64, **other)
    screen.connect()
    assert screen.state(screen.vfb) == "2"  # InitWait, as QEMU leaves it
    assert screen.store.read(f"/local/domain/0/error/backend/vfb/{guest.d.domain_id}/0/error")
    assert (screen.dom0.foreign_maps, screen.vfb.page_mfn, screen.vfb.picture()) == ({}, 0, None)
    assert audit(guest.d) == []
    screen.draw_page(64)
    screen.connect()
    assert screen.state(screen.vfb) == "4"


@pytest.mark.parametrize("which", ["page", "directory", "frame"])
@pytest.mark.parametrize("mfn", [0, 1, -1, (1 << 64) - 1, 1 << 40, 99999999999999999999999])
def test_frames_of_others_are_not_mapped(guest: Guest, which: str, mfn: int) -> None:
    screen = Screen(guest)
    screen.draw_page(64)
    value = struct.pack("<Q", mfn & (1 << 64) - 1)
    if which == "directory":
        guest.memory(PAGE)[40:48] = value
    elif which == "frame":
        guest.memory(DIRECTORY)[8:16] = value
    screen.connect(**({"page_ref": mfn} if which == "page" else {}))
    assert screen.state(screen.vfb) == "2"
    assert screen.dom0.foreign_maps == {}
    assert not guest.d.trace.pending  # a hypercall to come is not told of it
    assert audit(guest.d) == []


def test_frames_stay_the_guests_and_what_they_were(guest: Guest) -> None:
    """A frame of the picture may become a page table; the page cannot while it is mapped, nor go."""
    screen = Screen(guest)
    screen.draw_page(64)
    screen.connect()
    mm, pg = guest.mm, screen.mfn(FB) - guest.d.frames.base_mfn
    guest.mm.make_table(screen.mfn(FB))
    assert screen.vfb.picture() is not None
    mm.end_table(screen.mfn(FB))
    assert mm.guest_remove_page(screen.mfn(FB + 1)) == 0
    assert guest.d.frames.owner[pg + 1] == guest.d.domain_id  # it is held
    assert screen.vfb.picture() is not None
    screen.close(screen.vfb)
    assert guest.d.frames.owner[pg + 1] != guest.d.domain_id


def test_keys_and_pointer_reach_a_frontend_that_asks_for_places(guest: Guest) -> None:
    screen = Screen(guest)
    screen.vkbd.give(Key(30, pressed=True))  # nobody is there
    screen.draw_page(64)
    screen.connect()
    screen.connect_keys(request_abs_pointer=1)
    assert screen.store.read(f"{screen.vkbd.back}/feature-abs-pointer") == "1"
    screen.vkbd.give(Key(30, pressed=True))
    screen.vkbd.give(Key(30, pressed=False))
    screen.vkbd.give(Pointer(3, 4))
    screen.vkbd.give(Pointer(99999, -5, 2))
    assert screen.typed() == [(3, 1, 30), (3, 0, 30), (4, 3, 4, 0), (4, WIDTH - 1, 0, 2)]
    screen.tell(screen.vkbd, request_raw_pointer=1, state=4)
    screen.vkbd.give(Pointer(WIDTH - 1, 0))
    assert screen.typed() == [(4, 0x7FFF, 0, 0)]
    assert audit(guest.d) == []


def test_a_frontend_that_does_not_is_told_of_movements(guest: Guest) -> None:
    screen = Screen(guest)
    screen.draw_page(64)
    screen.connect()
    screen.connect_keys()
    for x, y in ((3, 4), (5, 3), (5, 3)):
        screen.vkbd.give(Pointer(x, y, -1))
    assert screen.typed() == [(1, 0, 0, -1), (1, 2, -1, -1), (1, 0, 0, -1)]


def test_keys_wait_for_room_and_are_bounded(guest: Guest) -> None:
    screen = Screen(guest)
    screen.connect_keys()
    for code in range(200):
        screen.vkbd.give(Key(code, pressed=True))
    assert screen.vkbd.pending_bytes == 40 * (200 - 51)
    found: list[int] = []
    while more := screen.typed():
        found += [code for _, _, code in more]
    assert found == list(range(200))
    for code in range(51 + MAX_WAITING + 9):
        screen.vkbd.give(Key(code, pressed=True))
    assert len(screen.vkbd.waiting) == MAX_WAITING
    screen.close(screen.vkbd)
    assert screen.vkbd.pending_bytes == 0


WORDS = st.one_of(st.sampled_from((0, 1, 2, 25, 26, 50, 51, 52, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)),
    st.integers(0, 0xFFFFFFFF))  # fmt: skip
NODES = st.dictionaries(
    st.sampled_from(("page_ref", "event_channel", "protocol", "feature_update", "videoram", "state",
        "request_abs_pointer", "request_raw_pointer")),
    st.one_of(st.sampled_from((b"", b"0", b"1", b"-1", b"x", b"3", b"4", b"6", b"x86_32-abi",
        b"18446744073709551616", b"\xff\0")), st.integers(0, 1 << 70).map(lambda n: str(n).encode())),
    max_size=3,
)  # fmt: skip
ACTS = st.one_of(
    st.tuples(st.just("word"), st.sampled_from((PAGE, KEYS, DIRECTORY)), st.integers(0, 1023), WORDS),
    st.tuples(st.just("bytes"), st.sampled_from((PAGE, KEYS)), st.integers(0, 4000), st.binary(max_size=90)),
    st.tuples(st.just("nodes"), st.booleans(), NODES),
    st.tuples(st.just("notify"), st.integers(0, 1)),
    st.tuples(st.just("connect"), st.sampled_from((32, 64))),
    st.tuples(st.just("keys")),
    st.tuples(st.just("give"), st.one_of(st.builds(Key, st.integers(-9, 1 << 33), st.booleans()),
        st.builds(Pointer, st.integers(-(1 << 33), 1 << 33), st.integers(-9, 99), st.integers(-999, 999)))),
    st.tuples(st.just("table"), st.integers(0, 63)),
)  # fmt: skip


@settings(max_examples=int(os.environ.get("DISPLAY_EXAMPLES", "60")), deadline=None)
@given(st.lists(ACTS, max_size=25), st.sampled_from((abi_module.PV32_PAE, abi_module.PV64)))
def test_a_hostile_frontend_harms_nobody(acts: list[tuple[Any, ...]], abi: abi_module.Abi) -> None:
    screen = Screen(Guest(abi, 1))
    guest = screen.guest
    screen.draw_page(64)
    screen.connect()
    screen.connect_keys()
    for act, *values in acts:
        if act == "word":
            page, at, word = values
            struct.pack_into("<I", guest.memory(page), 4 * at, word)
        elif act == "bytes":
            page, at, data = values
            guest.memory(page)[at : at + len(data)] = data
        elif act == "nodes":
            screen.tell(screen.vfb if values[0] else screen.vkbd, **values[1])
        elif act == "notify":
            evtchn_send(guest.d.evtchn, screen.ports[values[0]])
        elif act == "connect":
            screen.draw_page(values[0])
            screen.close(screen.vfb)
            screen.tell(screen.vfb, state=1)
            screen.connect(values[0])
        elif act == "keys":
            screen.close(screen.vkbd)
            screen.tell(screen.vkbd, state=1)
            screen.connect_keys(request_abs_pointer=1)
        elif act == "give":
            screen.vkbd.give(values[0])
        elif guest.d.frames.tcount[screen.mfn(values[0]) - guest.d.frames.base_mfn] == 0:
            guest.mm.make_table(screen.mfn(values[0]))
            guest.mm.end_table(screen.mfn(values[0]))
        picture = screen.vfb.picture()
        assert picture is None or len(picture.rows) == picture.width * picture.depth // 8 * picture.height
        assert len(screen.vfb.pixels) <= MAX_FB_LEN >> 12
        assert not guest.d.trace.pending
    assert audit(guest.d) == []
    screen.vkbd.remove()
    screen.vfb.remove()
    assert screen.dom0.foreign_maps == {}
    assert audit(guest.d) == []


def test_nodes_are_libxls(guest: Guest) -> None:
    """libxl__set_xenstore_vfb() and libxl__device_add(), for vfb=['vncdisplay=5,vncpasswd=x']."""
    screen = Screen(guest, Vfb(vncdisplay=5, vncpasswd="x"))
    domid = guest.d.domain_id
    back, front = f"/local/domain/0/backend/vfb/{domid}/0", f"/local/domain/{domid}/device/vfb/0"
    nodes = {name: screen.store.read(f"{back}/{name}") for name in screen.store.ls(back)}
    assert nodes == {
        "frontend": front, "frontend-id": str(domid), "online": "1", "state": "2", "vnc": "1",
        "vnclisten": "127.0.0.1", "vncpasswd": "x", "vncdisplay": "5", "vncunused": "1", "sdl": "0",
        "opengl": "0", "feature-resize": "1",
    }  # fmt: skip
    assert {name: screen.store.read(f"{front}/{name}") for name in screen.store.ls(front)} == {
        "backend": back, "backend-id": "0", "state": "1",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["vfb", "vkbd"])
def test_a_device_that_was_to_go_takes_no_interface_along(tmp_path: Path, kind: str) -> None:
    """A tool may say that it is not online any more: the frontend closes it, and it stays, closed."""
    machine = World(GUESTS[0], str(tmp_path), vifs=(Vif(),), vfb=Vfb()).machine
    devices, store = machine.devices, machine.host.xenstored
    before, device = dict(devices.backends), devices.backends[f"{kind}0"]
    store.write(f"{device.back}/online", "0")
    store.tree.write(None, f"{device.front}/state", b"6", machine.domain.domain_id)
    store.run()
    assert store.read(f"{device.back}/state") == "6"
    assert devices.backends == before
    assert [vif.devid for vif in devices.vifs] == [0]
