"""The start_info and shared_info pages of a new domain.

`struct start_info` and `struct shared_info` of xen/include/public/xen.h, in both widths, with the values that
start_info_x86_32, shared_info_x86_32 and their 64-bit kin (tools/libs/guest/xg_dom_x86.c) give them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from hvcore.public.xen import PAGE_SIZE

MAX_GUEST_CMDLINE = 1024
XEN_LEGACY_MAX_VCPUS = 32

# field of StartInfo -> (byte offset, struct format); console_mfn is console.domU.mfn in C.
_X86_32 = {
    "magic": (0, "32s"),
    "nr_pages": (32, "I"),
    "shared_info": (36, "I"),
    "flags": (40, "I"),
    "store_mfn": (44, "I"),
    "store_evtchn": (48, "I"),
    "console_mfn": (52, "I"),
    "console_evtchn": (56, "I"),
    "pt_base": (60, "I"),
    "nr_pt_frames": (64, "I"),
    "mfn_list": (68, "I"),
    "mod_start": (72, "I"),
    "mod_len": (76, "I"),
    "cmd_line": (80, "1024s"),
    "first_p2m_pfn": (1104, "I"),
    "nr_p2m_frames": (1108, "I"),
}
_X86_64 = {
    "magic": (0, "32s"),
    "nr_pages": (32, "Q"),
    "shared_info": (40, "Q"),
    "flags": (48, "I"),
    "store_mfn": (56, "Q"),
    "store_evtchn": (64, "I"),
    "console_mfn": (72, "Q"),
    "console_evtchn": (80, "I"),
    "pt_base": (88, "Q"),
    "nr_pt_frames": (96, "Q"),
    "mfn_list": (104, "Q"),
    "mod_start": (112, "Q"),
    "mod_len": (120, "Q"),
    "cmd_line": (128, "1024s"),
    "first_p2m_pfn": (1152, "Q"),
    "nr_p2m_frames": (1160, "Q"),
}
_Table = Mapping[str, tuple[int, str]]
START_INFO_FIELDS: Mapping[int, _Table] = MappingProxyType({4: _X86_32, 8: _X86_64})  # by sizeof(long)
START_INFO_SIZE: Mapping[int, int] = MappingProxyType({4: 1112, 8: 1168})

SHARED_INFO_VCPU_SIZE = 64
SHARED_INFO_UPCALL_MASK = 1  # offsetof(struct vcpu_info, evtchn_upcall_mask), either width


class StartInfo(NamedTuple):
    """`struct start_info`: addresses are the guest's, bytes; `store_mfn` and `console_mfn` machine frames.

    In a plan, which has no machine frames yet, `shared_info`, `store_mfn` and `console_mfn` are 0.
    """

    magic: str
    nr_pages: int
    shared_info: int
    flags: int
    store_mfn: int
    store_evtchn: int
    console_mfn: int
    console_evtchn: int
    pt_base: int
    nr_pt_frames: int
    mfn_list: int
    mod_start: int
    mod_len: int
    cmd_line: bytes
    first_p2m_pfn: int
    nr_p2m_frames: int

    def pack(self, width: int) -> bytes:
        """The structure as the guest reads it; `width` is the guest's sizeof(long), 4 or 8."""
        page = bytearray(START_INFO_SIZE[width])
        for name, (offset, fmt) in START_INFO_FIELDS[width].items():
            value = getattr(self, name)
            if name == "magic":
                value = value.encode("ascii")[:31]
            struct.pack_into(f"<{fmt}", page, offset, value)
        return bytes(page)

    @classmethod
    def unpack(cls, page: bytes | memoryview, width: int) -> StartInfo:
        """Read the structure from the beginning of a start_info page."""
        values = {}
        for name, (offset, fmt) in START_INFO_FIELDS[width].items():
            (value,) = struct.unpack_from(f"<{fmt}", page, offset)
            if name == "magic":
                value = value.split(b"\0", 1)[0].decode("ascii", "replace")
            elif name == "cmd_line":
                value = value.split(b"\0", 1)[0]
            values[name] = value
        return cls(**values)


def guest_cmdline(cmdline: bytes) -> bytes:
    """The command line as it reaches the guest: at most MAX_GUEST_CMDLINE - 1 bytes, up to the first NUL."""
    return cmdline.split(b"\0", 1)[0][: MAX_GUEST_CMDLINE - 1]


def shared_info() -> bytes:
    """The shared_info page, either width: zeros, with event delivery masked on every legacy vcpu."""
    page = bytearray(PAGE_SIZE)
    for vcpu in range(XEN_LEGACY_MAX_VCPUS):
        page[vcpu * SHARED_INFO_VCPU_SIZE + SHARED_INFO_UPCALL_MASK] = 1
    return bytes(page)
