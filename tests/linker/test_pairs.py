"""Layout defects that bit real projects, each with its mended twin, linked with GNU ld and lld.

The harm is measured in what the linkers wrote, so that a pair which a newer linker mends does not stay here
unnoticed. The bad script must be found from its text alone, the good one must be silent.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from linker.elffile import SHT_NOBITS, Elf, read_elf
from linker.findings import Context
from linker.lint import Inputs
from linker.lint import run as lint
from linker.mapfile import read_map
from linker.outline import Outline
from linker.parser import parse
from linker.session import load_script
from linker.settings import DEFAULTS
from linker.source import read_script
from tests.linker.examples import rule_of
from tests.linker.linking import run
from tests.needs import Tool

DATA = Path(__file__).resolve().parent / "data"
PAIRS = DATA / "pairs"
NAMES = sorted(path.name.removesuffix(".bad.ld") for path in PAIRS.glob("*.bad.ld"))


def symbols(elf: Elf) -> dict[str, int]:
    return {symbol.name: symbol.address for symbol in elf.symbols()}


def load_of(elf: Elf, name: str) -> int:
    address = elf.load_address(elf.by_name[name])
    assert address is not None
    return address


def end_of(elf: Elf, *names: str) -> int:
    return max(elf.by_name[name].end for name in names if name in elf.by_name)


def distance(elf: Elf, start: str, stop: str) -> int:
    found = symbols(elf)
    return found[stop] - found[start]


def tls_too_small(elf: Elf) -> bool:
    # The offset of the last thread-local byte from the beginning of the block.
    tdata, tbss = elf.by_name[".tdata"], elf.by_name[".tbss"]
    return symbols(elf)["__tls_size"] < tbss.end - tdata.address


# What went wrong in the project, as a fact of the linked file.
HARM: dict[str, Callable[[Elf], bool]] = {
    "01-init-array-keep": lambda elf: distance(elf, "ts", "te") == 0,
    "02-orphan-bss-star": lambda elf: symbols(elf)["statics"] >= symbols(elf)["_end"],
    "04-eronly-unaligned": lambda elf: symbols(elf)["_eronly"] != load_of(elf, ".data"),
    "05-data-lma-odd": lambda elf: load_of(elf, ".data") % 4 != 0,
    "05b-data-lma-odd-at-region": lambda elf: load_of(elf, ".data") % 4 != 0,
    "07-shadowed-pattern": lambda elf: distance(elf, "s_safemem", "e_safemem") == 0,
    "10-tls-size": tls_too_small,
    "12-bss-before-data": lambda elf: sum(segment.file_size for segment in elf.loads) > 0x100000,
    "14-bss-end-unaligned": lambda elf: symbols(elf)["__bss_end__"] % 4 != 0,
    "15-orphan-first": lambda elf: min(s.address for s in elf.loads) != symbols(elf)["_start"],
    "17-data-no-at": lambda elf: load_of(elf, ".data") >= 0x20000000,
    "19-noload-data": lambda elf: elf.by_name[".cfg"].type == SHT_NOBITS,
    "20-start-symbol-outside": lambda elf: symbols(elf)["__bss_start"] != elf.by_name[".bss"].address,
    "21-tail-small-align": lambda elf: symbols(elf)["secret"] >> 12 == symbols(elf)["boot_pgd"] >> 12,
}
# GNU ld puts the orphan behind the code: only lld puts it before the entry.
HARMLESS = {("15-orphan-first", "gnu")}
RULES = {
    "01-init-array-keep": "not-kept",
    "02-orphan-bss-star": "pattern-variants",
    "04-eronly-unaligned": "copy-source",
    "05-data-lma-odd": "load-address-odd",
    "05b-data-lma-odd-at-region": "load-address-odd",
    "07-shadowed-pattern": "shadowed-pattern",
    "10-tls-size": "tls-size",
    "12-bss-before-data": "bss-before-data",
    "14-bss-end-unaligned": "range-end-unaligned",
    "15-orphan-first": "rodata-before-entry",
    "17-data-no-at": "data-without-load-address",
    "19-noload-data": "noload-contents",
    "20-start-symbol-outside": "start-symbol-outside",
    "21-tail-small-align": "page-aligned-tail",
}


Make = Callable[..., tuple[str, Path, Path, Path]]


@pytest.fixture(params=["gnu", "lld"])
def linked(request: pytest.FixtureRequest, tool: Tool, tmp_path: Path) -> Make:
    """`linked(name, variant)`: (which linker, script, map, ELF)."""
    which = request.param
    linker = tool("ld.bfd", "ld") if which == "gnu" else tool("ld.lld", "ld.lld-14")

    def make(name: str, variant: str, script: Path | None = None) -> tuple[str, Path, Path, Path]:
        script = script or PAIRS / f"{name}.{variant}.ld"
        object_file, elf, link_map = (tmp_path / f"{variant}{suffix}" for suffix in (".o", ".elf", ".map"))
        run(tool("as"), "--64", "-o", object_file, PAIRS / f"{name}.s")
        options = ["--gc-sections"] if name.startswith("01-") else []
        run(
            linker, "-m", "elf_x86_64", "-z", "max-page-size=0x1000", *options, "-T", script, object_file,
            "-o", elf, "-Map", link_map,
        )  # fmt: skip
        return which, script, link_map, elf

    return make


def found(inputs: Inputs) -> set[str]:
    return {diagnostic.rule for diagnostic in lint(inputs).diagnostics}


def test_every_pair_has_a_harm_and_a_rule() -> None:
    assert set(NAMES) == set(HARM) == set(RULES)
    assert len(NAMES) >= 14


@pytest.mark.parametrize("name", NAMES)
def test_the_harm_is_real(linked: Make, name: str) -> None:
    which, *_, elf = linked(name, "bad")
    assert HARM[name](read_elf(str(elf))) is ((name, which) not in HARMLESS)
    *_, elf = linked(name, "good")
    assert not HARM[name](read_elf(str(elf)))


@pytest.mark.parametrize("name", NAMES)
def test_the_script_alone_tells(name: str) -> None:
    assert RULES[name] in found(Inputs(load_script(str(PAIRS / f"{name}.bad.ld"))))
    assert found(Inputs(load_script(str(PAIRS / f"{name}.good.ld")))) == set()


@pytest.mark.parametrize("name", NAMES)
def test_map_and_elf_say_nothing_of_the_good_one(linked: Make, name: str) -> None:
    _, script, link_map, elf = linked(name, "good")
    severe = [
        diagnostic
        for diagnostic in lint(
            Inputs(read_script(str(script)), read_map(str(link_map)), read_elf(str(elf)))
        ).diagnostics
        if diagnostic.severity != "note"
    ]
    assert severe == []


@pytest.mark.parametrize("path", sorted((DATA / "quiet").glob("*.ld")), ids=lambda path: path.stem)
def test_what_only_looks_like_a_defect_is_left_alone(path: Path) -> None:
    assert found(Inputs(load_script(str(path)))) == set()


# Pairs whose repair is mechanical; the others need a decision (what to move where, what to give a pattern).
MECHANICAL = sorted(
    set(NAMES) - {"07-shadowed-pattern", "12-bss-before-data", "15-orphan-first", "19-noload-data"}
)


@pytest.mark.parametrize("name", MECHANICAL)
def test_the_edits_end_the_harm(linked: Make, tmp_path: Path, name: str) -> None:
    text = (PAIRS / f"{name}.bad.ld").read_text()
    rule = rule_of(RULES[name])
    edits = {edit for hit in rule.check(Context(DEFAULTS, Outline(parse(text)))) for edit in hit.fix}
    assert edits
    for edit in sorted(edits, key=lambda edit: edit.span, reverse=True):
        text = text[: edit.span.start] + edit.text + text[edit.span.end :]
    mended = tmp_path / "mended.ld"
    mended.write_text(text)
    assert RULES[name] not in found(Inputs(load_script(str(mended))))
    *_, elf = linked(name, "mended", mended)
    assert not HARM[name](read_elf(str(elf)))
