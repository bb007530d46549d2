"""The block backend: requests and what they do, what is refused, and that nothing stays behind."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from hvcore import abi as abi_module
from hvcore.backends.block_image import Layer, RawImage, SectorSizes
from hvcore.backends.disk import Disk, disk_dev_number
from hvcore.backends.images import open_image
from hvcore.pv.audit import audit
from tests.hvcore.backends.frontend import DATA, REF, RING, SECTOR, Frontend
from tests.hvcore.conftest import Guest

READ, WRITE, BARRIER, FLUSH = 0, 1, 2, 3
OKAY, ERROR, EOPNOTSUPP = 0, -1, -2
SECTORS = 2048


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "disk"
    file.write_bytes(os.urandom(SECTORS * SECTOR))
    return file


def disk(path: Path, **options: object) -> Disk:
    return Disk("xvda", str(path), **options)  # type: ignore[arg-type]


@pytest.fixture
def front(guest: Guest, path: Path) -> Frontend:
    frontend = Frontend(guest, RawImage(str(path), writable=True), disk(path))
    frontend.connect()
    return frontend


def nothing_left(front: Frontend) -> bool:
    """After the end the guest's frames are held by nobody else."""
    front.tell(state=6)
    return audit(front.guest.d) == [] and not front.guest.d.grant_table.active


def test_what_both_sides_tell_each_other(front: Frontend) -> None:
    def told(name: str) -> str | None:
        return front.store.read(f"{front.backend.back}/{name}")

    assert front.state() == "4"
    assert (told("sectors"), told("sector-size"), told("info")) == (str(SECTORS), "512", "0")
    assert told("feature-persistent") == told("feature-flush-cache") == told("feature-discard") == "1"
    assert (told("max-ring-page-order"), told("feature-max-indirect-segments")) == ("4", "256")
    front.tell(state=5)
    assert front.state() == "5"
    front.tell(state=6)
    assert front.state() == "6"
    front.tell(state=1)
    assert front.state() == "2"  # and it may come back
    front.connect()
    assert front.state() == "4"
    assert nothing_left(front)


def test_sectors_go_where_they_are_asked_to(front: Frontend, path: Path) -> None:
    before = path.read_bytes()
    page = front.guest.memory(DATA)
    assert front.ask(front.request(READ, 1, 5, [(REF + DATA, 0, 7)])) == OKAY
    assert bytes(page) == before[5 * SECTOR : 13 * SECTOR]
    assert front.ask(front.request(READ, 1, 100, [(REF + DATA, 2, 3), (REF + DATA + 1, 7, 7)])) == OKAY
    assert bytes(page[2 * SECTOR : 4 * SECTOR]) == before[100 * SECTOR : 102 * SECTOR]
    assert bytes(front.guest.memory(DATA + 1)[7 * SECTOR :]) == before[102 * SECTOR : 103 * SECTOR]
    page[:] = bytes(range(256)) * 16
    assert front.ask(front.request(WRITE, 2, 10, [(REF + DATA, 1, 2)])) == OKAY
    assert front.ask(front.request(FLUSH, 3, 0, [])) == OKAY
    assert front.ask(front.request(BARRIER, 3, 20, [(REF + DATA, 0, 0)])) == OKAY
    after = path.read_bytes()
    wanted = bytearray(before)
    wanted[10 * SECTOR : 12 * SECTOR] = page[SECTOR : 3 * SECTOR]
    wanted[20 * SECTOR : 21 * SECTOR] = page[:SECTOR]
    assert after == wanted
    assert nothing_left(front)


def test_indirect_requests(front: Frontend, path: Path) -> None:
    segments = [(REF + DATA + i % 8, 0, 7) for i in range(200)]
    front.put(front.indirect(READ, 77, 0, segments))
    front.notify()
    front.pass_time()
    assert front.take() == [(77, READ, OKAY)]  # an answer to what it was to do
    assert bytes(front.guest.memory(DATA + 7)) == path.read_bytes()[199 * 4096 : 200 * 4096]
    for nr in (0, 257):
        request = bytearray(front.indirect(READ, 1, 0, segments))
        struct.pack_into("<H", request, 2, nr)
        assert front.ask(bytes(request)) == ERROR
    request = bytearray(front.indirect(FLUSH, 1, 0, segments[:1]))
    assert front.ask(bytes(request)) == ERROR
    assert nothing_left(front)


