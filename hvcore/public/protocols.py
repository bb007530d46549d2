"""xen/include/public/io/protocols.h: what a frontend's layouts are called, by the size of its words."""

from __future__ import annotations

XEN_IO_PROTO_ABI = {4: "x86_32-abi", 8: "x86_64-abi"}
