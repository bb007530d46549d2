"""The files and functions of Xen that hvcore's docstrings name exist in Xen 4.17.

tests/data/xen-4.17-names.txt has, for each file, those of the names that it defines, or calls where a macro
or C itself defines them. When a docstring names something new, make it anew, from a checkout of stable-4.17:

    python -m tests.test_xen_names ~/xen > tests/data/xen-4.17-names.txt
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePath

import pytest

from domainbuilder.tour.lessons import BEFORE, COMMANDS, HYPERCALLS, KINDS, Lesson

ROOT = Path(__file__).resolve().parent.parent
NAMES = ROOT / "tests" / "data" / "xen-4.17-names.txt"
PAGE = ROOT / "docs" / "how-a-guest-runs.md"
FOLDERS = (  # of Xen's tree: what hvcore and the page name lies here
    "xen/arch/x86", "xen/common", "xen/drivers", "xen/include",
    "tools/console/daemon", "tools/libs/guest", "tools/libs/light", "tools/xenstore",
)  # fmt: skip
FILE = re.compile(r"(?<![\w/.-])[\w.-]+(?:/[\w.-]+)*\.[chS]\b")
FUNCTION = re.compile(r"(?<![\w.])(\w+)\(\)")
# Where C or assembly defines a name: at the head of a line, as a macro, or as a label.
DEFINITION = re.compile(
    r"^(?:[A-Za-z_][\w *]*[ *])?(\w+)\([^;\n]*$"
    r"|^#\s*define\s+(\w+)"
    r"|^(?:ENTRY|FUNC|GLOBAL)\((\w+)\)"
    r"|^(\w+):",
    re.MULTILINE,
)
FOLLOWERS = ("pv", "common", "backends", "debug")
FOLLOW_NO_FILE = {
    "hvcore/backends/qcow2.py": "the format is QEMU's",
    "hvcore/backends/qcow2_header.py": "the format is QEMU's",
    "hvcore/backends/disk_use.py": "what a disk takes this host is no part of Xen",
    "hvcore/backends/block_image.py": "the Linux of domain 0 has the files of disks",
    "hvcore/backends/net_frame.py": "the Linux of domain 0 has checksums and segments",
    "hvcore/backends/net_outside.py": "what is outside is no part of a host",
    "hvcore/backends/net_switch.py": "the Linux of domain 0 has the bridge",
    "hvcore/common/grant_slices.py": "it shortens what other modules do for the Linux of domain 0",
    "hvcore/debug/pcapng.py": "the format is not Xen's",
    "hvcore/debug/condition.py": "conditions of breakpoints are ours",
    "hvcore/debug/debugger.py": "Xen has no debugger of its guests' code",
    "hvcore/debug/points.py": "what a debugger is told is ours",
    "hvcore/debug/poke.py": "what a debugger writes is ours",
    "hvcore/debug/registers.py": "names of registers are the debugger's",
    "hvcore/debug/timeline.py": "Xen does not go back in time",
    "hvcore/debug/searches.py": "what happened last in a run is ours to find",
    "hvcore/debug/event_log.py": "what lanes write down is ours",
    "hvcore/debug/events.py": "what a listener is told is ours",
    "hvcore/debug/periodic.py": "a timer of the holder's is ours",
    "hvcore/debug/taps.py": "how a listener is told is ours",
    "hvcore/pv/audit.py": "Xen counts and does not recount",
    "hvcore/pv/engine_faults.py": "it makes up for the engine, by the processor's manuals",
    "hvcore/pv/lanes.py": "it does what other modules do, in C",
}


def modules() -> Iterator[Path]:
    """The modules of hvcore but those of hvcore/cpu, which has never heard of Xen."""
    return (path for path in sorted((ROOT / "hvcore").rglob("*.py")) if "cpu" not in path.parts)


def docstrings(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            yield ast.get_docstring(node) or ""


def lessons() -> Iterator[Lesson]:
    """What `domainbuilder tour` teaches."""
    for table in (BEFORE, HYPERCALLS, COMMANDS, KINDS):
        yield from table.values()


def told() -> dict[str, str]:
    """Module or page -> all its text that can name something of Xen's."""
    texts = {str(module.relative_to(ROOT)): "\n".join(docstrings(module)) for module in modules()}
    texts["domainbuilder/tour/lessons.py"] = "\n".join(lesson.xen for lesson in lessons())
    texts[str(PAGE.relative_to(ROOT))] = re.sub(r"```.*?```", "", PAGE.read_text(), flags=re.DOTALL)
    return texts


@cache
def of_ours() -> set[str]:
    """The functions, methods and classes of hvcore, and the attributes that it sets."""
    names = set[str]()
    for module in (ROOT / "hvcore").rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
    return names


@cache
def listed() -> dict[str, list[str]]:
    """File of Xen -> those of the names that it defines."""
    rows = (line.split() for line in NAMES.read_text().splitlines() if not line.startswith("#"))
    return {file.removesuffix(":"): names for file, *names in rows}


def is_there(file: str, files: set[str]) -> bool:
    """Whether one of the files is this one, of which the docstring may name the end only."""
    parts = PurePath(file).parts
    return any(PurePath(path).parts[-len(parts) :] == parts for path in files)


@pytest.mark.parametrize("text", told().values(), ids=told())
def test_names_exist_in_xen(text: str) -> None:
    files, defined = set(listed()), {name for names in listed().values() for name in names}
    unknown = [f for f in FILE.findall(text) if not is_there(f, files)]
    assert not unknown, f"no such file in Xen 4.17: {unknown}"
    functions = set(FUNCTION.findall(text)) - defined - of_ours()
    assert not functions, f"neither Xen 4.17 nor hvcore defines {sorted(functions)}"


def test_each_module_names_what_it_follows() -> None:
    silent = {
        str(module.relative_to(ROOT))
        for module in modules()
        if module.parent.name in FOLLOWERS and module.name != "__init__.py"
        and not FILE.search(ast.get_docstring(ast.parse(module.read_text())) or "")
    }  # fmt: skip
    assert silent == set(FOLLOW_NO_FILE)


def test_the_list_has_nothing_that_is_not_named() -> None:
    text = "\n".join(told().values())
    named, files = set(FUNCTION.findall(text)), set(FILE.findall(text))
    for file, names in listed().items():
        assert set(names) <= named, file
        assert names or any(is_there(end, {file}) for end in files), file


def listing(xen: Path) -> Iterator[str]:
    """The lines of the list, of a tree of Xen."""
    text = "\n".join(told().values())
    named, ends = set(FUNCTION.findall(text)), set(FILE.findall(text))
    called, found = dict[str, set[str]](), dict[str, set[str]]()
    for folder in FOLDERS:
        for path in sorted((xen / folder).rglob("*.[chS]")):
            file = str(path.relative_to(xen))
            code = path.read_text(errors="replace")
            called[file] = set(re.findall(r"\w+(?=\()", code)) & named
            found[file] = {name for groups in DEFINITION.findall(code) for name in groups if name} & named
    for name in named.difference(of_ours(), *found.values()):
        for file in [file for file, names in called.items() if name in names][:1]:
            found[file].add(name)
    for file, here in found.items():
        if here or any(is_there(end, {file}) for end in ends):
            yield " ".join([f"{file}:", *sorted(here)])


if __name__ == "__main__":
    print("# Made by `python -m tests.test_xen_names XEN`: files of Xen 4.17 and what they define.")
    print(*listing(Path(sys.argv[1])), sep="\n")
