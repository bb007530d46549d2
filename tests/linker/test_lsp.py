"""The language server, asked by a real client (pytest-lsp) over the pipes of `domainbuilder lint --lsp`."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import pytest_lsp
from lsprotocol import types
from pytest_lsp import ClientServerConfig, LanguageClient

from linker.keywords import KEYWORDS
from linker.parser import parse
from linker.printer import print_script
from tests.linker.linking import MAIN, assemble, link
from tests.needs import Tool

COMMAND = [sys.executable, "-m", "domainbuilder", "lint", "--lsp"]
SCRIPT = """ENTRY(reset)
_heap = 4K;
_top = ORIGIN(RAM) + LENGTH(RAM);
MEMORY { RAM : ORIGIN = 0x100000, LENGTH = 64K }
SECTIONS
{
  .head : { *(.head) } > RAM
  .text : { *(.ctors) *(.text) _etext = .; } > RAM
  .data : { /* \N{GRINNING FACE} */ *(.data) *(.data.page_aligned) } > RAM
  _size = SIZEOF(.text) + _heap;
}
"""


@pytest_lsp.fixture(  # type: ignore[untyped-decorator]
    config=ClientServerConfig(server_command=COMMAND), scope="module"
)
async def client(lsp_client: LanguageClient, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[None]:
    Editor.root = tmp_path_factory.mktemp("project")
    await lsp_client.initialize_session(
        types.InitializeParams(
            capabilities=pytest_lsp.client_capabilities("visual-studio-code"),
            root_uri=Editor.root.as_uri(),
        )
    )
    yield
    await lsp_client.shutdown_session()


_directories = itertools.count()


class Editor:
    """One file in an editor."""

    root: ClassVar[Path]

    def __init__(self, client: LanguageClient, name: str, text: str, directory: Path | None = None) -> None:
        self.client = client
        self.path = (directory or self.root / str(next(_directories))) / name
        self.path.parent.mkdir(exist_ok=True, parents=True)
        self.path.write_text(text)
        self.uri = self.path.as_uri()
        self.document = types.TextDocumentIdentifier(self.uri)
        self.text = text
        self.version = 1

    async def open(self) -> list[types.Diagnostic]:
        self.expect()
        self.client.text_document_did_open(
            types.DidOpenTextDocumentParams(types.TextDocumentItem(self.uri, "ld", 1, self.text))
        )
        return await self.told()

    async def type(self, text: str) -> list[types.Diagnostic]:
        self.text, self.version = text, self.version + 1
        self.expect()
        self.client.text_document_did_change(
            types.DidChangeTextDocumentParams(
                types.VersionedTextDocumentIdentifier(version=self.version, uri=self.uri),
                [types.TextDocumentContentChangeWholeDocument(text)],
            )
        )
        return await self.told()

    def expect(self) -> None:
        """Forget what was said of this file."""
        self.client.diagnostics.pop(self.uri, None)

    async def told(self) -> list[types.Diagnostic]:
        """Wait for findings about this file."""
        for _ in range(3000):
            if self.uri in self.client.diagnostics:
                return list(self.client.diagnostics[self.uri])
            await asyncio.sleep(0.01)
        raise AssertionError(f"nothing was said of {self.uri}")

    def at(self, text: str, shift: int = 0) -> types.Position:
        """Return the place of a text, in UTF-16 as the client counts."""
        before = self.text[: self.text.index(text) + shift]
        line = before.rpartition("\n")[2]
        return types.Position(before.count("\n"), len(line.encode("utf-16-le")) // 2)

    def range(self, text: str) -> types.Range:
        return types.Range(self.at(text), self.at(text, len(text)))

    async def hover(self, text: str, shift: int = 0) -> str:
        found = await self.client.text_document_hover_async(
            types.HoverParams(self.document, self.at(text, shift))
        )
        if found is None:
            return ""
        assert isinstance(found.contents, types.MarkupContent)
        return found.contents.value

    async def definition(self, text: str, shift: int = 0) -> Sequence[types.Location]:
        found = await self.client.text_document_definition_async(
            types.DefinitionParams(self.document, self.at(text, shift))
        )
        assert isinstance(found, Sequence)
        return [place for place in found if isinstance(place, types.Location)]

    async def actions(self, text: str) -> list[types.CodeAction]:
        found = await self.client.text_document_code_action_async(
            types.CodeActionParams(self.document, self.range(text), types.CodeActionContext([]))
        )
        return [action for action in found or () if isinstance(action, types.CodeAction)]

    def acted(self, action: types.CodeAction) -> str:
        """Return the text with an action's edits made."""
        assert action.edit is not None
        assert action.edit.changes is not None
        return self.edited(action.edit.changes[self.uri])

    def edited(self, edits: Sequence[types.TextEdit] | None) -> str:
        """Return the text with edits made, by an editor's rules."""
        assert edits
        lines = self.text.split("\n")
        starts = [0]
        for line in lines:
            starts.append(starts[-1] + len((line + "\n").encode("utf-16-le")))
        data = self.text.encode("utf-16-le")

        def offset(position: types.Position) -> int:
            return min(starts[min(position.line, len(lines))] + 2 * position.character, len(data))

        for edit in sorted(edits, key=lambda edit: offset(edit.range.start), reverse=True):
            new = edit.new_text.encode("utf-16-le")
            data = data[: offset(edit.range.start)] + new + data[offset(edit.range.end) :]
        return data.decode("utf-16-le")


