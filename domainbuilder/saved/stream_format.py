"""Xen's migration stream: headers and records of xl's file, of libxl's stream and of libxc's within it.

Names are Xen's. Sources: docs/specs/libxc-migration-stream.pandoc and libxl-migration-stream.pandoc,
tools/libs/guest/xg_sr_stream_format.h, tools/libs/light/libxl_sr_stream_format.h, tools/xl/xl.h and
xen/include/public/domctl.h of Xen 4.17.
"""

from __future__ import annotations

import struct

# xl's file: struct save_file_header, then so many bytes of optional data: the configuration behind its size.
XL_HEADER = struct.Struct("<32sIIII")  # magic, byteorder, mandatory_flags, optional_flags, optional_data_len
XL_MAGIC = b"Xen saved domain, xl format\n \0 \r"
SAVEFILE_BYTEORDER_VALUE = 0x01020304
XL_MANDATORY_FLAG_JSON, XL_MANDATORY_FLAG_STREAMv2 = 1, 2
XL_CONFIG_SIZE = struct.Struct("<I")

# libxl's stream; its header is big-endian.
LIBXL_HEADER = struct.Struct(">QII")  # ident, version, options
RESTORE_STREAM_IDENT = 0x4C6962786C466D74  # "LibxlFmt"
RESTORE_STREAM_VERSION = 2
LIBXL_END, LIBXC_CONTEXT, EMULATOR_XENSTORE_DATA, EMULATOR_CONTEXT = range(4)

# libxc's image; its image header is big-endian.
IHDR = struct.Struct(">QIIHHI")  # marker, id, version, options, reserved twice
IHDR_MARKER, IHDR_ID, IHDR_VERSION = (1 << 64) - 1, 0x58454E46, 3
DHDR = struct.Struct("<IHHII")  # type, page_shift, reserved, xen_major, xen_minor
DHDR_TYPE_X86_PV = 1
XEN_MAJOR, XEN_MINOR = 4, 17
RHDR = struct.Struct("<II")  # type, length; records begin at multiples of 8
REC_ALIGN = 8
REC_LENGTH_MAX = 128 << 20

REC_TYPE_END = 0x00
REC_TYPE_PAGE_DATA = 0x01
REC_TYPE_X86_PV_INFO = 0x02
REC_TYPE_X86_PV_P2M_FRAMES = 0x03
REC_TYPE_X86_PV_VCPU_BASIC = 0x04
REC_TYPE_X86_PV_VCPU_EXTENDED = 0x05
REC_TYPE_X86_PV_VCPU_XSAVE = 0x06
REC_TYPE_SHARED_INFO = 0x07
REC_TYPE_X86_TSC_INFO = 0x08
REC_TYPE_X86_PV_VCPU_MSRS = 0x0C
REC_TYPE_VERIFY = 0x0D
REC_TYPE_STATIC_DATA_END = 0x10
REC_TYPE_X86_CPUID_POLICY = 0x11
REC_TYPE_X86_MSR_POLICY = 0x12
REC_TYPE_OPTIONAL = 0x80000000

REC_NAMES = {
    value: name.removeprefix("REC_TYPE_") for name, value in globals().items() if name.startswith("REC_TYPE_")
}

PAGE_DATA = struct.Struct("<II")  # count, reserved; then a word for each, and the pages that have contents
PAGE_DATA_PFN_MASK = (1 << 52) - 1
PAGE_DATA_TYPE_SHIFT = 60
MAX_BATCH_SIZE = 1024
X86_PV_INFO = struct.Struct("<BB6x")  # guest_width, pt_levels
P2M_FRAMES = struct.Struct("<II")  # start_pfn, end_pfn; then a word for each frame of the list
VCPU_HDR = struct.Struct("<II")  # vcpu_id, reserved; then the context
TSC_INFO = struct.Struct("<IIQII")  # mode, khz, nsec, incarnation, reserved
VCPU_MSR = struct.Struct("<IIQ")  # index, reserved, value
# struct xen_domctl_ext_vcpucontext: vcpu, size, syscall32 and sysenter eip, their cs, whether they disable
# events, and struct hvm_vmce_vcpu.
EXT_VCPUCONTEXT = struct.Struct("<IIQQHHBB2x4Q")
EXT_WITHOUT_VMCE = 32
XSAVE_HEAD = 16  # xcr0, xcr0_accum; then the area, which begins as an fxsave image

# XEN_DOMCTL_PFINFO_*, as a record has them: in the word's top four bits.
NOTAB, L1TAB, L2TAB, L3TAB, L4TAB = range(5)
LPINTAB = 8
BROKEN, XALLOC, XTAB = 0xD, 0xE, 0xF
WITHOUT_CONTENTS = frozenset((BROKEN, XALLOC, XTAB))
TYPES = frozenset((*range(5), *(LPINTAB | level for level in range(1, 5)), *WITHOUT_CONTENTS))

INVALID_MFN = (1 << 64) - 1
MFN_MASK = (1 << 40) - 1
FRAME_BITS = MFN_MASK << 12  # of an entry of a page table


def record(kind: int, *parts: bytes | memoryview) -> bytes:
    """A record of libxc's, or of libxl's, with its padding."""
    length = sum(map(len, parts))
    return b"".join((RHDR.pack(kind, length), *parts, bytes(-length % REC_ALIGN)))
