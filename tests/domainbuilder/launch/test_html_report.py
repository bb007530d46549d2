"""`launch --report`: a page that stands alone, whatever a guest, a file's name or a command line says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

import domainbuilder
from domainbuilder.launch.html_report import reported
from domainbuilder.launch.tracing import recording
from domainbuilder.trace.filter import Filter
from domainbuilder.trace.record import Record
from domainbuilder.trace.timeline import PIECES, Timeline

VOID = {"meta", "img", "br"}
TAGS = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "header",
    "main",
    "section",
    "nav",
    "a",
    "h1",
    "h2",
    "h3",
    "p",
    "div",
    "span",
    "b",
    "i",
    "br",
    "small",
    "pre",
    "code",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "svg",
    "path",
    "img",
}
ATTRIBUTES = {
    "lang",
    "charset",
    "http-equiv",
    "content",
    "name",
    "id",
    "class",
    "href",
    "style",
    "viewbox",
    "role",
    "d",
    "preserveaspectratio",
    "aria-label",
    "alt",
    "src",
}
EVIL = "<script>alert(1)</script>"


class Reader(HTMLParser):
    """The page as a browser's parser has it: tags in balance, attributes, text by section."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags = Counter[str]()
        self.attributes: list[tuple[str, str]] = []
        self.text: dict[str, str] = {}
        self._section = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
        if tag not in VOID and tag != "path":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text[self._section] = self.text.get(self._section, "") + data


def stands_alone(page: str) -> Reader:
    """Nothing is fetched, nothing runs, and all tags are ours."""
    read = Reader(page)
    assert set(read.tags) <= TAGS
    assert {name for name, _ in read.attributes} <= ATTRIBUTES
    for name, value in read.attributes:
        if name == "src":
            assert value.startswith("data:image/svg+xml;base64,")
        if name == "href":
            assert value.startswith("#")
    assert "default-src 'none'" in page
    assert not re.search(r"url\(|@import|https?://", page)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", page)
    return read


def launched(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "domainbuilder", "launch", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_hostile_names_and_console(sample_guest: Callable[[str], Path], tmp_path: Path) -> None:
    kernel = tmp_path / f"{EVIL.replace('/', '|')}\x1b[31m.elf"
    shutil.copy(sample_guest("hello"), kernel)
    page = tmp_path / "page.html"
    typed = f"{EVIL}\\x1b]0;title\\x07&amp;\\n"
    done = launched(
        [str(kernel), "--cmdline", f'"><img src=x onerror={EVIL}>', "--report", str(page),
         "--expect", "hello> ", "--send", typed, "--expect", "hello> ", "--send", "crash\\n"]
    )  # fmt: skip
    assert done.returncode == 3
    read = stands_alone(page.read_text())
    assert EVIL in read.text["console"]
    assert "&amp;" in read.text["console"]
    assert "the guest reported that it crashed" in read.text[""]
    assert "RIP:" in read.text["ending"]
    assert "onerror" in read.text[""]
    assert read.tags["img"] == 1  # the address space


def test_numbers_are_those_of_the_run(conformance_guest: Callable[[str], Path], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    with domainbuilder.launch(conformance_guest("vcpus-64"), 32, vcpus=2) as dom:
        with reported(dom, page, lambda: "poweroff"):
            dom.wait()
        stats = dom.stats()
    read = stands_alone(page.read_text())
    assert f"{sum(stats.hypercalls.values()):,}" in read.text[""]
    assert f"{stats.guest_ns // 1000 / 1e6:.6f}" in read.text[""]
    for name in stats.hypercalls:
        assert name in read.text["hypercalls"]
    assert "vcpu_op VCPUOP_is_up" in read.text["hypercalls"]
    assert "Test result: SUCCESS" in read.text["console"]
    assert {"vcpu0 running", "vcpu1 running"} <= set(re.findall(r"vcpu\d running", read.text["vcpus"]))


def test_a_run_that_was_cut(sample_guest: Callable[[str], Path], tmp_path: Path) -> None:
    """The page says where the guest stands that has not ended."""
    page = tmp_path / "page.html"
    done = launched(
        [str(sample_guest("hello")), "--report", str(page), "--expect", "never", "--timeout", "60"]
    )
    assert done.returncode in (1, 4)
    read = stands_alone(page.read_text())
    assert "vcpu#0" in read.text["ending"]


def test_an_input_is_not_overwritten(sample_guest: Callable[[str], Path], tmp_path: Path) -> None:
    kernel = tmp_path / "kernel.html"
    shutil.copy(sample_guest("hello"), kernel)
    before = kernel.read_bytes()
    done = launched([str(kernel), "--report", str(kernel)])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert kernel.read_bytes() == before


def test_what_is_kept_is_bounded(sample_guest: Callable[[str], Path]) -> None:
    timeline = Timeline()
    for i in range(20_000):
        timeline.add(Record("print", i * 10**6, 0, text="x" * 600 + "\nrest"))
        timeline.add(Record("frames", i * 10**6, 0, args=(i,) * 8))
    buckets = timeline.buckets
    assert len(buckets.counts) == len(buckets.frames) <= PIECES
    assert sum(count.total() for count in buckets.counts) == 40_000
    assert len(list(timeline.console)) + timeline.console.left_out == 20_000
    assert max(len(line) for _, line in timeline.console) == 500
    last = [frames for frames in buckets.frames if frames][-1]
    assert last == (19_999,) * 8
    records: list[Record] = []
    with domainbuilder.launch(sample_guest("hello"), 32) as dom, recording(dom, records.append, Filter()):
        dom.console.expect("hello> ")
    small = Timeline()
    for record in records:
        small.add(record)
    assert sum(count.total() for count in small.buckets.counts) == len(records)


@pytest.mark.guest
def test_a_boot_is_small(guest_kernel: Callable[[str], Path], tmp_path: Path) -> None:
    """GRUB's, which is a real kernel and quick; of Debian's a page has 120 kB."""
    page = tmp_path / "grub.html"
    with domainbuilder.launch(guest_kernel("grub-x86_64-xen.bin"), 64) as dom, reported(dom, page):
        dom.console.expect("grub> ")
    stands_alone(page.read_text())
    assert page.stat().st_size < 2 << 20