def seen(diagnostics: Iterable[types.Diagnostic]) -> set[tuple[int | str | None, int, int]]:
    return {(one.code, one.range.start.line, one.range.start.character) for one in diagnostics}


@pytest.mark.asyncio(loop_scope="module")
async def test_diagnostics_as_one_types(client: LanguageClient) -> None:
    editor = Editor(client, "k.lds", SCRIPT)
    found = await editor.open()
    assert {one.code for one in found} >= {"not-kept", "page-aligned-order"}
    late = next(one for one in found if one.code == "page-aligned-order")
    # The face before it is one character and two units of UTF-16.
    assert late.range == editor.range(".data.page_aligned")
    assert late.severity == types.DiagnosticSeverity.Error
    assert late.source == "domainbuilder"
    broken = await editor.type(SCRIPT.replace("ENTRY(reset)", "ENTRY("))
    assert {one.code for one in broken} == {"syntax"}
    fine = await editor.type(SCRIPT.replace("*(.data) *(.data.page_aligned)", "*(.data)"))
    assert "page-aligned-order" not in {one.code for one in fine}


@pytest.mark.asyncio(loop_scope="module")
async def test_the_last_of_many_keys_counts(client: LanguageClient) -> None:
    editor = Editor(client, "k.lds", SCRIPT)
    await editor.open()
    editor.expect()
    for count in range(20):
        editor.client.text_document_did_change(
            types.DidChangeTextDocumentParams(
                types.VersionedTextDocumentIdentifier(version=2 + count, uri=editor.uri),
                [
                    types.TextDocumentContentChangePartial(
                        types.Range(types.Position(0, 0), types.Position(0, 0)), "\n"
                    )
                ],
            )
        )
    found = await editor.told()
    assert ("page-aligned-order", 28) in {(one.code, one.range.start.line) for one in found}


@pytest.mark.asyncio(loop_scope="module")
async def test_hover(client: LanguageClient) -> None:
    editor = Editor(client, "k.lds", SCRIPT)
    await editor.open()
    assert "the first instruction" in (await editor.hover("ENTRY")).lower()
    assert "load address" not in await editor.hover("SIZEOF")
    assert "`_heap` = 0x1000 = 4096 (4 KiB)" in await editor.hover("+ _heap", 3)
    assert "`_top` = 0x110000" in await editor.hover("_top")
    assert "known after linking" in await editor.hover("_etext")
    assert "`RAM`: 0x100000 to 0x110000, 64 KiB" in await editor.hover("> RAM", 3)
    assert "65536 = 0x10000 (64 KiB)" in await editor.hover("64K")
    assert "in region `RAM`" in await editor.hover("SIZEOF(.text", 8)
    rule = await editor.hover(".data.page_aligned", 4)
    assert "page-aligned-order" in rule
    assert "To fix it:" in rule
    assert await editor.hover("{ *(") == ""


@pytest.mark.asyncio(loop_scope="module")
async def test_hover_explains_the_rule_of_a_suppression(client: LanguageClient) -> None:
    editor = Editor(client, "k.lds", "/* lint: disable-file=not-kept */\n" + SCRIPT)
    await editor.open()
    # A rule's name has hyphens: the word under the pointer is a part of it.
    assert "To fix it:" in await editor.hover("not-kept", 1)


@pytest.mark.asyncio(loop_scope="module")
async def test_definitions(client: LanguageClient) -> None:
    editor = Editor(client, "k.lds", SCRIPT)
    await editor.open()
    for use, shift, target in (
        ("+ _heap", 3, "_heap"), ("ORIGIN(RAM)", 8, "RAM : "), ("> RAM", 3, "RAM : "),
        ("SIZEOF(.text", 8, ".text :"),
    ):  # fmt: skip
        (found,) = await editor.definition(use, shift)
        assert found.uri == editor.uri
        assert found.range.start == editor.at(target), use
    assert not await editor.definition("*(.text)", 3)
    assert not await editor.definition("ENTRY")


