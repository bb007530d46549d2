"""The outside of a guest's network: passt, a process that needs no root, at the other end of a socket.

passt (https://passt.top) turns the guest's TCP and UDP into sockets of this machine. The guest has an address
of its own there, always the same; the gateway's address leads to the loopback of this machine, and names are
looked up by whom this machine asks. It takes and gives Ethernet frames, each behind its length as 32 bits,
big end first.
"""

from __future__ import annotations

import re
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from domainbuilder.errors import BuildError

GUEST, GATEWAY, NETMASK = "10.0.2.15", "10.0.2.2", "255.255.255.0"
RESOLV_CONF = Path("/etc/resolv.conf")
GATEWAY_MAC = "52:55:0a:00:02:02"
_MOST_FRAME = 65535 + 18
_MOST_UNSENT = 1 << 20  # frames of the guest that passt has not taken; the rest is lost, as on a wire
_MOST_AT_ONCE = 1 << 18
_LENGTH = struct.Struct(">I")
_PATIENCE = 5.0  # seconds until a passt that is to go is killed


def _names() -> list[str]:
    """Options for the guest's look-ups of names: it asks whom this machine asks, as passt tells it by DHCP.

    A resolver on the loopback is asked at the gateway's address, from where passt has to know the way.
    """
    try:
        servers = re.findall(r"^nameserver\s+(\S+)", RESOLV_CONF.read_text("utf-8", "replace"), re.MULTILINE)
    except OSError:
        servers = []
    is_local = bool(servers) and servers[0].startswith("127.")
    return ["--dns-forward", GATEWAY] if is_local else []


class Passt:
    """One running passt. `tcp` and `udp` are ports of this machine that lead in (xl.vif.forwards()).

    Raises BuildError where passt is not there, or does not want.
    """

    def __init__(self, *, mtu: int, tcp: Iterable[str] = (), udp: Iterable[str] = ()) -> None:
        program = shutil.which("passt")
        if program is None:
            raise BuildError("type=user needs passt, which is not on this machine: apt install passt")
        ours, theirs = socket.socketpair()
        forwards = [
            word for kind, ports in (("-t", tcp), ("-u", udp)) for port in ports for word in (kind, port)
        ]
        command = [
            program, "--foreground", "--quiet", "--stderr", "--fd", str(theirs.fileno()), "--ipv4-only",
            "--address", GUEST, "--netmask", NETMASK, "--gateway", GATEWAY, "--mac-addr", GATEWAY_MAC,
            "--mtu", str(mtu), *_names(), *forwards,
        ]  # fmt: skip
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        with theirs:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self._log,
                pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
        ours.setblocking(False)
        self._socket = ours
        self._unsent = bytearray()
        self._received = bytearray()

    def fileno(self) -> int:
        """What to wait for."""
        return self._socket.fileno()

    @property
    def is_behind(self) -> bool:
        """Whether passt has not taken all that it was sent."""
        return bool(self._unsent)

    def send(self, frame: bytes) -> None:
        """Give passt a frame of the guest's; it is lost where passt takes too little."""
        self.flush()
        if len(self._unsent) <= _MOST_UNSENT:
            self._unsent += _LENGTH.pack(len(frame)) + frame
            self.flush()

    def flush(self) -> None:
        """Go on with what passt had no room for."""
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()  # it is gone, which receive() says

    def receive(self) -> list[bytes]:
        """The frames for the guest that have come since. Raises BuildError where passt has ended."""
        self.flush()
        try:
            piece = self._socket.recv(_MOST_AT_ONCE)
        except BlockingIOError:
            return []
        except OSError:
            piece = b""
        if not piece:
            raise BuildError(f"passt has ended: {self._last_words()}")
        self._received += piece
        return list(self._frames())

    def _frames(self) -> Iterable[bytes]:
        received, at = self._received, 0
        while len(received) - at >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(received, at)
            if size > _MOST_FRAME:
                raise BuildError(
                    "passt sends a frame that cannot be", found=f"{size} bytes", expected=_MOST_FRAME
                )
            if len(received) - at - _LENGTH.size < size:
                break
            at += _LENGTH.size
            yield bytes(received[at : at + size])
            at += size
        del received[:at]

    def _last_words(self) -> str:
        try:
            code: object = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            code = "none yet"
        self._log.seek(0)
        lines = self._log.read(1 << 16).decode("utf-8", "replace").splitlines()
        said = [line for line in lines if line.strip() and "to syslog" not in line]
        return said[-1].strip() if said else f"exit code {code}"

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def close(self) -> None:
        """End it: it goes when its socket does."""
        self._socket.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
