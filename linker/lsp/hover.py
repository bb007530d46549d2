"""What an editor shows under the pointer: rules, words of the language, values, regions, numbers."""

from __future__ import annotations

import re

from linker import ast, rules, special
from linker.evaluate import Constants, Known, Unknown, Value, evaluate
from linker.explain import explain
from linker.keywords import KEYWORDS
from linker.lexer import number_value
from linker.model import model
from linker.outline import Outline
from linker.output.units import in_units, percent
from linker.printer import expression
from linker.regions import fill

from .analysis import Analysis, Word

_RULES = re.compile(r"lint:\s*disable(?:-file)?\s*=\s*([a-z0-9, *-]+)")
_NAME = re.compile(r"[a-z][a-z0-9-]*")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+[KkMm]?|[0-9]+[KkMm]?")


def hover(analysis: Analysis, file: str, line: int, column: int) -> tuple[str, Word] | None:
    """Return Markdown about the word at a place (from 1), None when there is nothing to say."""
    word = analysis.word(file, line, column)
    if word is None:
        return None
    offset = analysis.offset(file, line, column)
    found = [
        f"**{diagnostic.rule}** ({diagnostic.severity}): {diagnostic.message}\n\n{_why(diagnostic.rule)}"
        for diagnostic in analysis.diagnostics().get(file, ())
        if diagnostic.line == line
        and diagnostic.column <= word.end
        and word.start < diagnostic.column + diagnostic.width
    ]
    said = _RULES.search(analysis.lines(file)[line - 1])
    if said is not None and said.start(1) <= word.start < said.end(1):
        text = "\n\n".join(
            _rule(name[0])
            for name in _NAME.finditer(said[0])
            if said.start() + name.start() <= word.start < said.start() + name.end()
        )
    elif analysis.comment_at(offset):
        text = ""
    else:
        text = _pattern(analysis, offset) or _meaning(analysis, word.text)
    parts = [part for part in (text, *found) if part]
    return ("\n\n---\n\n".join(parts), word) if parts else None


def _rule(name: str) -> str:
    found = rules.find(name)
    if found is not None:
        return f"```text\n{explain(found)}```"
    return f"```text\n{special.explain(name)}```" if name in special.SPECIAL else ""


def _why(name: str) -> str:
    found = rules.find(name)
    return f"{found.why}\n\nTo fix it: {found.fix}" if found is not None else special.SPECIAL[name].text


def _pattern(analysis: Analysis, offset: int | None) -> str:
    """Say what an input pattern took, when there is a map."""
    at = analysis.pattern_at(offset)
    if at is None:
        return ""
    section, pattern = at
    text = f"Input sections `{pattern.name}`, placed in `{section.name}`."
    if pattern.name in KEYWORDS:
        text = _keyword(pattern.name) + "\n\n" + text
    output = (
        next((one for one in analysis.map.outputs if one.name == section.name), None)
        if analysis.map
        else None
    )
    if output is not None:
        from linker.match import matches

        taken = [item for item in output.inputs if matches(pattern.name, item.name)]
        text += f" In this link {len(taken)} of them, {sum(item.size for item in taken)} bytes."
    return text


def _meaning(analysis: Analysis, name: str) -> str:
    parts = [
        _symbol(analysis, name), _section(analysis, name), _region(analysis, name),
    ]  # fmt: skip
    known = [part for part in parts if part]
    if known:
        return "\n\n".join(known)
    if name in KEYWORDS:
        return _keyword(name)
    if _NUMBER.fullmatch(name):
        value = number_value(name)
        return f"`{name}` = {value} = {value:#x} ({in_units(value)})" if value is not None else ""
    return ""


def _keyword(name: str) -> str:
    keyword = KEYWORDS[name]
    return f"```ld\n{keyword.usage}\n```\n{keyword.text}"