@pytest.mark.parametrize("order", [0, 1, 4])
def test_rings_of_several_pages(guest64: Guest, path: Path, order: int) -> None:
    front = Frontend(guest64, RawImage(str(path), writable=True), disk(path), word=8)
    front.connect(order=order)
    assert front.state() == "4"
    assert front.entries == {0: 32, 1: 64, 4: 512}[order]
    for round_ in range(3):
        ids = range(round_ * 1000, round_ * 1000 + front.entries)
        for id_ in ids:
            front.put(front.request(READ, id_, id_ % SECTORS, [(REF + 40, 0, 0)]))
        front.notify()
        assert len(front.backend.answers) <= 64
        while front.backend.answers:
            front.pass_time(1_000_000)
        assert [id_ for id_, _, _ in front.take()] == [*ids]
    assert nothing_left(front)


def test_grants_that_stay(guest: Guest, path: Path) -> None:
    front = Frontend(guest, RawImage(str(path), writable=True), disk(path))
    front.connect(persistent=True)
    for i in range(3):
        assert front.ask(front.request(READ, i, i, [(REF + DATA, 0, 7), (REF + DATA + 1, 0, 7)])) == OKAY
    assert set(front.backend.persistent or ()) == {REF + DATA, REF + DATA + 1}
    assert audit(guest.d) == []
    assert nothing_left(front)


def test_a_request_takes_its_time_by_the_guests_clock(front: Frontend) -> None:
    def took(request: bytes) -> int:
        start = front.guest.d.clock.now()
        front.put(request)
        front.notify()
        return front.backend.answers[-1].when - start

    assert took(front.request(READ, 1, 0, [(REF + DATA, 0, 0)])) == 20_512
    assert took(front.request(READ, 2, 0, [(REF + DATA, 0, 7)])) == 20_512 + 24_096  # one behind the other
    front.pass_time(20_511)
    assert front.take() == []
    front.pass_time(1)
    assert [id_ for id_, _, _ in front.take()] == [1]


def test_what_requests_took_this_host_is_counted_and_never_saved(front: Frontend) -> None:
    """By kind: how many, their bytes, real time, together and the longest."""
    for operation in (READ, WRITE, READ):
        assert front.ask(front.request(operation, 1, 5, [(REF + DATA, 0, 7)])) == OKAY
    assert front.ask(front.request(WRITE, 2, SECTORS, [(REF + DATA, 0, 7)])) == ERROR
    assert front.ask(front.request(FLUSH, 3, 0, [])) == OKAY
    rows = front.backend.use.rows
    assert {kind: row[:2] for kind, row in rows.items()} == {
        "read": (2, 8192), "write": (2, 4096), "flush": (1, 0),
    }  # fmt: skip
    assert all(0 < longest <= ns <= requests * longest for requests, _, ns, longest in rows.values())
    assert "use" in type(front.backend).WIRING


