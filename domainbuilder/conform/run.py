"""Run the bundled conformance guests: does this hypervisor do, and refuse, what Xen 4.17 does and refuses?

The guests are built from samples/conformance and come with the package in one archive, guests/ARCHIVE, which
also says what each of them covers. A guest makes its checks, prints a line for each that fails, and ends with
`Test result: SUCCESS|FAILURE|SKIP|ERROR`, the words of XTF; CRASH and TIMEOUT are what it cannot say itself.
One whose right end is no poweroff says `Expected end: REASON` last, with the reason that Outcome has for it.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory

from domainbuilder.errors import BuildError, ExitCode, Where
from domainbuilder.guests import FOLDER
from domainbuilder.launch.domain import Outcome, launch

ARCHIVE = FOLDER / "conformance.tar.xz"
TITLES = "titles.json"  # in the archive: {name: what it covers}
DEFAULT_TIMEOUT = 60.0  # seconds of wall time for one guest
MEMORY_MIB = 64
VCPUS = 2

# What is known not to be as on Xen: a FAILURE of these is shown, with the reason, and fails nothing.
KNOWN_GAPS: Mapping[str, str] = {}

_RESULT = re.compile(r"^Test result: (SUCCESS|FAILURE|SKIP|ERROR)\s*$", re.MULTILINE)
_EXPECTED = re.compile(r"^Expected end: (\w+)\s*$", re.MULTILINE)
_COUNTS = re.compile(r"^(\d+) checks, (\d+) of them of refusals, \d+ failed\s*$", re.MULTILINE)
_COMPLAINT = re.compile(r"^(?:Fail|Error|Skip): .*$", re.MULTILINE)


class Verdict(StrEnum):
    """How a guest ended: XTF's words, and TIMEOUT."""

    SUCCESS = "SUCCESS"
    SKIP = "SKIP"
    ERROR = "ERROR"
    FAILURE = "FAILURE"
    TIMEOUT = "TIMEOUT"
    CRASH = "CRASH"


# XTF's exit codes told these apart; the process ends as every command of ours does.
EXIT_CODES: Mapping[Verdict, ExitCode] = {
    Verdict.SUCCESS: ExitCode.FINE,
    Verdict.SKIP: ExitCode.FINE,
    Verdict.ERROR: ExitCode.CHECK_FAILED,
    Verdict.FAILURE: ExitCode.CHECK_FAILED,
    Verdict.TIMEOUT: ExitCode.TIMED_OUT,
    Verdict.CRASH: ExitCode.DOMAIN_CRASHED,
}
_WORST_FIRST = (ExitCode.DOMAIN_CRASHED, ExitCode.TIMED_OUT, ExitCode.CHECK_FAILED)


@dataclass(frozen=True, slots=True)
class ConformanceGuest:
    """A conformance guest: its name, what it covers in a line, and its kernel file."""

    name: str
    covers: str
    kernel: Path


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one guest. Two runs compare equal: `wall_seconds` is left out of that.

    `messages` are the guest's own lines about what failed, or how its domain ended; `known_gap` says why a
    FAILURE was to be expected; `checks` is how many checks it made and `refusals` how many of those were of
    what Xen refuses, as it printed them.
    """

    name: str
    covers: str
    verdict: Verdict
    messages: tuple[str, ...]
    hypercalls: int
    guest_ns: int
    known_gap: str = ""
    wall_seconds: float = field(default=0.0, compare=False)
    checks: int = 0
    refusals: int = 0

    @property
    def exit_code(self) -> ExitCode:
        """What this guest alone would make the command exit with."""
        return ExitCode.FINE if self.known_gap else EXIT_CODES[self.verdict]


def exit_code(results: Sequence[Result]) -> ExitCode:
    """The command's: a crash before a timeout before a failed check."""
    codes = {result.exit_code for result in results}
    return next((code for code in _WORST_FIRST if code in codes), ExitCode.FINE)


@contextmanager
def bundled() -> Iterator[list[ConformanceGuest]]:
    """The bundled guests, by name, unpacked for as long as the context lasts.

    Raises BuildError where the archive is missing from the installation, or is none.
    """
    with TemporaryDirectory(prefix="domainbuilder-conform-") as folder:
        try:
            _unpack(Path(folder))
        except (tarfile.TarError, EOFError) as error:
            where = Where(str(ARCHIVE))
            raise BuildError(f"not the archive of conformance guests: {error}", where=where) from error
        yield in_folder(Path(folder))


