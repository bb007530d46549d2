"""A domain frozen between two instructions, as a file: everything, whether or not its guest would cooperate.

    header    64 bytes: MAGIC, version, number of sections, size of the file, SHA-256 of what comes before it
              and of the table
    table     64 bytes a section: name, offset, size here, size unpacked, SHA-256 of what is here
    sections  "about"  what it is, for people and for tools: CBOR, not packed
              "session", "state": CBOR, packed by zstd
              "runs"   two 64-bit words for each stretch of frames that are not empty: its first, how many;
                       packed
              "pages"  their contents, a zstd frame for each CHUNK of them, each behind its size in 32 bits

Numbers are little-endian. The reader believes nothing: sizes are bounded before anything is unpacked, every
error names the offset, and the state's values are checked by their owners (hvcore/save_check.py).
docs/saving.md has the format in full.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from domainbuilder.errors import SavedError, Where
from domainbuilder.inputs import LIMITS, beginning, open_input
from domainbuilder.output import atomic_output, write_at
from domainbuilder.saved.cbor import CborError, decode, encode
from domainbuilder.saved.zstd import compress, decompress
from hvcore.host_state import DomainState, HostState
from hvcore.public.xen import PAGE_SIZE

MAGIC = b"domainbuilder\r\n\x1a"
VERSION = 1
CHUNK = 1 << 20
_HEADER = struct.Struct("<16sIIQ32s")
_ENTRY = struct.Struct("<8sQQQ32s")
_SIZE = struct.Struct("<I")
_SECTIONS = ("about", "session", "state", "runs", "pages")
_MOST = {"about": 1 << 16, "session": 32 << 20, "state": 128 << 20, "runs": 64 << 20}  # bytes unpacked


@dataclass(frozen=True, slots=True)
class Frozen:
    """A domain as it stood: `about` for people, `session` what its holder knew of it, `state` its host."""

    about: dict[str, Any]
    session: dict[str, Any]
    state: HostState


def is_frozen(path: str | os.PathLike[str]) -> bool:
    """Whether the file starts like a frozen domain."""
    return beginning(path, len(MAGIC)) == MAGIC


# --- writing ----------------------------------------------------------------------------------------------


def write_frozen(frozen: Frozen, path: str | os.PathLike[str], mode: int | None = None) -> int:
    """Write the file, whole or not at all, with such permissions; its size. Raises OSError."""
    with atomic_output(path) as fd:
        if mode is not None:
            os.fchmod(fd, mode)
        return _write(frozen, fd)


def _write(frozen: Frozen, fd: int) -> int:
    state, size = plain_state(frozen.state), sum(map(len, frozen.state.pages.values()))
    if size > LIMITS["saved memory"].size:
        raise OSError(errno.EFBIG, f"the domain has {size:#x} bytes in memory, more than a file may hold")
    runs = array(
        "Q", (word for index, run in frozen.state.pages.items() for word in (index, len(run) // PAGE_SIZE))
    )
    contents: list[tuple[str, Iterator[bytes], int]] = []
    for name, value in (("about", frozen.about), ("session", frozen.session), ("state", state)):
        raw = encode(value)
        contents.append((name, iter((raw if name == "about" else compress(raw),)), len(raw)))
    raw = runs.tobytes()
    contents.append(("runs", iter((compress(raw),)), len(raw)))
    contents.append(("pages", _packed(frozen.state.pages), size))
    offset = _HEADER.size + len(contents) * _ENTRY.size
    table = b""
    for name, pieces, unpacked in contents:
        digest, start = hashlib.sha256(), offset
        for piece in pieces:
            write_at(fd, piece, offset)
            digest.update(piece)
            offset += len(piece)
        table += _ENTRY.pack(name.encode(), start, offset - start, unpacked, digest.digest())
    head = _HEADER.pack(MAGIC, VERSION, len(contents), offset, b"")[:-32]
    write_at(fd, head + hashlib.sha256(head + table).digest() + table, 0)
    return offset


def plain_state(state: HostState) -> dict[str, Any]:
    """The state without its pages, its domains as dicts."""
    plain = {name: getattr(state, name) for name in HostState.__slots__ if name != "pages"}
    return plain | {"domains": [_plain_domain(domain) for domain in state.domains]}


def _plain_domain(domain: DomainState) -> dict[str, Any]:
    """As a dict; what was written to disks, which has numbers for keys, as lists of pairs."""
    layers = {name: [[at, data] for at, data in blocks.items()] for name, blocks in domain.layers.items()}
    return asdict(replace(domain, layers={})) | {"layers": layers}


def _domain(plain: dict[str, Any]) -> DomainState:
    """The same the other way; what is no such list stays, to be refused."""
    layers = plain["layers"]
    if isinstance(layers, dict):
        layers = {name: _blocks(pairs) for name, pairs in layers.items()}
    return DomainState(**plain | {"layers": layers})


def _blocks(pairs: Any) -> Any:
    fits = isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 and type(pair[0]) is int for pair in pairs
    )
    return dict(pairs) if fits else pairs


def _chunks(pages: Mapping[int, bytes]) -> Iterator[bytes]:
    """The contents in pieces of CHUNK bytes; the last is what is left."""
    waiting, size = [], 0
    for run in pages.values():
        waiting.append(run)
        size += len(run)
        if size >= CHUNK:
            joined = b"".join(waiting)
            whole = size - size % CHUNK
            yield from (joined[at : at + CHUNK] for at in range(0, whole, CHUNK))
            waiting, size = [joined[whole:]], size - whole
    if size:
        yield b"".join(waiting)


def _packed(pages: Mapping[int, bytes]) -> Iterator[bytes]:
    for chunk in _chunks(pages):
        frame = compress(chunk)
        yield _SIZE.pack(len(frame))
        yield frame


# --- reading ----------------------------------------------------------------------------------------------


def read_frozen(path: str | os.PathLike[str]) -> Frozen:
    """The domain in the file. Raises SavedError for a file that is none, or is damaged; OSError."""
    file = _File(path)
    about, session, state = file.value("about"), file.value("session"), file.value("state")
    pages = dict(file.pages(file.runs()))
    return Frozen(_a_dict(file, "about", about), _a_dict(file, "session", session), _host(file, state, pages))


def read_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What the file says it is, and no more of it is read. Raises SavedError, OSError."""
    file = _File(path)
    return _a_dict(file, "about", file.value("about"))


