"""The language server: what an editor asks, answered by the linter. Needs the extra `lsp` (pygls)."""

from __future__ import annotations

import os

from lsprotocol import types

from linker.errors import LayoutInputError
from linker.session import Request, format_text
from linker.source import FilePlace

from . import answers
from .hover import hover
from .server import Server


def make_server(request: Request, version: str) -> Server:
    """Return a server that answers with the options of a command line."""
    server = Server(request, version)

    @server.feature(types.INITIALIZED)
    def initialized(_: types.InitializedParams) -> None:
        # Relative directories of -L and -I, and INCLUDE itself, are those of the project.
        root = server.workspace.root_path
        if root and os.path.isdir(root):  # noqa: PTH112
            os.chdir(root)

    @server.feature(types.TEXT_DOCUMENT_DID_OPEN)
    def did_open(params: types.DidOpenTextDocumentParams) -> None:
        server.judge(params.text_document.uri)

    @server.feature(types.TEXT_DOCUMENT_DID_CHANGE)
    def did_change(params: types.DidChangeTextDocumentParams) -> None:
        for uri in {params.text_document.uri, *server.analyses}:
            server.later(uri)

    @server.feature(types.TEXT_DOCUMENT_DID_SAVE)
    def did_save(params: types.DidSaveTextDocumentParams) -> None:
        server.judge(params.text_document.uri)

    @server.feature(types.TEXT_DOCUMENT_DID_CLOSE)
    def did_close(params: types.DidCloseTextDocumentParams) -> None:
        server.forget(params.text_document.uri)

    @server.feature(types.TEXT_DOCUMENT_HOVER)
    def show(params: types.HoverParams) -> types.Hover | None:
        analysis, file, line, column = server.asked(params.text_document.uri, params.position)
        found = hover(analysis, file, line, column)
        if found is None:
            return None
        text, word = found
        place = FilePlace(file, line, word.start + 1, line, word.end + 1)
        content = types.MarkupContent(types.MarkupKind.Markdown, text)
        return types.Hover(content, server.range(analysis.lines(file), place))

    @server.feature(types.TEXT_DOCUMENT_DEFINITION)
    def define(params: types.DefinitionParams) -> list[types.Location]:
        return list(answers.definitions(server, params.text_document.uri, params.position))

    @server.feature(types.TEXT_DOCUMENT_DOCUMENT_SYMBOL)
    def symbols(params: types.DocumentSymbolParams) -> list[types.DocumentSymbol]:
        return list(answers.symbols(server, params.text_document.uri))

    @server.feature(types.TEXT_DOCUMENT_COMPLETION)
    def complete(params: types.CompletionParams) -> list[types.CompletionItem]:
        return list(answers.completions(server, params.text_document.uri))

    @server.feature(types.TEXT_DOCUMENT_FORMATTING)
    def format_document(params: types.DocumentFormattingParams) -> list[types.TextEdit]:
        document = server.workspace.get_text_document(params.text_document.uri)
        try:
            before, after = format_text(document.path, document.source)
        except LayoutInputError:
            # A script that cannot be read is left as it is; the diagnostic says why.
            return []
        return [] if before == after else [types.TextEdit(answers.whole(before), after)]

    @server.feature(
        types.TEXT_DOCUMENT_CODE_ACTION,
        types.CodeActionOptions([types.CodeActionKind.QuickFix, types.CodeActionKind.SourceFixAll]),
    )
    def act(params: types.CodeActionParams) -> list[types.CodeAction]:
        wanted = params.context.only
        return [
            action
            for action in answers.actions(server, params)
            if not wanted or any((action.kind or "").startswith(kind) for kind in wanted)
        ]

    return server


def serve(request: Request, version: str) -> None:
    """Serve an editor over standard input and output until it says that it is done."""
    # The library closes the stream it writes to; standard output is closed by who opened it.
    with os.fdopen(os.dup(1), "wb") as stdout:
        make_server(request, version).start_io(stdout=stdout)
