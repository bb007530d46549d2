"""Hosts saved, handed to another process as plain values, and run on there (`-m tests.hvcore.saved DIR`)."""

from __future__ import annotations

import ast
import dataclasses
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

from hvcore.host import Host
from hvcore.host_state import DomainState, HostState
from hvcore.machine import BOOT_TIME_NS
from tests.hvcore.stops import Result, Run, Subject, launched, result_of

ROOT = Path(__file__).resolve().parent.parent.parent


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


def run_on(host: Host, subject: Subject, output: bytearray) -> Result:
    """From where the host is to its domain's end, or to its limit."""
    guest = Run(host.machines[1], subject, None, output)
    stop = guest.to_the_end()
    return result_of(guest.m, stop, output)


def saved_at(subject: Subject, after_ns: int) -> tuple[HostState, bytearray]:
    """The host so long after the guest's start, and what it printed."""
    output = bytearray()
    with launched(subject, output) as dom:
        host = dom.machine.host
        for at, data in subject.typed:
            host.set_timer(at, BOOT_TIME_NS + at, partial(dom.machine.input, data))
        host.set_timer("save", BOOT_TIME_NS + after_ns, host.pause)
        host.run()
        return host.save(), output


def restored(state: HostState, subject: Subject, output: bytearray) -> Result:
    host = Host.restore(state, lambda _domid, data: output.extend(data))
    try:
        return run_on(host, subject, output)
    finally:
        host.close()


def in_another_process(state: HostState, subject: Subject, output: bytearray, folder: Path) -> Result:
    write(state, folder)
    (folder / "task").write_bytes(pickle.dumps((subject, output)))
    command = [sys.executable, "-m", "tests.hvcore.saved", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = pickle.loads((folder / "result").read_bytes())
    assert isinstance(result, Result)
    return result


def main(folder: Path) -> None:
    subject, output = pickle.loads((folder / "task").read_bytes())
    (folder / "result").write_bytes(pickle.dumps(restored(read(folder), subject, output)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
