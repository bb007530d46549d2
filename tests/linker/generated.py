"""Objects and linker scripts made from a seed, for the comparison with real linkers.

A script is a random walk through what ld's manual describes: regions with aliases, load addresses of every
kind, alignment inside and outside of sections, symbols of expressions, data statements, overlays, relro,
sections that are given twice, patterns that shadow each other, and inputs that nothing takes.
"""

from __future__ import annotations

import random
from pathlib import Path

from tests.linker.linking import assemble

OBJECTS = 8
# name -> (flags, type): what an object may bring.
SECTIONS = {
    ".text": ("ax", "@progbits"), ".text.hot": ("ax", "@progbits"), ".text.unlikely": ("ax", "@progbits"),
    ".rodata": ("a", "@progbits"), ".rodata.x": ("a", "@progbits"), ".table.1": ("a", "@progbits"),
    ".table.2": ("a", "@progbits"), ".data": ("aw", "@progbits"), ".data.y": ("aw", "@progbits"),
    ".data.page_aligned": ("aw", "@progbits"), ".bss": ("aw", "@nobits"), ".bss.z": ("aw", "@nobits"),
    ".noinit": ("aw", "@nobits"), ".cfg": ("aw", "@progbits"), ".extra": ("aw", "@progbits"),
    ".ro_extra": ("a", "@progbits"), ".tdata": ("awT", "@progbits"), ".tbss": ("awT", "@nobits"),
}  # fmt: skip
PATTERNS = (
    ".text", ".text.hot", ".text.*", ".text*", ".rodata", ".rodata.*", ".rodata*", ".table.*", ".data",
    ".data.*", ".data*", ".data.page_aligned", ".bss", ".bss.*", ".bss*", "COMMON", ".noinit", ".cfg",
    ".extra", ".ro_extra",
)  # fmt: skip
GROUPS = {
    "text": (".text", ".text.hot", ".text.*", ".text*"),
    "rodata": (".rodata", ".rodata.*", ".rodata*", ".table.*", ".ro_extra"),
    "data": (".data.page_aligned", ".data", ".data.*", ".data*", ".cfg", ".extra"),
    "bss": (".bss", ".bss.*", ".bss*", "COMMON", ".noinit"),
}


def sources() -> list[str]:
    """Return the assembler source of each object of the pool."""
    out = []
    for number in range(OBJECTS):
        source = random.Random(1000 + number)
        lines = [
            f" .globl start{number}",
            " .text",
            f"start{number}: .fill {source.randrange(1, 40)}, 1, 0x90",
        ]
        for name, (flags, kind) in SECTIONS.items():
            if name != ".text" and source.random() < 0.55:
                align = source.choice((1, 1, 2, 4, 8, 16, 32))
                if name == ".data.page_aligned":
                    align = source.choice((1, 4096))
                size = source.choice((1, 3, 4, 7, 8, 12, 33, 64, 100))
                lines.append(f' .section {name},"{flags}",{kind}\n .balign {align}\n .skip {size}')
        if source.random() < 0.5:
            lines.append(f" .comm shared{number}, {source.choice((4, 8, 24))}, {source.choice((4, 8))}")
        out.append("\n".join(lines) + "\n")
    return out


def make_pool(directory: Path, assembler: str) -> list[Path]:
    """Assemble the pool."""
    return [assemble(directory, f"o{number}", text, 64, assembler) for number, text in enumerate(sources())]