def test_what_blkback_refuses(front: Frontend, path: Path) -> None:
    before = path.read_bytes()
    good = (REF + DATA, 0, 7)
    for request, status in (
        (front.request(READ, 1, 0, []), ERROR),
        (front.request(READ, 1, 0, [good] * 11, nr=12), ERROR),
        (front.request(WRITE, 1, 0, [(REF + DATA, 5, 4)]), ERROR),
        (front.request(WRITE, 1, 0, [(REF + DATA, 0, 8)]), ERROR),
        (front.request(WRITE, 1, SECTORS - 7, [good]), ERROR),
        (front.request(READ, 1, (1 << 64) - 1, [good]), ERROR),
        (front.request(WRITE, 1, 0, [good, (500, 0, 7)]), ERROR),
        (front.request(WRITE, 1, 0, [(1 << 31, 0, 7)]), ERROR),
        (front.request(4, 1, 0, [good]), EOPNOTSUPP),
        (front.request(200, 1, 0, [good]), EOPNOTSUPP),
        (front.discard(1, SECTORS, 1), ERROR),
        (front.discard(1, 0, (1 << 64) - 1), ERROR),
    ):
        assert front.ask(request) == status, request.hex()
    front.grant(DATA, REF + DATA, readonly=True)
    assert front.ask(front.request(READ, 1, 0, [good])) == ERROR  # it would be written
    assert front.ask(front.request(WRITE, 1, 0, [good])) == OKAY
    front.grant(DATA, REF + DATA, domid=5)
    assert front.ask(front.request(WRITE, 1, 0, [good])) == ERROR
    assert path.read_bytes()[4096:] == before[4096:]
    assert nothing_left(front)


def test_a_device_of_larger_sectors_takes_whole_ones(guest: Guest, path: Path) -> None:
    """As blkback: requests are in units of 512 bytes still."""
    image = RawImage(str(path), writable=True)
    image.sector_sizes = SectorSizes(4096, 4096)
    front = Frontend(guest, Layer(image), disk(path))
    front.connect()
    assert front.store.read(f"{front.backend.back}/sector-size") == "4096"
    assert front.store.read(f"{front.backend.back}/physical-sector-size") == "4096"
    assert front.store.read(f"{front.backend.back}/sectors") == str(SECTORS)
    whole, part = (REF + DATA, 0, 7), (REF + DATA, 0, 6)
    assert front.ask(front.request(READ, 1, 8, [whole, whole])) == OKAY
    assert front.ask(front.request(READ, 2, 9, [whole])) == ERROR
    assert front.ask(front.request(WRITE, 3, 8, [whole, part])) == ERROR
    assert front.ask(front.request(FLUSH, 4, 0, [])) == OKAY
    assert nothing_left(front)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("losetup") is None, reason="needs root and losetup")
