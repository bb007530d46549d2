"""A matrix file: TOML, in which kernels, configurations, scripts and seeds are multiplied.

    seeds = 20
    timeout = 120

    [[kernel]]
    name = "debian"
    file = "vmlinuz"
    ramdisk = "initrd.gz"
    cmdline = "console=hvc0"
    until = '^/ # '

    [[configuration]]
    memory = [128, 256]
    vcpus = [1, 2]

    [[script]]
    name = "counts"
    steps = [{ send = "echo $(({seed} + 1))\\n" }, { expect = '^\\d+' }]
    end = "match"

docs/matrix.md has every key.
"""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from domainbuilder.errors import BuildError, Where
from domainbuilder.fleet.values import Case, Configuration, Kernel, Script, Step
from domainbuilder.inputs import open_input
from domainbuilder.launch.script import Step as ScriptStep

MOST_CASES = 1_000_000
MOST_SEEDS = 1_000_000
_MOST_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_TOP = {"seeds", "timeout", "max_guest_seconds", "kernel", "configuration", "script"}
_KERNEL = {"name", "file", "ramdisk", "cmdline", "until"}
_CONFIGURATION = {"name", "memory", "vcpus", "upper_ptwr", "plain"}
_SCRIPT = {"name", "steps", "jitter", "end"}


@dataclass(frozen=True, slots=True)
class Matrix:
    """The cases, and the files that have the contents which they name."""

    cases: tuple[Case, ...]
    files: dict[str, Path] = field(default_factory=dict)


