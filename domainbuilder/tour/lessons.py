"""What each act of a guest is for and what Xen checks, with the place in Xen 4.17 and the one here.

A lesson is by the name of a command (EVTCHNOP_send), of a hypercall (mmu_update), or of another kind of act.
"""

from __future__ import annotations

from typing import NamedTuple


class Lesson(NamedTuple):
    """`asks` says what the guest wants, `checks` what Xen does about it."""

    asks: str
    checks: str
    xen: str
    here: str


BEFORE = {
    "notes": Lesson(
        "A PV kernel is an ELF file; its notes say where it wants to be and what it needs of Xen.",
        "The builder refuses a kernel whose notes contradict each other, or that needs what Xen has not.",
        "tools/libs/guest/xg_dom_elfloader.c, xen/common/libelf/libelf-dominfo.c: elf_xen_parse()",
        "domainbuilder/kernel/elfnotes.py, domainbuilder/kernel/parms.py",
    ),
    "layout": Lesson(
        "One thing behind the other: the kernel, the list of machine frames, start_info, rings, page "
        "tables, stack.",
        "All of it has to fit into the memory and into the mapping that the builder makes.",
        "tools/libs/guest/xg_dom_core.c: xc_dom_build_image()",
        "domainbuilder/plan/segments.py",
    ),
    "tables": Lesson(
        "The first page tables, which the processor will walk as they are.",
        "They are mapped read-only: a guest that could write them could map what is not its own.",
        "tools/libs/guest/xg_dom_x86.c: alloc_pgtables_pv()",
        "domainbuilder/plan/pgtables.py",
    ),
    "start": Lesson(
        "No boot loader and no real mode: paging is on, and a register points to start_info.",
        "Xen validates the whole tree of tables, pins it, and checks each register before it loads it.",
        "tools/libs/guest/xg_dom_x86.c: start_info_x86_64(), xen/arch/x86/domain.c: arch_set_info_guest()",
        "domainbuilder/plan/start_info.py, hvcore/pv/vcpu_context.py",
    ),
}

_MM = "xen/arch/x86/mm.c"
_EVTCHN = "xen/common/event_channel.c: do_event_channel_op()"
_SCHED = "xen/common/sched/core.c: do_sched_op()"
_VCPU = "xen/common/domain.c: do_vcpu_op()"
_MEMORY = "xen/common/memory.c: do_memory_op()"

