"""What can go wrong with a user's input, as values: the file, the offset, what was read, what was expected.

The command line turns every `BuildError` into one line on stderr and exit code 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of every `domainbuilder` command; docs/exit-codes.md explains them."""

    FINE = 0
    CHECK_FAILED = 1
    UNUSABLE_INPUT = 2
    DOMAIN_CRASHED = 3
    TIMED_OUT = 4


@dataclass(frozen=True)
class Where:
    """A place in an input: a file (or what stands for one) and a byte offset in it, when there is one."""

    file: str
    offset: int | None = None

    def __str__(self) -> str:
        file = self.file or "''"
        return file if self.offset is None else f"{file}+{self.offset:#x}"


class BuildError(Exception):
    """The input is at fault. `reason` is Xen's own wording where Xen has one."""

    def __init__(
        self,
        reason: str,
        *,
        where: Where | None = None,
        found: object = None,
        expected: object = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.where = where
        self.found = found
        self.expected = expected

    def __str__(self) -> str:
        parts = [f"{self.where}: " if self.where else "", self.reason]
        if self.found is not None:
            parts.append(f"; found {_show(self.found)}")
        if self.expected is not None:
            parts.append(f"; expected {_show(self.expected)}")
        return "".join(parts)


def one_line(error: Exception) -> str:
    """What a person is told of `error`: of a file that could not be had its name, and why."""
    if not isinstance(error, OSError):
        return " ".join(str(error).split())
    name = f"{error.filename}: " if error.filename is not None else ""
    return f"{name}{error.strerror or error}"


_MOST_SHOWN = 4096  # characters


def _show(value: object) -> str:
    """A value as a part of one line, whatever a file had there."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:#x}"
    text = str(value)
    text = text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
    return text if text.isprintable() else text.encode("unicode_escape").decode()


class KernelFormatError(BuildError):
    """The file is no kernel that can be opened: not ELF, gzip or bzImage, cut short, or a bomb."""


class ElfError(BuildError):
    """The ELF image is malformed."""


class NotesError(BuildError):
    """The Xen notes are missing, malformed or not acceptable to Xen."""


class LayoutError(BuildError):
    """The domain cannot be laid out: memory too small, segments overlap, addresses out of range."""


class SymbolsError(BuildError):
    """A file of symbols cannot be read, or is another kernel's."""


class ImageError(BuildError):
    """A built image (dump-core ELF) is malformed."""


class SavedError(BuildError):
    """A saved domain, or a stream of one, is malformed."""
