"""`domainbuilder plan` and `domainbuilder build`, as commands."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from domainbuilder.build.image import is_image, load_image
from domainbuilder.plan.domain_plan import plan
from domainbuilder.plan.findings import survey
from domainbuilder.plan.regions import human, regions, tables
from domainbuilder.plan.rules import RULES
from domainbuilder.reports.plan_report import PlanReport, plan_report
from tests.domainbuilder.build.test_image import KINDS
from tests.domainbuilder.elfwriter import RX, xen_kernel
from tests.domainbuilder.libxenguest import Reference

DOCS = Path(__file__).resolve().parents[3] / "docs"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "domainbuilder", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "kernel"
    path.write_bytes(xen_kernel(HYPERCALL_PAGE=0xC0101000).build())
    return path


def of_kind(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "kernel"
    path.write_bytes(xen_kernel(**KINDS[kind]).build())
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_regions_are_every_frame_once(tmp_path: Path, kind: str) -> None:
    planned = plan(of_kind(tmp_path, kind), memory_mib=16, ramdisk=bytes(50_000))
    at = 0
    for region in regions(planned):
        assert region.pfn == at
        assert region.pages
        at += region.pages
    assert at == planned.nr_pages
    assert sum(rung.tables for rung in tables(planned)) == sum(m.area.pgtables for m in planned.maps)


def test_text_says_what_xl_users_look_for(kernel: Path) -> None:
    done = run("plan", kernel, "-m", 16, "--cmdline", "hello=world")
    assert (done.returncode, done.stderr) == (0, "")
    rows = dict(re.findall(r"^  (\w[\w ]*?)  +(0x[0-9a-f]+) ", done.stdout, re.M))
    assert rows["kernel"] == "0xc0100000"
    assert rows["phys2mach"] == "0xc0103000"
    assert rows["start info"] == "0xc0107000"
    assert 'cmd_line          "hello=world"' in done.stdout
    assert "hypercall page: pfn 0x101" in done.stdout
    assert re.search(r"page tables +0xc010a000 .* read-only$", done.stdout, re.M)
    assert "\x1b" not in done.stdout
    assert not [line for line in done.stdout.splitlines() if line != line.rstrip()]


def test_json_keeps_its_schema(tmp_path: Path) -> None:
    schema = json.loads((DOCS / "plan.schema.json").read_text())
    assert schema == PlanReport.model_json_schema(mode="serialization")
    for kind in KINDS:
        done = run("plan", of_kind(tmp_path, kind), "--format", "json", "--cmdline", "x\x01\xff")
        assert (done.returncode, done.stderr) == (0, "")
        jsonschema.validate(json.loads(done.stdout), schema)


def test_json_has_libxenguests_figures(reference: Reference) -> None:
    """The report on a plan made of the reference's own parms shows the reference's figures."""
    from domainbuilder.plan.domain_plan import lay_out

    planned = lay_out(
        reference.parms,
        reference.nr_pages,
        kernel="k",
        module_size=reference.module_size,
        cmdline=reference.cmdline.encode(),
    )
    report = json.loads(plan_report(planned, survey(planned)).model_dump_json())
    facts, alloc = reference.facts["start_info"], reference.facts["alloc"]
    info = report["start_info"]
    for name in ("pt_base", "mfn_list", "mod_start", "first_p2m_pfn", "flags"):
        assert int(info[name], 16) == facts[name], name
    for name in ("nr_pages", "nr_pt_frames", "mod_len", "nr_p2m_frames", "magic"):
        assert info[name] == facts[name], name
    for name in ("virt_alloc_end", "virt_pgtab_end", "pfn_alloc_end"):
        assert int(report[name], 16) == alloc[name], name
    maps = [(int(one["vstart"], 16), int(one["vend"], 16)) for one in report["mappings"]]
    theirs = reference.facts["maps"]
    assert min(start for start, _ in maps) == theirs[0]["va_start"]
    assert max(end for _, end in maps) == theirs[-1]["va_end"]


def test_svg_is_a_picture(kernel: Path) -> None:
    done = run("plan", kernel, "--format", "svg")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("<svg ")
    assert done.stdout.endswith("</svg>\n")


def test_check_fails_on_an_error_and_on_nothing_else(tmp_path: Path, kernel: Path) -> None:
    assert run("plan", kernel, "--check").returncode == 0
    (tmp_path / "bad").write_bytes(xen_kernel(HYPERCALL_PAGE=0xC0101800).build())
    for form in ("text", "json", "svg"):
        done = run("plan", tmp_path / "bad", "--check", "--format", form)
        assert done.returncode == 1
        assert "DBP012" in done.stdout
    assert run("plan", tmp_path / "bad").returncode == 0


@pytest.mark.parametrize(
    ("changes", "options", "slug"),
    [
        ({"PAE_MODE": "no"}, {}, "guest-type-unsupported"),
        (
            {"VIRT_BASE": 0x900000000000, "ENTRY": 0x900000100000, "PADDR_OFFSET": 0, "elf_class": 64},
            {},
            "virt-base-not-canonical",
        ),
        (
            {"VIRT_BASE": 0xF5700000, "ENTRY": 0xF5800000, "PADDR_OFFSET": 0},
            {},
            "mapping-in-hypervisor-range",
        ),
        ({"HYPERCALL_PAGE": 0xC0110000}, {}, "hypercall-page-outside-kernel"),
        ({}, {"cmdline": "x" * 1024}, "command-line-truncated"),
        ({}, {"memory_mib": 4, "cmdline": "x" * 1023}, "little-memory-left"),
    ],
)
def test_findings_about_the_plan(
    tmp_path: Path, changes: dict[str, object], options: dict[str, object], slug: str
) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(xen_kernel(**changes).build())  # type: ignore[arg-type]
    found = {finding.rule.slug for finding in plan(path, **{"memory_mib": 64, **options}).findings}  # type: ignore[arg-type]
    assert found == {slug, "page-layout-unchecked"}


def test_every_rule_is_documented() -> None:
    text = (DOCS / "builder.md").read_text()
    documented = dict(re.findall(r"^\| (DBP\d+) \| `([\w-]+)` \|", text, re.M))
    assert documented == {rule.id: rule.slug for rule in RULES.values()}


def test_every_field_of_the_report_is_documented() -> None:
    text = (DOCS / "builder.md").read_text()
    for name in PlanReport.model_fields:
        assert f"`{name}`" in text, name


def test_build_writes_a_domain_that_loads(tmp_path: Path, kernel: Path) -> None:
    (tmp_path / "initrd").write_bytes(b"content" * 1000)
    out = tmp_path / "domain"
    done = run("build", kernel, "-o", out, "-m", 16, "--ramdisk", tmp_path / "initrd", "--cmdline", "a b")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{out}: xen-3.0-x86_32p, 16 MB")
    assert is_image(out)
    image = load_image(out)
    assert image.start_info.cmd_line == b"a b"
    assert image.memory.read(image.plan.layout["module0"].pfn, 7000) == b"content" * 1000


BAD = {
    "missing kernel": (["missing"], "No such file"),
    "a directory": (["."], "not a regular file"),
    "empty": (["empty"], "zero length file"),
    "garbage": (["garbage"], "no ELF, gzip or bzImage"),
    "no notes": (["plain"], "no loader found"),
    "truncated": (["truncated"], "cut short"),
    "missing ramdisk": (
        ["kernel", "--ramdisk", "missing"],
        "missing: xc_dom_malloc_filemap: failed to open file",
    ),
    "empty ramdisk": (["kernel", "--ramdisk", "empty"], "empty: xc_dom_malloc_filemap: zero length file"),
    "ramdisk too large": (["kernel", "-m", "64", "--ramdisk", "large"], "segment module0 too large"),
    "memory too small": (["kernel", "-m", "1"], "kernel: xc_dom_chk_alloc_pages: segment kernel too large"),
    "mapping too large": (["kernel", "-m", "2"], "not enough memory for initial mapping (0x3ff > 0x200)"),
    "no memory": (["kernel", "-m", "0"], "failed to allocate 0x0 pages"),
    "negative memory": (["kernel", "-m", "-5"], "failed to allocate -0x500 pages"),
    "endless memory": (["kernel", "-m", "99999999999999999999"], "failed to allocate"),
    "overlapping segments": (["overlapping"], "overlap in physical memory"),
    "huge segment": (["huge"], "segment kernel too large"),
    "segments far apart": (["apart"], "segment kernel too large"),
    "not a number": (["kernel", "-m", "many"], "not a valid int"),
}


def bad_files(tmp_path: Path) -> None:
    good = xen_kernel().build()
    (tmp_path / "kernel").write_bytes(good)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "garbage").write_bytes(b"not a kernel" * 100)
    (tmp_path / "plain").write_bytes(_without_notes())
    (tmp_path / "truncated").write_bytes(good[:3000])
    (tmp_path / "large").write_bytes(b"x" * (80 << 20))
    overlapping = xen_kernel()
    overlapping.load(b"y" * 4096, paddr=0x102000, memsz=0x3000, flags=RX)
    (tmp_path / "overlapping").write_bytes(overlapping.build())
    (tmp_path / "huge").write_bytes(xen_kernel().load(b"z", paddr=0x103000, memsz=0x80000000).build())
    (tmp_path / "apart").write_bytes(xen_kernel().load(b"z" * 64, paddr=0x3F000000, flags=RX).build())


def _without_notes() -> bytes:
    writer = xen_kernel()
    writer.segments.pop()
    return writer.build()


@pytest.mark.parametrize("command", ["plan", "build"])
def test_bad_input_ends_in_one_line_and_exit_code_2(tmp_path: Path, command: str) -> None:
    bad_files(tmp_path)
    for name, (arguments, reason) in BAD.items():
        files = [
            one if one[0] == "-" or one.isdigit() or one == "many" else tmp_path / one for one in arguments
        ]
        files += ["-o", tmp_path / "out"] if command == "build" else []
        done = run(command, *files)
        assert done.returncode == 2, name
        assert reason in " ".join(done.stderr.split()), name
        assert done.stdout == "", name
        assert "Traceback" not in done.stderr, name
        if "Usage" not in done.stderr:
            assert len(done.stderr.splitlines()) == 1, name
            assert done.stderr.startswith("domainbuilder: error: "), name
        assert not (tmp_path / "out").exists(), name


def test_build_refuses_to_replace_what_is_no_file(tmp_path: Path, kernel: Path) -> None:
    for target in ("/dev/null", tmp_path, tmp_path / "no" / "such" / "place"):
        done = run("build", kernel, "-o", target)
        assert done.returncode == 2
        assert "cannot be written" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert Path("/dev/null").is_char_device()


def test_names_that_are_no_text_do_no_harm(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\x1b[31m\xff\n"
    Path(os.fsdecode(path)).write_bytes(xen_kernel().build())
    for form in ("text", "json", "svg"):
        done = subprocess.run(
            [sys.executable, "-m", "domainbuilder", "plan", path, "--format", form],
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"\x1b" not in done.stdout
        done.stdout.decode()


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (4096, "4 kB"),
        (62116, "60.7 kB"),
        (1 << 20, "1 MB"),
        (187 << 20, "187 MB"),
        (8 << 40, "8 TB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert human(size) == text
