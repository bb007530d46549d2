"""`domainbuilder conform`: verdicts, exit codes, the three formats, and the archive that it runs."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jsonschema
import junitparser
import pytest

import domainbuilder
from domainbuilder.conform import report as conform_report
from domainbuilder.conform import run as conform
from domainbuilder.conform.cases import run_all
from domainbuilder.conform.run import ConformanceGuest, Result, Verdict
from domainbuilder.errors import BuildError, ExitCode
from domainbuilder.launch.session import Outcome
from tests.domainbuilder.tiny_guest import IDLE, SPIN, UD2, kernel
from tests.loading import load

ROOT = Path(domainbuilder.__file__).parent.parent
SCHEMA = ROOT / "docs" / "conform.schema.json"
FAST = ("xen_version", "fpu-64", "multicall")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "domainbuilder", "conform", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
    )


@pytest.fixture
def guests() -> Iterator[list[ConformanceGuest]]:
    with conform.bundled() as found:
        yield found


def result(verdict: Verdict, *messages: str, known_gap: str = "") -> Result:
    return Result("some", "Something", verdict, messages, 12, 34_000, known_gap, 0.25)


# --- running ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results() -> list[Result]:
    """What came of all bundled guests, which a fleet has run."""
    with conform.bundled() as found:
        return run_all(found, jobs=2)


def test_every_bundled_guest_ends_as_it_should(results: list[Result]) -> None:
    assert [r.name for r in results if r.exit_code] == []
    assert all(r.hypercalls > 5 for r in results)
    assert all(r.covers for r in results)
    assert conform.exit_code(results) is ExitCode.FINE


def test_what_is_known_to_fail_still_does(guests: list[ConformanceGuest]) -> None:
    names = list(conform.KNOWN_GAPS)
    for r in run_all(conform.select(guests, names)) if names else []:
        assert r.verdict is Verdict.FAILURE, f"{r.name} is mended: take it out of KNOWN_GAPS"


def test_two_runs_are_equal(guests: list[ConformanceGuest]) -> None:
    """One after the other in this process, and several at a time in others."""
    some = conform.select(guests, FAST)
    told: list[conform.Result] = []
    results = run_all(some, tell=told.append, jobs=2)
    assert results == run_all(some) == told


def test_names_select_in_their_order_and_once(guests: list[ConformanceGuest]) -> None:
    assert [g.name for g in conform.select(guests, ["fpu", "cpuid", "fpu"])] == ["fpu", "cpuid"]
    with pytest.raises(BuildError, match="no such conformance guest; found nosuch"):
        conform.select(guests, ["fpu", "nosuch"])


@pytest.mark.parametrize(
    ("code", "verdict", "told"),
    [
        (UD2, Verdict.CRASH, "Xen destroys"),
        (IDLE, Verdict.TIMEOUT, "idle"),
        (SPIN, Verdict.TIMEOUT, "wall time"),
    ],
)
def test_guests_that_cannot_say_it(code: bytes, verdict: Verdict, told: str, tmp_path: Path) -> None:
    path = tmp_path / "bad-32.elf"
    path.write_bytes(kernel(code))
    (guest,) = conform.in_folder(tmp_path)
    r = conform.run(guest, timeout=0.5)
    assert r.verdict is verdict
    assert told in r.messages[-1]


@pytest.mark.parametrize(
    ("text", "verdict", "messages"),
    [
        ("--- x\nTest result: SUCCESS\n", Verdict.SUCCESS, ()),
        ("Skip: no NX\nTest result: SKIP\n", Verdict.SKIP, ("Skip: no NX",)),
        ("Fail: a\nok\nFail: b\nTest result: FAILURE\n", Verdict.FAILURE, ("Fail: a", "Fail: b")),
        ("Error: cannot\nTest result: ERROR\n", Verdict.ERROR, ("Error: cannot",)),
        ("nothing said\n", Verdict.ERROR, ("the guest printed 0 results",)),
        ("Test result: SUCCESS\n" * 2, Verdict.ERROR, ("the guest printed 2 results",)),
        (" Test result: SUCCESS\n", Verdict.ERROR, ("the guest printed 0 results",)),
    ],
)
def test_judging_what_a_guest_printed(text: str, verdict: Verdict, messages: tuple[str, ...]) -> None:
    assert conform.judge(text, Outcome("poweroff")) == (verdict, messages)


def test_a_crash_after_the_result_is_a_crash() -> None:
    verdict, messages = conform.judge("Test result: SUCCESS\n", Outcome("crashed", "vec 6"))
    assert verdict is Verdict.CRASH
    assert messages == ("the guest did what Xen destroys a domain for: vec 6",)


@pytest.mark.parametrize(
    ("reason", "verdict"),
    [
        ("crashed", Verdict.SUCCESS),
        ("poweroff", Verdict.FAILURE),
        ("watchdog", Verdict.FAILURE),
        ("idle", Verdict.TIMEOUT),
    ],
)
def test_an_end_that_was_announced(reason: str, verdict: Verdict) -> None:
    got, messages = conform.judge("1 checks\nExpected end: crashed\n", Outcome(reason))
    assert got is verdict
    if verdict is Verdict.FAILURE:
        assert messages == (f"crashed was the end expected: {Outcome(reason)}",)


@pytest.mark.parametrize(
    ("said", "reason", "verdict"),
    [
        ("Expected end: crashed\n", "crashed", Verdict.SUCCESS),
        ("Expected end: reboot\n", "reboot", Verdict.SUCCESS),
        ("Expected end: reboot\n", "crashed", Verdict.FAILURE),
        ("Expected end: crashed\n", "poweroff", Verdict.FAILURE),
        ("Fail: a\nExpected end: crashed\n", "crashed", Verdict.FAILURE),
        ("Expected end: crashed\nError: came back\nTest result: ERROR\n", "poweroff", Verdict.ERROR),
        ("Expected end: crashed\n" * 2, "crashed", Verdict.CRASH),
    ],
)
def test_an_expected_end_is_compared_with_the_end(said: str, reason: str, verdict: Verdict) -> None:
    assert conform.judge(said, Outcome(reason))[0] is verdict


def test_at_least_half_of_the_checks_are_of_what_is_refused(
    guests: list[ConformanceGuest], results: list[Result]
) -> None:
    checks, refusals = sum(r.checks for r in results), sum(r.refusals for r in results)
    assert checks > 1500
    assert refusals >= checks - refusals
    foot = conform_report.Table(guests, color=False).foot(results)
    assert f"{checks:,} checks: {checks - refusals:,} of what works, {refusals:,} of what is refused" in foot


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ([], 0),
        ([Verdict.SUCCESS, Verdict.SKIP], 0),
        ([Verdict.SUCCESS, Verdict.FAILURE], 1),
        ([Verdict.ERROR, Verdict.SKIP], 1),
        ([Verdict.TIMEOUT, Verdict.FAILURE], 4),
        ([Verdict.FAILURE, Verdict.TIMEOUT, Verdict.CRASH, Verdict.ERROR], 3),
    ],
)
def test_the_worst_decides_the_exit_code(verdicts: list[Verdict], code: int) -> None:
    assert conform.exit_code([result(verdict) for verdict in verdicts]) == code


def test_a_known_failure_fails_nothing() -> None:
    assert conform.exit_code([result(Verdict.FAILURE, known_gap="no such thing here")]) == 0


# --- formats ------------------------------------------------------------------------------------------------

ALL = [
    result(Verdict.SUCCESS),
    result(Verdict.SKIP, "Skip: why"),
    result(Verdict.FAILURE, "Fail: <a> & 'b'", "Fail: \x1b[31mc\0"),
    result(Verdict.ERROR, "Error: d"),
    result(Verdict.TIMEOUT, "time is up"),
    result(Verdict.CRASH, "crashed"),
    result(Verdict.FAILURE, "Fail: e", known_gap="known reason"),
]


def test_junit_as_junitparser_reads_it() -> None:
    report = junitparser.JUnitXml.fromstring(conform_report.as_junit(ALL).encode())
    assert (report.tests, report.failures, report.errors, report.skipped) == (7, 1, 3, 2)
    (suite,) = report
    kinds = [[type(entry).__name__ for entry in case.result] for case in suite]
    assert kinds == [[], ["Skipped"], ["Failure"], ["Error"], ["Error"], ["Error"], ["Skipped"]]
    cases = list(suite)
    assert cases[2].result[0].message == "Fail: <a> & 'b'"
    assert cases[2].result[0].text == "Fail: <a> & 'b'\nFail: \ufffd[31mc\ufffd"
    assert [case.result[0].type for case in cases[2:6]] == ["FAILURE", "ERROR", "TIMEOUT", "CRASH"]
    assert cases[6].result[0].message == "known reason"
    assert all(case.time == 0.25 for case in cases)
    assert report.time == 1.75


def test_json_keeps_its_schema() -> None:
    schema = json.loads(SCHEMA.read_text())
    assert schema == conform_report.ConformReport.model_json_schema(mode="serialization")
    document = json.loads(conform_report.as_json(ALL))
    jsonschema.validate(document, schema)
    assert document["exit_code"] == 3
    assert document["counts"] == {
        "SUCCESS": 1, "SKIP": 1, "ERROR": 1, "FAILURE": 2, "TIMEOUT": 1, "CRASH": 1,
    }  # fmt: skip
    assert [test["result"] for test in document["tests"]] == [r.verdict for r in ALL]
    assert document["tests"][6]["known_gap"] == "known reason"


def test_the_table_says_what_failed_and_what_was_known() -> None:
    table = conform_report.Table([ConformanceGuest("some", "Something", Path())], color=False)
    assert table.row(ALL[0]).split() == ["some", "SUCCESS", "12", "0.250", "Something"]
    assert table.row(ALL[6]).splitlines()[1:] == ["    Fail: e", "    known: known reason"]
    foot = table.foot(ALL)
    assert foot.startswith("7 guests: 1 SUCCESS, 1 SKIP, 1 ERROR, 2 FAILURE, 1 TIMEOUT, 1 CRASH (1 known);")
    assert "\x1b" not in table.head() + table.row(ALL[3]) + foot
    assert "\x1b[31mERROR" in conform_report.Table([], color=True).row(ALL[3])


# --- the command --------------------------------------------------------------------------------------------


def test_the_command_prints_a_table() -> None:
    done = command(*FAST)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert lines[0].split()[:3] == ["name", "result", "hypercalls"]
    assert [line.split()[:2] for line in lines[1:-2]] == [[name, "SUCCESS"] for name in FAST]
    assert lines[-2].startswith("3 guests: 3 SUCCESS; ")
    assert " checks: " in lines[-1]


@pytest.mark.parametrize("arguments", [("--format", "json"), ("--format", "junit")])
def test_the_command_prints_nothing_but_the_document(arguments: tuple[str, ...]) -> None:
    done = command("fpu", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    if "json" in arguments:
        assert [test["name"] for test in json.loads(done.stdout)["tests"]] == ["fpu"]
    else:
        assert junitparser.JUnitXml.fromstring(done.stdout.encode()).tests == 1


def test_the_list(guests: list[ConformanceGuest]) -> None:
    done = command("--list")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == [guest.name for guest in guests]
    assert all(guest.covers in done.stdout for guest in guests)


def test_a_guest_that_crashes_makes_exit_code_3(tmp_path: Path) -> None:
    (tmp_path / "bad-32.elf").write_bytes(kernel(UD2))
    done = command("--from", str(tmp_path))
    assert done.returncode == 3
    assert done.stdout.splitlines()[1].split()[:2] == ["bad", "CRASH"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nosuch",), "no such conformance guest; found nosuch"),
        (("--from", "docs"), "docs: no conformance guests here"),
        (("fpu", "--timeout", "0"), "a limit in seconds"),
    ],
)
def test_what_cannot_be_used_is_one_line(arguments: tuple[str, ...], told: str) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert told in done.stderr


# --- the archive --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"", b"not an archive", b"\xfd7zXZ\0half"])
def test_a_damaged_archive_is_named(damage: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "conformance.tar.xz"
    broken.write_bytes(damage)
    monkeypatch.setattr(conform, "ARCHIVE", broken)
    with pytest.raises(BuildError, match="not the archive of conformance guests"), conform.bundled():
        pass


def test_an_archive_cannot_write_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "conformance.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        member = tarfile.TarInfo("../escaped")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    monkeypatch.setattr(conform, "ARCHIVE", archive)
    with pytest.raises(BuildError), conform.bundled():
        pass
    assert not (tmp_path.parent / "escaped").exists()


@pytest.fixture(scope="module")
def bundler() -> ModuleType:
    pytest.importorskip("ziglang")
    return load(ROOT / "samples" / "bundle.py")


def test_the_archive_is_what_its_sources_give(bundler: ModuleType, tmp_path: Path) -> None:
    fresh = bundler.contents()
    bundled = bundler.read(conform.ARCHIVE)
    assert [name for name in fresh.keys() | bundled.keys() if fresh.get(name) != bundled.get(name)] == []
    assert conform.ARCHIVE.stat().st_size < 200_000
    bundler.write(fresh, tmp_path / "again.tar.xz")
    assert bundler.read(tmp_path / "again.tar.xz") == fresh


def test_every_source_has_a_guest_and_a_title(guests: list[ConformanceGuest]) -> None:
    sources = {path.stem for path in (ROOT / "samples" / "conformance").glob("*.c")} - {"conform"}
    assert {guest.name for guest in guests} == sources | {f"{name}-64" for name in sources}
    assert all(guest.kernel.name.endswith(f"-{64 if '-64' in guest.name else 32}.elf") for guest in guests)


def test_guests_without_titles_run_too(guests: list[ConformanceGuest], tmp_path: Path) -> None:
    shutil.copy(guests[0].kernel, tmp_path)
    assert conform.in_folder(tmp_path) == [
        ConformanceGuest(guests[0].name, "", tmp_path / guests[0].kernel.name)
    ]
