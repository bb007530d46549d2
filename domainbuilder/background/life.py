"""The life of a domain in the background, in its process: started as it is told, followed to its end.

A domain that ends goes on as its configuration says: it is started again, kept as it is, or gone with the
process. What happens to it is written to the log that the process has as stderr, which stays bounded.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from domainbuilder.background.kept import keep
from domainbuilder.background.runtime import Place
from domainbuilder.background.server import Server
from domainbuilder.background.wire import line, read_line
from domainbuilder.errors import BuildError, one_line
from domainbuilder.inputs import names_socket
from domainbuilder.launch.create import action_of, asked_by, booted
from domainbuilder.launch.domain import RunningDomain, launch
from domainbuilder.launch.session import Outcome
from domainbuilder.launch.terminal import write_all
from domainbuilder.xl.config_json import parse_json
from domainbuilder.xl.config_syntax import Source, parse
from domainbuilder.xl.domain_config import DomainConfig, read_config

_MOST_CONFIG = 4 << 20
MOST_LOGGED = 1 << 20  # bytes of the log, of which the newest half is kept where it grows beyond that
_LOG = 2
_PATIENCE, _LOOK = 10.0, 0.02  # seconds


def main(descriptor: int) -> None:
    """Run the domain that the socket `descriptor` tells of; say there whether it could be started."""
    signal.signal(signal.SIGTERM, _end)
    sock = socket.socket(fileno=descriptor)

    def say(answer: dict[str, Any]) -> None:
        with suppress(OSError):  # once only, and whoever asked may be gone
            sock.sendall(line(answer))
        sock.close()

    with ExitStack() as stack:
        try:
            asked, _ = read_line(sock, _MOST_CONFIG)
            _live(_Life(asked, stack, lambda number, name: say({"ok": number, "name": name})))
        except (BuildError, OSError) as error:
            say({"error": one_line(error)})
            _log(one_line(error))


class _Life:
    """What was asked for, and the server once there is one; `started` gets the domain's number and name."""

    def __init__(self, asked: dict[str, Any], stack: ExitStack, started: Callable[[int, str], None]) -> None:
        self.config = _config(asked)
        self.saved: str | None = asked["saved"]
        self.date: str | None = asked["date"]
        self.cache, self._paused = bool(asked["cache"]), bool(asked["paused"])
        self._stack, self._started = stack, started
        self._console: Callable[[bytes], None] = lambda _data: None
        if asked["console_log"]:
            log = stack.enter_context(Path(asked["console_log"]).open("wb", buffering=0))  # noqa: SIM115
            self._console = lambda data: write_all(log.fileno(), data, log.name)
        self.server: Server | None = None
        self._early = bytearray()

    def printed(self, data: bytes) -> None:
        """The guest printed `data`."""
        try:
            self._console(data)
        except OSError as error:
            self._console = lambda _data: None
            _log(f"the console's log is no longer written: {error.strerror}")
        if self.server is not None:
            self.server.printed(data)
        else:
            self._early += data

    def serve(self, config: DomainConfig) -> Server:
        """The server, which takes the domain's place. Raises BuildError where that is taken."""
        if self.server is None:
            place = self._place(config.name)
            self._stack.callback(place.leave)
            self.server = Server(place, config)
            self._stack.callback(self.server.leave)
            self.server.is_paused = self._paused
            self.server.printed(bytes(self._early))
        return self.server

    def _place(self, name: str) -> Place:
        """The domain's place; one that was moved waits until it is gone where it was, which may be here."""
        end = time.monotonic() + (_PATIENCE if names_socket(self.saved or "") else 0.0)
        while True:
            try:
                return Place(name)
            except BuildError:
                if time.monotonic() >= end:
                    raise
            time.sleep(_LOOK)

    def begins(self, server: Server) -> None:
        """Say so, to whoever waits for it and in the log."""
        self._started(server.place.id, server.config.name)
        _log(f"{server.config.name} is domain {server.place.id}, process {os.getpid()}")


def _live(life: _Life) -> None:
    """The domain from its start to its end, and again where its configuration says so."""
    while True:
        with _started(life) as dom:
            config = life.config or DomainConfig(name=dom.machine.name)
            server = life.serve(config)
            life.begins(server)
            if dom.vnc_address:
                _log(f"{config.name}: vncviewer {dom.vnc_address}")
            outcome = server.run(dom)
            if outcome is None:
                _log(f"{config.name} was {server.end}")
                return
            if not _goes_on(server, dom, outcome):
                return
        if life.config is None:
            _log(f"{config.name} cannot be started again: it was restored without its configuration")
            return
        life.saved = None
        _log(f"{config.name} is started again")


def _started(life: _Life) -> RunningDomain:
    """The domain, saved or new. Raises BuildError and OSError."""
    config = life.config
    if life.saved is not None:
        from domainbuilder.saved.domain import restore

        disks, vifs = (config.disks, config.vifs) if config is not None else ((), ())
        return restore(life.saved, disks=disks, vifs=vifs, console_output=life.printed)
    assert config is not None
    life.serve(config)
    with booted(config) as (kernel, ramdisk, cmdline):
        return launch(
            kernel, config.memory, ramdisk=ramdisk, cmdline=cmdline, console_output=life.printed,
            date=life.date, cache=life.cache, **asked_by(config),
        )  # fmt: skip


def _goes_on(server: Server, dom: RunningDomain, outcome: Outcome) -> bool:
    """Do what the configuration wants done with a domain that has ended; whether it is started again."""
    _log(f"{server.config.name}: {outcome}")
    if outcome.report is not None:
        from domainbuilder.launch.crash_text import render_crash

        _write(render_crash(outcome.report))
    action = action_of(server.config, outcome.reason)
    if action.startswith("coredump"):
        dom.dump_core(f"{server.config.name}.core")
    if action == "preserve":
        server.keep(outcome)
    if action == "rename-restart" and not server.end:
        kept = keep(dom, outcome, server.config, renamed=True)
        _log(f"{server.config.name} is kept as {kept.name}, domain {kept.id}")
    return action.endswith("restart") and not server.end


def _config(asked: dict[str, Any]) -> DomainConfig | None:
    if asked["config"] is None:
        return None
    source = Source("configuration", json.dumps(asked["config"]))
    config = read_config(source.name, parse([], parse_json(source))).config
    return config.with_snapshots() if asked["snapshot"] else config


def _end(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def _log(text: str) -> None:
    _write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def _write(text: str) -> None:
    """To the log, of which the older half goes where it has become too long."""
    with suppress(OSError):  # a full disk does not end the domain
        write_all(_LOG, text.encode())
        if os.fstat(_LOG).st_size > MOST_LOGGED:
            with Path(f"/proc/self/fd/{_LOG}").open("rb") as log:
                log.seek(-MOST_LOGGED // 2, os.SEEK_END)
                newest = log.read().partition(b"\n")[2]
            os.ftruncate(_LOG, 0)
            write_all(_LOG, newest)
