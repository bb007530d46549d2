"""Which C structures hvcore/public describes, and where a compiler puts their fields.

`python -m` this file with libxen-dev installed writes data/public_layouts.json afresh from Xen's own headers.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
from pathlib import Path

DATA = Path(__file__).parent / "data" / "public_layouts.json"

# hvcore/public module -> {its layout: the C fields in order}; the C type is `struct NAME`.
LAYOUTS: dict[str, dict[str, str]] = {
    "event_channel": {
        "evtchn_alloc_unbound": "dom remote_dom port",
        "evtchn_bind_interdomain": "remote_dom remote_port local_port",
        "evtchn_bind_virq": "virq vcpu port",
        "evtchn_bind_pirq": "pirq flags port",
        "evtchn_bind_ipi": "vcpu port",
        "evtchn_close": "port",
        "evtchn_send": "port",
        "evtchn_status": "dom port status vcpu u.interdomain.dom u.interdomain.port",
        "evtchn_bind_vcpu": "port vcpu",
        "evtchn_unmask": "port",
        "evtchn_reset": "dom",
        "evtchn_init_control": "control_gfn offset vcpu link_bits",
        "evtchn_expand_array": "array_gfn",
        "evtchn_set_priority": "port priority",
        "evtchn_fifo_control_block": "ready _rsvd " + " ".join(f"head[{i}]" for i in range(16)),
        "evtchn_op": "cmd",
    },
    "sched": {
        "sched_shutdown": "reason",
        "sched_poll": "ports nr_ports timeout",
        "sched_remote_shutdown": "domain_id reason",
        "sched_watchdog": "id timeout",
        "sched_pin_override": "pcpu",
    },
    "vcpu": {
        "vcpu_runstate_info": "state state_entry_time time[0] time[1] time[2] time[3]",
        "vcpu_register_runstate_memory_area": "addr.h",
        "vcpu_set_periodic_timer": "period_ns",
        "vcpu_set_singleshot_timer": "timeout_abs_ns flags",
        "vcpu_register_vcpu_info": "mfn offset rsvd",
        "vcpu_get_physid": "phys_id",
        "vcpu_register_time_memory_area": "addr.h",
        "vcpu_time_info": (
            "version pad0 tsc_timestamp system_time tsc_to_system_mul tsc_shift flags pad1[0]"
        ),
    },
    "version": {
        "xen_compile_info": "compiler compile_by compile_domain compile_date",
        "xen_platform_parameters": "virt_start",
        "xen_feature_info": "submap_idx submap",
    },
    "nmi": {"xennmi_callback": "handler_address"},
    "memory": {
        "xen_memory_reservation": "extent_start nr_extents extent_order mem_flags domid",
        "xen_memory_exchange": (
            "in.extent_start in.nr_extents in.extent_order in.mem_flags in.domid "
            "out.extent_start out.nr_extents out.extent_order out.mem_flags out.domid nr_exchanged"
        ),
        "xen_memory_domain": "domid",
        "xen_machphys_mfn_list": "max_extents extent_start nr_extents",
        "xen_machphys_mapping": "v_start v_end max_mfn",
        "xen_add_to_physmap": "domid size space idx gpfn",
        "xen_add_to_physmap_batch": "domid space size u idxs gpfns errs",
        "xen_remove_from_physmap": "domid gpfn",
        "xen_memory_map": "nr_entries buffer",
        "xen_foreign_memory_map": "domid map.nr_entries map.buffer",
        "xen_pod_target": "target_pages tot_pages pod_cache_pages pod_entries domid",
        "xen_mem_access_op": "op access domid nr pfn pfn_list access_list",
        "xen_vnuma_topology_info": (
            "domid pad nr_vnodes nr_vcpus nr_vmemranges vdistance vcpu_to_vnode vmemrange"
        ),
        "xen_reserved_device_memory_map": "flags nr_entries buffer dev.pci",
        "xen_mem_acquire_resource": "domid type id nr_frames pad frame frame_list",
    },
    "grant_table": {
        "grant_entry_v1": "flags domid frame",
        "grant_entry_v2": "hdr.flags hdr.domid sub_page.page_off sub_page.length sub_page.frame",
        "grant_entry_v2_transitive": (
            "hdr.flags hdr.domid transitive.trans_domid transitive.pad0 transitive.gref"
        ),
        "gnttab_map_grant_ref": "host_addr flags ref dom status handle dev_bus_addr",
        "gnttab_unmap_grant_ref": "host_addr dev_bus_addr handle status",
        "gnttab_unmap_and_replace": "host_addr new_addr handle status",
        "gnttab_setup_table": "dom nr_frames status frame_list",
        "gnttab_transfer": "mfn domid ref status",
        "gnttab_copy": ("source.u source.domid source.offset dest.u dest.domid dest.offset len flags status"),
        "gnttab_query_size": "dom nr_frames max_nr_frames status",
        "gnttab_set_version": "version",
        "gnttab_get_status_frames": "nr_frames dom status frame_list",
        "gnttab_get_version": "dom pad version",
        "gnttab_swap_grant_ref": "ref_a ref_b status",
        "gnttab_cache_flush": "a offset length op",
    },
    "physdev": {
        "physdev_eoi": "irq",
        "physdev_pirq_eoi_gmfn": "gmfn",
        "physdev_irq_status_query": "irq flags",
        "physdev_set_iopl": "iopl",
        "physdev_set_iobitmap": "bitmap nr_ports",
        "physdev_apic": "apic_physbase reg value",
        "physdev_irq": "irq vector",
        "physdev_map_pirq": "domid type index pirq bus devfn entry_nr table_base",
        "physdev_unmap_pirq": "domid pirq",
        "physdev_manage_pci": "bus devfn",
        "physdev_restore_msi": "bus devfn",
        "physdev_manage_pci_ext": "bus devfn is_extfn is_virtfn physfn.bus physfn.devfn",
        "physdev_setup_gsi": "gsi triggering polarity",
        "physdev_get_free_pirq": "type pirq",
        "physdev_pci_device_add": "seg bus devfn flags physfn.bus physfn.devfn",
        "physdev_pci_device": "seg bus devfn",
        "physdev_op": "cmd",
    },
    "refused": {
        "xen_domctl": "cmd interface_version domain",
        "xenoprof_init": "num_events is_primary cpu_type",
        "xen_sysctl": "cmd interface_version",
        "xen_platform_op": "cmd interface_version",
        "xen_hvm_param": "domid index value",
        "xen_hvm_pagetable_dying": "domid gpa",
        "xen_hvm_get_time": "now",
        "xen_hvm_xentrace": "event extra_bytes",
        "xen_hvm_get_mem_type": "domid mem_type pad pfn",
        "xen_dm_op_buf": "h size",
    },
    "blkif": {
        "blkif_request_segment": "gref first_sect last_sect",
        "blkif_request": "operation nr_segments handle id sector_number seg",
        "blkif_request_discard": "operation flag handle id sector_number nr_sectors",
        "blkif_request_indirect": "operation indirect_op nr_segments id sector_number handle indirect_grefs",
        "blkif_response": "id operation status",
    },
    "netif": {
        "netif_tx_request": "gref offset flags id size",
        "netif_tx_response": "id status",
        "netif_rx_request": "id gref",
        "netif_rx_response": "id offset flags status",
        "netif_extra_info": "type flags u",
    },
    "fbif": {
        "xenfb_update": "type x y width height",
        "xenfb_resize": "type width height stride depth offset",
        "xenfb_refresh_period": "type period",
    },
    "kbdif": {
        "xenkbd_motion": "type rel_x rel_y rel_z",
        "xenkbd_key": "type pressed keycode",
        "xenkbd_position": "type abs_x abs_y rel_z",
    },
    "xs_wire": {"xsd_sockmsg": "type req_id tx_id len"},
}

_C_NAMES = {
    "grant_entry_v2": "union grant_entry_v2",
    "grant_entry_v2_transitive": "union grant_entry_v2",
}
_HEADERS = [
    "xen",
    "event_channel",
    "sched",
    "vcpu",
    "version",
    "nmi",
    "memory",
    "grant_table",
    "xenoprof",
    "physdev",
    "domctl",
    "sysctl",
    "platform",
    "hvm/hvm_op",
    "hvm/dm_op",
    "io/blkif",
    "io/fbif",
    "io/kbdif",
    "io/netif",
    "io/xs_wire",
]


def offsets(layout: struct.Struct) -> list[int]:
    """Where each field of a Struct begins."""
    found, at = [], 0
    for count, code in re.findall(r"(\d*)([a-zA-Z])", layout.format):
        size = struct.calcsize(f"<{code}")
        if code == "s":
            found.append(at)
            at += int(count or 1)
        else:
            found += [at + size * i for i in range(int(count or 1)) if code != "x"]
            at += size * int(count or 1)
    return found


def compiled(word: int) -> dict[str, list[int]]:
    """C type -> [size, offset of each field], as gcc -m32 or -m64 lays Xen's own headers out."""
    includes = "#include <stdint.h>\n#include <stddef.h>\n"
    includes += "".join(f"#include <xen/{header}.h>\n" for header in _HEADERS)
    lines = []
    for layouts in LAYOUTS.values():
        for name, fields in layouts.items():
            c = _C_NAMES.get(name, f"struct {name}")
            for field in ("", *fields.split()):
                value = f"__builtin_offsetof({c}, {field})" if field else f"sizeof({c})"
                lines.append(f'asm volatile("\\n@{name} %0" : : "i"({value}));')
    source = f"{includes}void f(void) {{ {' '.join(lines)} }}\n"
    command = ["gcc", f"-m{8 * word}", "-ffreestanding", "-D__XEN_TOOLS__", "-S", "-xc", "-", "-o", "-"]
    output = subprocess.run(command, input=source, text=True, capture_output=True, check=True).stdout
    found: dict[str, list[int]] = {}
    for name, value in re.findall(r"^@(\w+) \$(\d+)", output, re.MULTILINE):
        found.setdefault(name, []).append(int(value))
    return found


def dump(facts: dict[str, dict[str, list[int]]]) -> str:
    """The facts as JSON, a structure a line."""
    widths = []
    for word, types in sorted(facts.items()):
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(types[name])}" for name in sorted(types))
        widths.append(f" {json.dumps(word)}: {{\n{lines}\n }}")
    return "{\n" + ",\n".join(widths) + "\n}\n"


if __name__ == "__main__":
    DATA.write_text(dump({str(word): compiled(word) for word in (4, 8)}))