def _symbol(analysis: Analysis, name: str) -> str:
    assigned = [one for one in analysis.outline.assignments if one.target == name and name != "."]
    linked = analysis.elf.find((name,)).get(name) if analysis.elf is not None else None
    if not assigned and linked is None:
        return ""
    lines = [f"```ld\n{one.target} {one.op} {expression(one.value)}\n```" for one in assigned[:3]]
    lines.append(_value(analysis, name, assigned[-1] if assigned else None))
    return "\n".join(lines)


def _value(analysis: Analysis, name: str, assign: ast.Assign | None) -> str:
    if analysis.elf is not None:
        linked = analysis.elf.find((name,)).get(name)
        if linked is not None:
            return f"`{name}` = {linked.address:#x} in {analysis.elf.path}"
    outline = analysis.outline
    if analysis.map is not None:
        computed = model(outline, analysis.map, analysis.elf).computed
        value = computed.symbols.get(name) if computed is not None else None
        if isinstance(value, Known):
            return f"`{name}` = {value.value:#x} by {analysis.map.path}"
    if assign is None:
        return ""
    value = _Values(outline).symbol(name)
    if isinstance(value, Known):
        return f"`{name}` = {value.value:#x} = {value.value} ({in_units(value.value)})"
    return f"The value is known after linking: {value.reason}."


class _Values(Constants):
    """What can be said of symbols and regions before linking: assignments outside of output sections."""

    def __init__(self, outline: Outline) -> None:
        self._outline = outline
        self._symbols: dict[str, Value] = {}
        for command in (*outline.script.commands, *outline.sequence):
            if isinstance(command, ast.Assign) and command.target != ".":
                node = command.value
                if command.op != "=":
                    node = ast.Binary(command.op[:-1], ast.Symbol(command.target), command.value)
                self._symbols[command.target] = evaluate(node, self)
        for command in outline.assignments:
            self._symbols.setdefault(command.target, Unknown("it depends on where its section lies"))

    def symbol(self, name: str) -> Value:
        if name == ".":
            return Unknown("it depends on the location counter")
        return self._symbols.get(name) or super().symbol(name)

    def region(self, name: str) -> tuple[Value, Value]:
        origin, length = self._outline.regions.get(name, (None, None))
        if origin is None or length is None:
            return super().region(name)
        return Known(origin, number=True), Known(length, number=True)


def _section(analysis: Analysis, name: str) -> str:
    described = [placed.section for placed in analysis.outline.sections if placed.section.name == name]
    if not described:
        return ""
    text = f"Output section `{name}`"
    if described[0].region:
        text += f" in region `{described[0].region}`"
    if described[0].lma_region:
        text += f", loaded to `{described[0].lma_region}`"
    section = analysis.elf.by_name.get(name) if analysis.elf is not None else None
    if section is not None and analysis.elf is not None:
        load = analysis.elf.load_address(section)
        text += f": {section.address:#x}, {section.size} bytes, alignment {section.alignment}"
        if load is not None and load != section.address:
            text += f", load address {load:#x}"
        return f"{text}, in {analysis.elf.path}."
    output = next((one for one in analysis.map.outputs if one.name == name), None) if analysis.map else None
    if output is not None and analysis.map is not None:
        text += f": {output.address:#x}, {output.size} bytes"
        if output.load_address != output.address:
            text += f", load address {output.load_address:#x}"
        text += f", in {analysis.map.path}"
    return text + "."


def _region(analysis: Analysis, name: str) -> str:
    extent = analysis.outline.regions.get(name)
    if extent is None:
        return ""
    origin, length = extent
    if origin is None or length is None:
        return f"Memory region `{name}`: its extent is known after linking."
    text = f"Memory region `{name}`: {origin:#x} to {origin + length:#x}, {in_units(length)}"
    if analysis.map is not None or analysis.elf is not None:
        for one in fill(analysis.outline, analysis.map, analysis.elf, analysis.settings):
            if (one.origin, one.length) == extent:
                text += f", {in_units(one.used)} used ({percent(one.used, one.length, 1)})"
    return text + "."