@pytest.mark.asyncio(loop_scope="module")
async def test_formatting(client: LanguageClient) -> None:
    editor = Editor(client, "k.lds", SCRIPT)
    await editor.open()
    parameters = types.DocumentFormattingParams(editor.document, types.FormattingOptions(4, True))
    edits = await client.text_document_formatting_async(parameters)
    formatted = print_script(parse(SCRIPT), SCRIPT)
    assert editor.edited(edits) == formatted
    await editor.type(formatted)
    assert not await client.text_document_formatting_async(parameters)
    await editor.type("SECTIONS {")
    assert not await client.text_document_formatting_async(parameters)


@pytest.mark.asyncio(loop_scope="module")
async def test_code_actions_mend_and_suppress(client: LanguageClient) -> None:
    editor = Editor(client, "k.lds", SCRIPT)
    await editor.open()
    actions = await editor.actions(".ctors")
    by_title = {action.title: action for action in actions}
    mend = next(action for action in actions if action.is_preferred and "KEEP" in action.title)
    assert mend.kind == types.CodeActionKind.QuickFix
    mended = editor.acted(mend)
    assert mended == SCRIPT.replace("*(.ctors)", "KEEP(*(.ctors))")
    quiet = editor.acted(by_title["switch not-kept off for this line"])
    assert "  /* lint: disable=not-kept */\n  .text" in quiet
    everything = next(action for action in actions if action.kind == types.CodeActionKind.SourceFixAll)
    assert "KEEP(*(.ctors))" in editor.acted(everything)
    assert "not-kept" not in {one.code for one in await editor.type(mended)}
    assert "not-kept" not in {one.code for one in await editor.type(quiet)}


@pytest.mark.asyncio(loop_scope="module")
async def test_symbols_and_completion(client: LanguageClient) -> None:
    editor = Editor(client, "k.lds", SCRIPT)
    await editor.open()
    symbols = await client.text_document_document_symbol_async(types.DocumentSymbolParams(editor.document))
    assert symbols
    assert [one.name for one in symbols] == ["_heap", "_top", ".head", ".text", "_etext", ".data", "_size"]
    offered = await client.text_document_completion_async(
        types.CompletionParams(editor.document, editor.at("SECTIONS"))
    )
    assert isinstance(offered, Sequence)
    assert {item.label for item in offered} >= {*KEYWORDS, ".data", "_heap", "RAM"}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_part_is_judged_in_the_script_that_includes_it(client: LanguageClient) -> None:
    main = Editor(client, "k.lds", "SECTIONS { INCLUDE sub/part.ld .data : { *(.data) } }\n")
    part = Editor(client, "sub/part.ld", ".text : { . = ALIGN(6); *(.text) *(.bss) }\n", main.path.parent)
    found = await part.open()
    assert seen(found) >= {("align-not-power-of-two", 0, 14)}
    assert "fragment" not in {one.code for one in found}
    await main.open()
    (target,) = await main.definition("sub/part.ld", 2)
    assert target.uri == part.uri
    assert not [
        one for one in await part.type(".text : { *(.text) }\n") if one.code == "align-not-power-of-two"
    ]


SCREEN = """\
 1 | MEMORY { RAM : ORIGIN = 1M, LENGTH = 64K }
 2 | SECTIONS
 3 | {
 4 |   .head : { *(.head) } > RAM
 5 |   .data : { *(.data) *(.data.page_aligned) } > RAM
   |                        ^^^^^^^^^^^^^^^^^^ Error page-aligned-order
 6 |   .text : { *(.init_array) . = ALIGN(6); } > RAM
   |               ^^^^^^^^^^^ Warning not-kept
   |                                ^^^^^^^^ Error align-not-power-of-two
 7 |   _free = LENGTH(RAM) - 0x1000;
 8 | }

hover LENGTH(RAM): Memory region `RAM`: 0x100000 to 0x110000, 64 KiB.
hover _free: `_free` = 0xf000 = 61440 (60 KiB)
hover ALIGN: The location counter, or the expression, rounded up to a multiple of n
definition RAM): 1:10
definition _free: 7:3
action .init_array: put *(...) into KEEP()
action .init_array: switch not-kept off for this line
action .init_array: mend everything that can be mended
"""


