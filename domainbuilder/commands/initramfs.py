"""`domainbuilder initramfs`: a ramdisk of a busybox."""

from __future__ import annotations

from typing import Annotated

import typer


def initramfs(
    busybox: Annotated[
        str, typer.Argument(metavar="BUSYBOX", help="A static busybox for the guest.", show_default=False)
    ],
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="OUT", help="Where to write it; .gz is compressed."),
    ],
    init: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="What runs as /init; a shell on the console if not given."),
    ] = None,
    add: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[=PATH]", help="Another file, at PATH in the guest, else in /bin."),
    ] = None,
) -> None:
    """Make an initramfs of a busybox, for a Linux guest to boot into.

    Debian has a static busybox in its package busybox-static, as /bin/busybox. The archive is the same bytes
    every time.

    \b
    Example:
      domainbuilder initramfs /bin/busybox -o initramfs.cpio
      domainbuilder launch vmlinuz --ramdisk initramfs.cpio --cmdline console=hvc0
    """
    import os

    from domainbuilder.initramfs import INIT, read_file
    from domainbuilder.initramfs import initramfs as make
    from domainbuilder.output import refuse_to_overwrite, write_whole

    added = [one.partition("=")[::2] for one in add or []]
    refuse_to_overwrite([output], [busybox, init, *(name for name, _ in added)])
    files = {path or f"bin/{os.path.basename(name)}": read_file(name) for name, path in added}  # noqa: PTH119
    archive = make(read_file(busybox), INIT if init is None else read_file(init), files)
    if output.endswith(".gz"):
        import gzip

        archive = gzip.compress(archive, mtime=0)
    write_whole(output, archive)
    print(f"{output}: {len(archive):,} bytes")
