"""Rules about names that are not what they look like."""

from __future__ import annotations

from collections.abc import Iterator

from linker import ast
from linker.findings import WARNING, Context, Example, Hit, Place, Rule, elf_place, script_place

_ODD = ",;=\"'(){} \t"


def _odd(name: str) -> str:
    # A colon inside is how some compilers name sections (.text:function); at the end it was meant as syntax.
    return ":" if name.endswith(":") else next((char for char in name if char in _ODD), "")


def suspicious_name(context: Context) -> Iterator[Hit]:
    """A section's name holds punctuation that was meant as syntax."""
    if context.outline is not None:
        for placed in context.outline.sections:
            odd = _odd(placed.section.name)
            if odd:
                yield _hit(placed.section.name, odd, script_place(placed.section.name_span))
        patterns = any(char in context.outline.words for char in (*_ODD, ":"))
        for _, spec in context.outline.inputs() if patterns else ():
            for pattern in spec.sections or ():
                odd = _odd(pattern.name)
                if odd:
                    yield _hit(pattern.name, odd, script_place(pattern.span))
    if context.elf is not None:
        for section in context.elf.sections:
            odd = _odd(section.name)
            if odd:
                yield _hit(section.name, odd, elf_place(section.name, section.address))


def _hit(name: str, odd: str, place: Place) -> Hit:
    return Hit(f"the section name '{name}' contains '{odd}'", place._replace(name=name))


def glued_division(context: Context) -> Iterator[Hit]:
    """`a/b` in an expression is the name of one symbol to GNU ld."""
    assert context.outline is not None
    for _, part in context.outline.nodes(ast.Symbol):
        if "/" in part.name and part.name != "/DISCARD/":
            inside = part.name.strip("/").split("/")
            if len(inside) > 1 and not part.name.startswith("."):
                yield Hit(
                    f"GNU ld reads '{part.name}' as one symbol, not as a division",
                    script_place(part.span, part.name),
                )


RULES = (
    Rule(
        "suspicious-name",
        WARNING,
        "a section name contains punctuation",
        "`section .text:` in nasm makes a section called `.text:`, which *(.text) does not take "
        "(littleosbook issue 39); `*(.text,.data)` is one pattern to GNU ld and takes neither.",
        "remove the punctuation, or separate the names by a space.",
        ("S", "E"),
        suspicious_name,
        Example(script="SECTIONS\n{\n  .text : { *(.text,.text.hot) }\n}\n"),
        Example(script="SECTIONS\n{\n  .text : { *(.text .text.hot) }\n}\n"),
    ),
    Rule(
        "glued-division",
        WARNING,
        "a division without spaces is a name to GNU ld",
        "A slash may be part of a name in ld's scanner: `size/2` is the undefined symbol called size/2. lld "
        "divides.",
        "write spaces around the slash.",
        ("S",),
        glued_division,
        Example(script="size = 64;\nhalf = size/2;\n"),
        Example(script="size = 64;\nhalf = size / 2;\n"),
    ),
)