class Script:
    """One random script; `text` is what it says, `inputs` the numbers of the objects that go with it."""

    def __init__(self, seed: int, *, portable: bool = False) -> None:
        self._r = random.Random(seed)
        self._portable = portable  # leave out what lld does not take
        self._symbols: list[str] = []
        self._named: list[str] = []
        self._regions: list[str] = []
        self._section = 0
        self.segment = self._r.random() < 0.2
        self.relro = self.segment and self._r.random() < 0.7
        self.inputs = sorted(self._r.sample(range(OBJECTS), self._r.randrange(1, 5)))
        # What a script adds by INPUT or GROUP comes before what stands behind -T on the command line.
        self.added = self.inputs[:1] if len(self.inputs) > 1 and self._r.random() < 0.2 else []
        self.text = self._whole()

    def text_with(self, pool: list[Path]) -> str:
        """Return the text with the paths of the objects that it adds."""
        text = self.text
        for number in self.added:
            text = text.replace(f"@{number}@", str(pool[number]))
        return text

    def _whole(self) -> str:
        parts = ["ENTRY(start0)"]
        for number in self.added:
            parts.append(f"{self._r.choice(('INPUT', 'GROUP'))}(@{number}@)")
        if self._r.random() < 0.5 and not self.segment:
            parts.append(self._memory())
        if self._r.random() < 0.3:
            parts.append(f"top = {self._number()};")
            self._symbols.append("top")
        body = [] if self._regions else [f"  . = {self._r.choice((0x10000, 0x100000, 0x400000)):#x};"]
        kinds = [kind for kind in GROUPS for _ in range(self._r.choice((0, 1, 1, 2)))]
        if self._r.random() < 0.2:
            self._r.shuffle(kinds)
        relro_at = self._r.randrange(len(kinds) + 1) if self.segment else -1
        for position, kind in enumerate(kinds):
            if position == relro_at:
                body.append("  . = DATA_SEGMENT_ALIGN(CONSTANT(MAXPAGESIZE), CONSTANT(COMMONPAGESIZE));")
            if self.segment and position == relro_at + 1:
                body.append(f"  . = DATA_SEGMENT_RELRO_END({self._r.choice((0, 0, 16))}, .);")
            body += [self._between() for _ in range(self._r.choice((0, 0, 1, 2)))]
            body.append(self._output(kind))
        if self.segment:
            body.append("  . = DATA_SEGMENT_END(.);")
        if self._r.random() < 0.15:
            body.append(self._overlay())
        if self._r.random() < 0.2:
            body.append(f"  /DISCARD/ : {{ *({self._r.choice(PATTERNS)}) }}")
        body.append("  last = .;")
        parts.append("SECTIONS\n{\n" + "\n".join(body) + "\n}")
        return "\n".join(parts) + "\n"

    def _memory(self) -> str:
        lines = ["MEMORY\n{"]
        for number, origin in enumerate((0x8000, 0x200000, 0x800000)[: self._r.randrange(1, 4)]):
            name = "ABC"[number]
            attributes = ""
            if self._r.random() < 0.3:
                kinds = (" (rx)", " (rwx)", " (w!x)", " (rw)", " (a)", " (x)")
                attributes = self._r.choice(kinds if self._portable else (*kinds, " (ai)"))
            lines.append(f"  {name}{attributes} : ORIGIN = {origin:#x}, LENGTH = 256K")
            self._regions.append(name)
        lines.append("}")
        if self._r.random() < 0.3:
            lines.append(f'REGION_ALIAS("ALIAS", {self._r.choice(self._regions)});')
            self._regions.append("ALIAS")
        return "\n".join(lines)

    def _number(self) -> str:
        return self._r.choice(("0x10", "4K", "0x40", "12", "(3 << 4)", "0x1234"))

    def _value(self) -> str:
        choices = [
            ".",
            ".",
            ". + 4",
            f"ALIGN({self._r.choice((4, 16, 64))})",
            "ABSOLUTE(.)",
            f". + {self._number()}",
        ]
        if self._named:
            name = self._r.choice(self._named)
            choices += [
                f"SIZEOF({name})",
                f"ADDR({name})",
                f"LOADADDR({name})",
                f"ADDR({name}) + SIZEOF({name})",
            ]
        if self._symbols:
            name = self._r.choice(self._symbols)
            choices += [
                name,
                f"MAX({name}, 0x100)",
                f"{name} + 8",
                f"(. - {name})",
                f"DEFINED({name}) ? 1 : 2",
            ]
        if self._regions:
            name = self._r.choice(self._regions)
            choices += [f"ORIGIN({name})", f"ORIGIN({name}) + LENGTH({name})"]
        return self._r.choice(choices)

    def _assign(self) -> str:
        name = f"s{len(self._symbols)}"
        text = f"{name} = {self._value()};"
        self._symbols.append(name)
        if self._r.random() < 0.15:
            return f"PROVIDE({text[:-1]});"
        return text

    def _between(self) -> str:
        if self._r.random() < 0.4:
            return "  " + self._r.choice(
                (
                    f". = ALIGN({self._r.choice((4, 16, 64, 4096))});",
                    f". += {self._r.choice((4, 6, 0x20))};",
                    ". = .;",
                )
            )
        return "  " + self._assign()

    def _output(self, kind: str) -> str:
        self._section += 1
        name = f".{kind}"
        if name in self._named and self._r.random() < 0.97:
            name = f".{kind}{self._section}"
        head, lma = name, ""
        if self._r.random() < 0.06 and not self._regions:
            head += f" (. + {self._r.choice((0x10, 0x1000))})"
        if kind == "bss" and self._r.random() < 0.2:
            head += " (NOLOAD)"
        head += " :"
        if self._r.random() < 0.12:
            lma = f" AT({self._load_address(name)})"
            head += lma
        if self._r.random() < 0.2:
            head += f" ALIGN({self._r.choice((4, 8, 32, 256))})"
        if self._r.random() < 0.08:
            head += f" SUBALIGN({self._r.choice((1, 4, 16))})"
        if not self._portable and "ALIGN" not in head and self._r.random() < 0.05:
            head += " ALIGN_WITH_INPUT"
        tail = ""
        if self._regions and not (self._section > 1 and self._r.random() < 0.06):
            tail = f" >{self._r.choice(self._regions)}"
            if not lma and self._r.random() < 0.35:
                tail += f" AT>{self._r.choice(self._regions)}"
        elif not self._regions and self._r.random() < 0.1:
            tail = " =0x90909090"
        if name not in self._named:
            self._named.append(name)
        return f"  {head} {{ {' '.join(self._inner(kind))} }}{tail}"

    def _load_address(self, name: str) -> str:
        at = self._r.choice(["0x1000000", "ADDR(" + name + ") + 0x100000"])
        if self._named:
            before = self._r.choice(self._named)
            at = self._r.choice([at, f"LOADADDR({before}) + SIZEOF({before})"])
        return at

    def _inner(self, kind: str) -> list[str]:
        out: list[str] = []
        for _ in range(self._r.randrange(1, 5)):
            roll = self._r.random()
            if roll < 0.6:
                out.append(self._input(kind))
            elif roll < 0.75:
                out.append(self._assign())
            elif roll < 0.87:
                out.append(f". = ALIGN({self._r.choice((4, 8, 16, 64))});")
            elif roll < 0.92:
                out.append(f". += {self._r.choice((2, 4, 16))};")
            elif kind != "bss":
                out.append(self._r.choice(("BYTE(1)", "SHORT(2)", "LONG(3)", "QUAD(4)")))
        return out

    def _input(self, kind: str) -> str:
        patterns = GROUPS[kind]
        if self._r.random() < 0.1:
            patterns = PATTERNS
        chosen = self._r.sample(patterns, min(len(patterns), self._r.choice((1, 1, 2, 3))))
        if self._portable and len(chosen) > 1:
            # lld takes common symbols first, and holds an EXCLUDE_FILE for the rest of a list.
            chosen = [pattern for pattern in chosen if pattern != "COMMON"]
        file = "*"
        if self._r.random() < 0.1:
            file = f"*o{self._r.randrange(OBJECTS)}64.o"
        if len(chosen) == 1 and self._r.random() < 0.15 and chosen[0] != "COMMON":
            chosen = [f"{self._r.choice(('SORT_BY_NAME', 'SORT_BY_ALIGNMENT'))}({chosen[0]})"]
        elif self._r.random() < 0.08 and not (self._portable and len(chosen) > 1):
            chosen[0] = f"EXCLUDE_FILE(*o{self._r.randrange(OBJECTS)}64.o) {chosen[0]}"
        text = f"{file}({' '.join(chosen)})"
        return f"KEEP({text})" if self._r.random() < 0.2 else text

    def _overlay(self) -> str:
        tail = ""
        members = " ".join(
            f".ov{number} {{ *({pattern}) }}" for number, pattern in enumerate((".cfg", ".extra", ".table.*"))
        )
        if self._portable:
            return f"  OVERLAY 0x900000 : AT(0xa00000) {{ {members} }}\n  after_overlay = .;"
        head = "OVERLAY" if self._regions or self._r.random() < 0.5 else "OVERLAY 0x900000"
        at = " AT(0xa00000)" if self._r.random() < 0.5 else ""
        if self._regions:
            tail = f" >{self._r.choice(self._regions)}"
            if not at and self._r.random() < 0.5:
                tail += f" AT>{self._r.choice(self._regions)}"
        return f"  {head} :{at} {{ {members} }}{tail}\n  after_overlay = .;"
