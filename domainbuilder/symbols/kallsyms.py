"""The symbols that a Linux kernel carries for itself: the tables of scripts/kallsyms.c, found and decoded.

A stock bzImage has no symbol table, but with CONFIG_KALLSYMS the kernel's read-only data holds every name,
compressed, and every address. Nothing says where the tables are: their contents do. What changed, by version
of Linux (kernel/kallsyms.c and scripts/kallsyms.c):

| since | layout |
| --- | --- |
| 2.6.0 | addresses, count, names; a name is the number of bytes shared with the one before it, and its rest |
| 2.6.10 | addresses, count, names, markers, token table, token index; a name is a length and so many tokens |
| 4.6 | 32-bit offsets and a base in place of addresses; on x86-64 those below zero count down from the base |
| 4.20 | the count and the markers have 32 bits everywhere |
| 6.1 | a length from 128 on takes two bytes |
| 6.2 | the order of the names, three bytes each, between markers and token table |
| 6.4 | offsets, base and order of the names stand behind the token index |
| 6.15 | offsets count up from the base on x86-64, too |
| 7.0 | no base: an offset counts from its own address |

Everything found is checked against everything else (tokens and index, markers and names, names and count,
order and range of the addresses), so that garbage is never taken for a table.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from domainbuilder.kernel.elf import ElfImage
from domainbuilder.symbols.system_map import kind_of_letter
from domainbuilder.symbols.table import FUNCTION, NameList, Symbols

_TOKENS = 256
_PER_MARKER = 256  # names between two markers
_FEWEST, _MAX_SYMBOLS = 16, 1 << 21
_MAX_TOKEN = 512  # KSYM_NAME_LEN since 6.1
_MAX_BLOCK = _PER_MARKER * (_MAX_TOKEN + 2)
# Tokens of one character, in a row: every kernel has names with each of the digits.
_DIGITS = re.compile(re.escape(b"\0".join(b"%d" % digit for digit in range(10)) + b"\0"))
_STEM_VERSION = re.compile(rb"Linux version 2\.6\.[0-9][^0-9]")


@dataclass(frozen=True, slots=True)
class _Segment:
    """The bytes of a LOAD segment from `vaddr` on; `word` is 4 or 8, `limit` where the image ends."""

    data: memoryview
    vaddr: int
    word: int
    limit: int

    def words(self, start: int, count: int, size: int) -> array[int]:
        """`count` unsigned numbers of `size` bytes at `start`; fewer where the segment ends."""
        code = {2: "H", 4: "I", 8: "Q"}[size]
        raw = bytes(self.data[max(start, 0) : max(start + count * size, 0)])
        return array(code, raw[: len(raw) // size * size])

    def signed(self, start: int, count: int) -> array[int]:
        """The same for signed numbers of 4 bytes."""
        raw = bytes(self.data[start : start + count * 4])
        return array("i", raw[: len(raw) & ~3])

    @property
    def low(self) -> int:
        """An address that the image starts above."""
        return self.vaddr & -(1 << 26)

    def aligned(self, offset: int, size: int) -> int:
        """`offset` rounded up so that its address is a multiple of `size`."""
        return offset + -(self.vaddr + offset) % size


@dataclass(frozen=True, slots=True)
class _Tokens:
    start: int  # of the token table
    end: int  # of the token index
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Names:
    start: int
    count_at: int  # of kallsyms_num_syms
    count: int
    starts: list[int]  # of each name's tokens, behind its length
    ends: list[int]


def kallsyms_symbols(elf: ElfImage) -> Symbols | None:
    """The symbols in the kallsyms tables of a Linux kernel, by address; None where it has none.

    Nothing is trusted: what does not fit together is not taken, and the work is bounded by the file's size.
    """
    word = elf.elf_class // 8
    limit = max((p.vaddr + p.memsz for p in elf.load_segments), default=0)
    if elf.endian != "<":
        return None
    for phdr in elf.load_segments:
        segment = _Segment(elf.segment_bytes(phdr), phdr.vaddr, word, limit)
        found = _tables(segment)
        if found is None and _STEM_VERSION.search(segment.data):
            found = _stems(segment)
        if found is not None:
            return found
    return None


def _tables(segment: _Segment) -> Symbols | None:
    for tokens in _token_tables(segment):
        for names in _names(segment, tokens.start):
            addresses = _addresses(segment, tokens, names)
            if addresses is not None:
                return _decoded(segment, tokens, names, addresses)
    return None


def _symbols(addresses: Sequence[int], kinds: list[str], names: list[str]) -> Symbols:
    return Symbols(addresses, kinds, NameList(names), origin="kallsyms tables")


# tokens


def _token_tables(segment: _Segment) -> Iterator[_Tokens]:
    """Every token table with an index that agrees with it."""
    for match in _DIGITS.finditer(segment.data):
        zero = match.start()
        after = bytes(segment.data[zero : zero + (_TOKENS - ord("0")) * _MAX_TOKEN])
        rest = after.split(b"\0", _TOKENS - ord("0"))
        if len(rest) <= _TOKENS - ord("0"):
            continue
        end = zero + len(after) - len(rest[-1])
        for at in sorted({segment.aligned(end, size) for size in (2, 4, 8)}):
            tokens = _checked_tokens(segment, zero, at)
            if tokens is not None:
                yield tokens
                break


def _checked_tokens(segment: _Segment, zero: int, at: int) -> _Tokens | None:
    index = segment.words(at, _TOKENS, 2)
    if len(index) < _TOKENS or index[0] or index[ord("0")] > zero:
        return None
    start = zero - index[ord("0")]
    table = bytes(segment.data[start:at])
    texts = table.split(b"\0", _TOKENS)[:_TOKENS]
    offset = 0
    for position, text in zip(index, texts, strict=False):
        if position != offset:
            return None
        offset += len(text) + 1
    return _Tokens(start, at + 2 * _TOKENS, tuple(text.decode("latin-1") for text in texts))


# names


def _names(segment: _Segment, table: int) -> Iterator[_Names]:
    """The names whose markers stand before the token table at `table`."""
    for markers_at, markers in _markers(segment, table):
        few, most = (len(markers) - 1) * _PER_MARKER, len(markers) * _PER_MARKER
        last = markers_at - markers[-1]
        for start in range(max(last - _MAX_BLOCK, 8), last + 1):
            if (segment.vaddr + start) % 4:
                continue
            for count_at in (start - 4, start - 8):
                (count,) = segment.words(count_at, 1, 4)
                if few < count <= most and count >= _FEWEST:
                    names = _checked_names(segment, start, count_at, count, markers, markers_at)
                    if names is not None:
                        yield names


def _markers(segment: _Segment, table: int) -> Iterator[tuple[int, array[int]]]:
    """Where markers may be: directly before the token table, or before the order of the names (6.2, 6.3)."""
    for size in dict.fromkeys((4, segment.word)):
        for padding in range(0, 8, 4):
            end = table - padding - (segment.vaddr + table) % 4
            count = min(_MAX_SYMBOLS // _PER_MARKER, end // size)
            words = segment.words(end - count * size, count, size)
            first = len(words) - 1
            while first > 0 and words[first] and words[first - 1] < words[first]:
                first -= 1
            if first >= 0 and not words[first]:
                yield end - (len(words) - first) * size, words[first:]
    yield from _markers_before_order(segment, table)


def _markers_before_order(segment: _Segment, table: int) -> Iterator[tuple[int, array[int]]]:
    base = max(table - 4 * _MAX_SYMBOLS, 0)
    base = segment.aligned(base, 4)
    words = segment.words(base, (table - base) // 4, 4)
    at = len(words)
    zeros = []
    start = 0
    while True:
        try:
            start = words.index(0, start)
        except ValueError:
            break
        zeros.append(start)
        start += 1
    for at in reversed(zeros):
        end = at + 1
        while end < len(words) and 2 * _PER_MARKER <= words[end] - words[end - 1] <= _MAX_BLOCK:
            end += 1
        count = end - at
        order = table - base - 4 * end  # bytes from the markers' end to the token table
        if 3 * (count - 1) * _PER_MARKER < order <= 3 * count * _PER_MARKER + 8:
            yield base + 4 * at, words[at:end]


def _checked_names(
    segment: _Segment, start: int, count_at: int, count: int, markers: array[int], limit: int
) -> _Names | None:
    """The names from `start`: `markers` agree with them, and they end where these begin, at `limit`."""
    data = bytes(segment.data[start:limit])
    starts, ends = [], []
    at, end = 0, len(data)
    for i in range(count):
        if at >= end or (not i % _PER_MARKER and markers[i // _PER_MARKER] != at):
            return None
        size = data[at]
        at += 1
        if size >= 128:
            if at >= end:
                return None
            size = size & 127 | data[at] << 7
            at += 1
        starts.append(at)
        at += size
        ends.append(at)
    if not 0 <= end - at < 16 or any(data[at:]):
        return None
    return _Names(start, count_at, count, starts, ends)


def _decoded(segment: _Segment, tokens: _Tokens, names: _Names, addresses: array[int]) -> Symbols:
    data, texts = bytes(segment.data[names.start : names.start + names.ends[-1]]), tokens.texts
    expanded = [
        "".join([texts[code] for code in data[start:end]])
        for start, end in zip(names.starts, names.ends, strict=True)
    ]
    kinds = {letter: kind_of_letter(letter) for letter in {text[:1] for text in expanded}}
    return _symbols(addresses, [kinds[text[:1]] for text in expanded], [text[1:] for text in expanded])


# addresses


def _addresses(segment: _Segment, tokens: _Tokens, names: _Names) -> array[int] | None:
    """The addresses, from wherever this kernel has them."""
    for form in (_before_count, _behind_index):
        for addresses in form(segment, tokens, names):
            if _plausible(segment, addresses, names.count):
                return addresses
    return None


def _plausible(segment: _Segment, addresses: array[int], count: int) -> bool:
    """In order, and a good part of them within the image: those of a processor's own data start at 0."""
    if len(addresses) != count:
        return False
    before = inside = 0
    for address in addresses:
        if address < before:
            return False
        before = address
        inside += segment.low <= address <= segment.limit
    return inside > count // 4


