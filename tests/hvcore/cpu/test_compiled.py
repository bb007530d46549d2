from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import unicorn
from unicorn.unicorn_py3.unicorn import Uc
from unicorn.x86_const import UC_X86_REG_RAX, UC_X86_REG_RCX

from hvcore.cpu import compiled, engine_internals
from hvcore.cpu.processor import RCX, RIP
from hvcore.cpu.words import LAYOUT, EngineWords
from tests.hvcore.rig import Rig

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.engine.close()


def library() -> ctypes.CDLL:
    found = compiled.core()
    assert found is not None
    return found


def test_the_memory_region_is_told_for_its_addresses_alone() -> None:
    words = EngineWords(uc=0x7000, region=0x5678, ram_base=0x1000, ram_pages=3)
    library().hv_register(ctypes.byref(words))
    region = library().hv_memory_mapping
    region.restype = ctypes.c_uint64
    addresses = (0xFFF, 0x1000, 0x3FFF, 0x4000, 0, (1 << 64) - 1)
    answers = [region(ctypes.c_void_p(0x7000), ctypes.c_uint64(address)) for address in addresses]
    library().hv_unregister(ctypes.byref(words))
    assert answers == [0, 0x5678, 0x5678, 0, 0, 0]


def test_a_core_with_other_words_is_not_used(tmp_path: Path) -> None:
    assert compiled.load(compiled.LIBRARY, LAYOUT)[0] is not None
    assert compiled.load(compiled.LIBRARY, LAYOUT + "more ") == (
        None,
        "Python: the compiled core is another version's",
    )
    assert compiled.load(tmp_path / "none.so", LAYOUT) == (None, "Python: no compiled core is installed")
    assert compiled.load(Path(unicorn.unicorn_py3.unicorn.uclib._name), LAYOUT)[0] is None


def test_a_core_older_than_its_sources_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "core").mkdir()
    for source in compiled.SOURCES.iterdir():
        shutil.copy(source, tmp_path / "core")
    path = Path(shutil.copy(compiled.LIBRARY, tmp_path))
    assert compiled.load(path, LAYOUT, tmp_path / "core")[0] is not None
    (tmp_path / "core" / "pacing.c").write_text("")
    assert compiled.load(path, LAYOUT, tmp_path / "core") == (
        None,
        "Python: the compiled core is older than its sources",
    )


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_zig_compiles_it_for_every_machine_that_wheels_are_for(machine: str, tmp_path: Path) -> None:
    pytest.importorskip("ziglang")
    command = [sys.executable, str(ROOT / "scripts" / "compile_core.py"), "--to", str(tmp_path / "core.so")]
    subprocess.run(command, check=True, env={**os.environ, "HVCORE_MACHINE": machine})
    header = (tmp_path / "core.so").read_bytes()[:20]
    assert (header[:4], header[18]) == (b"\x7fELF", {"x86_64": 62, "aarch64": 183}[machine])


# -- other users of the library


def plain_loop() -> tuple[Uc, list[int]]:
    """A Unicorn of somebody else's, stopped by its memory hook at the first store of an endless block."""
    uc = Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    uc.mem_map(0x1000, 0x3000)
    uc.mem_write(0x1000, bytes.fromhex("488908 48ffc1 ebf8"))  # mov [rax], rcx; inc rcx; jmp to it
    uc.reg_write(UC_X86_REG_RAX, 0x2000)
    stores: list[int] = []

    def store(uc: Uc, _access: int, _at: int, _size: int, value: int, _data: object) -> None:
        stores.append(value)
        uc.emu_stop()

    uc.hook_add(unicorn.UC_HOOK_MEM_WRITE, store)
    return uc, stores


def test_another_unicorn_in_the_process_stops_as_it_always_did(rig: Rig) -> None:
    rig.code(0, "890500100000 cc")
    rig.engine.run()
    uc, stores = plain_loop()
    uc.emu_start(0x1000, 0x1FFF)
    assert (stores, uc.reg_read(UC_X86_REG_RCX)) == ([0], 0)


# -- without


def stored(rig: Rig) -> int:
    return int.from_bytes(rig.mem.frame(rig.mem.first_mfn + 17)[:4], "little")


def counted(rig: Rig) -> list[tuple[int, int, int, int]]:
    """Stops of a loop with stores, by budget and by a handler."""
    rig.on_interrupt = lambda _vector: rig.engine.stop()
    rig.code(0, "ff0500100000 cd82 ff0500100000 e2f0 cc")  # inc [m]; int 0x82; inc [m]; loop; int3
    rig.engine.q[RCX], rig.engine.q[RIP] = 50, 0
    seen = []
    for _ in range(50):
        rig.engine.cell[0] = 23
        rig.engine.run()
        seen.append((rig.engine.q[RIP], rig.engine.q[RCX], rig.engine.cell[0], stored(rig)))
    return seen


WITHOUT: dict[str, tuple[dict[str, bool], Callable[[pytest.MonkeyPatch], None]]] = {
    "a count in the code": (
        {},
        lambda m: m.setattr(engine_internals, "lean_translation", lambda *_: "hv_pace_and_leave"),
    ),
    "a lean translator": ({}, lambda m: m.setattr(engine_internals, "lean_translation", lambda *_: None)),
    "the core": ({"use_core": False}, lambda _m: None),
}


@pytest.mark.parametrize("way", WITHOUT)
def test_runs_are_the_same_without(rig: Rig, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    options, change = WITHOUT[way]
    change(monkeypatch)
    slow = Rig(**options)
    assert slow.engine.native_pacing == (way != "the core")
    assert counted(slow) == counted(rig)
    slow.engine.close()
