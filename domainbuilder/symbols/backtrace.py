"""Backtraces: a walk up a guest's stack, each frame with the means by which it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from domainbuilder.symbols.frames import CallFrames
from domainbuilder.symbols.orc import OrcFrames
from domainbuilder.symbols.table import Symbols

MAX_FRAMES = 32
_SCANNED_WORDS = 1024
_MAX_FRAME_BYTES = 64 << 10  # a frame pointer that leads further is none

CALL_FRAME_INFORMATION = "call-frame information"
ORC = "ORC"
FRAME_POINTER = "frame pointer"
GUESS = "a word behind a call"

ReadBytes = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Frame:
    """A function that is not done yet: where it stands, and how that was found ("" for where the vCPU is)."""

    address: int
    symbol: str
    line: str
    how: str


def backtrace(
    registers: Mapping[str, int],
    *,
    word: int,
    read: ReadBytes,
    in_code: Callable[[int], bool],
    symbols: Symbols,
    stubs: range = range(0),
) -> tuple[Frame, ...]:
    """The frames from the innermost out, 32 at most.

    `registers` are by name, "rip" and "rsp" among them; `read(address, size)` gives what is mapped. A step is
    taken by call-frame information or Linux's ORC tables where there are some, else by the frame pointer
    where that looks like one, else to the next word of the stack that stands behind a call instruction.
    `stubs` are the addresses of the hypercall page, whose stubs have no frames of their own.
    """
    walk = _Walk(dict(registers), word, read, in_code, symbols)
    walk.frameless = registers["rip"] in stubs
    frames = [Frame(registers["rip"], symbols.name(registers["rip"]), symbols.line(registers["rip"]), "")]
    for address, how in walk.callers():
        # The call is the instruction before the return address, and may be its function's last.
        frames.append(Frame(address, _name(symbols, address), symbols.line(address - 1), how))
        if len(frames) == MAX_FRAMES:
            break
    return tuple(frames)


def callers(
    registers: Mapping[str, int],
    *,
    word: int,
    read: ReadBytes,
    in_code: Callable[[int], bool],
    symbols: Symbols,
) -> list[int]:
    """The return addresses that `backtrace` finds without a guess, from the innermost out, and no names."""
    walk = _Walk(dict(registers), word, read, in_code, symbols)
    walk.guesses = False
    return [address for address, _ in walk.callers()]


def _name(symbols: Symbols, address: int) -> str:
    """As "function+0x12", of a return address, which may be where the next function begins."""
    found = symbols.at(address - 1)
    if found is None:
        return ""
    start = address - 1 - found[1]
    return symbols.name(start).rpartition("+")[0] + f"+{address - start:#x}"


class _Walk:
    def __init__(
        self,
        registers: dict[str, int],
        word: int,
        read: ReadBytes,
        in_code: Callable[[int], bool],
        symbols: Symbols,
    ) -> None:
        self._registers, self._word, self._bytes = registers, word, read
        self._mask = (1 << 8 * word) - 1
        self._in_code, self._symbols = in_code, symbols
        self._innermost = True
        self.frameless = False
        self.guesses = True

    def callers(self) -> Iterator[tuple[int, str]]:
        """(return address, how it was found), from the innermost out."""
        for _ in range(MAX_FRAMES):
            caller, how = self._by_information(self._symbols.frames), CALL_FRAME_INFORMATION
            if caller is None:
                caller, how = self._by_information(self._symbols.orc), ORC
            if caller is None and not (self._innermost and self.frameless):
                caller, how = self._by_frame_pointer(), FRAME_POINTER
            if caller is None and self.guesses:
                caller, how = self._by_scan(), GUESS
            if caller is None or caller["rsp"] <= self._registers["rsp"]:
                return
            self._registers, self._innermost = caller, False
            yield caller["rip"], how

    def _read(self, address: int) -> int | None:
        raw = self._bytes(address & self._mask, self._word)
        return int.from_bytes(raw, "little") if len(raw) == self._word else None

    def _by_information(self, frames: CallFrames | OrcFrames | None) -> dict[str, int] | None:
        if frames is None:
            return None
        address = self._registers["rip"] - (not self._innermost)
        caller = frames.caller(address, self._registers, self._read)
        return caller if caller is not None and self._in_code(caller["rip"]) else None

    def _by_frame_pointer(self) -> dict[str, int] | None:
        """A saved frame pointer above this one, and a return address behind a call above that."""
        pointer, stack, word = self._registers["rbp"], self._registers["rsp"], self._word
        if pointer % word or not stack <= pointer < stack + _MAX_FRAME_BYTES:
            return None
        saved, returns = self._read(pointer), self._read(pointer + word)
        if saved is None or returns is None or not self._behind_a_call(returns):
            return None
        if saved and not pointer < saved < pointer + _MAX_FRAME_BYTES:
            return None
        return self._registers | {"rbp": saved, "rsp": pointer + 2 * word, "rip": returns}

    def _by_scan(self) -> dict[str, int] | None:
        word, stack = self._word, self._registers["rsp"]
        raw = self._bytes(stack, _SCANNED_WORDS * word)
        for at in range(0, len(raw) - word + 1, word):
            value = int.from_bytes(raw[at : at + word], "little")
            if self._behind_a_call(value):
                return self._registers | {"rsp": stack + at + word, "rip": value}
        return None

    def _behind_a_call(self, address: int) -> bool:
        """Whether a call instruction ends at `address`: E8 with an offset, or FF /2 by register or memory."""
        if not self._in_code(address - 1):
            return False
        code = self._bytes(address - 7, 7)
        if len(code) < 7:
            return False
        if code[2] == 0xE8:
            return True
        return any(
            code[7 - size] == 0xFF
            and code[8 - size] & 0x38 == 0x10
            and size == _call_size(code[7 - size + 1 :])
            for size in (2, 3, 4, 6, 7)
        )


def _call_size(operand: bytes) -> int:
    """Bytes of an FF /2 whose ModRM byte `operand` begins with, without prefixes (SDM 2.1.5, table 2-2)."""
    mod, rm = operand[0] >> 6, operand[0] & 7
    size = 2
    if mod != 3 and rm == 4:
        if len(operand) < 2:
            return 0
        size += 1
        if mod == 0 and operand[1] & 7 == 5:
            return size + 4
    if mod == 0:
        return size + 4 if rm == 5 else size
    return size + {1: 1, 2: 4, 3: 0}[mod]
