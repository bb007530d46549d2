"""What an editor may ask of a script: actions that mend it, definitions, symbols, completions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from lsprotocol import types

from linker.fixing import fix, fixable
from linker.keywords import KEYWORDS
from linker.lint import Report
from linker.locate import Diagnostic, FileEdit
from linker.source import FilePlace
from linker.special import SYNTAX

from .analysis import Analysis
from .server import Server


def whole(text: str) -> types.Range:
    """Return the range of a whole text."""
    return types.Range(types.Position(0, 0), types.Position(text.count("\n") + 1, 0))


def _overlaps(one: types.Range, other: types.Range) -> bool:
    first, last = (one.start.line, one.start.character), (one.end.line, one.end.character)
    return (
        first <= (other.end.line, other.end.character) and (other.start.line, other.start.character) <= last
    )


def actions(server: Server, params: types.CodeActionParams) -> Iterable[types.CodeAction]:
    """Yield what can be done about the findings in a range: mend, or switch a rule off."""
    uri = params.text_document.uri
    analysis = server.fresh(uri)
    path = server.file_of(analysis, server.workspace.get_text_document(uri).path)
    mended = {id(one) for one in fixable(analysis.report)}
    for one in analysis.report.diagnostics:
        if one.file != path or not one.line or one.rule == SYNTAX:
            continue
        shown = server.diagnostic(analysis, one)
        if not _overlaps(shown.range, params.range):
            continue
        if id(one) in mended:
            title = next((edit.title for edit in one.fix if edit.title), f"mend {one.rule}")
            yield types.CodeAction(
                title, types.CodeActionKind.QuickFix, [shown], is_preferred=True,
                edit=server.workspace_edit(analysis, one.fix),
            )  # fmt: skip
        yield types.CodeAction(
            f"switch {one.rule} off for this line", types.CodeActionKind.QuickFix, [shown],
            edit=server.workspace_edit(analysis, [_suppression(analysis, one)]),
        )  # fmt: skip
    if mended:
        yield types.CodeAction(
            "mend everything that can be mended", types.CodeActionKind.SourceFixAll,
            edit=_everything(server, analysis),
        )  # fmt: skip


def _suppression(analysis: Analysis, one: Diagnostic) -> FileEdit:
    text = analysis.lines(one.file)[one.line - 1]
    indent = text[: len(text) - len(text.lstrip())]
    place = FilePlace(one.file, one.line, 1, one.line, 1)
    return FileEdit(place, f"{indent}/* lint: disable={one.rule} */\n", "")


def _everything(server: Server, analysis: Analysis) -> types.WorkspaceEdit:
    texts = server.texts()

    def lint(changed: Mapping[str, str]) -> Report:
        return Analysis(
            analysis.path, server.request, {**texts, **changed}, *server.linked(analysis.path)
        ).report

    # The names of a report's files may differ from those of the documents.
    given = {name: texts[path] for name in analysis.report.files for path in texts if _same(name, path)}
    changed, _ = fix(lint, given)
    changes = {server.uri_of(one.file): [types.TextEdit(whole(one.before), one.after)] for one in changed}
    return types.WorkspaceEdit(changes=changes)


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def definitions(server: Server, uri: str, position: types.Position) -> Iterable[types.Location]:
    """Yield where the name at a place is defined; of an INCLUDE, the file."""
    analysis, file, line, column = server.asked(uri, position)
    text = analysis.lines(file)[line - 1] if line <= len(analysis.lines(file)) else ""
    words = text.split("INCLUDE", 1)
    if len(words) == 2 and column - 1 >= len(words[0]):
        name = words[1].split()[0].strip('";') if words[1].split() else ""
        for included in analysis.report.files[1:]:
            if included.endswith(name) and name:
                start = types.Position(0, 0)
                yield types.Location(server.uri_of(included), types.Range(start, start))
                return
    word = analysis.word(file, line, column)
    if word is None or analysis.pattern_at(analysis.offset(file, line, column)) is not None:
        return
    for span in analysis.definitions(word.text):
        place = analysis.place(span)
        yield types.Location(server.uri_of(place.file), server.range(analysis.lines(place.file), place))


def symbols(server: Server, uri: str) -> Iterable[types.DocumentSymbol]:
    """Return output sections and symbols of a file, in its order."""
    analysis = server.fresh(uri)
    path = server.file_of(analysis, server.workspace.get_text_document(uri).path)
    lines = analysis.lines(path)

    def symbol(
        name: str, kind: types.SymbolKind, span: tuple[int, int], name_span: tuple[int, int]
    ) -> types.DocumentSymbol | None:
        whole = analysis.source.verbatim(*span)
        own = analysis.source.verbatim(*name_span)
        if whole is None or own is None or whole.file != path or not name:
            return None
        return types.DocumentSymbol(name, kind, server.range(lines, whole), server.range(lines, own))

    found = [
        symbol(placed.section.name, types.SymbolKind.Module, placed.section.span, placed.section.name_span)
        for placed in analysis.outline.sections
    ]
    found += [
        symbol(one.target, types.SymbolKind.Variable, one.span, one.target_span)
        for one in analysis.outline.assignments
        if one.target != "."
    ]
    return sorted((one for one in found if one is not None), key=lambda one: one.range.start.line)


def completions(server: Server, uri: str) -> Iterable[types.CompletionItem]:
    """Yield the words of the language and the names of the script."""
    outline = server.fresh(uri).outline
    for name, keyword in KEYWORDS.items():
        yield types.CompletionItem(
            name, kind=types.CompletionItemKind.Keyword, detail=keyword.usage, documentation=keyword.text
        )
    for kind, names in (
        (types.CompletionItemKind.Module, outline.names),
        (types.CompletionItemKind.Unit, outline.regions),
        (types.CompletionItemKind.Variable, {one.target for one in outline.assignments}),
    ):
        for name in sorted(set(names) - set(KEYWORDS)):
            yield types.CompletionItem(name, kind=kind)
