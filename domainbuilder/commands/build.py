"""`domainbuilder build`: a domain into a file."""

from __future__ import annotations

from typing import Annotated

import typer

from domainbuilder.commands._options import Cmdline, Memory, Ramdisk


def build(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A kernel: ELF, gzip or bzImage; - is standard input.", show_default=False
        ),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="OUT", help="Where to write the built domain.")
    ],
    memory: Memory = None,
    ramdisk: Ramdisk = None,
    cmdline: Cmdline = "",
) -> None:
    """Build a kernel's domain into a dump-core ELF file.

    OUT is what Xen's dump-core would write at the guest's first instruction; `domainbuilder launch` runs it,
    readelf reads it. Pages of zeros are holes in it. What `domainbuilder plan` warns of is said here, too.

    \b
    Examples:
      domainbuilder build vmlinuz -m 256 --cmdline console=hvc0 -o linux.core
      domainbuilder launch linux.core
    """
    from domainbuilder.build.domain_image import build as build_domain
    from domainbuilder.build.image import save_image
    from domainbuilder.output import refuse_to_overwrite
    from domainbuilder.plan.domain_plan import plan
    from domainbuilder.plan.findings import warn
    from domainbuilder.plan.regions import human
    from domainbuilder.visible import visible

    refuse_to_overwrite([output], [file, ramdisk])
    planned = plan(file, memory, ramdisk=ramdisk, cmdline=cmdline)
    warn(planned)
    image = build_domain(planned)
    written = save_image(image, output)
    print(
        f"{visible(output)}: {planned.guest.name}, {planned.nr_pages >> 8} MB, {human(written)} of it "
        f"in use, starts at {image.context.ip:#x}"
    )
