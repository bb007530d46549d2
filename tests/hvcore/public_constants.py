"""The constants of hvcore/public, and what a C compiler makes of those of Xen's own headers."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
from enum import IntEnum
from functools import cache

import hvcore.public

HEADERS = (
    "xen", "arch-x86/xen", "callback", "domctl", "elfnote", "errno", "event_channel", "features",
    "grant_table", "hvm/dm_op", "hvm/hvm_op", "hvm/params", "io/blkif", "io/console", "io/fbif", "io/kbdif",
    "io/netif",
    "io/xenbus",
    "io/xs_wire", "memory", "nmi",
    "physdev", "platform", "sched", "sysctl", "vcpu", "version", "vm_event", "xenoprof",
)  # fmt: skip

# Ours that C has under another name: the enumerations by prefix, and single ones.
PREFIXES = {"ElfNote": "XEN_ELFNOTE_", "XenFeat": "XENFEAT_", "Hypercall": "__HYPERVISOR_"}
RENAMED = {
    "ELFNOTE_MAX": "XEN_ELFNOTE_MAX",
    "NR_SUBMAPS": "XENFEAT_NR_SUBMAPS",
    "__HYPERVISOR_mca": "__HYPERVISOR_arch_0",
    "__HYPERVISOR_paging_domctl_cont": "__HYPERVISOR_arch_1",
}

# Places and sizes in structures, which the headers give no names.
_CONS, _STORE = "struct xencons_interface", "struct xenstore_domain_interface"
EXPRESSIONS = {
    "EVTCHN_OP_U": "offsetof(struct evtchn_op, u)",
    "EVTCHN_FIFO_READY": "offsetof(struct evtchn_fifo_control_block, ready)",
    "EVTCHN_FIFO_HEAD": "offsetof(struct evtchn_fifo_control_block, head)",
    "FXSAVE_SIZE": "sizeof(((struct vcpu_guest_context *)0)->fpu_ctxt)",
    "GNTTAB_GET_STATUS_FRAMES_STATUS": "offsetof(struct gnttab_get_status_frames, status)",
    "GNTTAB_GET_VERSION_VERSION": "offsetof(struct gnttab_get_version, version)",
    "GNTTAB_QUERY_SIZE_NR_FRAMES": "offsetof(struct gnttab_query_size, nr_frames)",
    "GNTTAB_SETUP_TABLE_STATUS": "offsetof(struct gnttab_setup_table, status)",
    "GNTTAB_SWAP_STATUS": "offsetof(struct gnttab_swap_grant_ref, status)",
    "GNTTAB_UNMAP_STATUS": "offsetof(struct gnttab_unmap_grant_ref, status)",
    "XEN_HVM_XENTRACE_EXTRA": "sizeof(((struct xen_hvm_xentrace *)0)->extra)",
    **{
        f"XENFB_PAGE_{f.upper()}": f"offsetof(struct xenfb_page, {f})"
        for f in ("width", "height", "line_length", "mem_length", "depth", "pd")
    },
    "XENFB_PAGE_PD_LEN": "sizeof(((struct xenfb_page *)0)->pd) / sizeof(long)",
    **{
        f"XENKBD_PAGE_{f.upper()}": f"offsetof(struct xenkbd_page, {f})"
        for f in ("in_cons", "in_prod", "out_cons", "out_prod")
    },
    "NETIF_RX_ENTRY": "sizeof(union netif_rx_sring_entry)",
    "NETIF_TX_ENTRY": "sizeof(union netif_tx_sring_entry)",
    "RING_ENTRIES": "offsetof(struct blkif_sring, ring)",
    **{
        f"RING_{f.upper()}": f"offsetof(struct blkif_sring, {f})"
        for f in ("req_prod", "req_event", "rsp_prod", "rsp_event")
    },
    "XENCONS_IN_SIZE": f"sizeof((({_CONS} *)0)->in)",
    "XENCONS_OUT_SIZE": f"sizeof((({_CONS} *)0)->out)",
    **{
        f"XENCONS_{f.upper()}": f"offsetof({_CONS}, {f})"
        for f in ("in", "out", "in_cons", "in_prod", "out_cons", "out_prod")
    },
    **{
        f"XENSTORE_{f.upper()}": f"offsetof({_STORE}, {f})"
        for f in (
            "req",
            "rsp",
            "req_cons",
            "req_prod",
            "rsp_cons",
            "rsp_prod",
            "server_features",
            "connection",
            "error",
        )
    },
}

# Ours that the headers do not tell a guest, and where they are.
ELSEWHERE = {
    "E820MAX": "xen/arch/x86/include/asm/e820.h",
    "E820_RAM": "xen/arch/x86/include/asm/e820.h",
    "EVTCHNOP_reset_cont": "under #ifdef __XEN__: the continuation of EVTCHNOP_reset",
    "GNTTABOP_CMD_MASK": "xen/common/grant_table.c",
    "IOBMP_BYTES": "xen/arch/x86/include/asm/processor.h",
    "MEMOP_CMD_MASK": "under #ifdef __XEN__",
    "MEMOP_EXTENT_SHIFT": "under #ifdef __XEN__",
    "NR_HYPERCALLS": "xen/include/xen/hypercall.h",
    "PAGE_MASK": "xen/arch/x86/include/asm/page.h",
    "PAGE_SHIFT": "xen/arch/x86/include/asm/page.h",
    "PAGE_SIZE": "xen/arch/x86/include/asm/page.h",
    "SECTOR_SIZE": "in comments of io/blkif.h",
    "XENFEAT_grant_map_identity": "in a comment of features.h, as deprecated",
    "XEN_DM_OP_MAX_BUFS": "MAX_NR_BUFS in xen/arch/x86/hvm/dm.c",
    "XEN_EINTR": "under #ifdef __XEN__",
    "XEN_ERESTART": "under #ifdef __XEN__",
}


# Enumerations of the headers that we have whole, but for the names that match, which we have no use for.
FAMILIES = {
    "BIND_PIRQ__": "",
    "BLKIF_OP_": "RESERVED_1",
    "BLKIF_RSP_": "",
    "CALLBACKF_": "",
    "CALLBACKOP_": "",
    "CALLBACKTYPE_": "sysenter_deprecated",
    "CONSOLEIO_": "",
    "DOMID_": "MASK",
    "EVTCHNOP_": "",
    "EVTCHNSTAT_": "",
    "EVTCHN_FIFO_": "",
    "GNTCOPY_": "",
    "GNTMAP_": "guest_avail_mask",
    "GNTST_": "",
    "GNTTABOP_": "error_msgs",
    "GNTTAB_CACHE_": "",
    "GTF_": "",
    "MAP_PIRQ_TYPE_": "",
    "MMUEXT_": "",
    "MMU_": "",
    "PHYSDEVOP_": "DBGP_.*|pirq_eoi_gmfn",  # of another call; a name for v1 or v2
    "RUNSTATE_": ".*",  # hvcore/vcpu.py's, compared below
    "SCHEDOP_": "",
    "SEGBASE_": "",
    "SHUTDOWN_": "MAX",
    "SIF_": "PM_MASK",
    "UVMF_": "",
    "VCPUOP_": "",
    "VGCF_": "I387_VALID|IN_KERNEL|IN_SYSCALL",  # the same bits in their old spelling
    "VDISK_": "",
    "VIRQ_": "ARCH_[1-7]",
    "VMASST_": "",
    "XENFEAT_": "",
    "XENIRQSTAT_": "",
    "XENMAPSPACE_": "",
    "XENMEMF_": "",
    "XENMEM_": "(access|FORK|paging_op|resource|SHARING|sharing_op)_.*",  # commands within three of its calls
    "XENNMI_": "",
    "XENSTORE_": "CONNECTED|RECONNECT|SERVER_FEATURE_.*",  # of reconnecting
    "XENVER_": "",
    "XEN_E[A-Z0-9]+$": "EDEADLOCK|EWOULDBLOCK",  # second names
    "XEN_ELFNOTE_": "",
    "XenbusState": "",
    "XS_": "DEBUG|INVALID|TYPE_COUNT|WATCH_(PATH|TOKEN)|WRITE_.*",
    "__HYPERVISOR_": "VIRT_.*|arch_[2-7]",
}


@cache
def ours() -> dict[str, int]:
    """C name -> value, of every integer that hvcore/public defines."""
    found: dict[str, int] = {}
    for info in pkgutil.iter_modules(hvcore.public.__path__):
        module = importlib.import_module(f"hvcore.public.{info.name}")
        for name, value in vars(module).items():
            if isinstance(value, type) and issubclass(value, IntEnum) and name in PREFIXES:
                found |= {PREFIXES[name] + member.name: int(member) for member in value}
            elif isinstance(value, int) and not isinstance(value, bool) and not name.startswith("_"):
                found["XEN_" + name if info.name == "errno" else name] = value
    return {RENAMED.get(name, name): value for name, value in found.items()}


def _source() -> str:
    return "#include <stdint.h>\n#include <stddef.h>\n" + "".join(f"#include <xen/{h}.h>\n" for h in HEADERS)


def _gcc(source: str, *options: str) -> str:
    command = ["gcc", "-ffreestanding", "-D__XEN_TOOLS__", *options, "-xc", "-", "-o", "-"]
    done = subprocess.run(command, input=source, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def names(word: int) -> frozenset[str]:
    """Every macro without arguments and every enumerator of the headers, for a guest of that width."""
    macros = re.findall(r"^#define (\w+) ", _gcc(_source(), f"-m{8 * word}", "-E", "-dM"), re.MULTILINE)
    text = _gcc(_source(), f"-m{8 * word}", "-E", "-P")
    bodies = re.findall(r"\benum\b[^{;]*\{([^}]*)\}", text)
    return frozenset(macros) | {
        name for body in bodies for name in re.findall(r"(\w+)\s*(?:=[^,]*)?(?:,|$)", body)
    }


def values(wanted: frozenset[str], word: int) -> dict[str, int]:
    """The values of constants and EXPRESSIONS for a guest of that width; what no header has is left out."""
    known = {
        name: EXPRESSIONS.get(name, name) for name in sorted(wanted & (names(word) | EXPRESSIONS.keys()))
    }
    lines = [f'asm volatile("\\n@{name} %0" : : "i"((long)({c})));' for name, c in known.items()]
    output = _gcc(f"{_source()}void f(void) {{ {' '.join(lines)} }}\n", f"-m{8 * word}", "-S")
    return {name: int(value) for name, value in re.findall(r"^@(\w+) \$(-?\d+)", output, re.MULTILINE)}
