"""The FPU image of a vCPU's context: vcpu_setup_fpu() and fpu_fxrstor() of xen/arch/x86/i387.c.

An image is what `fxsave` stores. Instruction and data pointers are left alone: an AMD processor loads them
only with an exception pending, and the engine keeps none.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hvcore.public.vcpu_guest_context import FXSAVE_SIZE

if TYPE_CHECKING:
    from hvcore.cpu.engine import Engine

MXCSR_MASK = 0xFFFF
_HEAD = struct.Struct("<HHB19xI")  # fcw, fsw, ftw, mxcsr
_ST, _XMM, _SLOT = 32, 160, 16  # registers of ten and of sixteen bytes, in slots of sixteen
_FCW_ONE, _FCW_KEPT = 0x40, 0x1F7F
_FSW_ES, _FSW_B = 0x80, 0x8000


def fpu_fxrstor(engine: Engine, image: bytes) -> None:
    """Load an `fxsave` image of FXSAVE_SIZE bytes.

    One that `fxrstor` would fault on, for a reserved bit in its MXCSR, counts as all zeroes.
    """
    fcw, fsw, ftw, mxcsr = _HEAD.unpack_from(image)
    if mxcsr & ~MXCSR_MASK:
        image = bytes(FXSAVE_SIZE)
        fcw, fsw, ftw, mxcsr = _HEAD.unpack_from(image)
    fsw = fsw & ~_FSW_B | (_FSW_B if fsw & _FSW_ES else 0)
    engine.load_fpu(
        (fcw & _FCW_KEPT | _FCW_ONE, fsw, ftw, mxcsr),
        [image[at : at + 10] for at in range(_ST, _ST + 8 * _SLOT, _SLOT)],
        [image[at : at + _SLOT] for at in range(_XMM, _XMM + 16 * _SLOT, _SLOT)],
    )
