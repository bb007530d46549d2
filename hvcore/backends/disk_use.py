"""How long a disk's requests took this host, in real time: no guest sees it, and it is not saved."""

from __future__ import annotations

from time import perf_counter_ns

from hvcore.public.blkif import (
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_OP_WRITE_BARRIER,
)

_KINDS = {
    BLKIF_OP_READ: "read", BLKIF_OP_WRITE: "write", BLKIF_OP_WRITE_BARRIER: "flush",
    BLKIF_OP_FLUSH_DISKCACHE: "flush", BLKIF_OP_DISCARD: "discard",
}  # fmt: skip


class DiskUse:
    """By kind of request: how many, their bytes, and the nanoseconds they took, together and the longest."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[int, int, int, int]] = {}

    def add(self, operation: int, size: int, began_ns: int) -> None:
        """A request, which began then by this host's clock, is done."""
        took = perf_counter_ns() - began_ns
        kind = _KINDS.get(operation, "unknown")
        requests, total, ns, longest = self.rows.get(kind, (0, 0, 0, 0))
        self.rows[kind] = requests + 1, total + size, ns + took, took if took > longest else longest
