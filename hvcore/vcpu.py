"""`struct vcpu` and its arch.pv part: what Xen remembers of a virtual CPU beside its registers.

Sources: xen/include/xen/sched.h, xen/arch/x86/include/asm/domain.h (struct pv_vcpu).
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING

from hvcore.abi import VCPU_INFO_SIZE, VCPU_UPCALL_MASK, VCPU_UPCALL_PENDING
from hvcore.cpu.words import VcpuWords, address_of, shared_words

if TYPE_CHECKING:
    from hvcore.domain import Domain

# VPF_*: why a vCPU does not run (pause_flags).
VPF_blocked = 1
VPF_down = 2

# RUNSTATE_*: xen/include/public/vcpu.h.
RUNSTATE_running = 0
RUNSTATE_runnable = 1
RUNSTATE_blocked = 2
RUNSTATE_offline = 3

NR_TRAPS = 256
NR_CALLBACKS = 8
Entry = tuple[int, int, int]


class Entries:
    """Where Xen enters the guest, by number: (flags, cs, address). The compiled core sees the words, too."""

    __slots__ = ("words",)

    def __init__(self, count: int) -> None:
        self.words = shared_words(3 * count)

    def __len__(self) -> int:
        return len(self.words) // 3

    def __getitem__(self, number: int) -> Entry:
        at, words = 3 * number, self.words
        return words[at], words[at + 1], words[at + 2]

    def __setitem__(self, number: int, entry: Entry) -> None:
        at, words = 3 * number, self.words
        words[at], words[at + 1], words[at + 2] = entry

    def __iter__(self) -> Iterator[Entry]:
        return (self[number] for number in range(len(self)))

    def fill(self, entries: list[Entry]) -> None:
        """Set the first entries, and clear all others."""
        flat = [word for entry in entries for word in entry]
        for at in range(len(self.words)):
            self.words[at] = flat[at] if at < len(flat) else 0


class Callbacks(MutableMapping[int, Entry]):
    """CALLBACKTYPE_* -> (cs, address, flags); none where the guest registered none."""

    __slots__ = ("_entries", "_known", "words")

    def __init__(self) -> None:
        self._entries = Entries(NR_CALLBACKS)
        self.words = self._entries.words
        self._known: set[int] = set()

    def __getitem__(self, kind: int) -> Entry:
        if kind not in self._known:
            raise KeyError(kind)
        flags, cs, address = self._entries[kind]
        return cs, address, flags

    def __setitem__(self, kind: int, entry: Entry) -> None:
        cs, address, flags = entry
        self._entries[kind] = flags, cs, address
        self._known.add(kind)

    def __delitem__(self, kind: int) -> None:
        self._known.remove(kind)
        self._entries[kind] = 0, 0, 0

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._known))

    def __len__(self) -> int:
        return len(self._known)


class Vcpu(VcpuWords):
    """One virtual CPU. Registers live in the engine while it runs, in `saved_state` while it does not.

    What the compiled core knows of it, too, are the words of VcpuWords.
    """

    __slots__ = (
        "arch_cr2_off",
        "callbacks",
        "ctrlreg",
        "debugreg",
        "domain",
        "fs_base",
        "gdt_ents",
        "gdt_frames",
        "info",
        "info_mfn",
        "iobmp",
        "iobmp_limit",
        "is_initialised",
        "ldt_base",
        "ldt_ents",
        "ldt_shadow",
        "mcg_status",
        "pause_flags",
        "periodic_last_event",
        "periodic_period",
        "poll_evtchn",
        "runstate",
        "runstate_entry_time",
        "runstate_guest",
        "runstate_time",
        "saved_state",
        "time_info_guest",
        "trap_ctxt",
    )

    WIRING = frozenset(
        (
            "domain",
            "info",
            "info_mfn",
            "arch_cr2_off",
            "domain_words",
            "info_address",
            "cr2_offset",
            "ctrlreg_words",
            "perdomain_ptes",
            "trap_words",
            "callback_words",
        )
    )
    __hash__ = object.__hash__

    def __init__(self, domain: Domain, vcpu_id: int) -> None:
        super().__init__()
        self.domain = domain
        self.vcpu_id = vcpu_id
        start = VCPU_INFO_SIZE * vcpu_id
        # struct vcpu_info as bytes: in shared_info until VCPUOP_register_vcpu_info moves it.
        self.place_info(domain.shared_info[start : start + VCPU_INFO_SIZE], None)
        self.arch_cr2_off = domain.abi.vcpu_cr2
        self.is_initialised = False
        self.pause_flags = VPF_down
        self.saved_state: bytes | None = None
        # Trap table: vector -> (flags, cs, address), address 0 where the guest set none.
        self.trap_ctxt = Entries(NR_TRAPS)
        self.trap_words = address_of(self.trap_ctxt.words)
        # CALLBACKTYPE_* -> (cs, address, flags)
        self.callbacks = Callbacks()
        self.callback_words = address_of(self.callbacks.words)
        self.kernel_mode = True  # TF_kernel_mode; a 64-bit guest's kernel and processes share CPL 3
        self.kernel_ss = 0
        self.kernel_sp = 0
        self.gdt_frames: tuple[int, ...] = ()
        self.gdt_ents = 0
        self.ldt_base = 0
        self.ldt_ents = 0
        self.ldt_shadow: dict[int, int] = {}  # page of the LDT -> frame mapped there
        self.cr3_mfn = 0  # frame of the kernel's top-level page table
        self.user_cr3_mfn = 0  # PV64 only
        self.ctrlreg = shared_words(8)
        self.ctrlreg_words = address_of(self.ctrlreg)
        self.cr2_offset = domain.abi.vcpu_cr2
        self.debugreg = [0, 0, 0, 0, 0, 0, 0xFFFF0FF0, 0x400]
        self.iopl = 0  # where EFLAGS has it: 0x0000 to 0x3000
        self.iobmp = 0  # guest virtual address of the I/O permission bitmap, of `iobmp_limit` bits
        self.iobmp_limit = 0
        self.mcg_status = 0  # MSR_IA32_MCG_STATUS
        self.fs_base = 0
        self.gs_base_kernel = 0
        self.gs_base_user = 0
        self.ts_set = False  # FPU not loaded: #NM on use
        self.nmi_pending = False
        self.async_exception_mask = False  # an NMI is being handled: no other until iret
        self.poll_evtchn: int | None = None  # port a SCHEDOP_poll waits for; -1 for a list; None: not polling
        self.periodic_period = 0
        self.periodic_last_event = 0  # system time of the last tick, ns
        self.runstate = RUNSTATE_offline
        self.runstate_entry_time = 0
        self.runstate_time = [0, 0, 0, 0]
        self.runstate_guest = 0  # guest virtual address of its runstate area, 0 for none
        self.time_info_guest = 0  # guest virtual address of a secondary vcpu_time_info

    def place_info(self, info: memoryview, mfn: int | None) -> None:
        """Have struct vcpu_info at `info`: in shared_info (`mfn` None), or in a frame that the guest named.

        The only way to move it: the compiled core looks at its address.
        """
        self.info = info
        self.info_mfn = mfn
        self.info_address = address_of(info)

    @property
    def root_mfn(self) -> int:
        """Frame of the top-level page table that it runs on; 0: it has none yet."""
        return self.cr3_mfn if self.kernel_mode else self.user_cr3_mfn

    @property
    def upcall_pending(self) -> int:
        """vcpu_info.evtchn_upcall_pending."""
        return self.info[VCPU_UPCALL_PENDING]

    @property
    def upcall_mask(self) -> int:
        """vcpu_info.evtchn_upcall_mask."""
        return self.info[VCPU_UPCALL_MASK]

    def event_needs_delivery(self) -> bool:
        """vcpu_event_delivery_is_enabled() and a pending upcall: local_events_need_delivery()."""
        return bool(self.info[VCPU_UPCALL_PENDING]) and not self.info[VCPU_UPCALL_MASK]
