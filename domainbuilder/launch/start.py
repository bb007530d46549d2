"""How a domain comes to run here: from an image that was built, or from a file or stream with its console."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from domainbuilder.launch.tape import subject
from domainbuilder.launch.transcript import Transcript

if TYPE_CHECKING:
    from domainbuilder.build.domain_image import DomainImage
    from domainbuilder.launch.options import Chosen
    from domainbuilder.plan.domain_plan import DomainPlan
    from hvcore.host import Host
    from hvcore.machine import Machine

Output = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Start:
    """A domain that is about to run here.

    `plan` works out the plan of its kernel, None where nobody knows that. `machine` makes it on its host,
    given where its output goes; `subject` says what a record is of (tape.subject()). `transcript` is what it
    printed elsewhere, of `console_bytes` in all, of which `used` were matched or read. A domain that is not
    `is_trusted` comes from a file of anybody's.
    """

    plan: Callable[[], DomainPlan | None]
    machine: Callable[[Output], Machine]
    subject: Callable[[], dict[str, Any]]
    transcript: Transcript = field(default_factory=Transcript)
    console_bytes: int = 0
    used: int = 0
    is_trusted: bool = True


def built(image: DomainImage, host: Host, options: Chosen) -> Start:
    """A domain that was built, and has not run."""
    disks, vifs, vfb = options.parsed_disks, options.parsed_vifs, options.parsed_vfb

    def machine(output: Output) -> Machine:
        return host.create(
            image.boot_image(),
            vcpus=options.most_vcpus,
            console_output=output,
            upper_ptwr=options.upper_ptwr,
            cap=options.cap,
            name=options.name,
            disks=disks,
            vifs=vifs,
            vfb=vfb,
            info=options.build_info,
        )

    def what() -> dict[str, Any]:
        what = subject(image, options.vcpus, upper_ptwr=options.upper_ptwr, disks=disks, vifs=vifs, vfb=vfb)
        asked = {name: getattr(options, name) for name in ("maxmem_mib", "max_vcpus", "uuid")}
        info = options.build_info
        asked |= {"date_ns": info.date_ns, "time_offset": info.time_offset or None}
        return what | {name: value for name, value in asked.items() if value is not None}

    return Start(lambda: image.plan, machine, what)
