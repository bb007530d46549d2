"""The instructions around an address, for crash reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

_BYTES_BEFORE, _BYTES_AFTER = 32, 48
_INSTRUCTIONS_BEFORE, _INSTRUCTIONS_AFTER = 5, 8
_FUNCTION_LIMIT = 4096

_Row = tuple[int, bytes, str]


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction; `current` marks the one asked for. `text` is "(bad)" where there is none."""

    address: int
    code: bytes
    text: str
    symbol: str
    current: bool


def disassemble(
    read: Callable[[int, int], bytes],
    address: int,
    *,
    start: int | None,
    names: Callable[[int], str],
    long_mode: bool,
) -> tuple[Instruction, ...]:
    """Up to 5 instructions before `address`, the one there, and 8 after it; nothing where it is not mapped.

    `read(va, size)` gives the bytes that are mapped; `start` is where the function starts, where that is
    known. Without it the way back is a guess: the longest run of whole instructions that ends at `address`.
    """
    ahead = read(address, _BYTES_AFTER)
    if not ahead:
        return ()
    decode = _decoder(long_mode=long_mode)
    rows = _before(read, address, start, decode)[-_INSTRUCTIONS_BEFORE:]
    rows += decode(address, ahead)[: _INSTRUCTIONS_AFTER + 1] or [(address, ahead[:1], "(bad)")]
    return tuple(Instruction(at, code, text, names(at), at == address) for at, code, text in rows)


def _decoder(*, long_mode: bool) -> Callable[[int, bytes], list[_Row]]:
    from capstone import CS_ARCH_X86, CS_MODE_32, CS_MODE_64, Cs

    engine = Cs(CS_ARCH_X86, CS_MODE_64 if long_mode else CS_MODE_32)

    def decode(start: int, code: bytes) -> list[_Row]:
        return [
            (at, code[at - start : at - start + size], f"{mnemonic} {operands}".rstrip())
            for at, size, mnemonic, operands in engine.disasm_lite(code, start)
        ]

    return decode


def _before(
    read: Callable[[int, int], bytes],
    address: int,
    function: int | None,
    decode: Callable[[int, bytes], list[_Row]],
) -> list[_Row]:
    starts = list(range(max(address - _BYTES_BEFORE, 0), address))
    if function is not None and 0 < address - function < _FUNCTION_LIMIT:
        starts = [function, *(start for start in starts if start > function)]
    elif function == address:
        return []
    for start in starts:
        code = read(start, address - start)
        if len(code) == address - start:
            rows = decode(start, code)
            if rows and rows[-1][0] + len(rows[-1][1]) == address:
                return rows
    return []
