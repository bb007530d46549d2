"""Saved domains whose interfaces lead out of the host: there again if whoever restores them says so."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from domainbuilder import restore
from domainbuilder.errors import BuildError, SavedError
from domainbuilder.launch.domain import launch
from domainbuilder.saved.frozen import read_frozen, write_frozen
from tests.needs import find_tool

MAC = "00:16:3e:00:00:07"


def is_taken(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def becomes_taken(port: int) -> bool:
    """passt takes a moment to listen."""
    end = time.monotonic() + 60
    while not is_taken(port) and time.monotonic() < end:
        time.sleep(0.01)
    return is_taken(port)


@pytest.fixture
def ports() -> list[int]:
    """Two that are free."""
    with socket.socket() as one, socket.socket() as two:
        for sock in (one, two):
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in (one, two)]


@pytest.fixture
def saved(sample_guest: Callable[[str], Path], ports: list[int], tmp_path: Path) -> Path:
    """A domain with an interface on a bridge, and one that leads out."""
    find_tool("passt")
    vifs = ["bridge=xenbr0", f"type=user,tcp={ports[0]}:80,mac={MAC}"]
    with launch(sample_guest("hello"), 16, vifs=vifs) as dom:
        dom.console.expect("^hello> ")
        assert becomes_taken(ports[0])
        dom.save(tmp_path / "saved.domain")
    return tmp_path / "saved.domain"


def test_the_file_alone_opens_no_port(saved: Path, ports: list[int]) -> None:
    with restore(saved) as dom:
        assert dom.outside is None
        assert not is_taken(ports[0])
        dom.attach_vif(f"type=user,tcp={ports[1]}:80")  # which opens its own alone
        assert becomes_taken(ports[1])
        assert not is_taken(ports[0])
        dom.detach_vif("1", force=True)
        dom.detach_vif("2", force=True)
        dom.attach_vif(f"type=user,tcp={ports[0]}:80,devid=1")  # another of that number is another
        assert becomes_taken(ports[0])


def test_it_leads_where_it_is_said_to(saved: Path, ports: list[int], tmp_path: Path) -> None:
    with restore(saved, vifs=["type=vif", f"type=user,tcp={ports[1]}:80"]) as dom:
        assert becomes_taken(ports[1])
        assert not is_taken(ports[0])
        dom.save(tmp_path / "again.domain")
    with restore(tmp_path / "again.domain", vifs=["type=user,devid=1"]) as dom:
        assert dom.outside is not None
        assert not any(is_taken(port) for port in ports)
        assert dom.machine.devices.vifs[1].mac == MAC


@pytest.mark.parametrize(
    ("given", "found", "expected"),
    [
        ("type=user", "type=user", "type=vif"),
        ("type=vif,devid=1", "type=vif", f"type=user,mac={MAC}"),
        (f"type=user,devid=1,mac={MAC[:-1]}8", f"type=user,mac={MAC[:-1]}8", f"type=user,mac={MAC}"),
        ("type=user,devid=2", "2", "0, 1"),
    ],
)  # fmt: skip
def test_another_than_it_was(saved: Path, given: str, found: str, expected: str) -> None:
    with pytest.raises(SavedError) as caught:
        restore(saved, vifs=[given])
    assert (caught.value.found, caught.value.expected) == (found, expected)


def test_a_domain_that_had_none(sample_guest: Callable[[str], Path], tmp_path: Path) -> None:
    with launch(sample_guest("hello"), 16) as dom:
        dom.console.expect("^hello> ")
        dom.save(tmp_path / "none.domain")
    with pytest.raises(SavedError, match="has no interface 0"):
        restore(tmp_path / "none.domain", vifs=["type=user"])


@pytest.mark.parametrize("lie", [{"mtu": "1500"}, {"is_outside": 1}, {"more": 1}, None])
def test_what_the_file_says_may_lie(saved: Path, tmp_path: Path, lie: dict[str, object] | None) -> None:
    frozen = read_frozen(saved)
    options = frozen.state.domains[0].options
    options["vifs"][1] = 7 if lie is None else options["vifs"][1] | lie
    write_frozen(frozen, tmp_path / "lies.domain")
    with pytest.raises(BuildError):
        restore(tmp_path / "lies.domain", vifs=["type=user,devid=1"])
