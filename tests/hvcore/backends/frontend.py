"""A block frontend as a test drives it: its ring, grants, nodes and requests, true or lying.

On the bench of tests/hvcore/conftest.py. Pages: the ring from RING on, data from DATA on, an indirect page.
"""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

from hvcore.backends.block import BlockBackend
from hvcore.backends.block_image import BlockImage
from hvcore.backends.disk import Disk
from hvcore.backends.libxl_nodes import Rings, add_domain
from hvcore.backends.xenstored import Xenstored
from hvcore.common.event_channel import do_event_channel_op, evtchn_send
from hvcore.public.event_channel import EVTCHNOP_alloc_unbound
from hvcore.public.grant_table import GTF_permit_access, GTF_readonly
from tests.hvcore.conftest import Guest

RING, DATA, INDIRECT = 8, 16, 30
REF = 8  # the first reference: of page 0; others follow
ENTRY = {4: 108, 8: 112}
SECTOR = 512


class Frontend:
    """The guest's side of one disk; `word` is that of the protocol."""

    def __init__(self, guest: Guest, image: BlockImage, disk: Disk, word: int | None = None) -> None:
        self.guest = guest
        self.word = word or guest.d.abi.word
        engine: Any = SimpleNamespace(wrote_frame=lambda _mfn: None)
        guest.d.engine = engine
        self.store = Xenstored(guest.d.domain_list.__contains__)
        add_domain(self.store, guest.d, "guest", Rings(0, 1, 0, 2))
        dom0 = guest.d.domain_list[0]
        self.backend = BlockBackend(guest.d, dom0, self.store, disk, image)
        self.port = 0
        self.req_prod = self.rsp_cons = 0
        self.pages = 1
        for page in range(64):
            self.grant(page, REF + page)

    def grant(self, page: int, ref: int, *, readonly: bool = False, domid: int = 0) -> None:
        flags = GTF_permit_access | (GTF_readonly if readonly else 0)
        table = self.guest.d.mem.frame(self.guest.d.grant_table.shared[0])
        struct.pack_into("<HHI", table, 8 * ref, flags, domid, self.guest.first_mfn + page)

    def tell(self, **nodes: object) -> None:
        """Write nodes of the frontend's side, as the guest."""
        for name, value in nodes.items():
            path = f"{self.backend.front}/{name.replace('_', '-')}"
            self.store.tree.write(None, path, str(value).encode(), self.guest.d.domain_id)
        self.store.run()

    def state(self) -> str | None:
        return self.store.read(f"{self.backend.back}/state")

    def error(self) -> str | None:
        back = self.backend.back.removeprefix("/local/domain/0/")
        return self.store.read(f"/local/domain/0/error/{back}/error")

    def alloc(self) -> int:
        assert self.guest.call(do_event_channel_op, EVTCHNOP_alloc_unbound, "HHI", 0x7FF0, 0, 0) == 0
        return int(self.guest.result("HHI")[2])

    def connect(self, *, order: int | None = None, persistent: bool = False, **nodes: object) -> None:
        self.port = self.alloc()
        self.pages = 1 << (order or 0)
        refs: dict[str, object] = {"ring_ref": REF + RING}
        if order is not None:
            refs = {"ring_page_order": order}
            refs |= {f"ring_ref{i}": REF + RING + i for i in range(self.pages)}
        protocol = {4: "x86_32-abi", 8: "x86_64-abi"}[self.word]
        self.tell(
            **refs | {"event_channel": self.port, "protocol": protocol, "feature_persistent": int(persistent)}
            | nodes
        )  # fmt: skip
        self.tell(state=3)

    # -- the ring

    @property
    def entries(self) -> int:
        return 1 << ((4096 * self.pages - 64) // ENTRY[self.word]).bit_length() - 1

    def ring(self) -> memoryview:
        """The ring's pages, which lie in a row."""
        d = self.guest.d
        start = (self.guest.first_mfn + RING - d.mem.base_mfn) * 4096
        return d.mem.view[start : start + 4096 * self.pages]

    def put(self, request: bytes) -> None:
        at = 64 + (self.req_prod % self.entries) * ENTRY[self.word]
        self.ring()[at : at + len(request)] = request
        self.req_prod = self.req_prod + 1 & 0xFFFFFFFF
        struct.pack_into("<I", self.ring(), 0, self.req_prod)

    def notify(self) -> None:
        evtchn_send(self.guest.d.evtchn, self.port)

    def take(self) -> list[tuple[int, int, int]]:
        """The responses that have come: (id, operation, status)."""
        found = []
        while self.rsp_cons != struct.unpack_from("<I", self.ring(), 8)[0]:
            at = 64 + (self.rsp_cons % self.entries) * ENTRY[self.word]
            found.append(struct.unpack_from("<QBxh", self.ring(), at))
            self.rsp_cons = self.rsp_cons + 1 & 0xFFFFFFFF
        struct.pack_into("<I", self.ring(), 12, self.rsp_cons + 1 & 0xFFFFFFFF)
        return found

    def pass_time(self, ns: int = 10_000_000) -> None:
        self.guest.run_to(self.guest.d.clock.now() + ns)

    def request(
        self, op: int, id_: int, sector: int, segments: list[tuple[int, int, int]], nr: int | None = None
    ) -> bytes:
        """`segments` are (reference, first sector, last)."""
        pad = b"" if self.word == 4 else bytes(4)
        head = struct.pack("<BBH", op, len(segments) if nr is None else nr, 0) + pad
        return (
            head + struct.pack("<QQ", id_, sector) + b"".join(struct.pack("<IBBH", *s, 0) for s in segments)
        )

    def indirect(self, op: int, id_: int, sector: int, segments: list[tuple[int, int, int]]) -> bytes:
        page = b"".join(struct.pack("<IBBH", *s, 0) for s in segments)
        self.guest.memory(INDIRECT)[: len(page)] = page
        pad = b"" if self.word == 4 else bytes(4)
        head = struct.pack("<BBH", 6, op, len(segments)) + pad + struct.pack("<QQHH", id_, sector, 0, 0)
        return head + struct.pack("<8I", REF + INDIRECT, *[0] * 7)

    def discard(self, id_: int, sector: int, count: int) -> bytes:
        pad = b"" if self.word == 4 else bytes(4)
        return struct.pack("<BBH", 5, 0, 0) + pad + struct.pack("<QQQ", id_, sector, count)

    def ask(self, request: bytes) -> int:
        """The status of a request, when it comes."""
        self.put(request)
        self.notify()
        assert self.take() == []  # not at once
        self.pass_time()
        ((_, _, status),) = self.take()
        return status