@dataclass(frozen=True, slots=True)
class _Section:
    offset: int
    size: int
    unpacked: int
    digest: bytes


class _File:
    """The file, mapped until nobody looks at it any more, its header and table checked."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        try:
            data = open_input(path)
        except ValueError as error:
            raise self.fail(f"cannot be read: {error}", None) from None
        size = len(data)
        if size < _HEADER.size:
            raise self.fail("not a frozen domain", 0, f"{size} bytes", f"a header of {_HEADER.size} bytes")
        self.view = memoryview(data)
        self.sections = self._table(size)

    def fail(
        self, reason: str, offset: int | None, found: object = None, expected: object = None
    ) -> SavedError:
        return SavedError(reason, where=Where(self.name, offset), found=found, expected=expected)

    def _check_header(self, size: int) -> int:
        """Where the table ends, which a header that is whole and fits the file says."""
        magic, version, count, total, digest = _HEADER.unpack_from(self.view)
        if magic != MAGIC:
            raise self.fail("not a frozen domain", 0, magic.hex(), MAGIC.hex())
        if version != VERSION:
            raise self.fail("a frozen domain of another version of domainbuilder", 16, version, VERSION)
        if count != len(_SECTIONS):
            raise self.fail("a frozen domain has other sections", 20, count, len(_SECTIONS))
        if total != size:
            how = "is cut short" if total > size else "has something behind its end"
            raise self.fail(f"the frozen domain {how}", 24, size, total)
        end = _HEADER.size + len(_SECTIONS) * _ENTRY.size
        if end > size:
            raise self.fail("the table is cut short", _HEADER.size, size, end)
        told = hashlib.sha256(self.view[: _HEADER.size - 32])
        told.update(self.view[_HEADER.size : end])
        if told.digest() != digest:
            raise self.fail("the header is damaged", 32, told.hexdigest()[:16], digest.hex()[:16])
        return end

    def _table(self, size: int) -> dict[str, _Section]:
        """The sections, which stand one behind the other from the table's end to the file's."""
        sections, at = {}, self._check_header(size)
        for index, wanted in enumerate(_SECTIONS):
            where = _HEADER.size + index * _ENTRY.size
            raw, offset, stored, unpacked, digest = _ENTRY.unpack_from(self.view, where)
            name = raw.rstrip(b"\0").decode("latin-1")
            if name != wanted:
                raise self.fail("another section comes here", where, name, wanted)
            if offset != at or stored > size - offset:
                found, expected = (
                    f"{offset:#x} and {stored:#x} bytes",
                    f"{at:#x} and at most {size - at:#x} bytes",
                )
                raise self.fail(f"section {name} lies elsewhere", where + 8, found, expected)
            most = _MOST.get(name, LIMITS["saved memory"].size)
            if unpacked > most:
                raise self.fail(f"section {name} is too large", where + 24, unpacked, f"at most {most:#x}")
            sections[name] = _Section(offset, stored, unpacked, digest)
            at += stored
        if at != size:
            raise self.fail("something follows the last section", at, size, at)
        return sections

    def stored(self, name: str) -> memoryview:
        """A section as it is in the file, its checksum checked."""
        section = self.sections[name]
        data = self.view[section.offset : section.offset + section.size]
        digest = hashlib.sha256(data)
        if digest.digest() != section.digest:
            raise self.fail(
                f"section {name} is damaged",
                section.offset,
                digest.hexdigest()[:16],
                section.digest.hex()[:16],
            )
        return data

    def unpacked(self, name: str) -> bytes:
        section, data = self.sections[name], self.stored(name)
        if name == "about":
            return bytes(data)
        try:
            return decompress(data, section.unpacked)
        except ValueError as error:
            raise self.fail(
                f"section {name} cannot be unpacked", section.offset, error, f"{section.unpacked} bytes"
            ) from None

    def value(self, name: str) -> Any:
        try:
            return decode(self.unpacked(name))
        except CborError as error:
            reason = f"section {name}, byte {error.offset:#x} of it unpacked: {error.reason}"
            raise self.fail(reason, self.sections[name].offset, error.found, error.expected) from None

    def runs(self) -> list[tuple[int, int]]:
        """(first frame, how many), in order and apart from each other."""
        raw, section = self.unpacked("runs"), self.sections["runs"]
        if len(raw) % 16:
            raise self.fail(
                "the stretches are no pairs of words", section.offset, len(raw), "a multiple of 16"
            )
        words = array("Q", raw)
        runs = list(zip(words[::2], words[1::2], strict=True))
        end = 0
        for index, count in runs:
            if index < end or not 0 < count <= CHUNK // PAGE_SIZE:
                found, expected = f"{count} frames at {index:#x}", f"1 to 256 frames, from {end:#x} on"
                raise self.fail("a stretch of frames that cannot be", section.offset, found, expected)
            end = index + count
        total = sum(count for _, count in runs) * PAGE_SIZE
        if total != self.sections["pages"].unpacked:
            raise self.fail(
                "the stretches are not those of the pages",
                section.offset,
                total,
                self.sections["pages"].unpacked,
            )
        return runs

    def pages(self, runs: list[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        """Each stretch with its contents."""
        chunks = self._chunks()
        here, at = b"", 0
        for index, count in runs:
            size = count * PAGE_SIZE
            while len(here) - at < size:
                here, at = here[at:] + next(chunks), 0
            yield index, here[at : at + size]
            at += size

    def _chunks(self) -> Iterator[bytes]:
        section, data = self.sections["pages"], self.stored("pages")
        at, left = 0, section.unpacked
        while left:
            where, size = section.offset + at, min(left, CHUNK)
            if at + _SIZE.size > len(data):
                raise self.fail("the pages are cut short", where, len(data) - at, _SIZE.size)
            (stored,) = _SIZE.unpack_from(data, at)
            at += _SIZE.size
            if stored > len(data) - at:
                raise self.fail("the pages are cut short", where, len(data) - at, stored)
            try:
                yield decompress(data[at : at + stored], size)
            except ValueError as error:
                raise self.fail("pages cannot be unpacked", where, error, f"{size} bytes") from None
            at += stored
            left -= size
        if at != len(data):
            raise self.fail("something follows the pages", section.offset + at, len(data) - at, 0)


def _a_dict(file: _File, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise file.fail(
            f"section {name} is no map", file.sections[name].offset, type(value).__name__, "a map"
        )
    return value


def _host(file: _File, value: Any, pages: dict[int, bytes]) -> HostState:
    """The state with its fields; what is in them the owners check."""
    offset = file.sections["state"].offset
    fields = set(HostState.__slots__) - {"pages"}
    if not isinstance(value, dict) or set(value) != fields:
        raise file.fail("section state has other fields", offset, _names(value), _names(fields))
    domains = value["domains"]
    if not isinstance(domains, list) or not all(
        isinstance(domain, dict) and set(domain) == set(DomainState.__slots__) for domain in domains
    ):
        raise file.fail("a domain has other fields", offset, None, _names(set(DomainState.__slots__)))
    return HostState(**{**value, "domains": tuple(map(_domain, domains))}, pages=pages)


def _names(value: Any) -> str:
    return ", ".join(sorted(map(str, value))) if isinstance(value, dict | set) else type(value).__name__
