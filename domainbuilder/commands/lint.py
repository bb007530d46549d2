"""`domainbuilder lint` and its verbs: the layout of kernels, judged before they run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from domainbuilder import streams
from domainbuilder.commands._lint_options import (
    Baseline,
    Config,
    Cpp,
    Define,
    DiffFormat,
    Elf,
    Explain,
    Fix,
    Format,
    Ignore,
    Include,
    Library,
    Lsp,
    Map,
    Output,
    RegionsFormat,
    Scripts,
    Select,
    ShowDiff,
    StdinName,
    Svg,
    WriteBaseline,
)
from domainbuilder.output import refuse_to_overwrite

if TYPE_CHECKING:
    from mmap import mmap

    from linker.lint import Report
    from linker.outline import Outline
    from linker.regions import Fill
    from linker.session import Request


@contextmanager
def _input_errors() -> Iterator[None]:
    """Turn the linter's error about an input into the one that every command ends with."""
    from domainbuilder.errors import BuildError
    from linker.errors import LayoutInputError

    try:
        yield
    except LayoutInputError as error:
        raise BuildError(str(error)) from error


def _write(text: str, output: Path | None) -> None:
    """Write a result, a file whole or not at all and with the mode it had; devices and pipes as they are."""
    if output is None:
        sys.stdout.write(text)
        return
    from domainbuilder.errors import BuildError, Where
    from domainbuilder.output import write_whole

    data = text.encode("utf-8", errors="surrogateescape")
    try:
        if output.exists() and not output.is_file() and not output.is_dir():
            output.write_bytes(data)
            return
        write_whole(output, data)
    except OSError as error:
        raise BuildError(f"cannot be written: {error.strerror}", where=Where(str(output))) from error


def _explain(name: str) -> None:
    from domainbuilder.errors import BuildError
    from linker import rules, special
    from linker.explain import explain

    if name == "all":
        for rule in rules.load():
            print(f"{rule.id:28} {rule.severity:8} {rule.summary}")
        for key, one in special.SPECIAL.items():
            print(f"{key:28} {one.severity:8} {one.summary}")
        return
    found = rules.find(name)
    if found is None and name not in special.SPECIAL:
        raise BuildError("there is no such rule", found=name, expected="one of `lint --explain all`")
    sys.stdout.write(explain(found) if found is not None else special.explain(name))


def _unpacked(path: str) -> bytes | mmap | None:
    """The ELF image in a gzip file or a bzImage; None of anything else, which the linter reads itself.

    A dump-core file is no linked kernel: KernelFormatError says so.
    """
    if not Path(path).is_file():
        # What a pipe gives can be read once.
        return None
    try:
        with Path(path).open("rb") as stream:
            head = stream.read(0x206)
    except OSError:
        return None
    packed = head[:2] == b"\x1f\x8b" or head[0x202:] == b"HdrS"
    core = head[:4] == b"\x7fELF" and head[16:18] == b"\4\0"
    if not packed and not core:
        return None
    from domainbuilder.kernel.kernel_file import load_kernel

    return load_kernel(path).image


def _outline(request: Request) -> Outline | None:
    """Return the script's outline, for what needs its regions; None without one."""
    if not request.scripts:
        return None
    from linker import kinds
    from linker.outline import Outline
    from linker.session import load_script

    source = load_script(request.scripts[0], request.how, request.texts)
    return Outline(kinds.read(source.text).script)


def _fills(request: Request) -> list[Fill]:
    from linker.discover import settings_for
    from linker.regions import fill
    from linker.session import load_inputs

    given = load_inputs(None, request)
    anchor = request.scripts[0] if request.scripts else request.elf or request.map or "."
    settings = settings_for(str(Path(anchor).parent), request.config)
    return fill(_outline(request), given.map, given.elf, settings)


def _draw(request: Request, output: Path | None) -> None:
    from linker.errors import LayoutInputError
    from linker.output import svg
    from linker.regions import parts_of_elf, parts_of_map, regions_of, symbols_of
    from linker.session import load_inputs
    from linker.settings import DEFAULTS

    given = load_inputs(None, request)
    if given.elf is not None:
        parts, name = parts_of_elf(given.elf), given.elf.path
    elif given.map is not None:
        parts, name = parts_of_map(given.map), given.map.path
    else:
        raise LayoutInputError("a drawing needs addresses", expected="--elf or --map")
    outline = _outline(request)
    found = regions_of(outline, given.map, DEFAULTS)
    regions = [svg.Extent(region, *extent) for region, extent in found.items()]
    marks = [svg.Mark(*item) for item in symbols_of(outline, given.elf, found.values()).items()]
    _write(svg.render(parts, Path(name).name, regions, marks), output)


