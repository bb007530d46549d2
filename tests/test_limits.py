"""Each reader's limit, walked by table: an input beyond it is one line, exit code 2, and not much memory."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from domainbuilder import guests, launch
from domainbuilder.inputs import LIMITS
from domainbuilder.launch.transcript import Transcript
from domainbuilder.saved.stream_format import (
    SAVEFILE_BYTEORDER_VALUE,
    XL_HEADER,
    XL_MAGIC,
    XL_MANDATORY_FLAG_STREAMv2,
)
from tests.domainbuilder.bootloader.images import ext, fat, tree
from tests.domainbuilder.elfwriter import xen_kernel

MiB = 1 << 20

ROOT = Path(__file__).resolve().parent.parent
_PAGE = 4096


def gzip_of(start: bytes, size: int) -> bytes:
    """A gzip file of `start` and then zeros, `size` bytes in all, made of one block again and again."""
    block = 1 << 20
    packer = zlib.compressobj(9, wbits=31)
    first = packer.compress(start.ljust(block, b"\0")) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    last = packer.flush()[:-8]
    return first + again * (size // block - 1) + last + bytes(4) + (size & 0xFFFFFFFF).to_bytes(4, "little")


# A process's peak counts that of who forked it, and this one has grown by then: one in between has not.
_MEASURED = """
import os, resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
os.write(int(sys.argv[1]), str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10).encode())
sys.exit(code)
"""


_BOUNDED = ("bash", "-c", 'ulimit -Sv 8000000; exec "$@"', "-")


def peak(command: list[str], **options: object) -> tuple[int, str, int]:
    """Exit code, stderr, and the most memory that the command had, in bytes. It gets two minutes, 8 GB."""
    reader, writer = os.pipe()
    with subprocess.Popen(
        [
            "bash",
            "-c",
            'ulimit -Sv 8000000; exec "$@"',
            "-",
            sys.executable,
            "-c",
            _MEASURED,
            str(writer),
            *command,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        pass_fds=(writer,),
        **options,
    ) as child:  # type: ignore[call-overload]
        os.close(writer)
        assert child.stderr is not None
        said = child.stderr.read()
        child.wait()
    with os.fdopen(reader) as pipe:
        return child.returncode, said, int(pipe.read())


def ours(*arguments: object) -> list[str]:
    return ["timeout", "120", sys.executable, "-m", "domainbuilder", *map(str, arguments)]


def sparse(path: Path, size: int, start: bytes = b"") -> Path:
    with path.open("wb") as stream:
        stream.write(start)
        stream.truncate(size)
    return path


def a_bomb(folder: Path) -> list[str]:
    """20 MB that unpack to 20 GB, with the head of a kernel."""
    (folder / "bomb").write_bytes(gzip_of(xen_kernel().build(), 20 << 30))
    return ours("notes", folder / "bomb")


def a_kernel(folder: Path) -> list[str]:
    """One byte too many, and the size at the end is the true one."""
    size = LIMITS["kernel"].size + (1 << 20)
    (folder / "large").write_bytes(gzip_of(xen_kernel().build(), size))
    return ours("notes", folder / "large")


def a_pipe(_folder: Path) -> list[str]:
    return ["bash", "-c", f"head -c {LIMITS['pipe'].size + 1} /dev/zero | {' '.join(ours('notes', '-'))}"]


def a_ramdisk(folder: Path) -> list[str]:
    (folder / "kernel").write_bytes(xen_kernel().build())
    ramdisk = sparse(folder / "ramdisk", LIMITS["ramdisk"].size + 1)
    return ours("plan", folder / "kernel", "--ramdisk", ramdisk)


def a_configuration(folder: Path) -> list[str]:
    (folder / "x.cfg").write_text("#" * (LIMITS["configuration"].size + 1))
    return ours("create", "-n", folder / "x.cfg")


def image_notes(folder: Path) -> list[str]:
    """A built domain whose section of notes claims to be larger than any is."""
    (folder / "kernel").write_bytes(xen_kernel().build())
    image = folder / "image"
    subprocess.run(ours("build", folder / "kernel", "-o", image, "-m", "16"), check=True, capture_output=True)
    data = bytearray(image.read_bytes())
    table = int.from_bytes(data[40:48], "little")
    for at in range(table, table + 64 * 8, 64):
        if int.from_bytes(data[at + 4 : at + 8], "little") == 7:  # SHT_NOTE
            data[at + 32 : at + 40] = (LIMITS["image notes"].size + 1).to_bytes(8, "little")
    image.write_bytes(data)
    return ours("launch", image)


def a_system_map(folder: Path) -> list[str]:
    (folder / "kernel").write_bytes(xen_kernel().build())
    symbols = sparse(folder / "System.map", LIMITS["symbols"].size + 1)
    return ours("plan", folder / "kernel", "--symbols", symbols)


def a_disk(folder: Path) -> list[str]:
    """One ramdisk after the other, until more was read of the disk than any search for a kernel takes."""
    config = b"menuentry a {\n linux /k\n initrd" + b" /r" * 6 + b"\n}\n"
    root = tree(folder / "root", {"boot/grub/grub.cfg": config, "k": b"k"})
    sparse(root / "r", 100 * MiB)
    return ours("pygrub", fat(folder / "disk", root, 32, 120 * MiB), "-o", folder / "out")


def a_file_on_a_disk(folder: Path) -> list[str]:
    root = tree(folder / "root", {"boot/grub/grub.cfg": b"menuentry a {\n linux /k\n}\n"})
    sparse(root / "k", LIMITS["file on a disk"].size + 1)
    return ours("pygrub", ext(folder / "disk", root), "-o", folder / "out")


def a_boot_configuration(folder: Path) -> list[str]:
    config = b"#" * (LIMITS["boot configuration"].size + 1)
    return ours("pygrub", ext(folder / "disk", tree(folder / "root", {"boot/grub/grub.cfg": config})))


def a_saved_domain(folder: Path) -> list[str]:
    """One whose memory claims to be larger than any is, and whose checksums are right."""
    from tests.domainbuilder.saved.test_frozen import ENTRY, HEADER, sealed

    saved = folder / "saved"
    subprocess.run(
        ours("launch", guests.path("hello"), "--save-at", "tick 1,", "-o", saved),
        check=True,
        capture_output=True,
    )
    data = bytearray(saved.read_bytes())
    at = HEADER + 4 * ENTRY + 24
    data[at : at + 8] = (LIMITS["saved memory"].size + 1).to_bytes(8, "little")
    saved.write_bytes(sealed(data))
    return ours("restore", saved)


def a_file_of_xls(folder: Path) -> list[str]:
    """One whose configuration claims to be larger than any is."""
    size = LIMITS["saved configuration"].size + 1
    head = XL_HEADER.pack(XL_MAGIC, SAVEFILE_BYTEORDER_VALUE, XL_MANDATORY_FLAG_STREAMv2, 0, size)
    (folder / "saved").write_bytes(head)
    return ours("restore", folder / "saved")


def a_core(folder: Path) -> list[str]:
    """A dump whose notes claim to be larger than any are."""
    core = folder / "core"
    with launch(guests.path("hello")) as dom:
        dom.dump_core(core)
    data = bytearray(core.read_bytes())
    table = int.from_bytes(data[40:48], "little")
    at = table + 64 * 3
    size = LIMITS["core notes"].size + 1
    data[at + 32 : at + 40] = size.to_bytes(8, "little")
    core.write_bytes(data.ljust(size + len(data), b"\0"))
    return ours("inspect", core)


# Reader -> what makes an input beyond its limit, what is said of it, and the memory it may take.
CASES: dict[str, tuple[Callable[[Path], list[str]], str, int]] = {
    "kernel": (a_kernel, "kernel image too large", 200 * MiB),
    "kernel, a bomb": (a_bomb, "", 200 * MiB),
    "pipe": (a_pipe, "bytes came through the pipe", 2300 * MiB),
    "ramdisk": (a_ramdisk, "module 0 image too large", 200 * MiB),
    "symbols": (a_system_map, "too large for a System.map", 200 * MiB),
    "disk": (a_disk, "the file system leads in circles", 800 * MiB),
    "file on a disk": (a_file_on_a_disk, "/k is too large", 200 * MiB),
    "boot configuration": (a_boot_configuration, "/boot/grub/grub.cfg is too large", 200 * MiB),
    "core notes": (a_core, ".note.domainbuilder is too large", 300 * MiB),
    "saved configuration": (a_file_of_xls, "xl's optional data is too large", 200 * MiB),
    "saved memory": (a_saved_domain, "section pages is too large", 200 * MiB),
    "configuration": (a_configuration, "the configuration is too large", 200 * MiB),
    "image notes": (image_notes, ".note.Xen is too large", 200 * MiB),
}
LINTED: dict[str, tuple[list[str], str]] = {
    "script": (["{zero}"], "too large"),
    "map": (["--map", "{zero}"], "no link map"),
    "ELF": (["--elf", "{zero}"], ""),
    "config": (["{script}", "--config", "{zero}"], "too large"),
    "baseline": (["{script}", "--baseline", "{zero}"], "too large"),
}


def test_every_limit_has_its_case() -> None:
    walked = {name.partition(",")[0] for name in CASES} | {"transcript"}
    assert walked == set(LIMITS)


@pytest.mark.parametrize("name", CASES)
def test_what_is_beyond_a_limit(name: str, tmp_path: Path) -> None:
    make, reason, memory = CASES[name]
    code, said, most = peak(make(tmp_path))
    assert code == 2, said
    lines = said.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("domainbuilder: error: ")
    assert reason in lines[0]
    assert most < memory


@pytest.mark.parametrize("name", LINTED)
def test_what_never_ends(name: str, tmp_path: Path) -> None:
    """/dev/zero for each input of the linter."""
    (tmp_path / "s.lds").write_text("SECTIONS { .text : { *(.text) } }\n")
    arguments, reason = LINTED[name]
    files = {"zero": "/dev/zero", "script": str(tmp_path / "s.lds")}
    code, said, most = peak(ours("lint", *(one.format(**files) for one in arguments)))
    assert code == 2, said
    assert "/dev/zero" in said
    assert reason in said
    assert "Traceback" not in said
    assert most < 600 * MiB


def test_the_transcript_keeps_its_last_bytes() -> None:
    limit = LIMITS["transcript"].size
    transcript = Transcript()
    for _ in range(3 * limit // MiB):
        transcript.append(b"x" * MiB)
    assert transcript.end == 3 * limit
    assert limit <= len(transcript.since(0)) <= limit + MiB


@pytest.mark.parametrize("pattern", [r"(?:x+x+)+y", r"(x|xx)+$y"])
def test_a_pattern_that_backtracks_for_ever_ends_with_the_time(
    pattern: str, sample_guest: Callable[[str], Path]
) -> None:
    """Wall time is all that can end it: nothing else happens any more. The guest types forty x to us."""
    send = "x" * 40 + "\\n"
    code, said, _ = peak(
        ours("launch", sample_guest("hello"), "--timeout", 3, "--expect", "hello> ", "--send", send,
             "--expect", pattern),
    )  # fmt: skip
    assert code == 4, said
    assert "expectation 2 of 2" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("size", ["0", "-1", "70000000", "99999999999999999999"])
def test_memory_that_cannot_be_had_is_one_line(size: str, sample_guest: Callable[[str], Path]) -> None:
    for command in ("plan", "launch"):
        code, said, most = peak(ours(command, sample_guest("hello"), "-m", size))
        assert (code, len(said.splitlines())) == (2, 1), said
        assert most < 300 * MiB


def test_a_machine_without_memory(sample_guest: Callable[[str], Path]) -> None:
    """Whatever fails first, Python, Unicorn or mmap: one line and exit code 2, at any limit."""
    for kib in (400_000, 900_000, 1_300_000, 2_000_000):
        launch = ours("launch", sample_guest("hello"), "-m", "1024", "--expect", "hello> ", "--until-match")
        code, said, _ = peak(["bash", "-c", f'ulimit -v {kib}; exec "$@"', "-", *launch])
        assert code in (0, 2), said
        assert "Traceback" not in said, (kib, said)
        assert code == 0 or len(said.splitlines()) == 1, said
