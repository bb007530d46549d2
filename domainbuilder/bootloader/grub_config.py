"""GRUB 2's configuration, run as far as it says what would be booted.

The commands that decide (set, if, test, load_env, menuentry, submenu, linux, initrd, configfile, blscfg) do
what GRUB's do; those for screens, modules and disks succeed and change nothing. The variables are those that
PV-GRUB would have. Sources: the GRUB manual 2.06; Fedora's blscfg (entries by version, newest first).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator

from domainbuilder.bootloader.disk import DiskError
from domainbuilder.bootloader.filesystems import FileSystem, read_text
from domainbuilder.bootloader.grub_script import (
    Command,
    Function,
    If,
    Statement,
    environment_block,
    expand,
    parse,
    without_device,
)
from domainbuilder.bootloader.menu import Boot, Entry, Menu
from domainbuilder.bootloader.other_configs import boot_loader_entries
from domainbuilder.inputs import LIMITS

_LIMIT = LIMITS["boot configuration"].size
_MOST_STEPS = 20_000
_MOST_FILES = 8
_GRUBENV = "# GRUB Environment Block\n"
_VARIABLES = {
    "grub_platform": "xen",
    "grub_cpu": "x86_64",
    "root": "xen/xvda",
    "cmdpath": "(xen/xvda)",
    **dict.fromkeys(
        (
            "feature_menuentry_id",
            "feature_menuentry_options",
            "feature_default_font_path",
            "feature_all_video_module",
            "feature_platform_search_hint",
            "feature_timeout_style",
            "feature_200_final",
            "feature_nativedisk_cmd",
            "feature_ntldr",
        ),
        "y",
    ),
    "menuentry_id_option": "--id",
}
_HARMLESS = frozenset(
    (
        *("insmod", "rmmod", "lsmod", "normal", "export", "save_env", "list_env", "savedefault", "regexp"),
        *("search", "search.fs_uuid", "search.file", "search.fs_label", "cryptomount"),
        *("terminal_output", "terminal_input", "terminal", "serial", "loadfont", "gfxmode", "videoinfo"),
        *("background_image", "clear", "echo", "sleep", "play", "password", "password_pbkdf2", "true", ":"),
    )
)
_LINUX = frozenset(("linux", "linux16", "linuxefi"))
_INITRD = frozenset(("initrd", "initrd16", "initrdefi"))
_NOT_FOR_GUESTS = {
    "multiboot": "boots Xen itself",
    "multiboot2": "boots Xen itself",
    "xen_hypervisor": "boots Xen itself",
    "chainloader": "hands over to another boot loader",
    "fwsetup": "enters the firmware",
}


class Grub2:
    """One configuration being run. `menu()` is what it comes to."""

    def __init__(self, fs: FileSystem, path: str) -> None:
        self.fs = fs
        self.path = path
        self.prefix = path.rpartition("/")[0]
        self.steps = _MOST_STEPS
        self.files = _MOST_FILES
        self.functions: dict[str, tuple[Statement, ...]] = {}

    def menu(self) -> Menu:
        """Run it. Raises OSError, and DiskError for what GRUB would not take."""
        variables = {**_VARIABLES, "prefix": self.prefix}
        run = _Run(self, variables)
        run.file(self.path)
        timeout = variables.get("timeout", "")
        return Menu(
            self.path,
            tuple(run.entries),
            variables.get("default") or "0",
            int(timeout) if re.fullmatch(r"\d{1,9}", timeout) else None,
        )

    def step(self) -> None:
        """Count a statement. Raises DiskError when there are too many."""
        self.steps -= 1
        if self.steps < 0:
            raise DiskError(f"{self.path}: more than {_MOST_STEPS} commands are run")


class _Run:
    """Statements being run with their variables: the file itself, a submenu, or an entry that is chosen."""

    def __init__(self, grub: Grub2, variables: dict[str, str]) -> None:
        self.grub = grub
        self.variables = variables
        self.entries: list[Entry] = []
        self.linux: tuple[str, str] | None = None
        self.initrd: tuple[str, ...] = ()
        self.refused = ""
        self.depth = 0

    def file(self, path: str) -> bool:
        self.grub.files -= 1
        if self.grub.files < 0:
            raise DiskError(f"{self.grub.path}: too many files are included")
        return self.run(parse(read_text(self.grub.fs, path), path))

    def run(self, statements: tuple[Statement, ...]) -> bool:
        """Whether the last one succeeded."""
        self.depth += 1
        if self.depth > 64:
            raise DiskError(f"{self.grub.path}: too deeply nested")
        status = True
        for statement in statements:
            self.grub.step()
            if isinstance(statement, If):
                taken = (body for test, body in statement.branches if test is None or self.run(test))
                status = self.run(next(taken, ()))
            elif isinstance(statement, Function):
                self.grub.functions[statement.name] = statement.body
            elif isinstance(statement, Command):
                status = self.command(statement)
        self.depth -= 1
        return status

    def command(self, command: Command) -> bool:
        words = expand(command.words, self.variables)
        if not words:
            return True
        name, arguments = words[0], words[1:]
        if name in ("menuentry", "submenu"):
            self.menu_entry(name, arguments, command.block or ())
            return True
        if name in self.grub.functions:
            return self.function(name, arguments)
        if re.match(r"[A-Za-z_]\w*=", name):
            return self.set(words[:1])
        if name in _LINUX and arguments:
            self.linux = without_device(arguments[0]), " ".join(map(_as_argument, arguments[1:]))
            return True
        if name in _INITRD:
            self.initrd += tuple(map(without_device, arguments))
            return True
        if name in _NOT_FOR_GUESTS:
            self.refused = _NOT_FOR_GUESTS[name]
            return True
        act = _COMMANDS.get(name)
        return act(self, arguments) if act else name in _HARMLESS

    def menu_entry(self, kind: str, arguments: list[str], block: tuple[Statement, ...]) -> None:
        title, ident = _title_and_id(arguments)
        variables = dict(self.variables)
        if kind == "submenu":
            below = _Run(self.grub, variables)
            below.run(block)
            menu = Menu(self.grub.path, tuple(below.entries))
            self.entries.append(Entry(title, ident, _no_boot(title), menu))
            return

        def boot() -> Boot:
            chosen = _Run(self.grub, dict(variables))
            chosen.run(block)
            if chosen.linux is None:
                raise DiskError(
                    f"{self.grub.path}: the entry {title!r} {chosen.refused or 'boots no Linux kernel'}"
                )
            return Boot(chosen.linux[0], chosen.initrd, chosen.linux[1])

        self.entries.append(Entry(title, ident, boot))

    def function(self, name: str, arguments: list[str]) -> bool:
        outer = {key: value for key, value in self.variables.items() if key.isdigit()}
        for key in outer:
            del self.variables[key]
        self.variables.update((str(n), value) for n, value in enumerate(arguments, 1))
        status = self.run(self.grub.functions[name])
        for n in range(1, len(arguments) + 1):
            self.variables.pop(str(n), None)
        self.variables.update(outer)
        return status

    # Commands

    def set(self, arguments: list[str]) -> bool:
        for argument in arguments:
            name, sign, value = argument.partition("=")
            if sign:
                self.variables[name] = value
        return True

    def unset(self, arguments: list[str]) -> bool:
        for name in arguments:
            self.variables.pop(name, None)
        return True

    def load_env(self, arguments: list[str]) -> bool:
        path = f"{self.grub.prefix}/grubenv"
        names = list(arguments)
        for flag in ("-f", "--file"):
            if flag in names[:-1]:
                at = names.index(flag)
                path = without_device(names[at + 1])
                del names[at : at + 2]
        wanted = [name for name in names if not name.startswith("-")]
        try:
            text = read_text(self.grub.fs, path)
        except OSError:
            return False
        found = environment_block(text) if text.startswith(_GRUBENV) else {}
        self.variables.update({name: found[name] for name in wanted or found if name in found})
        return True

    def test(self, arguments: list[str]) -> bool:
        return _Test(self, arguments).value()

    def bracket(self, arguments: list[str]) -> bool:
        return self.test(arguments[:-1] if arguments[-1:] == ["]"] else arguments)

    def source(self, arguments: list[str]) -> bool:
        try:
            return bool(arguments) and self.file(without_device(arguments[0]))
        except OSError:
            return False

    def blscfg(self, _arguments: list[str]) -> bool:
        self.entries += boot_loader_entries(self.grub.fs, self.variables)
        return True

    def exists(self, path: str) -> int | None:
        """How large a file is, or None where there is none. A directory has no size."""
        try:
            return len(self.grub.fs.read(without_device(path), _LIMIT))
        except IsADirectoryError:
            return 0
        except OSError:
            return None
        except DiskError:
            return _LIMIT


_COMMANDS: dict[str, Callable[[_Run, list[str]], bool]] = {
    "set": _Run.set,
    "unset": _Run.unset,
    "load_env": _Run.load_env,
    "test": _Run.test,
    "[": _Run.bracket,
    "source": _Run.source,
    ".": _Run.source,
    "configfile": _Run.source,
    "extract_entries_configfile": _Run.source,
    "blscfg": _Run.blscfg,
    "false": lambda _run, _arguments: False,
}


def _as_argument(word: str) -> str:
    """A word as grub_create_loader_cmdline hands it to the kernel: quoted where it has a blank."""
    escaped = re.sub(r"([\\'\"])", r"\\\1", word)
    return f'"{escaped}"' if " " in escaped else escaped


def _no_boot(title: str) -> Callable[[], Boot]:
    def boot() -> Boot:
        raise DiskError(f"{title!r} is a submenu")

    return boot


def _title_and_id(arguments: list[str]) -> tuple[str, str]:
    title, ident = "", ""
    words = iter(arguments)
    for word in words:
        if word in ("--id", "--class", "--users", "--hotkey"):
            value = next(words, "")
            ident = value if word == "--id" else ident
        elif word.startswith("--id="):
            ident = word[5:]
        elif not word.startswith("--") and not title:
            title = word
    return title, ident


class _Test:
    """`test` and `[`: -o binds weaker than -a, which binds weaker than !."""

    def __init__(self, run: _Run, words: list[str]) -> None:
        self.run = run
        self.words: Iterator[str] = iter(words)
        self.ahead = next(self.words, None)

    def take(self) -> str:
        word, self.ahead = self.ahead or "", next(self.words, None)
        return word

    def value(self) -> bool:
        result = self.conjunction()
        while self.ahead == "-o":
            self.take()
            result = self.conjunction() or result
        return result

    def conjunction(self) -> bool:
        result = self.term()
        while self.ahead == "-a":
            self.take()
            result = self.term() and result
        return result

    def term(self) -> bool:
        negated = False
        while self.ahead == "!":
            self.take()
            negated = not negated
        if self.ahead is None:
            return negated
        if self.ahead == "(":
            self.take()
            result = self.value()
            if self.ahead == ")":
                self.take()
        else:
            result = self.comparison()
        return result is not negated

    def comparison(self) -> bool:
        word = self.take()
        if word in ("-e", "-f", "-d", "-s") and self.ahead is not None:
            size = self.run.exists(self.take())
            return bool(size) if word == "-s" else size is not None
        if word in ("-n", "-z") and self.ahead not in ("=", "==", "!="):
            operand = "" if self.ahead in (None, "-a", "-o") else self.take()
            return bool(operand) is (word == "-n")
        if self.ahead in _STRINGS:
            return _STRINGS[self.take()](word, self.take())
        if self.ahead in _NUMBERS:
            return _NUMBERS[self.take()](_number(word), _number(self.take()))
        return bool(word)


_STRINGS: dict[str, Callable[[str, str], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_NUMBERS: dict[str, Callable[[int, int], bool]] = {
    "-eq": operator.eq,
    "-ne": operator.ne,
    "-lt": operator.lt,
    "-le": operator.le,
    "-gt": operator.gt,
    "-ge": operator.ge,
}


def _number(text: str) -> int:
    return int(text) if re.fullmatch(r"-?\d{1,18}", text) else 0
