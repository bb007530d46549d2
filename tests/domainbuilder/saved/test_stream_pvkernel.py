"""The teaching kernel suspends where it is told to: Xen takes our stream of it, and we take Xen's."""

from __future__ import annotations

import lzma
from pathlib import Path

from domainbuilder import Outcome, launch, restore
from hvcore.pv.audit import audit
from tests.domainbuilder.saved.test_stream import REAL, not_saved_after_all, verified

MIB = 8
READY, AGAIN = "suspend: ready", "suspend: here again, with other frames\n"


def end_of(path: Path) -> str:
    """What a restored kernel prints until it powers off."""
    output = bytearray()
    with restore(path, max_guest_seconds=60, console_output=output.extend) as dom:
        assert dom.wait().reason == "poweroff"
        assert audit(dom.machine.domain) == []
    return output.decode().replace("\r", "")


def test_it_is_saved_and_goes_on_as_it_would_have(pvkernel: Path, tmp_path: Path) -> None:
    """Two processes run on its new frames, and say what they say where it was not saved after all."""
    path = tmp_path / "stream"
    with launch(pvkernel, MIB, cmdline="suspend", max_guest_seconds=60) as dom:
        dom.console.expect(READY)
        dom.save(path, "xen")
        assert dom.outcome == Outcome("suspend")
    assert "32bit guest" in verified(path)
    with launch(pvkernel, MIB, cmdline="suspend", max_guest_seconds=60) as dom:
        dom.console.expect(f"{READY}\r?\n")
        cancelled, _, undisturbed = not_saved_after_all(dom).partition("\n")
    assert cancelled == "suspend: not saved after all"
    assert undisturbed.count("hello from ring 3") == 2
    assert undisturbed.endswith(
        "faults: 8 pages on demand, 4 copied on write\nmemory: every page came back\npvkernel: done\n"
    )
    assert end_of(path) == AGAIN + undisturbed


def test_what_real_xen_saved_of_it_goes_on_here(tmp_path: Path) -> None:
    """`xl save` of Xen 4.17.7 wrote data/pvkernel.xl.xz: memory=8, vcpus=1, extra="suspend"."""
    path = tmp_path / "stream"
    path.write_bytes(lzma.decompress((REAL / "pvkernel.xl.xz").read_bytes()))
    said = end_of(path)
    assert said.startswith(AGAIN)
    assert said.count("hello from ring 3") == 2
    assert said.endswith("memory: every page came back\npvkernel: done\n")
