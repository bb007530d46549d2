"""Compares what the linter computes with what GNU ld and lld do, on generated scripts.

    python -m tests.linker.differential [--count 10000] [--seed 0] [--linker gnu|lld|new-lld|all]

Each script is linked with `--orphan-handling=warn --print-memory-usage -Map` (lld 14 has no memory usage; the
newer one in the wheel of ziglang has). Compared are which pattern took which input, the orphans, addresses
and load addresses of the sections, the symbols, and how full the regions are. What is not equal has to be
unknown, with a reason.
"""

from __future__ import annotations

import argparse
import collections
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import ziglang

from linker.contents import contents_of, input_files, take, target_of
from linker.elffile import SHF_TLS, Elf, read_elf
from linker.evaluate import Known, Unknown, Value
from linker.layout import simulate
from linker.layout_values import Contents, Layout, Piece, Section
from linker.lld_layout import lld_contents_of, simulate_lld
from linker.mapfile import LinkMap, read_map
from linker.outline import Outline
from linker.parser import parse
from tests.linker.generated import Script, make_pool
from tests.needs import find_tool

_ORPHAN = re.compile(r"orphan section `?'?([^'`]+)'? from `?'?([^'`]+?)'? being placed in section")
_LLD_ORPHAN = re.compile(r"warning: (\S+?):\((\S+)\) is being placed in '")
_USAGE = re.compile(r"^\s*(\S+):\s+(\d+) (B|KB|MB|GB)", re.MULTILINE)
_UNITS = {"B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


class Linker(NamedTuple):
    """A linker: how it is called, whether it is lld, whether it prints how full regions are."""

    words: tuple[str, ...]
    lld: bool
    usage: bool


LINKERS = {"gnu": ("ld.bfd", "ld"), "lld": ("ld.lld", "ld.lld-14"), "new-lld": ()}


@lru_cache
def linker_of(which: str) -> Linker:
    """Return GNU ld or lld of this machine, or the newer lld that comes with ziglang."""
    names = LINKERS[which]
    words = (find_tool(*names),) if names else (str(Path(ziglang.__file__).with_name("zig")), "ld.lld")
    said = subprocess.run([*words, "--help"], capture_output=True, text=True, check=True).stdout
    return Linker(words, "lld" in which, "--print-memory-usage" in said)


class Outcome(NamedTuple):
    """What came of one script: `filled` of the `compared` are fills of regions, `unknown` counts reasons."""

    linked: bool
    compared: int
    filled: int
    differences: list[str]
    unknown: collections.Counter[str]


def link(linker: Linker, directory: Path, script: Script, pool: list[Path]) -> tuple[Path, Path, str] | None:
    """Link the script with its objects; None when the linker refuses it."""
    objects = [pool[number] for number in script.inputs if number not in script.added]
    path, elf, link_map = (directory / f"case{suffix}" for suffix in (".ld", ".elf", ".map"))
    path.write_text(script.text_with(pool))
    elf.unlink(missing_ok=True)
    words = [
        *linker.words, "-m", "elf_x86_64", "-z", "max-page-size=4096", "--build-id=none",
        "--no-check-sections", "--orphan-handling=warn", *(("--print-memory-usage",) if linker.usage else ()),
        "-z", "relro" if script.relro else "norelro", "-T", path, "-o", elf, "-Map", link_map, *objects,
    ]  # fmt: skip
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode or not elf.exists():
        return None
    return elf, link_map, done.stdout + done.stderr


def compare(linker: Linker, directory: Path, seed: int, pool: list[Path], files: dict[str, Elf]) -> Outcome:
    """Link the script of this seed and compare."""
    lld = linker.lld
    script = Script(seed, portable=lld)
    made = link(linker, directory, script, pool)
    unknown: collections.Counter[str] = collections.Counter()
    if made is None:
        return Outcome(False, 0, 0, [], unknown)
    elf_path, map_path, said = made
    elf, link_map = read_elf(str(elf_path)), read_map(str(map_path))
    outline = Outline(parse(script.text_with(pool)))
    differences: list[str] = []
    behind = [str(pool[number]) for number in script.inputs if number not in script.added]
    used = {path: files[path] for path in (*input_files(outline), *behind)}
    taking = take(outline, used)
    differences += _orphans(taking.orphans, used, said, lld)
    target = target_of(elf)._replace(relro=script.relro)
    if lld:
        contents, orphans = lld_contents_of(link_map, outline, elf)
        differences += _members(taking.by_output, link_map, outline)
        layout = simulate_lld(outline, contents, target, orphans)
    else:
        contents, orphans = contents_of(link_map, outline, elf, used)
        differences += _takings(taking.by_output, contents, outline)
        layout = simulate(outline, contents, target, orphans)
    judge = _Judge(differences, unknown)
    _sections(judge, layout, elf, link_map, lld)
    names = elf.find(layout.symbols)
    for name, value in layout.symbols.items():
        if name in names:
            judge.hold(name, value, names[name].address)
    usage = list(_usage(said))
    for name, theirs, unit in usage:
        filled = layout.used.get(name, Unknown("no such region"))
        if isinstance(filled, Known) and filled.value // unit * unit == theirs:
            filled = Known(theirs)  # the linker rounds
        judge.hold(f"region {name}", filled, theirs)
    return Outcome(True, judge.compared, len(usage), differences, unknown)


class _Judge:
    """Counts what is compared, and keeps what differs or is unknown."""

    def __init__(self, differences: list[str], unknown: collections.Counter[str]) -> None:
        self.differences, self.unknown, self.compared = differences, unknown, 0

    def hold(self, what: str, ours: Value, theirs: int) -> None:
        self.compared += 1
        if isinstance(ours, Unknown):
            self.unknown[ours.reason] += 1
        elif ours.value != theirs:
            self.differences.append(f"{what}: {ours.value:#x}, the linker has {theirs:#x}")


def _sections(judge: _Judge, layout: Layout, elf: Elf, link_map: LinkMap, lld: bool) -> None:
    loads = {output.name: output.load_address for output in link_map.outputs if output.size}
    for section in layout.sections:
        real = elf.by_name.get(section.name)
        if real is None or not real.allocated:
            continue
        judge.hold(f"{section.name} address", section.address, real.address)
        judge.hold(f"{section.name} size", _size(section), real.size)
        # What the map says: segments may overlap. GNU ld's map has another one than its segments for what is
        # thread-local, and what has no bytes is not loaded.
        if section.name in loads and real.occupies and (lld or not real.flags & SHF_TLS):
            judge.hold(f"{section.name} load address", section.load_address, loads[section.name])


def _size(section: Section) -> Value:
    if section.size is not None:
        return Known(section.size)
    return section.address if isinstance(section.address, Unknown) else Unknown("what is in it moves '.'")


def _usage(said: str) -> Iterator[tuple[str, int, int]]:
    for match in _USAGE.finditer(said):
        unit = _UNITS[match[3]]
        yield match[1], int(match[2]) * unit, unit


def _orphans(pieces: Iterable[Piece], files: dict[str, Elf], said: str, lld: bool) -> list[str]:
    ours = {(piece.file, piece.name) for piece in pieces if piece.size and piece.name != "COMMON"}
    pattern = _LLD_ORPHAN if lld else _ORPHAN
    theirs = {(m[1], m[2]) if lld else (m[2], m[1]) for m in pattern.finditer(said)}
    # What ld makes itself (.iplt) it attributes to the first object.
    theirs = {
        (file, name)
        for file, name in theirs
        if file in files and name in files[file].by_name and files[file].by_name[name].size
    }
    if ours == theirs:
        return []
    return [f"orphans: only here {sorted(ours - theirs)}, only the linker {sorted(theirs - ours)}"]


def _takings(
    ours: Mapping[str, tuple[tuple[Piece, ...], ...]], contents: Mapping[str, Contents], outline: Outline
) -> list[str]:
    out = []
    given = collections.Counter(placed.section.name for placed in outline.sections)
    for name, groups in ours.items():
        if given[name] > 1:
            continue
        if name not in contents or name == "/DISCARD/" or contents[name].twice:
            continue
        theirs = contents[name].by_spec
        mine = [[(p.file, p.name) for p in group if p.size] for group in groups]
        real = [[(p.file, p.name) for p in group if p.size] for group in theirs]
        if mine != real[: len(mine)]:
            out.append(f"{name} takes {mine}, the linker {real}")
    return out


def _members(
    ours: Mapping[str, tuple[tuple[Piece, ...], ...]], link_map: LinkMap, outline: Outline
) -> list[str]:
    """Compare which inputs are in the output sections of the script, in order, with lld's map."""
    given = collections.Counter(placed.section.name for placed in outline.sections)
    out = []
    for output in link_map.outputs:
        if output.name not in ours or given[output.name] > 1:
            continue
        named = [(p.file, p.name) for group in ours[output.name] for p in group if p.size]
        real = [(item.file, item.name) for item in output.inputs if item.size]
        # Orphans of the same name follow, common symbols among them come first.
        if [item for item in real if item in named] != named:
            out.append(f"{output.name} takes {named}, the linker {real}")
    return out


def main(words: list[str]) -> int:
    """Run many and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--linker", choices=(*LINKERS, "all"), default="all")
    parser.add_argument("--show", type=int, default=5)
    options = parser.parse_args(words)
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        pool = make_pool(directory, find_tool("as"))
        files = {str(path): read_elf(str(path)) for path in pool}
        for which in LINKERS if options.linker == "all" else (options.linker,):
            linker = linker_of(which)
            linked = compared = filled = 0
            unknown: collections.Counter[str] = collections.Counter()
            for seed in range(options.seed, options.seed + options.count):
                outcome = compare(linker, directory, seed, pool, files)
                linked += outcome.linked
                compared += outcome.compared
                filled += outcome.filled
                unknown += outcome.unknown
                if outcome.differences:
                    failed += 1
                    if failed <= options.show:
                        print(f"{which} seed {seed}:\n" + Script(seed, portable=linker.lld).text)
                        print("\n".join("  " + line for line in outcome.differences))
            print(
                f"{which}: {options.count} scripts, {linked} linked, {compared} values compared "
                f"({filled} fills of regions), {failed} differ"
            )
            for reason, count in unknown.most_common():
                print(f"  {count} unknown: {reason}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
