"""Guests for the benchmarks, as they stand at their prompts: what `make guests` fetched, else the sample."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import domainbuilder
from domainbuilder import guests

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("DOMAINBUILDER_CACHE") or ROOT / ".cache") / "guests"


class Guest(NamedTuple):
    """How it is launched, what its prompt is, and the question number `n` with what answers it."""

    name: str
    launch: dict[str, Any]
    prompt: str
    ask: Callable[[int], tuple[str, str]]


@contextmanager
def all_guests() -> Iterator[list[Guest]]:
    """The guests that there are on this machine; their ramdisks are there as long as the block lasts."""
    found = [
        Guest(
            "hello",
            {"kernel": guests.path("hello"), "memory_mib": 4},
            "^hello> ",
            lambda _n: ("about\n", "command line"),
        )
    ]
    grub, linux, busybox = (
        CACHE / name for name in ("grub-x86_64-xen.bin", "vmlinuz-bookworm-amd64", "busybox-amd64")
    )
    with tempfile.TemporaryDirectory() as folder:
        if grub.exists():
            launch = {"kernel": grub, "memory_mib": 64}
            found.append(Guest("PV-GRUB", launch, "grub> ", lambda n: (f"echo a{n}b\n", rf"\ra{n}b")))
        if linux.exists() and busybox.exists():
            ramdisk = Path(folder, "ramdisk")
            ramdisk.write_bytes(domainbuilder.initramfs(busybox.read_bytes()))
            launch = {
                "kernel": linux,
                "memory_mib": 128,
                "ramdisk": ramdisk,
                "cmdline": "console=hvc0 quiet",
            }
            found.append(
                Guest(
                    "Debian 6.1",
                    launch,
                    "^/ # ",
                    lambda n: (f"echo $((1000000 + {n}))\n", rf"^{1000000 + n}"),  # and not what is typed
                )
            )
        yield found