def read_matrix(path: str | os.PathLike[str]) -> Matrix:
    """Read a matrix file. Raises BuildError with the key that is wrong, OSError."""
    name = os.fspath(path)
    try:
        data = open_input(path)
    except ValueError as error:
        raise BuildError(f"cannot be read: {error}", where=Where(name)) from None
    if len(data) > _MOST_BYTES:
        raise BuildError("too large for a matrix", where=Where(name), found=len(data), expected=_MOST_BYTES)
    try:
        document = tomllib.loads(bytes(data).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BuildError(f"no TOML: {error}", where=Where(name)) from None
    return _Reader(name, Path(name).parent).matrix(document)


class _Reader:
    """Reads one file, whose folder relative names begin in."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self._folder = folder
        self._files: dict[str, Path] = {}

    def matrix(self, document: dict[str, Any]) -> Matrix:
        self._known(document, _TOP, "")
        kernels = [self._kernel(table, at) for table, at in self._tables(document, "kernel")]
        configurations = [
            one
            for table, at in self._tables(document, "configuration")
            for one in self._configurations(table, at)
        ] or [Configuration("default")]
        scripts = [self._script(table, at) for table, at in self._tables(document, "script")] or [
            Script("default")
        ]
        if not kernels:
            raise self._wrong("kernel", "nothing", "at least one [[kernel]]")
        seeds = self._seeds(document.get("seeds", 1))
        limits = [self._seconds(document, key) for key in ("timeout", "max_guest_seconds")]
        for what, named in (("kernel", kernels), ("configuration", configurations), ("script", scripts)):
            names = [one.name for one in named]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise self._wrong(what, f"{twice!r} twice", "names that differ")
        count = len(kernels) * len(configurations) * len(scripts) * len(seeds)
        if count > MOST_CASES:
            raise self._wrong("seeds", f"{count:,} cases", f"at most {MOST_CASES:,}")
        cases = tuple(
            Case(kernel, configuration, script, seed, *limits)
            for kernel, configuration, script, seed in product(kernels, configurations, scripts, seeds)
        )
        return Matrix(cases, self._files)

    def _kernel(self, table: dict[str, Any], at: str) -> Kernel:
        self._known(table, _KERNEL, at)
        file = self._text(table, "file", at)
        if file is None:
            raise self._wrong(f"{at}.file", "nothing", "the kernel's file")
        name = self._text(table, "name", at) or Path(file).stem
        ramdisk, until = self._text(table, "ramdisk", at), self._text(table, "until", at)
        if until is not None:
            self._pattern(until, f"{at}.until")
        return Kernel(
            self._checked(name, f"{at}.name"),
            self._digest(file),
            None if ramdisk is None else self._digest(ramdisk),
            self._text(table, "cmdline", at) or "",
            until,
        )

    def _configurations(self, table: dict[str, Any], at: str) -> Iterator[Configuration]:
        self._known(table, _CONFIGURATION, at)
        axes = [
            self._numbers(table, "memory", at, None),
            self._numbers(table, "vcpus", at, 1),
            self._flags(table, "upper_ptwr", at),
            self._flags(table, "plain", at),
        ]
        given = self._text(table, "name", at)
        for memory, vcpus, upper_ptwr, plain in product(*axes):
            parts = [given] if given else []
            if not given or len(axes[0]) > 1:
                parts.append("default" if memory is None else f"{memory}MB")
            if not given or len(axes[1]) > 1:
                parts.append(f"{vcpus}cpu")
            parts += ["upper_ptwr"] if upper_ptwr and len(axes[2]) > 1 else []
            parts += ["plain"] if plain and len(axes[3]) > 1 else []
            name = self._checked("-".join(parts), f"{at}.name")
            yield Configuration(name, memory, vcpus or 1, bool(upper_ptwr), bool(plain))

    def _script(self, table: dict[str, Any], at: str) -> Script:
        self._known(table, _SCRIPT, at)
        steps = table.get("steps", [])
        if not isinstance(steps, list):
            raise self._wrong(f"{at}.steps", type(steps).__name__, "a list")
        name = self._text(table, "name", at)
        if name is None:
            raise self._wrong(f"{at}.name", "nothing", "a name")
        jitter = table.get("jitter", 0.0)
        if isinstance(jitter, bool) or not isinstance(jitter, int | float) or not 0 <= jitter < 1e6:
            raise self._wrong(f"{at}.jitter", jitter, "seconds of the guest's time")
        return Script(
            self._checked(name, f"{at}.name"),
            tuple(self._step(step, f"{at}.steps[{index}]") for index, step in enumerate(steps)),
            float(jitter),
            self._text(table, "end", at) or "poweroff",
        )

    def _step(self, step: Any, at: str) -> Step:
        kinds = ("expect", "send", "run")
        if not isinstance(step, dict) or len(step) != 1 or next(iter(step)) not in kinds:
            raise self._wrong(at, step, "{ expect = REGEX }, { send = TEXT } or { run = SECONDS }")
        ((kind, value),) = step.items()
        if kind == "run":
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
                raise self._wrong(at, value, "seconds of the guest's time")
        elif not isinstance(value, str):
            raise self._wrong(at, value, "a text")
        if kind == "expect":
            self._pattern(value, at)
        return Step(kind, str(value))

    # -- values

    def _wrong(self, key: str, found: object, expected: str) -> BuildError:
        return BuildError(f"{key} cannot be", where=Where(self._name), found=str(found), expected=expected)

    def _known(self, table: dict[str, Any], keys: set[str], at: str) -> None:
        unknown = sorted(set(table) - keys)
        if unknown:
            raise self._wrong(f"{at}.{unknown[0]}".lstrip("."), "no such key", ", ".join(sorted(keys)))

    def _tables(self, document: dict[str, Any], key: str) -> list[tuple[dict[str, Any], str]]:
        tables = document.get(key, [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            raise self._wrong(key, type(tables).__name__, f"[[{key}]]")
        return [(table, f"{key}[{index}]") for index, table in enumerate(tables)]

    def _text(self, table: dict[str, Any], key: str, at: str) -> str | None:
        value = table.get(key)
        if value is not None and not isinstance(value, str):
            raise self._wrong(f"{at}.{key}", value, "a text")
        return value

    def _checked(self, name: str, at: str) -> str:
        if not _NAME.fullmatch(name):
            raise self._wrong(at, repr(name), "letters, digits, and . _ + -")
        return name

    def _pattern(self, text: str, at: str) -> None:
        try:
            _ = ScriptStep("expect", text, at).pattern
        except BuildError as error:
            raise BuildError(error.reason, where=Where(self._name)) from None

    def _numbers(self, table: dict[str, Any], key: str, at: str, default: int | None) -> list[int | None]:
        value = table.get(key, default)
        values: list[int | None] = value if isinstance(value, list) else [value]
        for number in values:
            fits = type(number) is int and 0 < number < 1 << 20
            if not fits and (number is not None or key in table):
                raise self._wrong(f"{at}.{key}", number, "a number, or a list of numbers")
        return values

    def _flags(self, table: dict[str, Any], key: str, at: str) -> list[int | None]:
        value = table.get(key, False)
        values: list[int | None] = value if isinstance(value, list) else [value]
        if not all(isinstance(flag, bool) for flag in values):
            raise self._wrong(f"{at}.{key}", value, "true, false or both in a list")
        return values

    def _seeds(self, value: Any) -> list[int]:
        if type(value) is int and 0 < value <= MOST_SEEDS:
            return list(range(value))
        fits = isinstance(value, list) and value and all(type(seed) is int for seed in value)
        if fits and len(set(value)) == len(value) and max(map(abs, value)) < 1 << 62:
            return list(value)
        raise self._wrong("seeds", value, "how many, or a list of numbers that differ")

    def _seconds(self, document: dict[str, Any], key: str) -> float | None:
        value = document.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            raise self._wrong(key, value, "seconds above 0")
        return float(value)

    def _digest(self, file: str) -> str:
        path = self._folder / file
        try:
            digest = hashlib.sha256(open_input(path)).hexdigest()
        except ValueError as error:
            raise BuildError(f"cannot be read: {error}", where=Where(str(path))) from None
        self._files[digest] = path
        return digest
