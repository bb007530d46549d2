"""The language server: what an editor asks, answered by the linter. Needs the extra `lsp` (pygls)."""

from __future__ import annotations

import os
from collections.abc import Callable

from lsprotocol import types

from linker.errors import LayoutInputError
from linker.session import Request, format_text
from linker.source import FilePlace

from . import answers
from .hover import hover
from .server import Server


def _initialized(ls: Server, _: types.InitializedParams) -> None:
    # Relative directories of -L and -I, and INCLUDE itself, are those of the project.
    root = ls.workspace.root_path
    if root and os.path.isdir(root):  # noqa: PTH112
        os.chdir(root)


def _did_open(ls: Server, params: types.DidOpenTextDocumentParams) -> None:
    ls.judge(params.text_document.uri)


def _did_change(ls: Server, params: types.DidChangeTextDocumentParams) -> None:
    for uri in {params.text_document.uri, *ls.analyses}:
        ls.later(uri)


def _did_save(ls: Server, params: types.DidSaveTextDocumentParams) -> None:
    ls.judge(params.text_document.uri)


def _did_close(ls: Server, params: types.DidCloseTextDocumentParams) -> None:
    ls.forget(params.text_document.uri)


def _hover(ls: Server, params: types.HoverParams) -> types.Hover | None:
    analysis, file, line, column = ls.asked(params.text_document.uri, params.position)
    found = hover(analysis, file, line, column)
    if found is None:
        return None
    text, word = found
    place = FilePlace(file, line, word.start + 1, line, word.end + 1)
    content = types.MarkupContent(types.MarkupKind.Markdown, text)
    return types.Hover(content, ls.range(analysis.lines(file), place))


def _definition(ls: Server, params: types.DefinitionParams) -> list[types.Location]:
    return list(answers.definitions(ls, params.text_document.uri, params.position))


def _symbols(ls: Server, params: types.DocumentSymbolParams) -> list[types.DocumentSymbol]:
    return list(answers.symbols(ls, params.text_document.uri))


def _completion(ls: Server, params: types.CompletionParams) -> list[types.CompletionItem]:
    return list(answers.completions(ls, params.text_document.uri))


def _formatting(ls: Server, params: types.DocumentFormattingParams) -> list[types.TextEdit]:
    document = ls.workspace.get_text_document(params.text_document.uri)
    try:
        before, after = format_text(document.path, document.source)
    except LayoutInputError:
        # A script that cannot be read is left as it is; the diagnostic says why.
        return []
    return [] if before == after else [types.TextEdit(answers.whole(before), after)]


def _code_action(ls: Server, params: types.CodeActionParams) -> list[types.CodeAction]:
    wanted = params.context.only
    return [
        action
        for action in answers.actions(ls, params)
        if not wanted or any((action.kind or "").startswith(kind) for kind in wanted)
    ]


_ACTIONS = types.CodeActionOptions([types.CodeActionKind.QuickFix, types.CodeActionKind.SourceFixAll])
_FEATURES: tuple[tuple[str, Callable[..., object], types.CodeActionOptions | None], ...] = (
    (types.INITIALIZED, _initialized, None),
    (types.TEXT_DOCUMENT_DID_OPEN, _did_open, None),
    (types.TEXT_DOCUMENT_DID_CHANGE, _did_change, None),
    (types.TEXT_DOCUMENT_DID_SAVE, _did_save, None),
    (types.TEXT_DOCUMENT_DID_CLOSE, _did_close, None),
    (types.TEXT_DOCUMENT_HOVER, _hover, None),
    (types.TEXT_DOCUMENT_DEFINITION, _definition, None),
    (types.TEXT_DOCUMENT_DOCUMENT_SYMBOL, _symbols, None),
    (types.TEXT_DOCUMENT_COMPLETION, _completion, None),
    (types.TEXT_DOCUMENT_FORMATTING, _formatting, None),
    (types.TEXT_DOCUMENT_CODE_ACTION, _code_action, _ACTIONS),
)


def make_server(request: Request, version: str) -> Server:
    """Return a server that answers with the options of a command line."""
    server = Server(request, version)
    for method, answer, options in _FEATURES:
        server.feature(method, options)(answer)  # the library hands the server on as `ls`
    return server


def serve(request: Request, version: str) -> None:
    """Serve an editor over standard input and output until it says that it is done."""
    # The library closes the stream it writes to; standard output is closed by who opened it.
    with os.fdopen(os.dup(1), "wb") as stdout:
        make_server(request, version).start_io(stdout=stdout)
