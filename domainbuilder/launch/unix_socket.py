"""Unix sockets that a launch listens at: for their owner alone, never in a file's place."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path


def listen_at(path: str) -> socket.socket:
    """A listening socket of mode 0600. Raises OSError and ValueError where there can be none of that name."""
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o177)
        try:
            listener.bind(f"{path}~")
        finally:
            os.umask(before)
        listener.listen(8)
        Path(f"{path}~").rename(path)  # which is there when somebody listens
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
