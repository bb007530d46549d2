"""Hosts saved, handed to another process as plain values, and run on there (`-m tests.hvcore.saved DIR`)."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domainbuilder.launch.domain import launch
from hvcore.host import Host
from hvcore.host_state import DomainState, HostState
from hvcore.machine import BOOT_TIME_NS, Stop

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Subject:
    """A guest that is run for `limit_ns` at most; `typed` is what comes at which time after its start."""

    kernel: Path
    limit_ns: int
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    typed: tuple[tuple[int, bytes], ...] = ()


@dataclass(frozen=True)
class Result:
    """All that a run can be told by."""

    stop: str
    stats: str
    registers: tuple[str, ...]
    memory: str
    console: str
    system_time_ns: int


def write(state: HostState, folder: Path) -> None:
    """The state as a Python literal, with the pages in a file beside it."""
    plain = dataclasses.asdict(state)
    pages = plain.pop("pages")
    (folder / "pages").write_bytes(b"".join(pages.values()))
    sizes = [(index, len(run)) for index, run in pages.items()]
    (folder / "state").write_text(repr((plain, sizes)))


def read(folder: Path) -> HostState:
    plain, sizes = ast.literal_eval((folder / "state").read_text())
    with (folder / "pages").open("rb") as raw:
        pages = {index: raw.read(size) for index, size in sizes}
    plain["domains"] = tuple(DomainState(**domain) for domain in plain["domains"])
    return HostState(**plain, pages=pages)


def run_on(host: Host, limit_ns: int, typed: tuple[tuple[int, bytes], ...], output: bytearray) -> Result:
    """From where the host is to its domain's end, or to its limit."""
    m = host.machines[1]
    over: list[bool] = []
    for at, data in typed:
        if BOOT_TIME_NS + at > m.clock.now():
            host.set_timer(at, BOOT_TIME_NS + at, lambda data=data: m.input(data))  # type: ignore[misc]
    host.set_timer("limit", BOOT_TIME_NS + limit_ns, lambda: (over.append(True), host.pause()))  # type: ignore[func-returns-value,arg-type]
    while True:
        _, stop = host.run()
        if stop is not Stop.PAUSED or over:
            break
    states = [v.saved_state or b"" for v in m.domain.vcpus]
    states[m.domain.current_id] = host.engine.save_state()
    memory = hashlib.sha256(m.mem.view).hexdigest()
    return Result(
        stop.name, repr(m.stats()), tuple(s.hex() for s in states), memory, bytes(output).hex(), m.clock.now()
    )  # fmt: skip


def whole(subject: Subject) -> Result:
    output = bytearray()
    with launch(subject.kernel, console_output=output.extend, **subject.options) as dom:
        return run_on(dom.machine.host, subject.limit_ns, subject.typed, output)


def saved_at(subject: Subject, after_ns: int) -> tuple[HostState, bytearray]:
    """The host so long after the guest's start, and what it printed."""
    output = bytearray()
    with launch(subject.kernel, console_output=output.extend, **subject.options) as dom:
        host = dom.machine.host
        for at, data in subject.typed:
            host.set_timer(at, BOOT_TIME_NS + at, lambda data=data: dom.machine.input(data))  # type: ignore[misc]
        host.set_timer("save", BOOT_TIME_NS + after_ns, host.pause)
        host.run()
        return host.save(), output


def restored(state: HostState, subject: Subject, output: bytearray) -> Result:
    host = Host.restore(state, lambda _domid, data: output.extend(data))
    try:
        return run_on(host, subject.limit_ns, subject.typed, output)
    finally:
        host.close()


def in_another_process(state: HostState, subject: Subject, output: bytearray, folder: Path) -> Result:
    write(state, folder)
    task = (subject.limit_ns, subject.typed, bytes(output))
    (folder / "task").write_text(repr(task))
    command = [sys.executable, "-m", "tests.hvcore.saved", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Result(*ast.literal_eval(done.stdout))


def main(folder: Path) -> None:
    limit_ns, typed, printed = ast.literal_eval((folder / "task").read_text())
    result = restored(read(folder), Subject(folder, limit_ns, typed=typed), bytearray(printed))
    print(dataclasses.astuple(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
