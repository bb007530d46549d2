"""What can go wrong with an input of the linter, as a value."""

from __future__ import annotations


class LayoutInputError(Exception):
    """An input cannot be used: which file, where in it, what was read and what was expected.

    `line` counts from 1, `offset` is in bytes; either may be absent.
    """

    def __init__(
        self,
        reason: str,
        *,
        file: str = "",
        line: int | None = None,
        offset: int | None = None,
        found: object = None,
        expected: object = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.file = file
        self.line = line
        self.offset = offset
        self.found = found
        self.expected = expected

    def __str__(self) -> str:
        place = self.file
        if self.line is not None:
            place += f":{self.line}"
        elif self.offset is not None:
            place += f"+{self.offset:#x}"
        text = f"{place}: {self.reason}" if place else self.reason
        if self.found is not None:
            text += f"; found {self.found}"
        if self.expected is not None:
            text += f"; expected {self.expected}"
        return text