HYPERCALLS = {
    "set_trap_table": Lesson(
        "A PV guest has no IDT: it hands Xen a list of vectors and handlers.",
        "Handlers have to lie in the guest's own address space, and selectors are lowered to its ring.",
        "xen/arch/x86/pv/callback.c: do_set_trap_table()",
        "hvcore/pv/callback.py",
    ),
    "callback_op": Lesson(
        "Where Xen enters the kernel for events, for system calls, and when a segment cannot be restored.",
        "Only known kinds, and canonical addresses.",
        "xen/arch/x86/pv/callback.c: do_callback_op()",
        "hvcore/pv/callback.py",
    ),
    "mmu_update": Lesson(
        "New page-table entries, many in one call: pairs of an entry's machine address and its value.",
        "The frame has to be a page table of the guest's; what the entry names is counted by type, and "
        "nothing "
        "is a page table and writable at once.",
        f"{_MM}: do_mmu_update()",
        "hvcore/pv/mmu_update.py, hvcore/pv/mm.py",
    ),
    "update_va_mapping": Lesson(
        "One new L1 entry, by the address that it maps.",
        "As for mmu_update: the frame, its owner, its type, and the flags of the entry.",
        f"{_MM}: do_update_va_mapping()",
        "hvcore/pv/mmu_update.py",
    ),
    "mmuext_op": Lesson(
        "The acts of an MMU that only ring 0 has: pin a page table, load CR3, flush the TLB.",
        "A table that is pinned or loaded is validated as a whole, down to the last entry.",
        f"{_MM}: do_mmuext_op()",
        "hvcore/pv/mmuext_op.py",
    ),
    "set_gdt": Lesson(
        "The frames of a new GDT.",
        "Each descriptor is looked at: none may give ring 0, or a gate that leads there; the frames become "
        "read-only.",
        "xen/arch/x86/pv/descriptor-tables.c: do_set_gdt()",
        "hvcore/pv/descriptor_tables.py",
    ),
    "update_descriptor": Lesson(
        "One new descriptor of the GDT or LDT.",
        "It is checked as those of a whole table are.",
        "xen/arch/x86/pv/descriptor-tables.c: do_update_descriptor()",
        "hvcore/pv/descriptor_tables.py",
    ),
    "stack_switch": Lesson(
        "The stack on which Xen enters the kernel from user mode: what a TSS is for.",
        "Nothing: a bad stack hurts the guest alone.",
        "xen/arch/x86/pv/misc-hypercalls.c: do_stack_switch()",
        "hvcore/pv/misc_hypercalls.py",
    ),
    "fpu_taskswitch": Lesson(
        "Set or clear CR0.TS, so that the next FPU instruction of a process faults.",
        "Nothing: it is the guest's own bit.",
        "xen/arch/x86/pv/misc-hypercalls.c: do_fpu_taskswitch()",
        "hvcore/pv/misc_hypercalls.py",
    ),
    "set_segment_base": Lesson(
        "The base of FS, GS or of user mode's GS, which a 64-bit kernel needs ring 0 for.",
        "The address has to be canonical.",
        "xen/arch/x86/pv/misc-hypercalls.c: do_set_segment_base()",
        "hvcore/pv/misc_hypercalls.py",
    ),
    "set_debugreg": Lesson(
        "A debug register.",
        "Breakpoints may not lie in Xen, and Xen keeps the bits for itself that would stop Xen.",
        "xen/arch/x86/pv/misc-hypercalls.c: do_set_debugreg()",
        "hvcore/pv/misc_hypercalls.py",
    ),
    "multicall": Lesson(
        "A list of hypercalls in one call.",
        "Each entry is made as a call of its own would be; a long list is put off when the turn is over.",
        "xen/common/multicall.c: do_multicall()",
        "hvcore/common/multicall.py",
    ),
    "xen_version": Lesson(
        "Which Xen is this, and what does it offer?",
        "Nothing: everybody may ask, and some answers are left out for guests.",
        "xen/common/kernel.c: do_xen_version()",
        "hvcore/common/kernel.py",
    ),
    "vm_assist": Lesson(
        "Help that a kernel can ask for, such as writable page tables: Xen then carries out plain "
        "stores to them.",
        "Only what the domain's kind knows.",
        "xen/common/kernel.c: vm_assist()",
        "hvcore/common/kernel.py",
    ),
    "memory_op": Lesson(
        "Questions about memory, and frames given back or asked for.",
        "The guest's limits, its ownership of each frame, and that nobody else holds it.",
        _MEMORY,
        "hvcore/common/memory.py",
    ),
    "event_channel_op": Lesson(
        "Event channels: each carries one bit, from a device's backend, a timer, or another vCPU.",
        "The port has to be the guest's, and in the state that the command is for.",
        _EVTCHN,
        "hvcore/common/event_channel.py",
    ),
    "sched_op": Lesson(
        "The processor given away, or the domain ended.", "The command.", _SCHED, "hvcore/common/schedule.py"
    ),
    "set_timer_op": Lesson(
        "One event at an absolute system time, in nanoseconds: the guest's clock interrupt.",
        "A time in the past fires at once; one absurdly far ahead is taken for a bug of old kernels.",
        "xen/common/sched/core.c: do_set_timer_op()",
        "hvcore/common/schedule.py",
    ),
    "vcpu_op": Lesson(
        "About one vCPU: bring it up, ask how it is, register where Xen is to write its times.",
        "The vCPU has to exist.",
        _VCPU,
        "hvcore/common/vcpu_op.py",
    ),
    "grant_table_op": Lesson(
        "Grants: frames that another domain may map or copy, which is how disks and networks get at memory.",
        "The grant has to name this domain, and the frame its giver's.",
        "xen/common/grant_table.c: do_grant_table_op()",
        "hvcore/common/grant_table.py",
    ),
    "physdev_op": Lesson(
        "About interrupts and hardware, of which a domU has little.",
        "Most of it is refused to all but domain 0.",
        "xen/arch/x86/physdev.c: do_physdev_op()",
        "hvcore/common/physdev.py",
    ),
    "console_io": Lesson(
        "Text for Xen's own console.",
        "Only domain 0 may; others get -EPERM.",
        "xen/drivers/char/console.c: do_console_io()",
        "hvcore/common/console.py",
    ),
    "iret": Lesson(
        "Back to what was interrupted, where the iret instruction would not do: to user mode, or with "
        "events open.",
        "The frame on the stack: selectors are lowered to the guest's ring, flags are those it may set.",
        "xen/arch/x86/pv/iret.c: do_iret()",
        "hvcore/pv/frames64.py, hvcore/pv/frames32.py",
    ),
}

