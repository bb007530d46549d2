"""Man pages, made of the commands' own help: `python scripts/manpages.py FOLDER`, and every build of a wheel.

One page a command: domainbuilder.1, domainbuilder-notes.1, domainbuilder-notes-fix.1 and so on; and
domainbuilder-xl.cfg.5 of the table of keys. What pages
say beyond the help (exit status, environment) is here. Needs Typer and no other library.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from domainbuilder import __version__  # noqa: E402
from domainbuilder.cli import EXAMPLES, EXIT_CODES, OPTIONS  # noqa: E402
from domainbuilder.command_line import typer_command  # noqa: E402
from domainbuilder.command_names import ABOUT, COMMANDS  # noqa: E402
from domainbuilder.xl.config_keys import KEYS, Fate  # noqa: E402

ENVIRONMENT = {
    "NO_COLOR": "If set to anything, nothing is coloured; nor where TERM is dumb or stdout no terminal.",
}
SIGNALS = (
    "128 and the number of the signal where one ended the command: 130 after Ctrl-C, 143 after SIGTERM. "
    "What was half written is removed first."
)


def quoted(text: str) -> str:
    """Text as roff takes it: backslashes and hyphens are themselves, and no line begins a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def page_name(command: str) -> str:
    """The name of a command's page, without its section."""
    return "-".join(["domainbuilder", *command.split()])


def _head(name: str, summary: str) -> Iterator[str]:
    yield f'.TH {name.upper()} 1 "" "domainbuilder {__version__}" "User Commands"'
    yield ".SH NAME"
    yield f"{quoted(name)} \\- {quoted(summary.rstrip('.'))}"


def _filled(text: str) -> Iterator[str]:
    """A paragraph in lines of no great length."""
    for line in textwrap.wrap(" ".join(text.split()), 76, break_on_hyphens=False):
        yield quoted(line)


def _paragraphs(text: str) -> Iterator[str]:
    """Help text: paragraphs, and blocks to be left as they are, which Typer marks with \\b."""
    for number, block in enumerate(re.split(r"\n\s*\n", text.strip())):
        lines = block.splitlines()
        if number:
            yield ".PP"
        if lines and lines[0].strip() == "\b":
            yield from (".nf", *(quoted(line.rstrip()) for line in lines[1:]), ".fi")
        else:
            yield from _filled(block)


def _parameters(parameters: list[Any], *, options: bool) -> Iterator[str]:
    for parameter in parameters:
        if (parameter.param_type_name == "option") is not options:
            continue
        metavar = "" if getattr(parameter, "is_flag", False) else parameter.metavar or parameter.name.upper()
        names = ", ".join(parameter.opts) if options else ""
        choices = getattr(parameter.type, "choices", None)
        if choices and metavar:
            metavar = "|".join(getattr(choice, "value", str(choice)) for choice in choices)
        yield ".TP"
        yield f"\\fB{quoted(names)}\\fR \\fI{quoted(metavar)}\\fR" if names else f"\\fI{quoted(metavar)}\\fR"
        yield from _filled(parameter.help or "")


def _options(parameters: list[Any]) -> Iterator[str]:
    """All options, in the sections that help has them in."""
    sections: dict[str | None, list[Any]] = {}
    for parameter in parameters:
        sections.setdefault(getattr(parameter, "rich_help_panel", None), []).append(parameter)
    others = sections.pop(None, [])
    for title, members in sections.items():
        yield f".SS {quoted(str(title))}"
        yield from _parameters(members, options=True)
    if sections and any(one.param_type_name == "option" for one in others):
        yield ".SS Other options"
    yield from _parameters(others, options=True)


_FILES = (
    "A configuration is text of xl's syntax: NAME = VALUE, a line each, where a value is a string in "
    "quotes, a number, or a list of strings in brackets; += adds to what was before, and # begins a "
    "comment. It may be a JSON object with the same names instead, as `domainbuilder create -n` "
    "writes it. Settings behind its name on the command line go before the file's."
)
_DISK = (
    "TARGET is a file or block device, FORMAT raw, qcow2 or empty, VDEV what the guest calls it "
    "(xvda, sda1, hdc, a number), ACCESS r or w. By name: target=, format=, vdev=, access=, cdrom, "
    "discard, no-discard, direct-io-safe, trusted, untrusted; target= takes all that follows."
)
_VIF = (
    "mac=, bridge= (the switch, xenbr0), rate= (as in 10Mb/s or 1MB/s@20ms), mtu=, ip=, devid=, "
    "trusted=, and script=, which may name vif-bridge or vif-openvswitch. type=user leads out of the "
    "host by passt(1), where tcp= and udp= are the ports that lead in, [ADDRESS/]PORT[:GUESTPORT] "
    "with + between them. vifname=, model=, netdev= and accel= have no effect; gatewaydev=, backend= "
    "and forwarddev= are refused."
)


