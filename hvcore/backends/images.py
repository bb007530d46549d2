"""The images of disks, opened by their format; the disks are those of tools/libs/light/libxl_disk.c."""

from __future__ import annotations

from collections.abc import Sequence

from hvcore.backends.block_image import BlockImage, Layer, NoImage, RawImage
from hvcore.backends.disk import Disk


def open_image(disk: Disk) -> BlockImage:
    """The image of a disk, or the layer over it. Raises OSError."""
    if disk.format == "empty":
        return NoImage()
    image: BlockImage
    if disk.format == "qcow2":
        from hvcore.backends.qcow2 import Qcow2Image

        image = Qcow2Image(disk.target, writable=disk.is_written)
    else:
        image = RawImage(disk.target, writable=disk.is_written)
    return Layer(image) if disk.snapshot else image


def open_images(disks: Sequence[Disk]) -> list[tuple[Disk, BlockImage]]:
    """Each disk with its image: all of them, or OSError and none."""
    opened: list[tuple[Disk, BlockImage]] = []
    try:
        for disk in disks:
            opened.append((disk, open_image(disk)))
    except OSError:
        for _, image in opened:
            image.close()
        raise
    return opened
