"""What talks to domains in the background: start one, ask one, be one's console."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from domainbuilder.background.runtime import Domain, connect, domains
from domainbuilder.background.wire import answer_to, line, read_line
from domainbuilder.errors import BuildError
from domainbuilder.launch.terminal import ESCAPE, raw_terminal, write_all
from domainbuilder.streams import STDIN, STDOUT
from domainbuilder.xl.config_json import to_json
from domainbuilder.xl.domain_config import DomainConfig

_PIECE = 1 << 16
PATIENCE = 10.0  # seconds: a guest that runs is left every few milliseconds, and what is asked for done
_PATIENCE_OF_LISTS = 3.0
_LOOK = 0.05
_UNKNOWN = ("uuid", "memory_mib", "vcpus", "state", "cpu_seconds", "guest_seconds", "uptime_seconds")


def log_path(name: str) -> Path:
    """Where the process of the domain of that name writes what there is to say."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "domainbuilder" / f"xl-{name}.log"


def open_log(name: str) -> BinaryIO:
    """That file, made if need be, to write at its end. Raises OSError."""
    log = log_path(name)
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return log.open("a+b")


def start(
    config: DomainConfig | None,
    *,
    saved: str | None = None,
    snapshot: bool = False,
    paused: bool = False,
    date: str | None = None,
    cache: bool = True,
    console_log: Path | None = None,
) -> Domain:
    """Start the domain in the background, or go on with the one that is saved, or comes by a socket.

    Raises BuildError where it cannot be started; OSError.
    """
    name = config.name if config is not None else Path(saved or "").name
    here, there = socket.socketpair()
    with here, open_log(name) as errors:
        with there:
            process = subprocess.Popen(
                [sys.executable, "-m", "domainbuilder.background", str(there.fileno())],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
                pass_fds=[there.fileno()], start_new_session=True,
            )  # fmt: skip
        asked = {
            "config": None if config is None else json.loads(to_json(config)),
            "saved": saved,
            "snapshot": snapshot,
            "paused": paused,
            "date": date,
            "cache": cache,
            "console_log": None if console_log is None else str(console_log.absolute()),
        }
        try:
            here.sendall(line(asked))
            told, _ = read_line(here)
        except BuildError:
            raise BuildError(f"the domain's process has failed; {log_path(name)} says why") from None
        except BaseException:  # nobody waits for it any more
            process.kill()
            raise
    if "error" in told:
        raise BuildError(told["error"])
    return Domain(told["ok"], told["name"], process.pid)


def tell_started(domain: Domain, *, console: bool, quiet: bool = False) -> None:
    """Say which domain it is, and be its console if that is wanted. Raises BuildError."""
    if not quiet:
        print(f"domainbuilder: {domain.name} is domain {domain.id}", file=sys.stderr)
    if console:
        be_console(domain)


def ask(domain: Domain, verb: str, patience: float | None = PATIENCE, **arguments: Any) -> Any:
    """What the domain answers. Raises BuildError where it refuses, is gone, or does not answer in time."""
    with connect(domain) as sock:
        sock.settimeout(patience)
        return answer_to(sock, {"do": verb, **arguments})[0]


def infos(only: Domain | None = None) -> list[dict[str, Any]]:
    """What all domains say of themselves, or `only` that one; without those that end meanwhile.

    Of one whose process does not answer there is what its place says, and None for the rest.
    """
    told = []
    for domain in [only] if only is not None else domains():
        try:
            told.append(ask(domain, "info", _PATIENCE_OF_LISTS))
        except BuildError:
            if only is not None:
                raise
            if domain in domains():
                told.append(
                    dict.fromkeys(_UNKNOWN) | {"id": domain.id, "name": domain.name, "pid": domain.pid}
                )
    return told


def until_gone(domain: Domain, seconds: float | None = None) -> bool:
    """Wait for the domain's end, for so long (None: without end); whether it is gone."""
    end = None if seconds is None else time.monotonic() + seconds
    while domain in domains():
        if end is not None and time.monotonic() >= end:
            return False
        time.sleep(_LOOK)
    return True


def destroy(domain: Domain) -> None:
    """Have the domain no more. A process that does not answer is killed: its lock says that it is the one."""
    with suppress(BuildError):
        ask(domain, "destroy", PATIENCE)
        if until_gone(domain, PATIENCE):
            return
    if domain in domains():
        with suppress(ProcessLookupError):
            os.kill(domain.pid, signal.SIGKILL)
        until_gone(domain)


def be_console(domain: Domain) -> None:
    """Be the domain's console until it ends, Ctrl-] is typed, or stdin is at its end. Raises BuildError."""
    with connect(domain) as sock:
        _, rest = answer_to(sock, {"do": "console"})
        write_all(STDOUT, rest, "stdout")
        if not os.isatty(STDIN):
            _relay(sock)
            return
        sys.stderr.write(
            f"domainbuilder: the console of {domain.name}; Ctrl-] leaves it, and the domain runs on\n"
        )
        sys.stderr.flush()
        with raw_terminal(STDIN, _interrupt):
            _relay(sock)


def _interrupt(error: BaseException) -> None:
    raise error


def _relay(sock: socket.socket) -> None:
    sources: list[socket.socket | int] = [sock, STDIN]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if sock in ready:
            try:
                data = sock.recv(_PIECE)
            except OSError:
                data = b""
            if not data:
                return
            write_all(STDOUT, data, "stdout")
        if STDIN in ready:
            typed, escape, _ = os.read(STDIN, _PIECE).partition(ESCAPE)
            if typed:
                sock.sendall(typed)
            if escape or not typed:
                return
