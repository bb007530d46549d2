"""A qcow2 image over others, as QEMU makes it, and what has to be read from it; random acts on both."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from hvcore.backends.block_image import BlockImage
from hvcore.backends.qcow2 import Qcow2Image
from tests.needs import find_tool

SECTOR = 512
MOST_ACT = 900  # sectors


def tool(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """qemu-img or qemu-io."""
    command = [find_tool(name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def contents(size: int, chance: Random) -> bytes:
    """Half random, half zeros and repetitions, in pieces."""
    out = bytearray()
    while len(out) < size:
        piece = chance.randrange(1, 40) * SECTOR
        kind = chance.random()
        out += (
            chance.randbytes(piece) if kind < 0.5 else bytes(piece) if kind < 0.75 else b"ab" * (piece // 2)
        )
    return bytes(out[:size])


class Act(NamedTuple):
    """What is done to a disk at `offset`: `kind` is one of read, write, zeros, discard, flush."""

    kind: str
    offset: int
    length: int
    data: bytes


def random_acts(chance: Random, size: int) -> Iterator[Act]:
    """Acts on a disk of that size, without end."""
    sectors = size // SECTOR
    while True:
        at = chance.randrange(sectors)
        length = min(chance.choice((1, 2, 7, 8, 63, 200, MOST_ACT)), sectors - at) * SECTOR
        kind = chance.choice(("write", "write", "write", "read", "read", "zeros", "discard", "flush"))
        yield Act(kind, at * SECTOR, length, chance.randbytes(length) if kind == "write" else b"")


def do(image: BlockImage, act: Act) -> bytes:
    """The act on an image; what was read."""
    found = bytearray(act.length if act.kind == "read" else 0)
    if act.kind in ("write", "zeros"):
        data = memoryview(act.data or bytes(act.length))
        image.write(act.offset, [data[:SECTOR], data[SECTOR:]])
    elif act.kind == "discard":
        image.discard(act.offset, act.length)
    elif act.kind == "flush":
        image.flush()
    else:
        view = memoryview(found)
        image.read(act.offset, [view[: act.length // 3], view[act.length // 3 :]])
    return bytes(found)


def note(model: bytearray, act: Act) -> None:
    """What the act makes of what the disk holds."""
    if act.kind in ("write", "zeros", "discard"):
        model[act.offset : act.offset + act.length] = act.data or bytes(act.length)


class Chain:
    """The image `path` over none to three others, of any geometry; `model` is what the guest has to see."""

    def __init__(self, folder: Path, chance: Random) -> None:
        self.folder = folder
        self.chance = chance
        self.model = bytearray()
        self.cluster = self.version = 0
        self.path = folder / "none"
        depth = chance.choice((0, 0, 1, 1, 2, 3))
        for level in range(depth + 1):
            self._add(level)

    def _options(self) -> str:
        chance = self.chance
        self.cluster = 1 << chance.choice((9, 9, 10, 12, 12, 14, 16, 16, 18, 21))
        self.version = chance.choice((2, 3, 3, 3))
        options = [f"cluster_size={self.cluster}", f"compat={'1.1' if self.version == 3 else '0.10'}"]
        if self.version == 3:
            options.append(f"refcount_bits={chance.choice((1, 2, 4, 8, 16, 16, 32, 64))}")
            options.append(f"compression_type={chance.choice(('zlib', 'zstd'))}")
            options.append(f"lazy_refcounts={chance.choice(('off', 'off', 'on'))}")
        return ",".join(options)

    def _add(self, level: int) -> None:
        """One image more, over what there is; the lowest may be raw, or packed."""
        chance = self.chance
        size = chance.randrange(1, 1500) * SECTOR + chance.choice((0, 1 << 20))
        below, path = self.path, self.folder / f"{level}.img"
        is_raw = self.path.suffix == ".raw"
        if not level:
            size += MOST_ACT * SECTOR
            raw = self.folder / "lowest.raw"
            data = contents(size, chance) if chance.random() < 0.7 else bytes(size)
            raw.write_bytes(data)
            self.model = bytearray(data)
            if chance.random() < 0.3:
                below, is_raw = raw, True
            else:
                pack = ["-c"] if chance.random() < 0.6 else []
                self._qemu("convert", *pack, "-f", "raw", "-O", "qcow2", "-o", self._options(), raw, path)
                self.path = path
                return
        kind = "raw" if is_raw else "qcow2"
        self._qemu("create", "-f", "qcow2", "-o", self._options(), "-b", below.name, "-F", kind, path, size)
        self.path = path
        self._resize_model(size)

    def _resize_model(self, size: int) -> None:
        del self.model[size:]
        self.model += bytes(size - len(self.model))

    def _qemu(self, verb: str, *arguments: object) -> None:
        done = tool("qemu-img", verb, "-q", *arguments)
        assert done.returncode == 0, done.stderr

    # -- steps of a sequence

    def step(self) -> None:
        """Our image is opened and used; or QEMU's; or the image is made larger; or put below another."""
        kind = self.chance.random()
        if kind < 0.6:
            self._ours()
        elif kind < 0.85:
            self._qemus()
        elif kind < 0.95 and self.version == 3:  # of another QEMU cannot hide what is below
            size = len(self.model) + self.chance.randrange(1, 3000) * SECTOR
            self._qemu("resize", "-f", "qcow2", self.path, size)
            self._resize_model(size)
        else:
            self._add(9 + self.chance.randrange(1 << 30))

    def _ours(self) -> None:
        image = Qcow2Image(str(self.path), writable=True)
        acts = random_acts(self.chance, len(self.model))
        for _ in range(self.chance.randrange(1, 40)):
            act = next(acts)
            found = do(image, act)
            if act.kind == "read":
                assert found == self.model[act.offset : act.offset + act.length]
            note(self.model, act)
        image.close()

    def _qemus(self) -> None:
        """A few acts by qemu-io.

        QEMU 7.2 can ruin an image of its own making, with packed clusters of 512 bytes; it says so. Then the
        image is as it was before, if it was good.
        """
        options, model = self._qemus_acts(), bytearray(self.model)
        commands = [word for command, _ in options for word in ("-c", command)]
        for _, act in options:
            note(model, act)
        if not commands:
            return
        before = self.folder / "before"
        shutil.copy(self.path, before)
        done = tool("qemu-io", "-f", "qcow2", "-d", "unmap", *commands, self.path)
        said = done.stdout + done.stderr
        if "Marking image as corrupt" in said:
            before.rename(self.path)
            assert tool("qemu-img", "check", "-f", "qcow2", self.path).returncode == 0, said
            return
        assert done.returncode == 0, said
        assert "failed" not in said, said
        self.model = model

    def _qemus_acts(self) -> list[tuple[str, Act]]:
        """Commands, and what each does. Whole clusters are discarded alone: in version 2 none are."""
        chance, found = self.chance, []
        acts = random_acts(chance, len(self.model))
        for _ in range(chance.randrange(1, 8)):
            act = next(acts)
            start, end = act.offset & -self.cluster, act.offset + act.length & -self.cluster
            whole = end > start and self.version == 3
            where = f"{act.offset} {act.length}"
            byte = chance.randrange(1, 256)
            if act.kind == "write" and chance.random() < 0.4 and whole:
                act = Act("write", start, self.cluster, bytes((byte,)) * self.cluster)
                # It packs into no cluster that is there.
                found.append((f"discard {start} {self.cluster}", Act("discard", start, self.cluster, b"")))
                found.append((f"write -c -P {byte} {start} {self.cluster}", act))
            elif act.kind == "write":
                found.append((f"write -P {byte} {where}", act._replace(data=bytes((byte,)) * act.length)))
            elif act.kind == "zeros":
                found.append((f"write -z {'-u ' if chance.random() < 0.5 else ''}{where}", act))
            elif act.kind == "discard" and whole:
                found.append((f"discard {start} {end - start}", Act("discard", start, end - start, b"")))
        return found

    def check(self) -> None:
        """QEMU finds nothing wrong and reads what was written, and so do we."""
        image, everything = Qcow2Image(str(self.path), writable=False), bytearray(len(self.model))
        assert image.size == len(everything)
        image.read(0, [memoryview(everything)])
        image.close()
        assert everything == self.model
        done = tool("qemu-img", "check", "-f", "qcow2", self.path)
        assert done.returncode == 0, done.stdout + done.stderr
        raw = self.folder / "model"
        raw.write_bytes(self.model)
        done = tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", self.path, raw)
        assert done.returncode == 0, done.stdout + done.stderr
