"""Several domains on one host: launched, run in turn, and talked to, each as one alone.

    with Host(memory_mib=512) as host:
        server = host.launch("server.elf", memory_mib=64)
        client = host.launch("client.elf", memory_mib=64, cmdline=f"peer={server.domain_id}", cap=50)
        client.console.expect("connected")
        assert server.wait().reason == "poweroff"

All of them run while any one is waited for. Each has a clock of its own, and none is ahead of another by more
than ten milliseconds; a domain that meets no other runs exactly as it would alone (hvcore/host.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

from domainbuilder.build.domain_image import DomainImage
from domainbuilder.closing import Closing
from domainbuilder.errors import BuildError, LayoutError
from domainbuilder.kernel.kernel_file import KernelFile
from domainbuilder.launch.domain import RunningDomain, launch_on
from domainbuilder.launch.options import HostOptions, options_by_name
from domainbuilder.launch.snapshot import Snapshot
from domainbuilder.plan.domain_plan import DomainPlan
from hvcore import host as hvcore_host
from hvcore.errors import EngineError
from hvcore.machine_memory import MachineMemory

if TYPE_CHECKING:
    from domainbuilder.clones.clone import Clone
    from domainbuilder.launch.gdb_server import GdbServer

MAX_DOMAINS = 32
_MIB_PAGES = 256


class Host(Closing):
    """A host with `memory_mib` of memory for its domains, of which there can be MAX_DOMAINS at a time.

    A context manager; leaving it destroys them. Raises LayoutError where there is no such memory.
    """

    def __init__(self, memory_mib: int) -> None:
        if memory_mib <= 0:
            raise BuildError("a host needs memory", found=str(memory_mib))
        try:
            memory = MachineMemory(memory_mib * _MIB_PAGES, domains=MAX_DOMAINS)
            self.host = hvcore_host.Host(memory)
        except (OSError, ValueError, OverflowError, EngineError) as error:
            raise LayoutError(f"no host of {memory_mib} MB: {error}") from error
        self._domains: list[RunningDomain] = []
        self._gdb: GdbServer | None = None
        self._closed = False

    @property
    def domains(self) -> tuple[RunningDomain, ...]:
        """The domains that there are, the oldest first; one that has ended is there until it is closed."""
        return tuple(dom for dom in self._domains if not dom.closed)

    @options_by_name(HostOptions)
    def launch(
        self,
        kernel: DomainPlan | DomainImage | KernelFile | str | os.PathLike[str],
        memory_mib: int | None = None,
        **options: Unpack[HostOptions],
    ) -> RunningDomain:
        """`domainbuilder.launch` on this host, with the same options.

        The domain is closed by its own `close()`, or with the host. Raises BuildError as `launch` does, and
        where the host has no room for the domain.
        """
        if self._closed:
            raise RuntimeError("the host was closed")
        if len(self.domains) >= MAX_DOMAINS:
            raise BuildError("the host has as many domains as it can", found=str(MAX_DOMAINS))
        dom = launch_on(self.host, kernel, memory_mib, **options)
        self._domains = [*self.domains, dom]
        if self._gdb is not None and not self._gdb.closed:
            self._gdb.add(dom)
        return dom

    def gdb(
        self, address: str, *, waits: bool = True, say: Callable[[str], None] = lambda _text: None
    ) -> GdbServer:
        """Let gdb have the host's domains, as its processes, until the server's `with` or the host ends.

        `address` is that of `launch --gdb`: a unix socket's path, PORT or HOST:PORT; the server's own is
        what gdb's `target extended-remote` takes. `waits`: when a domain is waited for, none begins before
        gdb has come and said so. What is launched later gdb can attach to. `say` is told what a user is to
        know. Raises BuildError where nobody can listen there, RuntimeError where the host has no domain or a
        gdb already.
        """
        from domainbuilder.launch.gdb_line import parse_address
        from domainbuilder.launch.gdb_server import GdbServer

        if not self.domains:
            raise RuntimeError("the host has no domain")
        if self._gdb is not None and not self._gdb.closed:
            raise RuntimeError(f"gdb is listened for already, at {self._gdb.address}")
        self._gdb = GdbServer(*self.domains, address=parse_address(address), waits=waits, say=say)
        return self._gdb

    def fork(self, *, timeout: float | None = None) -> HostClone:
        """A copy of the host with its domains as they stand, in a process of its own.

        As RunningDomain.fork(). Raises RuntimeError where there is none, or while one runs.
        """
        from domainbuilder.clones.clone import fork

        if not self.domains:
            raise RuntimeError("the host has no domain")
        return HostClone(tuple(fork(self.domains, console_output=None, timeout=timeout)))

    def snapshot(self) -> Snapshot:
        """Where all domains stand, to `rewind()` to, in this process; as RunningDomain.snapshot()."""
        return Snapshot(self.host, list(self.domains))

    def rewind(self, snapshot: Snapshot) -> None:
        """Be where the host was at the snapshot; as RunningDomain.rewind().

        Raises RuntimeError where a domain was closed since: it cannot come back; or where one was launched
        since and is still there.
        """
        snapshot.go_back(list(self.domains))

    def close(self) -> None:
        """Destroy the domains and give the memory back. What they printed, their outcomes and counts stay."""
        if self._closed:
            return
        if self._gdb is not None:
            self._gdb.close()
        for dom in self.domains:
            dom.close()
        self._closed = True
        self.host.close()
        self.host.mem.release()


@dataclass(frozen=True, slots=True)
class HostClone(Closing):
    """A copy of a host: `domains` as those of the host stood, which run while any one is waited for.

    A context manager; leaving it ends them all.
    """

    domains: tuple[Clone, ...]

    def close(self) -> None:
        """End the copies, and their process with the last."""
        for clone in self.domains:
            clone.close()