def config_page() -> str:
    """The page of configurations."""
    about = "xl's configurations as domainbuilder reads them"
    lines = [f'.TH DOMAINBUILDER-XL.CFG 5 "" "domainbuilder {__version__}" "File Formats"', ".SH NAME"]
    lines += [f"domainbuilder\\-xl.cfg \\- {quoted(about)}", ".SH SYNOPSIS"]
    lines += ["\\fBdomainbuilder create\\fR \\fICFG\\fR [\\fIKEY=VALUE\\fR]...", ".SH DESCRIPTION"]
    lines += [*_filled(_FILES), ".PP", *_filled(_UNKNOWN)]
    for fate, title in _FATES.items():
        lines += [f".SH {title}", *_keys(fate)]
    lines += [".SH DISKS", *_filled(_DISK), ".SH NETWORK INTERFACES", *_filled(_VIF)]
    lines += [".SH EXAMPLES", ".nf", *(quoted(line) for line in _EXAMPLE.splitlines()), ".fi"]
    lines += [".SH SEE ALSO"]
    pages = ("domainbuilder\\-create", "domainbuilder\\-xl")
    lines += [",\n".join([*(f"\\fB{page}\\fR(1)" for page in pages), "\\fBxl.cfg\\fR(5)"])]
    return "\n".join(lines) + "\n"


_UNKNOWN = (
    "A key that neither xl nor this page knows is ignored, and told with its line. A wrong value is an error "
    "with its line and column, also where xl only warns."
)
_EXAMPLE = """name = "debian"
bootloader = "pygrub"
memory = 512
maxmem = 1024
disk = [ "debian.img,raw,xvda,w" ]
vif = [ "type=user,tcp=8080:80" ]
on_reboot = "destroy"
"""
_FATES = {
    Fate.HONOURED: "KEYS",
    Fate.IDLE: "KEYS WITHOUT EFFECT",
    Fate.REFUSED: "KEYS THAT ARE REFUSED",
    Fate.HVM: "KEYS FOR OTHER GUESTS",
}


def _keys(fate: Fate) -> Iterator[str]:
    """The keys of one fate; those with the same reason together."""
    groups: dict[str, list[str]] = {}
    for name, key in KEYS.items():
        if key.fate is fate:
            kind = f" ({key.kind.value})" if fate is Fate.HONOURED else ""
            groups.setdefault(key.why, []).append(f"{name}{kind}")
    for why, names in groups.items():
        yield from (".TP", f"\\fB{quoted(', '.join(names))}\\fR")
        yield from _filled(why or "xl reads them for HVM and PVH guests alone; they are ignored.")


def _tail(related: list[str]) -> Iterator[str]:
    yield ".SH EXIT STATUS"
    for line in EXIT_CODES.splitlines():
        code, _, meaning = line.strip().partition(" ")
        yield from (".TP", f"\\fB{code}\\fR", quoted(meaning.strip()))
    yield from (".PP", *_filled(SIGNALS))
    yield ".SH ENVIRONMENT"
    for name, meaning in ENVIRONMENT.items():
        yield from (".TP", f"\\fB{name}\\fR", *_filled(meaning))
    yield ".SH SEE ALSO"
    pages = [f"\\fB{quoted(name)}\\fR(1)" for name in related]
    yield ",\n".join([*pages, "\\fBxl\\fR(1)"])


def command_page(command: str) -> str:
    """The page of one command."""
    typed = typer_command(command)
    parameters = [p for p in typed.params if not getattr(p, "hidden", False)]
    lines = [*_head(page_name(command), COMMANDS[command].help), ".SH SYNOPSIS"]
    arguments = [p.metavar or p.name.upper() for p in parameters if p.param_type_name == "argument"]
    shown = " ".join(f"\\fI{quoted(argument)}\\fR" for argument in arguments)
    lines += [
        f"\\fBdomainbuilder {quoted(command)}\\fR [\\fIOPTIONS\\fR] {shown}".rstrip(),
        ".SH DESCRIPTION",
    ]
    lines += _paragraphs(typed.help or "")
    lines += [".SH ARGUMENTS", *_parameters(parameters, options=False)] if arguments else []
    lines += [".SH OPTIONS", *_options(parameters)]
    lines += [".TP", "\\fB\\-h, \\-\\-help\\fR", "Show the help and exit."]
    first = command.split(maxsplit=1)[0]
    related = [page_name(name) for name in COMMANDS if name != command and name.split()[0] == first]
    return "\n".join([*lines, *_tail(["domainbuilder", *related])]) + "\n"


def main_page() -> str:
    """The page of `domainbuilder` itself."""
    lines = [*_head("domainbuilder", ABOUT), ".SH SYNOPSIS"]
    lines += ["\\fBdomainbuilder\\fR [\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]", ".SH COMMANDS"]
    for name, command in COMMANDS.items():
        lines += [".TP", f"\\fBdomainbuilder {quoted(name)}\\fR", quoted(command.help)]
    lines += [".SH OPTIONS"]
    for name, meaning in OPTIONS.items():
        lines += [".TP", f"\\fB{quoted(name)}\\fR", quoted(meaning)]
    lines += [".SH EXAMPLES", ".nf", *(quoted(line.strip()) for line in EXAMPLES.splitlines()), ".fi"]
    return "\n".join([*lines, *_tail([page_name(name) for name in COMMANDS])]) + "\n"


def write_pages(folder: Path) -> list[Path]:
    """Write every page to `folder`; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"domainbuilder": main_page()} | {page_name(name): command_page(name) for name in COMMANDS}
    files = {folder / f"{name}.1": text for name, text in texts.items()}
    files[folder / "domainbuilder-xl.cfg.5"] = config_page()
    for path, text in files.items():
        path.write_text(text)
    return list(files)


if __name__ == "__main__":
    for path in write_pages(Path(sys.argv[1])):
        print(path)
