"""State is data: a host saved, restored in another process and run on ends as the one that was not disturbed.

`SAVE_POINTS=10 pytest -m guest tests/hvcore/test_save.py` boots Debian to its end from ten points.
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from domainbuilder.conform.run import MEMORY_MIB, VCPUS, bundled
from domainbuilder.launch.domain import RunningDomain, launch
from hvcore.debug.taps import listen
from hvcore.errors import EngineError
from hvcore.host import Host
from hvcore.machine import BOOT_TIME_NS, Stop
from hvcore.public import xs_wire as xs
from hvcore.save import owners, pack, save_owner, state_fields, store_owners, unpack
from tests.hvcore.saved import in_another_process, restored, saved_at
from tests.hvcore.stops import Result, Subject, launched, run

SECOND = 10**9
_SHAPE = ("domain_id", "vcpu_id", "current_id", "max_vcpus", "cap", "nr_pages")  # what a host is made by
_NAMES = (
    "_table",
    "user_cr3_mfn",
    "compat_l4",
    "version",
    "port",
    "backend_port",
    "iopl",
    "runstate",
    "periodic_period",
)  # not any number will do
TYPED = ((3_000_000, b"about\n"), (50_000_000, b"trap\n"), (400_000_000, b"halt\n"))


@pytest.fixture
def hello(sample_guest: Callable[[str], Path]) -> Subject:
    return Subject(sample_guest("hello"), 2 * SECOND, 64, cmdline="ticks=3", typed=TYPED)


@pytest.fixture
def running(hello: Subject) -> Iterator[RunningDomain]:
    """hello, a little way into its run."""
    with launch(hello.kernel) as dom:
        dom.console.expect("tick 1,")
        yield dom


def points(reference: Result, count: int, seed: int) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(reference.stats.system_time_ns - BOOT_TIME_NS) for _ in range(count)]


def test_hello_goes_on_in_another_process(hello: Subject, tmp_path: Path) -> None:
    reference = run(hello)
    for at in points(reference, 2, 1):
        state, output = saved_at(hello, at)
        assert in_another_process(state, hello, output, tmp_path) == reference


@pytest.mark.parametrize("name", ["fifo_vcpus", "grant_map", "ptwr_forms", "timers", "vcpus"])
def test_conformance_guests_go_on(name: str) -> None:
    with bundled() as guests:
        kernel = next(guest.kernel for guest in guests if guest.name == name)
        subject = Subject(kernel, 60 * SECOND, MEMORY_MIB, vcpus=VCPUS)
        reference = run(subject)
        for at in points(reference, 3, 2):
            state, output = saved_at(subject, at)
            assert restored(state, subject, output) == reference


@pytest.mark.guest
def test_debian_goes_on_in_another_process(
    guest_kernel: Callable[[str], Path], ramdisk: Callable[[], Path] | None, tmp_path: Path
) -> None:
    count = int(os.environ.get("SAVE_POINTS", "0"))
    subject = Subject(
        guest_kernel("vmlinuz-bookworm-amd64"),
        1000 * SECOND if count else 2 * SECOND,
        256,
        cmdline="console=hvc0 earlyprintk=xen",
        ramdisk=ramdisk() if count and ramdisk is not None else None,
    )
    reference = run(subject)
    assert reference.stop is (Stop.SHUTDOWN if count else Stop.PAUSED)
    for at in points(reference, count or 1, 3):
        state, output = saved_at(subject, at)
        assert in_another_process(state, subject, output, tmp_path) == reference, at


@pytest.fixture
def ramdisk(guest_kernel: Callable[[str], Path], tmp_path: Path) -> Callable[[], Path]:
    def build() -> Path:
        from tests.guests import initramfs

        path = tmp_path / "ramdisk"
        path.write_bytes(initramfs.initramfs("userland.sh", guest_kernel("busybox-amd64").read_bytes()))
        return path

    return build


def test_a_store_half_done_is_saved() -> None:
    """A stop between the first and the last step of a store to a page table."""
    with bundled() as guests:
        kernel = next(guest.kernel for guest in guests if guest.name == "ptwr")
        subject = Subject(kernel, 60 * SECOND, MEMORY_MIB, vcpus=VCPUS)
        reference = run(subject)
        output = bytearray()
        with launched(subject, output) as dom:
            host, ro = dom.machine.host, dom.machine.ro_page_fault
            start = ro.try_start

            def stop_within(cr2: int) -> bool:
                started = start(cr2)
                if started:
                    host.pause()
                return started

            ro.try_start = stop_within  # type: ignore[method-assign]
            host.run()
            assert ro.pending
            del ro.__dict__["try_start"]
            state = host.save()
        assert restored(state, subject, output) == reference


# --- no field is forgotten ----------------------------------------------------------------------------------


def test_every_field_is_saved_or_said_to_be_none(running: RunningDomain) -> None:
    for name, owner in (*owners(running.machine), *store_owners(running.machine.host.xenstored)):
        saved = save_owner(owner)
        assert list(saved) == state_fields(owner), name
        assert not [field for field in type(owner).WIRING if not hasattr(owner, field)], name  # type: ignore[attr-defined]


def test_who_listens_is_not_saved(running: RunningDomain) -> None:
    host = running.machine.host
    before = host.save()
    with listen(running.machine, lambda _event: None):
        assert host.save() == before


def test_restoring_what_was_saved_is_what_was_saved(running: RunningDomain) -> None:
    state = running.machine.host.save()
    assert running.machine.host.save() == state  # and nothing was changed by it
    again = Host.restore(state)
    assert again.save() == state
    again.close()


def test_every_number_of_every_owner_comes_back(running: RunningDomain) -> None:
    """Each field that is a number is given another value before; what comes back has them all."""
    changed = 0
    for _, owner in (*owners(running.machine), *store_owners(running.machine.host.xenstored)):
        for field in state_fields(owner):
            value = getattr(owner, field)
            if value.__class__ is int and field not in _SHAPE + _NAMES:
                setattr(owner, field, value + 1)
                changed += 1
            elif value.__class__ is bool:
                setattr(owner, field, not value)
                changed += 1
    assert changed > 50
    state = running.machine.host.save()
    again = Host.restore(state)
    restored_state = again.save()
    for name in state.domains[0].owners:
        assert restored_state.domains[0].owners[name] == state.domains[0].owners[name], name
    assert restored_state.xenstored == state.xenstored
    again.close()


def test_a_store_in_the_middle_of_things_comes_back(running: RunningDomain) -> None:
    """Watches, a transaction that has read and written, a message half taken, an answer outstanding."""
    m = running.machine
    store, c = m.host.xenstored, m.xenstore
    for kind, tx, payload in (
        (xs.XS_WATCH, 0, b"data\0token\0"),
        (xs.XS_TRANSACTION_START, 0, b"\0"),
        (xs.XS_READ, 1, b"domid\0"),
        (xs.XS_WRITE, 1, b"data/a\0value"),
        (xs.XS_RM, 1, b"data/a\0"),
        (xs.XS_WRITE, 0, b"data/b\0value"),
    ):
        store.answer(c, (kind, 7, tx), payload)
    c.out[0].used = 5
    state = m.host.save()
    again = Host.restore(state)
    assert again.save() == state
    theirs, ours = again.machines[1].xenstore, m.xenstore
    assert [message.data for message in theirs.out] == [message.data for message in ours.out]
    assert list(theirs.transactions[1].accessed) == list(ours.transactions[1].accessed)
    again.xenstored.answer(theirs, (xs.XS_TRANSACTION_END, 8, 1), b"T\0")
    assert theirs.out[-1].data.endswith(b"EAGAIN\0")  # "data" has changed since it was read
    again.close()


def test_a_field_that_is_added_is_saved_or_refused(
    running: RunningDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mutant: somebody adds a field and does not think of saving."""
    ro = running.machine.ro_page_fault
    monkeypatch.setattr(type(ro), "added", 3, raising=False)
    make = type(ro).__init__

    def init(self: object, *args: object, **kwargs: object) -> None:
        make(self, *args, **kwargs)  # type: ignore[arg-type]
        self.added = 3  # type: ignore[attr-defined]

    monkeypatch.setattr(type(ro), "__init__", init)
    ro.added = 7  # type: ignore[attr-defined]
    assert save_owner(ro)["added"] == 7
    again = Host.restore(running.machine.host.save())
    assert again.machines[1].ro_page_fault.added == 7  # type: ignore[attr-defined]
    again.close()
    ro.added = object()  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match=r"RoPageFault\.added: a object cannot be saved"):
        running.machine.host.save()


def test_what_is_kept_is_plain(running: RunningDomain) -> None:
    def check(value: object) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                check(key)
                check(item)
        elif isinstance(value, list | tuple):
            for item in value:
                check(item)
        else:
            assert value is None or type(value) in (bool, int, str, bytes), type(value)

    check(dataclasses.asdict(running.machine.host.save()))


@pytest.mark.parametrize(
    "value", [None, True, 3, "x", b"y", [1, [2]], (1, "a"), {1: [2], (3, 4): "b"}, {5, 6}, bytearray(b"z")]
)
def test_values_come_back_as_they_were(value: object) -> None:
    back = unpack(pack(value))
    assert (back, type(back)) == (value, type(value))


def test_a_host_that_a_domain_has_left_is_refused(running: RunningDomain) -> None:
    host = running.machine.host
    host.destroy(running.machine)
    with pytest.raises(EngineError, match="has left"):
        host.save()