def test_a_block_device_says_what_its_sectors_are(path: Path) -> None:
    set_up = ["losetup", "--show", "--find", "--sector-size", "4096", str(path)]
    done = subprocess.run(set_up, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop devices here: {done.stderr.strip()}")
    device = done.stdout.strip()
    try:
        image = RawImage(device, writable=False)
        queue = Path("/sys/block") / Path(device).name / "queue"
        told = [int((queue / f"{kind}_block_size").read_text()) for kind in ("logical", "physical")]
        assert list(image.sector_sizes) == told
        assert told[0] == 4096
        assert image.size == SECTORS * SECTOR
        image.close()
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_a_disk_that_is_read_only(guest: Guest, path: Path) -> None:
    before = path.read_bytes()
    front = Frontend(guest, RawImage(str(path), writable=False), disk(path, readwrite=False, is_cdrom=True))
    front.connect()
    assert front.store.read(f"{front.backend.back}/info") == "5"
    assert front.store.read(f"{front.backend.back}/feature-discard") == "0"
    segment = [(REF + DATA, 0, 7)]
    assert front.ask(front.request(READ, 1, 0, segment)) == OKAY
    for request in (
        front.request(WRITE, 1, 0, segment),
        front.request(FLUSH, 1, 0, []),
        front.discard(1, 0, 8),
    ):
        assert front.ask(request) == ERROR
    assert path.read_bytes() == before


def test_what_is_discarded_reads_as_zeros(front: Frontend, path: Path) -> None:
    before = path.read_bytes()
    assert front.ask(front.discard(1, 16, 24)) == OKAY
    assert path.read_bytes() == before[: 16 * SECTOR] + bytes(24 * SECTOR) + before[40 * SECTOR :]


def test_a_file_cut_short_gives_errors_and_no_end(front: Frontend, path: Path) -> None:
    os.truncate(path, 4096)
    segment = [(REF + DATA, 0, 7)]
    assert front.ask(front.request(READ, 1, 0, segment)) == OKAY
    assert front.ask(front.request(READ, 1, 8, segment)) == ERROR
    assert nothing_left(front)


@pytest.mark.parametrize(
    "nodes",
    [
        {"protocol": "x86_16-abi"}, {"event_channel": 999}, {"event_channel": "x"}, {"ring_ref": 500},
        {"ring_ref": ""}, {"ring_page_order": 5}, {"ring_page_order": 1}, {"multi_queue_num_queues": 2},
        {"multi_queue_num_queues": 0},
    ],
)  # fmt: skip
def test_a_frontend_that_cannot_be_connected(guest: Guest, path: Path, nodes: dict[str, Any]) -> None:
    front = Frontend(guest, RawImage(str(path), writable=True), disk(path))
    front.connect(**nodes)
    assert front.state() == "5"
    assert front.error()
    assert not guest.d.grant_table.active
    front.notify()
    front.tell(state=6)
    front.tell(state=1)
    assert front.state() == "2"


def test_a_ring_that_lies_is_halted(front: Frontend) -> None:
    struct.pack_into("<I", front.ring(), 0, 1000)
    front.notify()
    assert front.backend.is_halted
    assert front.backend.answers == []
    assert nothing_left(front)
    front.guest.memory(RING)[:4096] = bytes(4096)
    struct.pack_into("<I", front.ring(), 0, 33)
    front.tell(state=1)
    front.connect()
    assert front.state() == "5"  # more requests than entries from the beginning


# --- layers in memory ---------------------------------------------------------------------------------------

RANGES = st.tuples(st.booleans(), st.integers(0, 80), st.integers(1, 40), st.booleans())


@settings(max_examples=60, deadline=None)
@given(st.lists(RANGES, max_size=20))
def test_a_layer_is_a_disk_and_leaves_the_file_alone(acts: list[tuple[bool, int, int, bool]]) -> None:
    """Against a bytearray; writes, discards and reads of any sectors, in two pieces."""
    size = 121 * SECTOR
    with Path("/dev/urandom").open("rb") as random:
        original = random.read(size)
    fd = os.memfd_create("disk")
    os.write(fd, original)
    layer = Layer(RawImage(f"/proc/self/fd/{fd}", writable=False))
    model = bytearray(original)
    for i, (writes, at, count, discards) in enumerate(acts):
        start, length = at * SECTOR, count * SECTOR
        data = bytearray((bytes((i + 1,)) * length) if writes else bytes(length))
        view = memoryview(data)
        pieces = [view[: length // 3], view[length // 3 :]]
        if writes and discards:
            layer.discard(start, length)
            model[start : start + length] = bytes(length)
        elif writes:
            layer.write(start, pieces)
            model[start : start + length] = data
        else:
            layer.read(start, pieces)
            assert data == model[start : start + length]
    again = Layer(RawImage(f"/proc/self/fd/{fd}", writable=False))
    again.blocks = dict(layer.blocks)
    everything = bytearray(size)
    again.read(0, [memoryview(everything)])
    assert everything == model
    assert os.pread(fd, size, 0) == original
    layer.close()
    again.close()
    os.close(fd)


def test_what_is_no_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="neither a file nor a block device"):
        open_image(Disk("xvda", "/dev/null"))
    with pytest.raises(IsADirectoryError):
        open_image(Disk("xvda", str(tmp_path)))
    with pytest.raises(FileNotFoundError):
        open_image(Disk("xvda", str(tmp_path / "none")))
    (tmp_path / "odd").write_bytes(bytes(1000))
    assert open_image(Disk("xvda", str(tmp_path / "odd"))).size == 512


@pytest.mark.parametrize(
    ("vdev", "number"),
    [  # libxl__device_disk_dev_number(), by docs/man/xen-vbd-interface.7.pandoc
        ("xvda", 51712), ("xvda1", 51713), ("xvdp15", 51967), ("xvdq", 268439552), ("xvda16", 268435472),
        ("xvdaa", 268442112), ("d0", -1), ("d0p0", 51712), ("d5p3", 51795), ("hda", 768), ("hdb2", 834),
        ("hdc", 5632), ("hdd63", 5759), ("sda", 2048), ("sdp15", 2303), ("51712", 51712), ("0xca00", 51712),
        ("sdq", -1), ("hde", -1), ("xvda01", -1), ("xvd", -1), ("", -1), ("ada", -1), ("xvdA", -1),
        ("99999999999", -1),
    ],
)  # fmt: skip
def test_numbers_of_disks(vdev: str, number: int) -> None:
    assert disk_dev_number(vdev) == number


# --- hostile frontends --------------------------------------------------------------------------------------

WORDS = st.one_of(st.integers(0, 40), st.integers(0, 2**32 - 1))
ACTS = st.one_of(
    st.tuples(st.just("ring"), st.sampled_from([0, 4, 8, 12]), WORDS),
    st.tuples(st.just("entry"), st.integers(0, 31), st.binary(min_size=1, max_size=112)),
    st.tuples(
        st.just("request"),
        st.integers(0, 7),
        st.tuples(st.integers(0, SECTORS + 9), st.integers(0, 90), st.integers(0, 9), st.integers(0, 9)),
    ),
    st.tuples(st.just("state"), st.sampled_from("0123456789x"), st.just(0)),
    st.tuples(
        st.just("node"), st.sampled_from(["ring_ref", "event_channel", "protocol"]), st.binary(max_size=4)
    ),
    st.tuples(st.just("grant"), st.integers(0, 63), st.integers(0, 90)),
    st.tuples(st.just("time"), st.just(0), st.just(0)),
)


@settings(max_examples=int(os.environ.get("BLOCK_EXAMPLES", "60")), deadline=None)
@given(st.lists(ACTS, max_size=40), st.booleans())
def test_a_hostile_frontend_harms_nobody(acts: list[tuple[str, object, object]], persistent: bool) -> None:
    fd = os.memfd_create("disk")
    os.truncate(fd, SECTORS * SECTOR)
    guest = Guest(abi_module.PV64, 1)
    image = Layer(RawImage(f"/proc/self/fd/{fd}", writable=False))
    front = Frontend(guest, image, Disk("xvda", "none"))
    front.connect(persistent=persistent)
    for what, a, b in acts:
        do(front, what, a, b)
        assert len(front.backend.answers) <= 64
        assert len(front.backend.persistent or ()) <= 1056
    assert audit(guest.d) == []
    front.backend.remove()
    assert audit(guest.d) == []
    assert not guest.d.domain_list[0].grant_table.maptrack
    os.close(fd)


def do(front: Frontend, what: str, a: object, b: object) -> None:
    """One act of a frontend that may do anything."""
    if what == "ring" and isinstance(a, int):
        struct.pack_into("<I", front.guest.memory(RING), a, b)
    elif what == "entry" and isinstance(a, int) and isinstance(b, bytes):
        front.guest.memory(RING)[64 + 112 * a : 64 + 112 * a + len(b)] = b
    elif what == "request" and isinstance(a, int) and isinstance(b, tuple):
        front.put(front.request(a, 1, b[0], [(b[1], b[2], b[3])]))
    elif what == "state":
        front.tell(state=a)
    elif what == "node":
        front.tell(**{str(a): (b or b"").decode("latin-1") if isinstance(b, bytes) else b})
    elif what == "grant" and isinstance(a, int) and isinstance(b, int):
        front.grant(a, b)
    else:
        front.pass_time(50_000)
    if front.port:
        front.notify()


def test_one_writes_to_a_file_or_any_number_read_it(tmp_path: Path) -> None:
    path = str(tmp_path / "disk")
    Path(path).write_bytes(bytes(SECTOR))
    readers = [RawImage(path, writable=False) for _ in range(2)]
    with pytest.raises(OSError, match="another domain has it, and one of the two would write to it"):
        RawImage(path, writable=True)
    for reader in readers:
        reader.close()
    writer = RawImage(path, writable=True)
    for writable in (False, True):
        with pytest.raises(OSError, match="another domain has it"):
            RawImage(path, writable=writable)
    writer.close()
    RawImage(path, writable=False).close()