def _unpack(folder: Path) -> None:
    """Regular files of plain names, into `folder`. (extractall() has `filter` only from Python 3.11.4 on.)"""
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() else None
            if content is None or Path(member.name).name != member.name:
                raise tarfile.ExtractError(f"{member.name!r} is no plain file")
            (folder / member.name).write_bytes(content.read())


def in_folder(folder: Path) -> list[ConformanceGuest]:
    """The conformance guests that `samples/build.py --conformance` wrote to `folder`, by name.

    A 32-bit guest NAME-32.elf goes by NAME, and its 64-bit twin by NAME-64. Raises BuildError where there are
    none.
    """
    titles = folder / TITLES
    covers: dict[str, str] = json.loads(titles.read_text("utf-8")) if titles.exists() else {}
    found = {
        path.stem.removesuffix("-32"): path
        for suffix in ("-32.elf", "-64.elf")
        for path in folder.glob(f"*{suffix}")
    }
    if not found:
        expected = "NAME-32.elf or NAME-64.elf"
        raise BuildError("no conformance guests here", where=Where(str(folder)), expected=expected)
    return [
        ConformanceGuest(name, covers.get(_of_either_width(name), ""), found[name]) for name in sorted(found)
    ]


def _of_either_width(name: str) -> str:
    """What a guest and its 64-bit twin are both called."""
    return name.removesuffix("-64")


def select(tests: Sequence[ConformanceGuest], names: Sequence[str]) -> list[ConformanceGuest]:
    """The named tests, in the order named; all where nothing is named. Raises BuildError for a wrong name."""
    by_name = {test.name: test for test in tests}
    for name in names:
        if name not in by_name:
            raise BuildError("no such conformance guest", found=name, expected=", ".join(by_name))
    return [by_name[name] for name in dict.fromkeys(names)] if names else list(tests)


def run(test: ConformanceGuest, timeout: float = DEFAULT_TIMEOUT) -> Result:
    """Boot one guest and wait for its end. Raises BuildError where its kernel is not to be launched."""
    output = bytearray()
    with launch(
        test.kernel, memory_mib=MEMORY_MIB, vcpus=VCPUS, timeout=timeout, console_output=output.extend
    ) as dom:
        outcome = dom.wait()
        stats = dom.stats()
    text = output.decode("utf-8", "replace").replace("\r\n", "\n")
    hypercalls = sum(stats.hypercalls.values()) + sum(stats.unknown_hypercalls.values())
    wall = stats.host.wall_seconds
    return result_of(test, text, outcome, hypercalls, guest_ns=stats.guest_ns, wall=wall)


def result_of(
    test: ConformanceGuest, text: str, outcome: Outcome, hypercalls: int, *, guest_ns: int, wall: float
) -> Result:
    """What came of a guest that printed `text`, as lines end in files, and ended with `outcome`."""
    verdict, messages = judge(text, outcome)
    counts = _COUNTS.search(text)
    checks, refusals = (int(counts[1]), int(counts[2])) if counts else (0, 0)
    known = KNOWN_GAPS.get(_of_either_width(test.name), "") if verdict is Verdict.FAILURE else ""
    return Result(
        test.name, test.covers, verdict, messages, hypercalls, guest_ns, known, wall, checks, refusals
    )


def judge(text: str, outcome: Outcome) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict on a guest that printed `text` and ended with `outcome`, and the lines that explain it."""
    messages = tuple(match[0] for match in _COMPLAINT.finditer(text))
    said, announced = _RESULT.findall(text), _EXPECTED.findall(text)
    if len(announced) == 1 and not said:
        if outcome.reason == announced[0] and not messages:
            return Verdict.SUCCESS, ()
        if outcome.ended:
            return Verdict.FAILURE, (*messages, f"{announced[0]} was the end expected: {outcome}")
    if outcome.exit_code is ExitCode.DOMAIN_CRASHED:
        return Verdict.CRASH, (*messages, str(outcome))
    if outcome.exit_code is ExitCode.TIMED_OUT:
        return Verdict.TIMEOUT, (*messages, str(outcome))
    if len(said) != 1:
        return Verdict.ERROR, (*messages, f"the guest printed {len(said)} results")
    return Verdict(said[0]), messages
