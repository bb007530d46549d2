"""What the hypervisor says of itself: xen/common/kernel.c, and vm_assist and nmi_op beside it."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hvcore.public.errno import EINVAL, ENOSYS, EPERM
from hvcore.public.features import XenFeat
from hvcore.public.nmi import XENNMI_register_callback, XENNMI_unregister_callback, xennmi_callback
from hvcore.public.version import (
    XEN_CAPABILITIES_INFO_LEN,
    XEN_CHANGESET_INFO_LEN,
    XEN_EXTRAVERSION_LEN,
    XENVER_build_id,
    XENVER_capabilities,
    XENVER_changeset,
    XENVER_commandline,
    XENVER_compile_info,
    XENVER_extraversion,
    XENVER_get_features,
    XENVER_guest_handle,
    XENVER_pagesize,
    XENVER_platform_parameters,
    XENVER_version,
    xen_compile_info,
    xen_feature_info,
    xen_platform_parameters,
)
from hvcore.public.xen import (
    PAGE_SIZE,
    VMASST_CMD_disable,
    VMASST_CMD_enable,
    VMASST_TYPE_4gb_segments,
    VMASST_TYPE_4gb_segments_notify,
    VMASST_TYPE_architectural_iopl,
    VMASST_TYPE_m2p_strict,
    VMASST_TYPE_pae_extended_cr3,
    VMASST_TYPE_runstate_update_flag,
    VMASST_TYPE_writable_pagetables,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.domain import Domain
    from hvcore.vcpu import Vcpu

XEN_VERSION = 4 << 16 | 17
EXTRAVERSION = b".7"
CAPABILITIES = b"xen-3.0-x86_64 xen-3.0-x86_32p hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 "
CHANGESET = b""
COMPILE_INFO = (b"hvcore", b"", b"", b"")  # compiler, compile_by, compile_domain, compile_date
DENIED = b"<denied>\0"

_PV_FEATURES = (
    1 << XenFeat.memory_op_vnode_supported
    | 1 << XenFeat.mmu_pt_update_preserve_ad
    | 1 << XenFeat.highmem_assist
    | 1 << XenFeat.gnttab_map_avail_bits
    | 1 << XenFeat.direct_mapped
)
PV32_VM_ASSIST_MASK = (
    1 << VMASST_TYPE_4gb_segments
    | 1 << VMASST_TYPE_4gb_segments_notify
    | 1 << VMASST_TYPE_writable_pagetables
    | 1 << VMASST_TYPE_pae_extended_cr3
    | 1 << VMASST_TYPE_architectural_iopl
    | 1 << VMASST_TYPE_runstate_update_flag
)
PV64_VM_ASSIST_MASK = PV32_VM_ASSIST_MASK | 1 << VMASST_TYPE_m2p_strict

TRAP_NMI = 2
TI_IF = 1 << 2  # TI_SET_IF(): the handler runs with events masked
_CANONICAL_BITS = 47


def _version(_d: Domain, _arg: int) -> int:
    return XEN_VERSION


def _text(text: bytes, size: int) -> Callable[[Domain, int], int]:
    padded = text.ljust(size, b"\0")

    def store(d: Domain, arg: int) -> int:
        d.guest.copy_to(arg, padded)
        return 0

    return store


def _platform_parameters(d: Domain, arg: int) -> int:
    d.guest.pack(xen_platform_parameters[d.abi.word], arg, d.abi.hypervisor_virt_start)
    return 0


def _get_features(d: Domain, arg: int) -> int:
    index, _ = d.guest.unpack(xen_feature_info, arg)
    if index != 0:
        return -EINVAL
    submap = _PV_FEATURES
    if d.vm_assist >> VMASST_TYPE_pae_extended_cr3 & 1:
        submap |= 1 << XenFeat.pae_pgdir_above_4gb
    d.guest.pack(xen_feature_info, arg, index, submap)
    return 0


def _pagesize(_d: Domain, arg: int) -> int:
    return -EINVAL if arg else PAGE_SIZE


def _guest_handle(d: Domain, arg: int) -> int:
    d.guest.copy_to(arg, d.handle)
    return 0


def _build_id(_d: Domain, _arg: int) -> int:
    return -EPERM


_XENVER: dict[int, Callable[[Domain, int], int]] = {
    XENVER_version: _version,
    XENVER_extraversion: _text(EXTRAVERSION, XEN_EXTRAVERSION_LEN),
    XENVER_compile_info: _text(xen_compile_info.pack(*COMPILE_INFO), xen_compile_info.size),
    XENVER_capabilities: _text(CAPABILITIES, XEN_CAPABILITIES_INFO_LEN),
    XENVER_changeset: _text(CHANGESET, XEN_CHANGESET_INFO_LEN),
    XENVER_platform_parameters: _platform_parameters,
    XENVER_get_features: _get_features,
    XENVER_pagesize: _pagesize,
    XENVER_guest_handle: _guest_handle,
    XENVER_commandline: _text(DENIED, len(DENIED)),
    XENVER_build_id: _build_id,
}


def do_xen_version(v: Vcpu, cmd: int, arg: int) -> int:
    """HYPERVISOR_xen_version, with what a domU may not know denied."""
    op = _XENVER.get(cmd & 0xFFFFFFFF)
    return op(v.domain, arg) if op else -ENOSYS


def do_vm_assist(v: Vcpu, cmd: int, type_: int) -> int:
    """HYPERVISOR_vm_assist: switch one VMASST_TYPE_* of the domain."""
    d = v.domain
    cmd &= 0xFFFFFFFF
    type_ &= 0xFFFFFFFF
    valid = PV32_VM_ASSIST_MASK if d.abi.is_32bit else PV64_VM_ASSIST_MASK
    if type_ >= 64 or not valid >> type_ & 1:
        return -EINVAL
    if cmd == VMASST_CMD_enable:
        d.vm_assist |= 1 << type_
    elif cmd == VMASST_CMD_disable:
        d.vm_assist &= ~(1 << type_)
    else:
        return -ENOSYS
    d.close_ports()
    return 0


def is_canonical_address(address: int) -> bool:
    """Bits 63 to 47 are all the same."""
    return address >> _CANONICAL_BITS in (0, (1 << 64 - _CANONICAL_BITS) - 1)


def register_guest_nmi_callback(v: Vcpu, address: int) -> int:
    """Make `address` the handler of NMIs: vector 2 of the trap table (callback_op does so too)."""
    if not is_canonical_address(address):
        return -EINVAL
    d = v.domain
    v.trap_ctxt[TRAP_NMI] = (TI_IF, d.abi.flat_kernel_cs, address)
    word = d.abi.word
    (reason,) = struct.unpack_from("<" + d.abi.word_format, d.shared_info, d.abi.arch_shared_info + 2 * word)
    if v.vcpu_id == 0 and reason:
        v.nmi_pending = True  # an NMI came before there was a handler
    return 0


def unregister_guest_nmi_callback(v: Vcpu) -> None:
    """NMIs have no handler any more."""
    v.trap_ctxt[TRAP_NMI] = (0, 0, 0)


def do_nmi_op(v: Vcpu, cmd: int, arg: int) -> int:
    """HYPERVISOR_nmi_op."""
    cmd &= 0xFFFFFFFF
    if cmd == XENNMI_register_callback:
        d = v.domain
        return register_guest_nmi_callback(v, d.guest.unpack(xennmi_callback[d.abi.word], arg)[0])
    if cmd == XENNMI_unregister_callback:
        unregister_guest_nmi_callback(v)
        return 0
    return -ENOSYS
