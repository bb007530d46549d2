"""`domainbuilder build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def build(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A kernel: ELF, gzip or bzImage.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="Where to write the built domain.")
    ],
    memory: Annotated[int, typer.Option("--memory", "-m", metavar="MB", help="The domain's memory.")] = 64,
    ramdisk: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A ramdisk; unzipped if it is gzip.", show_default=False),
    ] = None,
    cmdline: Annotated[str, typer.Option(metavar="TEXT", help="The kernel's command line.")] = "",
) -> None:
    """Build a kernel's domain into a dump-core ELF file.

    OUT is what Xen's dump-core would write at the guest's first instruction; `domainbuilder launch` runs it,
    readelf reads it. Pages of zeros are holes in it.
    """
    from domainbuilder.build.domain_image import build as build_domain
    from domainbuilder.build.image import save_image
    from domainbuilder.plan.regions import human, printable

    image = build_domain(file, memory_mib=memory, ramdisk=ramdisk, cmdline=cmdline)
    written = save_image(image, output)
    typer.echo(
        f"{printable(str(output))}: {image.plan.guest.name}, {memory} MB, {human(written)} of it in use, "
        f"starts at {image.context.ip:#x}"
    )
