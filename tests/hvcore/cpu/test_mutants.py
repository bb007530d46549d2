"""A core without one of its guards is caught by the tests of lanes: `MUTANTS=100` for all, in some minutes.

Each row is a place of hvcore/cpu/core, what stands there instead, and the tests that have to notice. That the
places are there is tested always.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from hvcore.cpu.compiled import SOURCES
from tests.loading import load

ROOT = Path(__file__).resolve().parents[3]
GUARDS, FRAMES, STORES, SPACES = (
    f"tests/hvcore/test_{name}.py" for name in ("lane_guards", "lane_frames", "lane_stores", "address_spaces")
)
FOUND = "tests/hvcore/hostile/test_found.py"
ACTS = "acts"  # tests.hvcore.hostile.lanes: so many rounds of them
ROUNDS = 60
TRIED = int(os.environ.get("MUTANTS", "1"))


class Mutant(NamedTuple):
    """In `file`, `text` becomes `instead`; one of `tests` fails then."""

    file: str
    text: str
    instead: str
    tests: tuple[str, ...]


MUTANTS = (
    Mutant("hypercall.c", "c->regs[EFLAGS] & X86_EFLAGS_TF ||", "", (GUARDS,)),
    Mutant("traps.c", "if (c->v->nmi_pending)", "if (false)", (GUARDS,)),
    Mutant("guest_access.c", "PAGE_PRESENT | PAGE_USER;", "PAGE_PRESENT;", (GUARDS,)),
    Mutant("guest_access.c", "*l1e & above & PAGE_RW", "above & PAGE_RW", (GUARDS,)),
    Mutant("guest_access.c", "*l1e & above & PAGE_RW", "*l1e & PAGE_RW", (GUARDS,)),
    Mutant("mmu_update.c", "!*hv_count(c->d, pg) || !*hv_tcount(c->d, pg)", "false", (ACTS,)),
    Mutant("mm.c", "|| *hv_count(c->d, pg) <= 1", "", (GUARDS,)),
    Mutant("mm.c", "new & (level == 1 ? L1_DISALLOW_MASK : L2_DISALLOW_MASK)", "false", (GUARDS,)),
    Mutant("mm.c", "if (uses)\n            return NOT_MINE;", "", (STORES, ACTS)),
    Mutant("mmuext_op.c", "if (hv_turn_is_over(c->e) && i + 1 < count)", "if (false)", (GUARDS,)),
    Mutant("multicall.c", "(done && must_stop(c)) ||", "", (GUARDS,)),
    Mutant("segments.c", "(ss & 3) != rpl ||", "", (FRAMES,)),
    Mutant("segments.c", "if (is_code && !(data.high & WRITABLE))", "if (false)", (FRAMES,)),
    Mutant("frames64.c", "if (!address ||", "if (", (ACTS,)),
    Mutant("frames64.c", "if (frame.rflags & X86_EFLAGS_TF)", "if (false)", (FRAMES, ACTS)),
    Mutant("frames32.c", "eflags & (X86_EFLAGS_VM | X86_EFLAGS_TF) || !(cs & 3)", "false", (FRAMES,)),
    Mutant("traps.c", "!is_open && (entry->flags & 3) < privilege", "false", (FRAMES,)),
    Mutant("traps.c", "|| !iopl_ok(c)", "", (FRAMES,)),
    Mutant("ro_page_fault.c", "|| cr2 % store.size", "", (STORES,)),
    Mutant("ro_page_fault.c", "if (changes_itself(", "if (0 && changes_itself(", (FOUND,)),
    Mutant("ro_page_fault.c", "|| c->regs[EFLAGS] & X86_EFLAGS_RF", "", (ACTS,)),
    Mutant("ro_page_fault.c", "(int64_t)c->e->left > (int64_t)c->e->limit; /*", "true; /*", (STORES,)),
    Mutant("small_hypercalls.c", "|| !hv_is_canonical(base)", "", (ACTS,)),
    Mutant("code_pages.c", "        hv_drop_all(hv_engine_of(uc));", "        ;", (SPACES,)),
)  # fmt: skip


def names(mutants: tuple[Mutant, ...]) -> list[str]:
    return [f"{mutant.file}: {' '.join(mutant.text.split())}" for mutant in mutants]


def test_every_guard_is_there_once() -> None:
    found = {mutant: (SOURCES / mutant.file).read_text().count(mutant.text) for mutant in MUTANTS}
    assert [mutant for mutant, count in found.items() if count != 1] == []


@pytest.mark.parametrize("mutant", MUTANTS[:TRIED], ids=names(MUTANTS[:TRIED]))
def test_a_core_without_a_guard_is_caught(mutant: Mutant, tmp_path: Path) -> None:
    library = compiled(mutant, tmp_path)
    assert any(fails(tests, library) for tests in mutant.tests)


def compiled(mutant: Mutant, folder: Path) -> Path:
    """The core with that one change, which says of itself that it is made of the sources that there are."""
    sources = Path(shutil.copytree(SOURCES, folder / "core"))
    text = (sources / mutant.file).read_text()
    (sources / mutant.file).write_text(text.replace(mutant.text, mutant.instead))
    build = load(ROOT / "scripts" / "compile_core.py")
    command = build.compiler()
    if command is None:
        pytest.skip("there is no C compiler")
    build.compile_core(folder / "_core.so", command, "-w", folder=sources)
    return folder / "_core.so"


def fails(tests: str, library: Path) -> bool:
    """Whether `tests` fail with that core: an assertion, a crash, or no end."""
    what = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", tests]
    if tests == ACTS:
        what = [
            "-m",
            "tests.hvcore.hostile.lanes",
            "--only",
            "acts",
            "--rounds",
            str(ROUNDS),
            "--seconds",
            "600",
        ]
    environment = os.environ | {"HVCORE_CORE": str(library)}
    done = subprocess.run(
        [sys.executable, *what], cwd=ROOT, env=environment, capture_output=True, check=False
    )
    assert done.returncode not in (2, 4, 5), done.stdout.decode()[-2000:]  # pytest's, for what is no test run
    return done.returncode != 0
