"""Stock kernels that crash: our backtrace beside the kernel's own, our names beside /proc/kallsyms."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from domainbuilder.kernel.elf import parse_elf
from domainbuilder.kernel.kernel_file import load_kernel
from domainbuilder.symbols.backtrace import ORC
from domainbuilder.symbols.read import kernel_symbols

from .conftest import Boot


@pytest.mark.guest
@pytest.mark.parametrize("name", ["vmlinuz-bookworm-amd64", "vmlinuz-trixie-amd64"])
def test_a_panic(
    name: str, guest_kernel: Callable[[str], Path], ramdisk: Callable[..., Path], boot: Callable[..., Boot]
) -> None:
    kernel = guest_kernel(name)
    booted = boot(kernel, ramdisk("crash.sh"), "panic=-1 quiet")
    assert booted.outcome.reason == "crash"
    # every symbol, as the kernel decodes them
    symbols = kernel_symbols(parse_elf(load_kernel(kernel).image, name))
    listed = "".join(f"{symbol.value:016x} {symbol.name}\n" for symbol in symbols)
    digest, count = booted.section("kallsyms")
    assert int(count) == len(symbols)
    assert digest.split()[0] == hashlib.sha256(listed.encode("latin-1")).hexdigest()
    # the stack, as the kernel walks it: "? " is before what it does not believe itself
    trace = booted.text.replace("\r\n", "\n").partition(" <TASK>\n")[2].partition(" </TASK>")[0]
    theirs = re.findall(r"\]  ([\w.]+\+0x[0-9a-f]+)/0x", trace)
    report = booted.outcome.report
    assert report is not None
    ours = [frame.symbol for frame in report.backtrace]
    here = ours.index(next(name for name in ours if name.startswith("sysrq_handle_crash+")))
    there = next(i for i, name in enumerate(theirs) if name.startswith("sysrq_handle_crash+"))
    assert ours[here:] == theirs[there:]
    assert len(ours) - here > 6
    assert [name.partition("+")[0] for name in ours[here - 1 : here]] == ["panic"]
    assert {frame.how for frame in report.backtrace[1:]} == {ORC}
