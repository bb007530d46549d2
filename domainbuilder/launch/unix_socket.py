"""Unix sockets that a launch listens at, for their owner alone and never in a file's place; who connects."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path


def listen_at(path: str) -> socket.socket:
    """A listening socket of mode 0600. Raises OSError and ValueError where there can be none of that name."""
    made = f"{path}~"
    _remove_stale(made)
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o177)
        try:
            listener.bind(made)
        finally:
            os.umask(before)
        try:
            listener.listen(8)
            os.link(made, path)  # it is there when somebody listens, and in nobody's place
        finally:
            Path(made).unlink()
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: str) -> None:
    """A socket that nobody listens at any more is in the way; what else is there stays."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError("there is a file of that name, which is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                Path(path).unlink()
                return
        raise OSError("somebody listens there already")


class Peer:
    """Who is connected to a socket of ours, and is never waited for. `is_gone` is for good."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.is_gone = False

    def fileno(self) -> int:
        """For select()."""
        return self.sock.fileno()

    def take(self, most: int) -> bytes:
        """What came, at most so many bytes; nothing where nothing did, or the other end is gone."""
        try:
            data = self.sock.recv(most)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            self.close()
        return data

    def give(self, data: bytes | bytearray | memoryview) -> int:
        """How many bytes of `data` the other end has taken now: 0 where it takes none, or is gone."""
        if self.is_gone:
            return 0
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.close()
            return 0

    def close(self) -> None:
        """No more of this one."""
        self.is_gone = True
        self.sock.close()
