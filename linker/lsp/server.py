"""The open scripts of an editor, what the linter says of each, and places as the editor counts them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from lsprotocol import types
from pygls.lsp.server import LanguageServer
from pygls.workspace import PositionCodec

from linker.elffile import Elf, read_elf
from linker.errors import LayoutInputError
from linker.findings import ERROR, NOTE, WARNING
from linker.locate import Diagnostic, FileEdit
from linker.mapfile import LinkMap, read_map
from linker.session import Request
from linker.source import FilePlace

from .analysis import Analysis, includers

_SEVERITIES = {
    ERROR: types.DiagnosticSeverity.Error,
    WARNING: types.DiagnosticSeverity.Warning,
    NOTE: types.DiagnosticSeverity.Information,
}
# A judgement is worth nothing when the next key has been pressed meanwhile.
_PAUSE = 0.15


class Server(LanguageServer):
    """Holds the open scripts and what the linter says of each.

    `request` has the options of the command line; its map and ELF belong to its scripts, or to every script
    when it names none.
    """

    def __init__(self, request: Request, version: str) -> None:
        super().__init__("domainbuilder-lint", version)
        self.request = request
        self.analyses: dict[str, Analysis] = {}
        self._waiting: dict[str, asyncio.Task[None]] = {}
        self._published: dict[str, set[str]] = {}
        self._map: LinkMap | None = None
        self._elf: Elf | None = None
        self._seen: tuple[object, ...] = ()

    # The linter

    def texts(self) -> dict[str, str]:
        """Return what the open files hold, by path."""
        return {
            document.path: document.source
            for document in self.workspace.text_documents.values()
            if document.path
        }

    def root(self, path: str) -> str:
        """Return the directory in which scripts that include the file are looked for."""
        directory = os.path.dirname(path) or "."  # noqa: PTH120
        root = self.workspace.root_path
        inside = root and os.path.commonpath([os.path.realpath(root), os.path.realpath(directory)])
        return str(root) if root and inside == os.path.realpath(root) else directory

    def linked(self, path: str) -> tuple[LinkMap | None, Elf | None]:
        """Return the map and the ELF of the command line, read again when they changed."""
        request = self.request
        mine = {os.path.realpath(script) for script in request.scripts}
        if mine and os.path.realpath(path) not in mine:
            return None, None
        seen = tuple(_stamp(name) for name in (request.map, request.elf))
        if seen != self._seen:
            self._seen = seen
            try:
                self._map = read_map(request.map) if request.map is not None else None
                self._elf = read_elf(request.elf, request.unpack) if request.elf is not None else None
            except LayoutInputError as error:
                self._map = self._elf = None
                self.window_log_message(types.LogMessageParams(types.MessageType.Warning, str(error)))
        return self._map, self._elf

    def judge(self, uri: str) -> Analysis:
        """Lint an open file, a part of a script in the script that includes it, and publish what is found."""
        path = self.workspace.get_text_document(uri).path
        texts = self.texts()
        analysis = Analysis(path, self.request, texts, *self.linked(path))
        if analysis.report.part or not analysis.report.usable:
            for whole in includers(path, self.root(path), texts, self.request):
                around = Analysis(whole, self.request, texts, *self.linked(whole))
                if around.report.usable or not analysis.report.usable:
                    analysis = around
                    break
        self.analyses[uri] = analysis
        self._publish(uri, analysis)
        return analysis

    def _publish(self, uri: str, analysis: Analysis) -> None:
        """Send the findings of each file; clear what this document reported elsewhere and no longer does."""
        now: dict[str, list[types.Diagnostic]] = {}
        for file, diagnostics in analysis.diagnostics().items():
            now[self.uri_of(file)] = [self.diagnostic(analysis, one) for one in diagnostics]
        now.setdefault(uri, [])
        for gone in self._published.get(uri, set()) - set(now):
            now[gone] = []
        self._published[uri] = {name for name, found in now.items() if found}
        for name, found in now.items():
            self.text_document_publish_diagnostics(types.PublishDiagnosticsParams(name, found))

    def uri_of(self, file: str) -> str:
        """Return the URI of a file, that of the open document when it is open under another name."""
        real = os.path.realpath(file)
        for uri, document in self.workspace.text_documents.items():
            if document.path and os.path.realpath(document.path) == real:
                return str(uri)
        return Path(os.path.abspath(file)).as_uri()  # noqa: PTH100

    def file_of(self, analysis: Analysis, path: str) -> str:
        """Return the name that an analysis has for a file."""
        real = os.path.realpath(path)
        names = analysis.report.files or (analysis.path,)
        return next((name for name in names if os.path.realpath(name) == real), path)

    def later(self, uri: str) -> None:
        """Judge the file when no key was pressed for a moment."""
        waiting = self._waiting.pop(uri, None)
        if waiting is not None:
            waiting.cancel()
        self._waiting[uri] = asyncio.ensure_future(self._after_a_pause(uri))

    async def _after_a_pause(self, uri: str) -> None:
        await asyncio.sleep(_PAUSE)
        self._waiting.pop(uri, None)
        self.judge(uri)

    def fresh(self, uri: str) -> Analysis:
        """Return what is known of the file as it is now."""
        waiting = self._waiting.pop(uri, None)
        if waiting is not None:
            waiting.cancel()
            return self.judge(uri)
        return self.analyses.get(uri) or self.judge(uri)

    def forget(self, uri: str) -> None:
        """Clear what a closed document reported."""
        waiting = self._waiting.pop(uri, None)
        if waiting is not None:
            waiting.cancel()
        self.analyses.pop(uri, None)
        for name in {uri, *self._published.pop(uri, set())}:
            self.text_document_publish_diagnostics(types.PublishDiagnosticsParams(name, []))

    # Places

    def codec(self) -> PositionCodec:
        """Return the units that the client counts columns in."""
        return self.workspace.position_codec

    def position(self, lines: Sequence[str], line: int, column: int) -> types.Position:
        """Return a place, line and column from 1, as the client counts."""
        text = lines[line - 1] if 0 < line <= len(lines) else ""
        return types.Position(max(0, line - 1), self.codec().client_num_units(text[: max(0, column - 1)]))

    def range(self, lines: Sequence[str], place: FilePlace) -> types.Range:
        """Return a place of a file as the client counts."""
        return types.Range(
            self.position(lines, place.line, place.column),
            self.position(lines, place.end_line, place.end_column),
        )

    def asked(self, uri: str, position: types.Position) -> tuple[Analysis, str, int, int]:
        """Return the analysis, its name of the file, and line and column from 1 of a place asked about."""
        analysis = self.fresh(uri)
        document = self.workspace.get_text_document(uri)
        file = self.file_of(analysis, document.path)
        lines = analysis.lines(file)
        at = self.codec().position_from_client_units(lines, position)
        return analysis, file, at.line + 1, at.character + 1

    def diagnostic(self, analysis: Analysis, one: Diagnostic) -> types.Diagnostic:
        """Return a finding as the protocol has it."""
        lines = analysis.lines(one.file) if one.line else []
        start = self.position(lines, one.line, one.column)
        end = self.position(lines, one.line, one.column + max(1, one.width))
        message = one.message
        if one.origin or not one.line:
            at = f" at {one.address:#x}" if one.address is not None else ""
            message += f" (seen in {one.origin or one.file}{at})"
        return types.Diagnostic(
            types.Range(start, end), message, severity=_SEVERITIES[one.severity], code=one.rule,
            source="domainbuilder",
        )  # fmt: skip

    def workspace_edit(self, analysis: Analysis, edits: Iterable[FileEdit]) -> types.WorkspaceEdit:
        """Return edits as the protocol has them."""
        changes: dict[str, list[types.TextEdit]] = {}
        for place, text, _ in edits:
            edit = types.TextEdit(self.range(analysis.lines(place.file), place), text)
            changes.setdefault(self.uri_of(place.file), []).append(edit)
        return types.WorkspaceEdit(changes=changes)


def _stamp(name: str | None) -> object:
    try:
        return name and (name, os.stat(name).st_mtime_ns)  # noqa: PTH116
    except OSError:
        return name