def _before_count(segment: _Segment, _tokens: _Tokens, names: _Names) -> Iterator[array[int]]:
    word, count, at = segment.word, names.count, names.count_at
    base_at = at - word
    offsets_at = base_at - 4 * count - -4 * count % word
    if at >= word * count:
        yield array("Q", segment.words(at - word * count, count, word))
    if offsets_at >= 0:
        yield from _from_base(segment, segment.signed(offsets_at, count), base_at)


def _behind_index(segment: _Segment, tokens: _Tokens, names: _Names) -> Iterator[array[int]]:
    word, count, at = segment.word, names.count, tokens.end
    yield array("Q", segment.words(at, count, word))
    offsets = segment.signed(at, count)
    if len(offsets) == count:
        yield from _from_base(segment, offsets, segment.aligned(at + 4 * count, word))
        mask, here = (1 << 8 * word) - 1, segment.vaddr + at
        yield array("Q", [here + 4 * i + offset & mask for i, offset in enumerate(offsets)])


def _from_base(segment: _Segment, offsets: array[int], base_at: int) -> Iterator[array[int]]:
    """kallsyms_sym_address(): with an offset below zero they count down, and those above are absolute.

    The base is the lowest address in the image.
    """
    for base in segment.words(base_at, 1, segment.word):
        mask = (1 << 8 * segment.word) - 1
        if not segment.low <= base <= segment.limit:
            continue
        if segment.word == 8 and min(offsets) < 0:
            yield array("Q", [offset if offset >= 0 else base - 1 - offset & mask for offset in offsets])
        else:
            yield array("Q", [base + (offset & 0xFFFFFFFF) & mask for offset in offsets])


# before 2.6.10


def _stems(segment: _Segment) -> Symbols | None:
    """Addresses in order, and behind them how many they are, and then as many names."""
    size = segment.word
    first = segment.aligned(0, size)
    words = segment.words(first, (len(segment.data) - first) // size, size)
    low, high = segment.low, segment.limit
    run = before = 0
    for i, value in enumerate(words):
        if low <= value <= high and (value >= before or not run):
            run = run + 1 if value >= before else 1
        else:
            if 256 <= value <= run and value < _MAX_SYMBOLS:
                names = _stem_names(segment, first + (i + 1) * size, value)
                if names is not None:
                    return _symbols(words[i - value : i], [FUNCTION] * value, names)
            run = 1 if low <= value <= high else 0
        before = value
    return None


def _stem_names(segment: _Segment, start: int, count: int) -> list[str] | None:
    data = bytes(segment.data[start : start + 128 * count])
    names, name, at = [], b"", 0
    for _ in range(count):
        end = data.find(0, at + 1, at + 129)
        if at >= len(data) or data[at] > len(name) or end < 0:
            return None
        name = name[: data[at]] + data[at + 1 : end]
        if not name.isascii() or not name:
            return None
        names.append(name.decode())
        at = end + 1
    return names
