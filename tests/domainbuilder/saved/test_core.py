"""Dumps: what `launch --core` writes is what `xl dump-core` writes, and `inspect` shows both."""

from __future__ import annotations

import json
import lzma
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import jsonschema
import pytest
from elftools.elf.elffile import ELFFile

from domainbuilder import ImageError, launch
from domainbuilder.conform.run import bundled
from domainbuilder.reports.core_report import CoreReport
from domainbuilder.saved.core_file import CoreFile
from domainbuilder.saved.core_text import render_core
from hvcore.public.vcpu_guest_context import xen_cr3_to_pfn

REAL = Path(__file__).with_name("data") / "suspend-64.core.xz"
SCHEMA = Path(__file__).parents[3] / "docs" / "inspect.schema.json"
MUTANTS = 60


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "domainbuilder", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A guest that died of an invalid instruction: its dump, and what `launch` said."""
    core = tmp_path_factory.mktemp("core") / "core"
    with bundled() as guests:
        kernel = next(guest.kernel for guest in guests if guest.name == "crash_no_handler")
        done = cli("launch", kernel, "-m", 16, "--core", core)
    assert done.returncode == 3
    assert f"its memory is in {core}, " in done.stderr
    return core, done.stderr


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("real") / "core"
    path.write_bytes(lzma.decompress(REAL.read_bytes()))
    return path


def test_inspect_shows_what_the_crash_report_says(crashed: tuple[Path, str]) -> None:
    core, said = crashed
    shown = cli("inspect", core)
    assert shown.returncode == 0
    for line in said.splitlines():  # registers, code and stack are the same lines
        if line.startswith(("  => ", "rax:", "rdx:", "rbp:")):
            assert line.partition(" <")[0] in shown.stdout, line
    assert "2 checks, 1 of them of refusals" in shown.stdout
    assert "/local/domain/1/console/limit" in shown.stdout
    assert "c0000000-" in shown.stdout


def test_the_same_as_json(crashed: tuple[Path, str], real: Path) -> None:
    core, _ = crashed
    schema = json.loads(SCHEMA.read_text())
    assert schema == CoreReport.model_json_schema(mode="serialization")
    text, done = cli("inspect", core).stdout, cli("inspect", core, "--format", "json")
    document = json.loads(done.stdout)
    jsonschema.validate(document, schema)
    vcpu = document["vcpus"][0]
    assert f"{int(vcpu['registers']['general']['rax'], 16):016x}" in text
    assert next(line["text"] for line in vcpu["code"] if line["current"]) in text
    assert all(f"{int(word, 16):0{document['bits'] // 4}x}" in text for word in vcpu["stack"])
    assert all(f"{int(row['start'], 16):0{document['bits'] // 4}x}-" in text for row in document["mappings"])
    assert "2 checks, 1 of them of refusals" in document["console"]
    assert document["xenstore"]["/local/domain/1/console/limit"]
    assert f"in the file at {document['console_ring']['offset']}" in text
    of_xl = json.loads(cli("inspect", real, "--format", "json").stdout)
    jsonschema.validate(of_xl, schema)
    assert (of_xl["bits"], of_xl["kernel"], of_xl["xenstore"]) == (64, None, {})


def test_the_console_ring_is_where_it_is_said_to_be(crashed: tuple[Path, str]) -> None:
    core, _ = crashed
    shown = cli("inspect", core).stdout
    offset = int(shown.partition("in the file at ")[2].split()[0], 16)
    ring = core.read_bytes()[offset : offset + 4096]
    assert b"A fault without a handler is the end of the domain" in ring


def sections(path: Path) -> dict[str, tuple[str, int, int]]:
    with path.open("rb") as file:
        elf = ELFFile(file)
        assert elf["e_type"] == "ET_CORE"
        return {s.name: (s["sh_type"], s["sh_entsize"], s["sh_size"]) for s in elf.iter_sections() if s.name}


def test_it_is_laid_out_as_xls_is(real: Path, tmp_path: Path, sample_guest: Callable[[str], Path]) -> None:
    ours = tmp_path / "core"
    with launch(sample_guest("hello"), 8) as dom:
        dom.console.expect("hello> ")
        dom.dump_core(ours)
        frame = dom.machine.domain.vcpus[0].cr3_mfn
        memory = bytes(dom.machine.mem.frame(frame))
    theirs, found = sections(real), sections(ours)
    assert {name: row[:2] for name, row in found.items() if name != ".note.domainbuilder"} == {
        name: row[:2] for name, row in theirs.items()
    }
    assert found[".xen_pages"] == theirs[".xen_pages"]
    core = CoreFile(ours)
    page = core.frame(frame)
    assert page is not None
    assert bytes(page) == memory
    assert xen_cr3_to_pfn(core.context(0)["cr3"], 4) == frame


def test_a_dump_of_real_xen(real: Path) -> None:
    core = CoreFile(real)
    context = core.context(0)
    root = core.root(context, is_user=False)
    assert core.about == {}
    assert core.read(root, context["ip"] - 2, 2) == b"\x0f\x05"  # it stands behind a `syscall`
    shown = cli("inspect", real)
    assert shown.returncode == 0
    assert f"RIP:    e033:[<{context['ip']:016x}>]" in shown.stdout
    assert "ffffffff80000000-" in shown.stdout
    assert "  => " in shown.stdout


@pytest.mark.guest
def test_a_linux_whose_time_was_up(guest_kernel: Callable[[str], Path], tmp_path: Path) -> None:
    """By the kernel file as Debian ships it: names, and a backtrace by ORC."""
    kernel, core = guest_kernel("vmlinuz-bookworm-amd64"), tmp_path / "core"
    cmdline = "console=hvc0 earlyprintk=xen"
    done = cli("launch", kernel, "-m", 96, "--cmdline", cmdline, "--max-guest-seconds", 0.3, "--core", core)
    assert done.returncode == 4
    shown = cli("inspect", core, "--symbols", kernel).stdout
    backtrace = shown.partition("Backtrace:")[2].partition("Mapped")[0]
    assert "<start_kernel+0x" in backtrace
    assert backtrace.count("(ORC)") > 2
    assert "Linux version 6.1" in core.read_bytes().decode("latin-1")


def test_only_what_crashed_or_hangs_is_dumped(sample_guest: Callable[[str], Path], tmp_path: Path) -> None:
    core = tmp_path / "core"
    fine = cli("launch", sample_guest("hello"), "--send", r"halt\n", "--core", core)
    assert fine.returncode == 0
    assert not core.exists()
    late = cli(
        "launch", sample_guest("hello"), "--max-guest-seconds", "0.001", "--expect", "never", "--core", core
    )
    assert late.returncode == 4
    assert "hello" in cli("inspect", core).stdout
    again = cli("launch", core)
    assert again.returncode == 2
    assert "a dump of a domain that ran, which `domainbuilder inspect` shows" in again.stderr


def test_files_that_are_damaged_or_something_else(crashed: tuple[Path, str], tmp_path: Path) -> None:
    data, path = crashed[0].read_bytes(), tmp_path / "core"
    table = struct.unpack_from("<Q", data, 40)[0]
    for size in (0, 10, 63, table + 100, len(data) - 5000, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(ImageError):
            CoreFile(path)
    done = cli("inspect", crashed[0].parent)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    chance = random.Random(3)
    for _ in range(MUTANTS):
        changed = bytearray(data)
        for _ in range(chance.choice((1, 4))):
            at = chance.choice((chance.randrange(table + 512), chance.randrange(16384)))
            changed[at] = chance.choice((0, 1, 255, chance.randrange(256)))
        path.write_bytes(changed)
        with suppress(ImageError):
            assert render_core(CoreFile(path), None)