COMMANDS = {
    "XENMEM_machphys_mapping": Lesson(
        "Where is the machine-to-physical table, which gives the guest's own number of every machine frame?",
        "Nothing: everybody may read it.",
        "xen/arch/x86/mm.c: arch_memory_op()",
        "hvcore/common/memory.py",
    ),
    "EVTCHNOP_send": Lesson(
        "The other end of a channel is told to look: here a backend, for something is in the ring.",
        "The port has to be bound; what it is bound to gets one bit.",
        "xen/common/event_channel.c: evtchn_send()",
        "hvcore/common/event_channel.py",
    ),
    "EVTCHNOP_bind_virq": Lesson(
        "A virtual interrupt, such as the timer's, becomes an event channel.",
        "A vCPU has each at most once.",
        _EVTCHN,
        "hvcore/common/event_channel.py",
    ),
    "EVTCHNOP_init_control": Lesson(
        "The FIFO event channels, whose queues lie in the guest's own memory.",
        "The control block's frame has to be the guest's, writable, and inside one page.",
        "xen/common/event_fifo.c: evtchn_fifo_init_control()",
        "hvcore/common/event_fifo.py",
    ),
    "SCHEDOP_block": Lesson(
        "Nothing to do until an event: what hlt is on hardware. Events are open while it waits.",
        "If one is pending already, the call returns at once.",
        _SCHED,
        "hvcore/common/schedule.py",
    ),
    "SCHEDOP_yield": Lesson(
        "Somebody else may have the processor.", "Nothing.", _SCHED, "hvcore/common/schedule.py"
    ),
    "SCHEDOP_shutdown": Lesson(
        "The domain ends: power off, reboot, suspend or crash.",
        "The reason is kept for the toolstack; no vCPU runs any more.",
        "xen/common/domain.c: domain_shutdown()",
        "hvcore/common/schedule.py",
    ),
    "VCPUOP_initialise": Lesson(
        "The registers of another vCPU, which has not run yet.",
        "As for the first one: selectors, page tables, handlers.",
        "xen/arch/x86/domain.c: arch_set_info_guest()",
        "hvcore/common/vcpu_op.py",
    ),
    "VCPUOP_register_vcpu_info": Lesson(
        "vcpu_info is to lie in the guest's own memory, not in the shared page.",
        "The frame has to be the guest's, and the structure inside one page.",
        _VCPU,
        "hvcore/common/vcpu_op.py",
    ),
    "VCPUOP_set_singleshot_timer": Lesson(
        "One timer event for this vCPU, at a system time.",
        "It may say that a time in the past is an error.",
        _VCPU,
        "hvcore/common/vcpu_op.py",
    ),
    "VMASST_CMD_enable": Lesson(
        "Help is asked for by number: writable page tables first of all.",
        "Only what the domain's kind knows.",
        "xen/common/kernel.c: vm_assist()",
        "hvcore/common/kernel.py",
    ),
}

KINDS = {
    "upcall": Lesson(
        "An event is pending and events are open: Xen enters the event callback.",
        "It pushes a frame as for an interrupt, and masks events until the handler is through.",
        "xen/arch/x86/x86_64/entry.S, xen/common/event_2l.c: evtchn_2l_set_pending()",
        "hvcore/pv/traps.py",
    ),
    "store": Lesson(
        "A plain store to one of its page tables, which is mapped read-only: the fault comes to Xen.",
        "Xen carries the store out itself, after the checks of mmu_update, if the guest asked for that.",
        "xen/arch/x86/pv/ro-page-fault.c: ptwr_emulated_update()",
        "hvcore/pv/ro_page_fault.py",
    ),
    "emulated": Lesson(
        "An instruction that only ring 0 may execute: it faults, and Xen does it in the guest's stead.",
        "Only what a guest may have: its own control registers, harmless MSRs, no ports of real hardware.",
        "xen/arch/x86/pv/emul-priv-op.c: pv_emulate_privileged_op()",
        "hvcore/pv/emul_priv_op.py",
    ),
    "exception": Lesson(
        "An exception that is the guest's own business.",
        "Xen finds that it has nothing to do with it, builds the frame that a processor would have "
        "built, and "
        "enters the handler of the trap table.",
        "xen/arch/x86/traps.c: do_page_fault(), xen/arch/x86/pv/traps.c: pv_inject_event()",
        "hvcore/pv/traps.py",
    ),
    "pending": Lesson(
        "An event channel is raised: one bit in memory that guest and Xen share.",
        "A masked channel stays quiet; else the vCPU is woken, or interrupted at the next chance.",
        "xen/common/event_2l.c: evtchn_2l_set_pending()",
        "hvcore/common/event.py",
    ),
    "device": Lesson(
        "A backend in domain 0 looks at its ring.",
        "Xen knows nothing of rings: it carries the event alone.",
        "tools/console/daemon/io.c, xen/common/event_channel.c: evtchn_send()",
        "hvcore/backends/console.py, hvcore/backends/xenstore.py",
    ),
    "refused": Lesson(
        "Something that it may not have, or that Xen does not know.",
        "The call returns a negated errno; of page tables Xen's log would say why.",
        f"{_MM}: get_page_from_l1e()",
        "hvcore/refusal.py",
    ),
}
