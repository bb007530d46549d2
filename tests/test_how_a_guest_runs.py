"""docs/how-a-guest-runs.md, run: its commands print what it shows, its program prints its traces."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from domainbuilder import guests
from domainbuilder.conform.run import ARCHIVE
from tests.test_readme import check_order, commands, environment

pytestmark = pytest.mark.guest
pytest.importorskip("ziglang")

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "how-a-guest-runs.md").read_text()
BLOCKS = re.findall(r"^```([\w-]*)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
(PROGRAM,) = [body for kind, body in BLOCKS if kind == "python"]
RUNS: dict[str, tuple[int, tuple[str, ...]]] = {  # guest -> MiB, what is typed
    "hello": (16, ("trap\n", "halt\n")),
    "pvkernel": (64, ()),
    "mmu_update-32": (32, ()),
}


def shown_by_commands() -> Iterator[tuple[str, list[str]]]:
    """Each command, with all that the page shows of its output, be it in several blocks."""
    sessions: list[tuple[str, list[str]]] = []
    for kind, body in BLOCKS:
        if kind or body.startswith("hello="):
            continue
        if body.startswith("$ "):
            sessions += commands(body)
        else:
            sessions[-1][1].extend(body.splitlines())
    yield from sessions


@pytest.fixture(scope="module")
def home(
    samples_builder: Callable[..., ModuleType],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp("how")
    builder = samples_builder()
    builder.build((builder.pvkernel(),), folder)
    (folder / "hello.elf").symlink_to(guests.path("hello"))
    with tarfile.open(ARCHIVE) as archive:
        guest = archive.extractfile("mmu_update-32.elf")
        assert guest
        (folder / "mmu_update-32.elf").write_bytes(guest.read())
    return folder


@pytest.mark.parametrize(("command", "shown"), list(shown_by_commands()))
def test_commands_print_what_is_shown(command: str, shown: list[str], home: Path) -> None:
    words = command.replace("domainbuilder ", f"'{sys.executable}' -m domainbuilder ", 1)
    done = subprocess.run(
        ["bash", "-c", words], cwd=home, capture_output=True, text=True, check=True, env=environment()
    )
    check_order(shown, done.stdout + done.stderr)


def without_addresses(line: str) -> str:
    """The line, with `#` for numbers that another build of the guest changes."""
    return re.sub(r"\b(0x)?(?=\w*\d)[0-9a-f]{5,}\b|(?<=pfn )[0-9a-f]+", "#", line)


@pytest.mark.parametrize("guest", RUNS)
def test_traces_are_what_the_guests_do(guest: str, home: Path) -> None:
    """All lines that the page shows of a guest come in the trace of one run, in that order."""
    shown = [line for kind, body in BLOCKS if kind == guest for line in body.splitlines()]
    assert len(shown) >= 5
    program: dict[str, Callable[..., None]] = {}
    exec(compile(PROGRAM, "how-a-guest-runs.md", "exec"), program)
    memory_mib, typed = RUNS[guest]
    lines: list[str] = []
    program["trace"](home / f"{guest}.elf", memory_mib, *typed, show=lines.append)
    rest = iter([without_addresses(line) for line in lines])
    for line in shown:
        assert without_addresses(line) in rest, f"{line!r} does not come, or not in this place"


def test_every_guest_that_is_traced_is_run() -> None:
    assert {kind for kind, _ in BLOCKS} == {"", "python", *RUNS}


def test_modules_that_it_names_exist() -> None:
    """With their folder, or by their name where the folder was said before."""
    modules = [path.relative_to(ROOT) for path in ROOT.glob("[hds]*/**/*.py")]
    for name in re.findall(r"[\w/]+\.py\b", PAGE):
        assert any(str(path) == name if "/" in name else path.name == name for path in modules), name