def _judge(request: Request, *, fix: bool, show: bool) -> tuple[Report, bool]:
    """Lint, and fix what can be fixed; return the report, and whether --diff has something to show."""
    from domainbuilder.progress import Progress
    from linker.session import lint_files

    with Progress("linting") as shown:
        request = request._replace(progress=lambda phase: setattr(shown, "phase", phase))
        if not fix and not show:
            return lint_files(request), False
        from linker.fixing import diff
        from linker.fixing import fix as fix_scripts
        from linker.session import read_stdin

        on_stdin = "-" in request.scripts
        request = read_stdin(request)
        changed, report = fix_scripts(lambda texts: lint_files(request._replace(texts=texts)), request.texts)
    if fix and on_stdin:
        # What came by standard input goes back by standard output.
        texts = {one.file: one.after for one in changed}
        sys.stdout.write(texts.get(request.stdin_name, request.texts[request.stdin_name]))
        changed = [one for one in changed if one.file != request.stdin_name]
    else:
        sys.stdout.write(diff(changed))
        sys.stdout.flush()
    if not fix or not changed:
        return report, bool(changed)
    asked = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    if asked and not typer.confirm(f"Change {len(changed)} files?" if len(changed) > 1 else "Change it?"):
        return lint_files(request), False
    for one in changed:
        _write(one.after, Path(one.file))
    print(f"fixed {', '.join(one.file for one in changed)}", file=sys.stderr)
    return report, False


def _serve(request: Request) -> None:
    from domainbuilder import __version__
    from domainbuilder.errors import BuildError

    try:
        from linker.lsp.features import serve
    except ImportError as error:
        raise BuildError(
            "an editor is served by the library pygls", found=f"no module {error.name}",
            expected="pip install 'domainbuilder[lsp]'",
        ) from error  # fmt: skip

    if sys.stdin is None:
        raise BuildError("an editor speaks over standard input, which is closed")

    def unpack(path: str) -> bytes | mmap | None:
        from linker.errors import LayoutInputError

        try:
            return _unpacked(path)
        except BuildError as error:
            raise LayoutInputError(str(error)) from error

    serve(request._replace(unpack=unpack), __version__)


def _without_known(report: Report, baseline: str | None) -> Report:
    """The report without the findings that a baseline lists."""
    if baseline is None:
        return report
    from linker.fingerprint import apply_baseline, read_baseline

    return apply_baseline(report, read_baseline(baseline))


def _list_all(report: Report, path: str) -> None:
    """Write the baseline that lists every finding."""
    from linker.fingerprint import baseline

    text, count = baseline([report])
    _write(text, Path(path))
    print(f"{count} finding{'s' * (count != 1)} written to {path}", file=sys.stderr)


def _tell(
    report: Report, output_format: Format, output: Path | None, *, fixed_stdin: bool, diff: bool
) -> None:
    """Print the report; on stderr where stdout has the fixed script, and not at all beside a diff."""
    from linker.session import render

    text = render(report, output_format.value, color=output is None and streams.colour(sys.stdout))
    if fixed_stdin and output is None:
        sys.stderr.write(text)
    elif output is None and output_format is not Format.text:
        streams.document(text)
    elif not diff:
        _write(text, output)


def lint(
    scripts: Scripts = None,
    link_map: Map = None,
    elf: Elf = None,
    select: Select = None,
    ignore: Ignore = None,
    fix: Fix = False,
    show_diff: ShowDiff = False,
    output_format: Annotated[Format, typer.Option("--format", help="How to print findings.")] = Format.text,
    output: Output = None,
    config: Config = None,
    baseline: Baseline = None,
    write_baseline: WriteBaseline = None,
    svg: Svg = None,
    explain: Explain = None,
    library: Library = None,
    cpp: Cpp = "",
    include: Include = None,
    define: Define = None,
    stdin_filename: StdinName = "<stdin>",
    lsp: Lsp = False,
) -> None:
    """Find layout defects in a linker script, its link map and the linked kernel.

    Exits with 1 when there is a warning or an error, with 2 when an input cannot be used.

    \b
    Examples:
      domainbuilder lint vmlinux.lds.S -I include --map vmlinux.map --elf vmlinux
      domainbuilder lint --diff kernel.lds
      domainbuilder lint --explain not-kept
      domainbuilder lint *.lds --format sarif -o lint.sarif
    """
    if explain is not None:
        _explain(explain)
        return
    from domainbuilder.errors import ExitCode

    with _input_errors():
        from linker.session import Preprocessing, Request

        how = Preprocessing(cpp, tuple(include or ()), tuple(define or ()), tuple(library or ()))
        request = Request(
            tuple(scripts or ()), link_map, elf, config, how, tuple(select or ()), tuple(ignore or ()),
            stdin_filename, unpack=_unpacked,
        )  # fmt: skip
        if lsp:
            _serve(request)
            return
        outputs = (output, svg, write_baseline)
        refuse_to_overwrite(outputs, (*request.scripts, link_map, elf, config, baseline))
        report, to_mend = _judge(request, fix=fix, show=show_diff)
        refuse_to_overwrite(outputs, report.files)
        if svg is not None:
            _draw(request, svg)
        if write_baseline is not None and report.usable:
            _list_all(report, write_baseline)
            return
        report = _without_known(report, baseline)
        _tell(report, output_format, output, fixed_stdin=fix and "-" in request.scripts, diff=show_diff)
    for error in report.errors:
        streams.tell_error(" ".join(error.split()))
    if not report.usable:
        raise typer.Exit(ExitCode.UNUSABLE_INPUT)
    if to_mend or (report.failed and not show_diff):
        raise typer.Exit(ExitCode.CHECK_FAILED)