@pytest.mark.asyncio(loop_scope="module")
async def test_a_screen_of_answers(client: LanguageClient) -> None:
    """What a person sees of one small script: findings under their lines, then what is asked."""
    text = "".join(line[5:] + "\n" for line in SCREEN.partition("\n\n")[0].splitlines() if line[1].isdigit())
    editor = Editor(client, "k.lds", text)
    found = sorted(await editor.open(), key=lambda one: (one.range.start.line, one.range.start.character))
    screen = []
    for number, line in enumerate(text.splitlines()):
        screen.append(f"{number + 1:2} | {line}")
        for one in found:
            start, end = one.range.start, one.range.end
            assert one.severity is not None
            if start.line == number and one.severity <= types.DiagnosticSeverity.Warning:
                marks = " " * start.character + "^" * (end.character - start.character)
                screen.append(f"   | {marks} {one.severity.name} {one.code}")
    screen.append("")
    for shown, at, shift in (("LENGTH(RAM)", "LENGTH(RAM)", 8), ("_free", "_free", 1), ("ALIGN", "ALIGN", 1)):
        said = (await editor.hover(at, shift)).partition("\n\n---")[0]
        screen.append(f"hover {shown}: {said.rpartition('```')[2].strip().partition('. It moves')[0]}")
    for at, shift in (("RAM)", 1), ("_free", 1)):
        for place in await editor.definition(at, shift):
            start = place.range.start
            screen.append(f"definition {at}: {start.line + 1}:{start.character + 1}")
    screen += [f"action .init_array: {one.title}" for one in await editor.actions(".init_array")]
    assert "\n".join(screen) + "\n" == SCREEN


@pytest.mark.asyncio(loop_scope="module")
async def test_closing_clears(client: LanguageClient) -> None:
    editor = Editor(client, "k.lds", SCRIPT)
    assert await editor.open()
    editor.expect()
    client.text_document_did_close(types.DidCloseTextDocumentParams(editor.document))
    assert await editor.told() == []


@pytest.mark.asyncio(loop_scope="module")
async def test_what_is_no_script_is_a_diagnostic(client: LanguageClient, tool: Tool) -> None:
    tool("cpp", "gcc", "clang")
    editor = Editor(client, "k.lds.S", '#include "nowhere.h"\n')
    (found,) = await editor.open()
    assert (found.code, found.range.start.line) == ("syntax", 0)
    assert "nowhere.h" in found.message


@pytest.mark.asyncio(loop_scope="module")
async def test_values_of_the_linked_kernel(tool: Tool, tmp_path: Path) -> None:
    objects = [assemble(tmp_path, "a", MAIN, 64, tool("as"))]
    text = SCRIPT.replace("*(.text)", "*(.text .text.*) *(.rodata .rodata.* .table)").replace(
        "> RAM\n}", "> RAM }"
    )
    text = text.replace("  _size", "  .bss : { *(.bss) *(COMMON) } > RAM\n  _size")
    lds, link_map, elf, _ = link(
        tool("ld.bfd", "ld"), tmp_path, "k", text, objects, 64, "--no-warn-rwx-segments"
    )
    command = [*COMMAND, str(lds), "--map", str(link_map), "--elf", str(elf)]
    config = ClientServerConfig(server_command=command)
    client = await config.start()
    assert isinstance(client, LanguageClient)
    try:
        await client.initialize_session(
            types.InitializeParams(
                capabilities=pytest_lsp.client_capabilities("visual-studio-code"), root_uri=tmp_path.as_uri()
            )
        )
        editor = Editor(client, "k.lds", text, tmp_path)
        found = await editor.open()
        assert "page-aligned-address" in {one.code for one in found}
        assert any("seen in" in one.message for one in found)
        said = subprocess.run([tool("nm"), elf], capture_output=True, text=True, check=True).stdout
        etext = next(line.split()[0] for line in said.splitlines() if line.endswith(" _etext"))
        assert f"`_etext` = {int(etext, 16):#x} in" in await editor.hover("_etext")
        assert "used" in await editor.hover("> RAM", 3)
        assert "In this link 1 of them, 27 bytes" in await editor.hover("*(.text .", 3)
        await client.shutdown_session()
    finally:
        await client.stop()  # type: ignore[no-untyped-call]


def test_without_the_library_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "pygls.py").write_text("raise ImportError('no', name='pygls')\n")
    done = subprocess.run(
        COMMAND, env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
        check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 2
    assert "pip install 'domainbuilder[lsp]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("word", sorted(KEYWORDS))
def test_keywords_are_explained(word: str) -> None:
    keyword = KEYWORDS[word]
    assert word in keyword.usage
    assert keyword.text.endswith(".")
