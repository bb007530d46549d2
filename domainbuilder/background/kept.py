"""A domain that is kept as it ended, in a process of its own, under its name or another.

The process is a copy of the one that ran it. Source: preserve_domain() of tools/xl/xl_vmcontrol.c and
libxl_domain_preserve() of tools/libs/light/libxl_domain.c of Xen 4.17.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn
from uuid import uuid4

from domainbuilder.background.client import open_log
from domainbuilder.background.runtime import Domain, Place
from domainbuilder.background.server import Server
from domainbuilder.background.wire import line, read_line
from domainbuilder.errors import BuildError, one_line

if TYPE_CHECKING:
    from domainbuilder.launch.running import RunningDomain
    from domainbuilder.launch.session import Outcome
    from domainbuilder.xl.domain_config import DomainConfig

_SUFFIX = "-%Y%m%dT%H%MZ"  # of the name of a domain that is renamed, in UTC
_FIRST_OTHER = 3  # descriptor behind stdin, stdout and stderr


def keep(dom: RunningDomain, outcome: Outcome, config: DomainConfig, *, renamed: bool) -> Domain:
    """Have the domain kept until somebody destroys it; as which one. Here it can be closed.

    Its disks are free again. `renamed`: it gets the time behind its name, and another UUID, so that it can be
    started again beside itself. Raises BuildError where the name is taken; OSError.
    """
    if renamed:
        config = replace(config, name=config.name + time.strftime(_SUFFIX, time.gmtime()), uuid=str(uuid4()))
    dom.machine.devices.close_disks()
    sys.stdout.flush()
    sys.stderr.flush()
    here, there = socket.socketpair()
    with here, open_log(config.name) as errors:
        child = os.fork()
        if child == 0:
            if os.fork():  # so that nobody has to wait for the one that stays
                os._exit(0)
            _stay(there, errors.fileno(), dom, outcome, config)
        there.close()
        os.waitpid(child, 0)
        told, _ = read_line(here)
    if "error" in told:
        raise BuildError(told["error"])
    return Domain(told["ok"], config.name, told["pid"])


def _stay(
    there: socket.socket, log: int, dom: RunningDomain, outcome: Outcome, config: DomainConfig
) -> NoReturn:
    """In the process that stays: all that it has from the one before are the domain and the log."""
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for end in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(end, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDWR)
        for number, source in enumerate((nothing, nothing, log)):
            os.dup2(source, number)
        sock = there.fileno()
        os.closerange(_FIRST_OTHER, sock)
        os.closerange(sock + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        try:
            place = Place(config.name)
        except (BuildError, OSError) as error:
            there.sendall(line({"error": one_line(error)}))
            os._exit(1)
        server = Server(place, config)
        server.dom = dom
        server.renamed(config.name, config.uuid)
        there.sendall(line({"ok": place.id, "pid": os.getpid()}))
        there.close()
        server.keep(outcome)
        server.leave()
        place.leave()
    finally:
        os._exit(0)
