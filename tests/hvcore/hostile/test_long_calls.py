"""Calls that could go on for ever are put off when the vCPU's turn is over, and lose nothing by that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.bench_hypervisor import CODE, Bench, page_table_store
from domainbuilder.launch.domain import launch
from hvcore.errors import HypercallPreempted
from hvcore.public.xen import Hypercall
from tests.domainbuilder import tiny_guest
from tests.domainbuilder.tiny_guest import hypercall
from tests.hvcore.hostile.world import GUESTS, Mapped, World

H = Hypercall
BUDGET = 50_000


class Page:
    """A page of the world's guest to put arguments in, mapped again at many consecutive addresses."""

    def __init__(self, world: World, times: int) -> None:
        writable = [m for m in world.mapped if m.writable]
        self.world = world
        self.home: Mapped = writable[0]
        run = next(
            run
            for run in (writable[i : i + times] for i in range(1, len(writable)))
            if run[-1].va - run[0].va == (times - 1) << 12
        )
        for m in run:
            entry = self.home.mfn << 12 | 0x67
            args = (m.va, entry, 2) if world.abi.word == 8 else (m.va, entry, 0, 2)
            assert world.call(H.update_va_mapping, (*args, 0, 0, 0)) == 0
        self.va = run[0].va
        self.size = times << 12

    def fill(self, entry: bytes) -> int:
        """The whole range full of `entry`: how many there are."""
        assert 4096 % len(entry) == 0
        assert self.world.store(self.home.va, entry * (4096 // len(entry)))
        return self.size // len(entry)


def to_the_end(world: World, number: int, *args: int) -> tuple[int, int]:
    """Make a call as often as it takes: its result, and how often that was."""
    for times in range(1, 10_000):
        world.machine.clock.begin_turn(world.machine.clock.now() + BUDGET)
        try:
            return world.dispatch(world.v, number, (*args, 0, 0, 0, 0, 0)[:6]), times
        except HypercallPreempted as rest:
            args = rest.arguments
    raise AssertionError("it never ends")


@pytest.fixture(params=GUESTS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    world = World(request.param, str(tmp_path))
    yield world
    assert world.problems() == []
    world.close()


def test_mmu_update_counts_what_was_done_over_all_turns(world: World) -> None:
    target = world.mapped[-1]
    request = (target.mfn << 12 | 1).to_bytes(8, "little") + (77).to_bytes(8, "little")  # machphys update
    page = Page(world, 16)
    count = page.fill(request)
    done = next(m for m in reversed(world.mapped) if m.writable and m.va != target.va).va
    assert to_the_end(world, H.mmu_update, page.va, count, done, 0x7FF0) == (
        0,
        count // 512,
    )  # two pages a turn
    assert world.d.guest.read_u32(done) == count


def test_mmuext_op_goes_on_where_it_was(world: World) -> None:
    """Local TLB flushes, as many as a page holds, in a turn that is too short for them."""
    word = world.abi.word
    op = (6).to_bytes(word, "little") + bytes(2 * word)
    count = 4096 // len(op)
    at = [m for m in world.mapped if m.writable][-3].va
    assert world.store(at, op * count)
    world.machine.clock.begin_turn(world.machine.clock.now() + count * 50)
    with pytest.raises(HypercallPreempted) as put_off:
        world.dispatch(world.v, H.mmuext_op, (at, count, 0, 0x7FF0, 0, 0))
    uops, left, _, _ = put_off.value.arguments
    assert left >> 31
    assert (uops - at) // len(op) + (left & 0x7FFFFFFF) == count
    assert to_the_end(world, H.mmuext_op, *put_off.value.arguments) == (0, 1)


def test_a_trap_table_without_end_is_looked_at_in_turns(world: World) -> None:
    row = (3).to_bytes(2, "little") + (0xE019).to_bytes(2, "little") + bytes(4)
    address = (0x1000).to_bytes(world.abi.word, "little")
    page = Page(world, 32)
    rows = page.fill(row[:4] + address if world.abi.word == 4 else row + address)
    rc, times = to_the_end(world, H.set_trap_table, page.va)
    assert times > rows * 100 // BUDGET - 1
    assert rc in (0, -14)


def test_a_multicall_entry_that_was_put_off_goes_on_in_its_place(world: World) -> None:
    word = world.abi.word
    target = world.mapped[-1]
    request = (target.mfn << 12 | 1).to_bytes(8, "little") + (77).to_bytes(8, "little")
    page = Page(world, 16)
    count = page.fill(request)
    place = [m for m in world.mapped if m.writable][-3]
    calls = [(H.xen_version, 0), (H.mmu_update, page.va, count, place.va + 2048, 0x7FF0), (H.xen_version, 0)]
    entries = [(call[0], 0x5A5A, *call[1:], 0, 0, 0, 0, 0)[:8] for call in calls]
    raw = b"".join(value.to_bytes(word, "little") for entry in entries for value in entry)
    assert world.store(place.va, raw)
    q = world.machine.engine.q
    registers = (3, 1) if word == 4 else (7, 6)  # EBX ECX, RDI RSI
    args, turns = (place.va, 3), 0
    while True:
        turns += 1
        world.machine.clock.begin_turn(world.machine.clock.now() + BUDGET)
        rip = q[16]
        rc = world.call(H.multicall, (*args, 0, 0, 0, 0))
        if q[16] == rip:
            break
        assert (rc, q[16]) == (H.multicall, rip - 2)
        args = (q[registers[0]], q[registers[1]])
    assert rc == 0
    assert turns == count // 512 + 1  # the last entry has a turn of its own
    results = [
        int.from_bytes(world.d.guest.copy_from(place.va + (8 * i + 1) * word, word), "little")
        for i in range(3)
    ]
    assert results == [4 << 16 | 17, 0, 4 << 16 | 17]
    assert world.d.guest.read_u32(place.va + 2048) == count


def test_unknown_numbers_are_counted_in_bounded_room(world: World) -> None:
    for number in range(100, 5000):
        assert world.call(number, (0, 0, 0, 0, 0, 0)) == -38
    counts = world.d.trace.unknown_hypercalls
    assert sum(counts.values()) == 4900
    assert len(counts) < 100
    assert counts[100] == 1


# --- guests that keep Xen busy ------------------------------------------------------------------------------


@pytest.fixture
def outcome(tmp_path: Path) -> Callable[[bytes], str]:
    def run(code: bytes) -> str:
        path = tmp_path / "busy.elf"
        path.write_bytes(tiny_guest.kernel(code))
        with launch(path, memory_mib=8, timeout=20, max_guest_seconds=0.05) as dom:
            return dom.wait().reason

    return run


LOOP = tiny_guest.CODE + 0x800
ROW = bytes([14, 0, 0x19, 0xE0]) + LOOP.to_bytes(4, "little")  # #PF goes to LOOP


def test_hypercalls_that_never_end_end_with_time(outcome: Callable[[bytes], str]) -> None:
    code = hypercall(H.fpu_taskswitch, 1)
    assert outcome(code + b"\xeb" + bytes([256 - len(code) - 2])) == "timeout"


def test_faults_that_never_end_end_with_time(outcome: Callable[[bytes], str]) -> None:
    """The handler takes its frame off the stack and faults again."""
    code = hypercall(H.set_trap_table, tiny_guest.CODE + 0x400)
    code += tiny_guest.mov("esp", tiny_guest.STACK_TOP) + b"\xa1" + bytes(4)
    handler = tiny_guest.mov("esp", tiny_guest.STACK_TOP) + b"\xa1" + bytes(4)
    assert outcome((code.ljust(0x400, b"\x90") + ROW + bytes(8)).ljust(0x800, b"\x90") + handler) == "timeout"


def test_a_handler_that_cannot_be_fetched_ends_the_domain(outcome: Callable[[bytes], str]) -> None:
    """Each frame is pushed below the last, until there is no stack left."""
    row = bytes([14, 0, 0x19, 0xE0]) + (0x1000).to_bytes(4, "little")
    code = hypercall(H.set_trap_table, tiny_guest.CODE + 0x400)
    code += tiny_guest.mov("esp", tiny_guest.STACK_TOP) + b"\xa1" + bytes(4)
    assert outcome(code.ljust(0x400, b"\x90") + row + bytes(8)) == "crashed"


@pytest.mark.parametrize("number", [H.mmuext_op, H.set_gdt])
def test_having_a_whole_table_looked_at_takes_time(world: World, number: int) -> None:
    """A page validated as an L1 table by a pin, or as descriptors by set_gdt."""
    word = world.abi.word
    page, args = [m for m in world.mapped if m.writable][-3:-1]
    assert world.store(page.va, bytes(4096))
    entry = page.mfn << 12 | 0x21
    wide = (entry,) if word == 8 else (entry, 0)
    assert world.call(H.update_va_mapping, (page.va, *wide, 2, 0, 0, 0)[:6]) == 0
    clock = world.machine.clock
    before = clock.now()
    if number == H.set_gdt:
        assert world.store(args.va, page.mfn.to_bytes(word, "little"))
        assert world.call(number, (args.va, 512, 0, 0, 0, 0)) == 0
    else:
        assert world.store(args.va, b"".join(value.to_bytes(word, "little") for value in (0, page.mfn, 0)))
        assert world.call(number, (args.va, 1, 0, 0x7FF0, 0, 0)) == 0
    assert clock.now() - before >= 2000


def test_nothing_comes_between_a_store_and_its_check(tmp_path: Path) -> None:
    """Timers that are due at any instruction fire before or after a store to a page table, never within."""
    bench = Bench(tmp_path)
    bench.write(CODE, page_table_store(bench, 1000))
    clock, ro = bench.machine.clock, bench.machine.ro_page_fault
    pending: list[bool] = []

    def tick() -> None:
        pending.append(ro.pending)
        clock.set_timer("often", clock.now() + 137, tick)

    tick()
    bench.run()
    assert ro.stores == 1000
    assert len(pending) > 500
    assert not any(pending)