def diff(
    old: Annotated[str, typer.Argument(metavar="OLD.elf", help="The linked kernel before.")],
    new: Annotated[str, typer.Argument(metavar="NEW.elf", help="The linked kernel after.")],
    output_format: Annotated[DiffFormat, typer.Option("--format", help="Text or JSON.")] = DiffFormat.text,
    everything: Annotated[
        bool, typer.Option("--all", help="List every symbol, not the first twenty of a kind.")
    ] = False,
) -> None:
    """Show what moved, grew or lost alignment between two linked kernels.

    Exits with 1 when something lost its alignment.

    \b
    Example:
      domainbuilder lint diff old.elf new.elf
    """
    from domainbuilder.errors import ExitCode

    with _input_errors():
        from linker.diff import as_json, compare, render
        from linker.elffile import read_elf

        changes = compare(read_elf(old, _unpacked), read_elf(new, _unpacked))
    if output_format is DiffFormat.json:
        streams.document(as_json(changes))
    else:
        sys.stdout.write(render(changes, everything=everything))
    if any(change.lost for change in changes):
        raise typer.Exit(ExitCode.CHECK_FAILED)


def regions(
    script: Annotated[
        str | None, typer.Argument(metavar="[SCRIPT]", help="The script, for its MEMORY.", show_default=False)
    ] = None,
    link_map: Map = None,
    elf: Elf = None,
    output_format: Annotated[
        RegionsFormat, typer.Option("--format", help="How to print them.")
    ] = RegionsFormat.text,
    output: Output = None,
    config: Config = None,
    library: Library = None,
    cpp: Cpp = "",
    include: Include = None,
    define: Define = None,
) -> None:
    """Show how full the memory regions are, and who takes the most.

    Exits with 1 when a region overflows or uses more than its budget in layout.toml.

    \b
    Example:
      domainbuilder lint regions app.lds --map app.map --elf app.elf
    """
    from domainbuilder.errors import ExitCode

    with _input_errors():
        from linker.errors import LayoutInputError
        from linker.output import fill
        from linker.session import Preprocessing, Request

        if link_map is None and elf is None:
            raise LayoutInputError("regions are filled by a link", expected="--elf or --map")
        how = Preprocessing(cpp, tuple(include or ()), tuple(define or ()), tuple(library or ()))
        request = Request((script,) if script else (), link_map, elf, config, how, unpack=_unpacked)
        refuse_to_overwrite((output,), (script, link_map, elf, config))
        fills = _fills(request)
        if output_format is RegionsFormat.svg:
            _draw(request, output)
        else:
            renderers = {"text": fill.render, "json": fill.as_json, "markdown": fill.markdown}
            _write(renderers[output_format.value](fills), output)
    if any(one.over for one in fills):
        raise typer.Exit(ExitCode.CHECK_FAILED)


def format_script(
    scripts: Annotated[
        list[str],
        typer.Argument(metavar="SCRIPT...", help="Linker scripts, not .lds.S; - is standard input."),
    ],
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit with 1 if needed.")] = False,
    in_place: Annotated[bool, typer.Option("--in-place", "-i", help="Write the files back.")] = False,
) -> None:
    """Print linker scripts in one style, comments kept.

    Version scripts, parts that other scripts INCLUDE, and scripts for the C preprocessor are left alone.

    \b
    Examples:
      domainbuilder lint format kernel.lds
      domainbuilder lint format --check *.lds
    """
    from domainbuilder.errors import BuildError, ExitCode, one_line

    changed = unusable = False
    for name in scripts:
        try:
            with _input_errors():
                from linker.session import format_text

                before, after = format_text(name)
        except BuildError as error:
            streams.tell_error(one_line(error))
            unusable = True
            continue
        changed |= after != before
        if check:
            if after != before:
                print(f"would reformat {name}", file=sys.stderr)
        elif not in_place or name == "-":
            sys.stdout.write(after)
        elif after != before:
            _write(after, Path(name))
    if unusable:
        raise typer.Exit(ExitCode.UNUSABLE_INPUT)
    if check and changed:
        raise typer.Exit(ExitCode.CHECK_FAILED)
