"""The bundled guests are what their sources give, byte for byte, wherever they are built."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from domainbuilder import guests
from tests.needs import find_tool

pytest.importorskip("ziglang")
SAMPLES = Path(__file__).resolve().parent.parent.parent / "samples"


@pytest.fixture(scope="module")
def elsewhere(
    tmp_path_factory: pytest.TempPathFactory, samples_builder: Callable[..., ModuleType]
) -> ModuleType:
    """The builder, run from a copy of samples/ under another path."""
    copy = tmp_path_factory.mktemp("another place") / "samples"
    shutil.copytree(SAMPLES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return samples_builder(copy)


def test_every_bundled_guest_is_rebuilt_byte_for_byte(elsewhere: ModuleType) -> None:
    assert elsewhere.differing(elsewhere.BUNDLE, guests.FOLDER) == []


def test_no_bundled_guest_is_without_sources(elsewhere: ModuleType) -> None:
    assert guests.names() == sorted(sample.name for sample in elsewhere.BUNDLE)


def test_a_changed_guest_is_noticed(elsewhere: ModuleType, tmp_path: Path) -> None:
    shutil.copytree(guests.FOLDER, tmp_path / "guests")
    changed = tmp_path / "guests" / "hello.elf"
    changed.write_bytes(changed.read_bytes().replace(b"Hello from", b"Hallo from"))
    assert elsewhere.differing(elsewhere.BUNDLE, tmp_path / "guests") == ["hello"]


@pytest.mark.parametrize("name", guests.names())
def test_bundled_guests_are_small_and_stripped(name: str) -> None:
    path = guests.path(name)
    assert path.stat().st_size < 64 * 1024
    readelf: list[str | Path] = [find_tool("readelf"), "-SW", path]
    sections = subprocess.run(readelf, capture_output=True, text=True, check=True).stdout
    assert ".symtab" not in sections
    assert ".debug" not in sections


@pytest.mark.parametrize("name", guests.names())
def test_bundled_guests_pass_our_own_checks(name: str) -> None:
    script, guest = SAMPLES / "common" / "guest.lds", guests.path(name)
    commands: list[list[str | Path]] = [["lint", script, "--elf", guest], ["notes", "--check", guest]]
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "domainbuilder", *command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
