"""The disk that a boot loader looks into, in any format that a domain's disk can have; it is only read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from domainbuilder.bootloader.disk import Disk, DiskError, open_disk
from domainbuilder.errors import Where
from hvcore.backends.block_image import BlockImage
from hvcore.backends.qcow2_header import MAGIC
from hvcore.public.blkif import SECTOR_SIZE


class ImageDisk:
    """A block image as the boot loader's Disk."""

    def __init__(self, name: str, image: BlockImage) -> None:
        self.name = name
        self.size = image.size
        self._image = image

    def read(self, offset: int, length: int) -> bytes:
        """Exactly those bytes. Raises DiskError where the disk ends before or cannot be read."""
        where = Where(self.name, offset)
        if not 0 <= offset <= offset + length <= self.size:
            raise DiskError("the disk ends too early", where=where, expected=length)
        first = offset // SECTOR_SIZE * SECTOR_SIZE
        sectors = bytearray(-(-(offset + length - first) // SECTOR_SIZE) * SECTOR_SIZE)
        try:
            self._image.read(first, [memoryview(sectors)])
        except OSError as error:
            raise DiskError(f"the disk cannot be read: {error.strerror}", where=where) from error
        return bytes(sectors[offset - first : offset - first + length])


@contextmanager
def open_boot_disk(target: str, kind: str = "raw") -> Iterator[Disk]:
    """The disk in that file, closed at the end. Raises OSError, and DiskError for what is no such disk.

    The format has to be said: who writes to a raw disk could make it look like another, over any file.
    """
    if kind != "qcow2":
        with open_disk(target) as raw:
            if raw.size >= SECTOR_SIZE and raw.read(0, len(MAGIC)) == MAGIC:
                raise DiskError("a qcow2 image, which is to be read as a raw disk", where=Where(target))
            yield raw
        return
    from hvcore.backends.qcow2 import Qcow2Image

    image = Qcow2Image(target, writable=False)
    try:
        yield ImageDisk(target, image)
    finally:
        image.close()
