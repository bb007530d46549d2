"""A domain that was launched with `past`: where it stood, who wrote this, who made a frame what it is."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

import domainbuilder
from domainbuilder import BuildError, launch
from domainbuilder.conform.run import MEMORY_MIB, VCPUS, bundled
from hvcore.debug.condition import ConditionError
from hvcore.debug.events import ConsoleEvent, Event, HypercallEvent
from hvcore.debug.taps import listen
from hvcore.debug.view import GuestView
from tests.domainbuilder.tiny_guest import CODE, hypercall, kernel, mov

DATA = CODE + 0x1800
STORES = b"".join(b"\xc6\x05" + DATA.to_bytes(4, "little") + bytes((value,)) for value in (1, 2, 3))
EXTRAVERSION = hypercall(17, 1, DATA)  # XENVER_extraversion, which Xen writes to the guest
SHUTDOWN = hypercall(29, 2, CODE + 0x1000)


def tiny(folder: Path, code: bytes) -> Path:
    path = folder / "guest.elf"
    path.write_bytes(kernel(code))
    return path


def test_moments_are_what_they_were(sample_guest: Callable[[str], Path]) -> None:
    printed = bytearray()
    with launch(sample_guest("hello"), 16) as other:
        other.console.expect("hello> ")
        other.console.send("about\n")
        other.console.expect("hello> ")
        other.console.send("halt\n")
        other.wait()
        expected = other.stats(), other.memory_sha256(), other.console.transcript
    with launch(sample_guest("hello"), 16, past=True, console_output=printed.extend) as dom:
        dom.console.expect("hello> ")
        dom.console.send("about\n")
        dom.console.expect("hello> ")
        now, digest = dom.moment(), dom.memory_sha256()
        chance = random.Random(7)
        seen: dict[int, tuple[object, ...]] = {}
        for ns in [chance.randrange(now.guest_ns) for _ in range(6)] * 2:
            moment = dom.at(guest_ns=ns)
            assert moment.guest_ns >= ns
            state = moment, dict(moment.registers), dom.memory_sha256(), dom.stats()
            assert seen.setdefault(ns, state) == state
            before = dom.back(2)
            assert before.instruction < moment.instruction
            assert dom.at(instruction=moment.instruction) == moment == dom.at(moment)
        assert dom.at(now) == now
        assert dom.memory_sha256() == digest
        dom.at(guest_ns=1_000_000)
        dom.console.expect(r"(?<!.)$")  # nothing is printed twice, and about is typed again
        dom.at(now)
        dom.console.send("halt\n")
        assert dom.wait().reason == "poweroff"
        assert (dom.stats(), dom.memory_sha256(), dom.console.transcript) == expected
        assert printed.decode().replace("\r\n", "\n") == dom.console.transcript


def test_who_wrote_this(tmp_path: Path) -> None:
    with launch(tiny(tmp_path, mov("ecx", 5) + STORES + EXTRAVERSION + SHUTDOWN), 16, past=True) as dom:
        assert dom.wait().reason == "poweroff"
        end = dom.moment()
        write = dom.last_write(DATA, 1)
        assert dom.outcome is None  # it has not ended yet, where it stands now
        assert write.is_by_xen
        assert isinstance(write.event, HypercallEvent)
        assert (write.event.number, write.before) == (17, b"\x03")
        assert dom.moment().rip == write.moment.rip < end.rip
        for value in (3, 2, 1):
            write = dom.last_write(DATA, 1)
            assert not write.is_by_xen
            assert (write.before, write.after) == (bytes((value - 1,)), bytes((value,)))
            assert write.moment.rip == CODE + 5 + 7 * (value - 1)
            assert GuestView(dom.machine).read(DATA, 1) == write.before
        with pytest.raises(LookupError, match="nothing was stored"):
            dom.last_write(DATA, 1)
        assert dom.moment() == write.moment  # where nothing is found the domain stays
        second = dom.last_write(DATA, 1, before=end)
        assert second.is_by_xen
        assert dom.wait().reason == "poweroff"


def test_back_from_a_crash(tmp_path: Path) -> None:
    with launch(tiny(tmp_path, mov("eax", 7) + mov("ebx", 8) + b"\x0f\x0b"), 16, past=True) as dom:
        assert dom.wait().reason == "crashed"
        assert [dom.back().rip for _ in range(3)] == [CODE + 10, CODE + 5, CODE]
        assert dom.moment().registers["eax"] != 7
        with pytest.raises(LookupError):
            dom.back()
        with pytest.raises(LookupError):
            dom.at(guest_ns=10**12)
        assert dom.wait().reason == "crashed"
        assert dom.outcome is not None


@pytest.mark.parametrize("name", ["pinning-64", "mmu_update"])
def test_who_made_this_frame_what_it_is(name: str) -> None:
    """Against the events of a run that was listened to: the refusals, and the calls before them."""
    events: list[HypercallEvent] = []

    def heard(event: Event) -> None:
        if isinstance(event, HypercallEvent):
            events.append(event)

    with bundled() as guests:
        kernel_file = next(guest.kernel for guest in guests if guest.name == name)
        dom = launch(kernel_file, MEMORY_MIB, vcpus=VCPUS)
        with dom, listen(dom.machine, heard, (HypercallEvent,)):
            assert dom.wait().reason == "poweroff"
        with launch(kernel_file, MEMORY_MIB, vcpus=VCPUS, past=True) as dom:
            dom.wait()
            end = dom.moment()
            frames = dom.machine.domain.frames
            refused: dict[int, HypercallEvent] = {}
            for event in events:
                for refusal in event.refusals:
                    for value in refusal.values:
                        if isinstance(value, int) and 0 <= value - frames.base_mfn < frames.nr:
                            refused[value] = event
            assert refused
            for mfn, event in list(refused.items())[-4:]:
                change = dom.last_change(mfn, before=end)
                while change.event != event:  # what came later did something else with it
                    assert change.event is None or change.event.ns > event.ns
                    change = dom.last_change(mfn)
                assert change.refusals
                assert change.moment.instruction < event.ns
                assert set(change.refusals) <= {str(why) for why in event.refusals}
                dom.at(event=event)
                assert dom.moment() == change.moment


def test_the_last_event(sample_guest: Callable[[str], Path]) -> None:
    with launch(sample_guest("hello"), 16, past=True) as dom:
        dom.console.expect("hello> ")
        last = dom.last_event(HypercallEvent, "number == 29")
        assert isinstance(last.event, HypercallEvent)
        assert last.event.number == 29
        assert last.moment.instruction < last.event.ns
        assert dom.last_event(HypercallEvent, "number == 29").event.ns < last.event.ns
        with pytest.raises(ConditionError):
            dom.last_event(HypercallEvent, "nmber == 29")
        with pytest.raises(LookupError):
            dom.last_event(HypercallEvent, "number == 63")


def test_what_cannot_be(sample_guest: Callable[[str], Path], tmp_path: Path) -> None:
    with launch(sample_guest("hello"), 16) as dom, pytest.raises(RuntimeError, match="past=True"):
        dom.moment()
    for wrong in ({"record": True}, {"plain": True}):
        with pytest.raises(BuildError, match="past"):
            launch(sample_guest("hello"), 16, past=True, **wrong)  # type: ignore[arg-type]
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(4096))
    with pytest.raises(BuildError, match="written"):
        launch(sample_guest("hello"), 16, past=True, disks=[f"{disk},raw,xvda,w"])
    with launch(sample_guest("hello"), 16, past=True) as dom:
        dom.console.expect("hello> ")
        with pytest.raises(TypeError):
            dom.at(guest_ns=1, instruction=2)
        heard: list[Event] = []
        with listen(dom.machine, heard.append, (ConsoleEvent,)), pytest.raises(RuntimeError, match="listens"):
            dom.at(guest_ns=1_000_000)
        with pytest.raises(IndexError):
            dom.last_change(1)
        with pytest.raises(RuntimeError, match="past=True"):
            dom.snapshot()


def test_a_restored_domain_goes_back(sample_guest: Callable[[str], Path], tmp_path: Path) -> None:
    saved = tmp_path / "hello.saved"
    with launch(sample_guest("hello"), 16) as dom:
        dom.console.expect("hello> ")
        dom.save(saved)
    with domainbuilder.restore(saved, past=True) as dom:
        start = dom.moment()
        dom.console.send("about\n")
        dom.console.expect("hello> ")
        assert dom.at(start) == start
