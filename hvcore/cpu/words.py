"""The words that Python and the compiled core share: blocks of 64-bit words (hvcore/cpu/core/words.h).

Where there is no compiled core they are simply where Python keeps these numbers. A ctypes structure is what
both can see: an attribute of it costs Python what an item of a memoryview does, and C gets `addressof()`.
"""

from __future__ import annotations

import ctypes

NO_RING = 0xFFFFFFFF  # of `port_ring`: no port is open

# Of lanes: hypercalls by number, and these.
LANE_RDTSC, LANE_MULTICALL_ENTRY, LANE_SYSCALL, LANE_PAGE_FAULT, LANE_PAGE_TABLE_STORE = range(64, 69)
LANE_SOFTWARE_INTERRUPT, LANE_CLI_STI, NR_LANES = 69, 70, 71
JOURNAL_BYTES = 8 * (2 + 3 * 4096)  # struct hv_journal


_Field = tuple[str, type[ctypes.c_uint64 | ctypes.c_bool | ctypes.Array[ctypes.c_char]]]


def _fields(annotations: dict[str, str]) -> list[_Field]:
    """A word each; what Python knows as a bool is the lowest byte of its word."""
    fields: list[_Field] = []
    for name, kind in annotations.items():
        if kind == "bool":
            fields += [(name, ctypes.c_bool), (f"_above_{name}", ctypes.c_char * 7)]
        else:
            fields.append((name, ctypes.c_uint64))
    return fields


def shared_words(count: int) -> memoryview:
    """Zeroed words whose address stays for as long as somebody holds them."""
    return memoryview((ctypes.c_uint64 * count)()).cast("B").cast("Q")


def address_of(words: memoryview) -> int:
    """Where the words lie."""
    return ctypes.addressof(ctypes.c_char.from_buffer(words))


# Words of an engine that change with this process, whatever the guest's time is: where things lie now.
OF_THE_PROCESS = ("translator", "jumps", "code_base")


class EngineWords(ctypes.Structure):
    """struct hv_engine."""

    left: int
    spent: int
    limit: int
    horizon: int
    turn_end: int
    idle: int
    uc: int
    cpu: int
    env: int
    translator: int
    uc_emu_stop: int
    uc_reg_read: int
    cc_compute_all: int
    raise_exception_err: int
    tlb_flush: int
    tlb_vaddr_to_host: int
    port_ring: int
    port_cost: int
    port_keeps: int
    port_reads: int
    port_writes: int
    region: int
    ram_base: int
    ram_pages: int
    page_has_code: int
    tracks_pages: int
    access: int
    tlb_flushes: int
    step_rechecked: int
    python_interrupt: int
    python_syscall: int
    python_rdtsc: int
    python_rdtscp: int
    vcpu: int
    journal: int
    lane_counts: int
    multicall_done: int
    tcg_tb_lookup: int
    cpu_loop_exit_restore: int
    paid: int
    paid_is_of_long: bool
    passing: int
    is_passing: int
    stop_kind: int
    stop_address: int
    stop_size: int
    stop_is_store: int
    stop_block: int
    stop_block_size: int
    watches: int
    nr_watches: int
    coverage: int
    found_blocks: int
    ram: int
    spaces: int
    jumps: int
    nr_invalid: int
    code_base: int

    _fields_ = _fields(__annotations__)


class VcpuWords(ctypes.Structure):
    """struct hv_vcpu."""

    domain_words: int
    info_address: int
    vcpu_id: int
    kernel_mode: bool
    nmi_pending: bool
    cr3_mfn: int
    user_cr3_mfn: int
    compat_l4: int
    kernel_ss: int
    kernel_sp: int
    gs_base_user: int
    gs_base_kernel: int
    ts_set: bool
    iopl: int
    async_exception_mask: bool
    cr2_offset: int
    ctrlreg_words: int
    perdomain_ptes: int
    trap_words: int
    callback_words: int

    _fields_ = _fields(__annotations__)


class DomainWords(ctypes.Structure):
    """struct hv_domain."""

    domain_id: int
    levels: int
    ram: int
    base_mfn: int
    nr_frames: int
    nr_vcpus: int
    m2p_addresses: int
    end_mfn: int
    owner: int
    ptype: int
    pflags: int
    count: int
    tcount: int
    stamp: int
    linear_pt_count: int
    xen_l4_slots: int
    vm_assist: int
    cmos_idx: int
    pci_cf8: int
    hypercalls: int
    exceptions: int
    cli_sti: int
    events_delivered: int
    page_table_stores: int
    recent: int
    events: int

    _fields_ = _fields(__annotations__)


# As the compiled core says it of itself.
LAYOUT = "".join(
    f"{name}: " + "".join(f"{word} " for word in block.__annotations__)
    for name, block in (("engine", EngineWords), ("vcpu", VcpuWords), ("domain", DomainWords))
)

# Of a domain, what is its state; the rest is worked out.
SAVED_DOMAIN_WORDS = ("vm_assist", "cmos_idx", "pci_cf8", "events_delivered", "page_table_stores")
