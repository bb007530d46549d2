"""Whether a saved processor's state can be loaded: what in it may differ from a new processor's.

The state is a part of the library's own structure. Some of it are indices and modes that the library does not
look at again before it uses them, so everything that no guest could have brought about is refused.
Source: CPUX86State in target/i386/cpu.h, float_status in include/fpu/softfloat-types.h of QEMU 5.0.1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from hvcore.cpu import state_window as sw

STATE_SIZE = sw.DR + 64

# What may be anything: stretches of bytes.
_FREE = (
    (0, sw.DF),  # general registers, RIP, flags
    (sw.SEGS, sw.TR),
    (sw.GDT, sw.CR),
    (sw.CR + 16, sw.CR + 24),  # CR2
    (sw.FPUS, sw.FPTAGS),  # the FPU's status and control words
    (sw.FPREGS, sw.FP_STATUS),  # registers, last opcode, instruction and operand
    (sw.FT0, sw.MMX_STATUS),
    (sw.MXCSR, sw.MXCSR + 2),
    (sw.XMM, sw.XMM + sw.NR_XMM * sw.XMM_STRIDE),
    (sw.ERROR_CODE, sw.DR + 64),
)
_U32 = struct.Struct("<I")
_CR0_TS = 8
_CPL, _CPLS = 3, (1, 3)
# CPL, CS32, SS32, ADDSEG, TF, MP, EM, TS, IOPL, CS64, RF, AC
_HFLAGS = 0x3 | 0x70 | 0x100 | 0xE00 | 0x3000 | 0x8000 | 0x10000 | 0x40000
_PRECISIONS = (32, 64, 80)
_FORWARD, _BACKWARD = 1, 0xFFFFFFFF  # DF
_TSS = struct.pack("<IIQII", 0xE040, 0, 0, 0, 0x8B00)  # as XenMappings.load_descriptor_tables() has it


def wrong_in(state: bytes, fresh: bytes) -> Iterator[str]:
    """What no guest of this kind can have in its processor; `fresh` is the state before its first."""
    if len(state) != STATE_SIZE:
        yield f"a processor's state has {STATE_SIZE} bytes"
        return
    if state == fresh:
        return
    yield from _wrong_modes(state, fresh)
    yield from _wrong_fpu(state, fresh)
    rest = bytearray(state)
    for start, end in _FREE + _CHECKED:
        rest[start:end] = fresh[start:end]
    if rest != fresh:
        at = next(at for at, (one, other) in enumerate(zip(rest, fresh, strict=True)) if one != other)
        yield f"byte {at:#x} is not for a guest to change"


def _wrong_modes(state: bytes, fresh: bytes) -> Iterator[str]:
    hflags, made = (_U32.unpack_from(data, sw.HFLAGS)[0] for data in (state, fresh))
    if (hflags ^ made) & ~_HFLAGS or hflags & _CPL not in _CPLS:
        yield f"no mode of a guest: {hflags:#x}"
    if _U32.unpack_from(state, sw.DF)[0] not in (_FORWARD, _BACKWARD):
        yield "the direction flag is neither forward nor backward"
    if (_U32.unpack_from(state, sw.CR)[0] ^ _U32.unpack_from(fresh, sw.CR)[0]) & ~_CR0_TS:
        yield "CR0 is not that of a guest"
    if state[sw.TR : sw.TR + 24] not in (_TSS, fresh[sw.TR : sw.TR + 24]):
        yield "the task register is not Xen's"


def _wrong_fpu(state: bytes, fresh: bytes) -> Iterator[str]:
    if _U32.unpack_from(state, sw.FPSTT)[0] > 7:
        yield "the top of the FPU's stack is beyond 7"
    if max(state[sw.FPTAGS : sw.FPTAGS + 8]) > 1:
        yield "a tag of the FPU is neither empty nor in use"
    for at in (sw.FP_STATUS, sw.MMX_STATUS, sw.SSE_STATUS):
        tininess, rounding, _exceptions, precision, *flags = state[at : at + 8]
        if rounding > 3 or tininess > 1 or max(flags) > 1:
            yield "a mode of rounding that does not exist"
        if precision not in (*_PRECISIONS, fresh[at + 3]):
            yield "a precision that does not exist"


_CHECKED = (
    (sw.DF, sw.HFLAGS + 4), (sw.TR, sw.GDT), (sw.CR, sw.CR + 4), (sw.CR + 24, sw.CR + 32),
    (sw.FPSTT, sw.FPUS), (sw.FPTAGS, sw.FPTAGS + 8), (sw.FP_STATUS, sw.FP_STATUS + 8),
    (sw.MMX_STATUS, sw.MMX_STATUS + 8),
    (sw.SSE_STATUS, sw.SSE_STATUS + 8),
)  # fmt: skip


def cr3_frame(state: bytes) -> int:
    """The frame that CR3 names, which whoever has the memory looks at."""
    return int.from_bytes(state[sw.CR + 24 : sw.CR + 32], "little") >> 12
