/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The part of Xen's guest ABI that the samples use, for both widths. Names, numbers and shapes are those of
 * xen/include/public/ in Xen 4.17; each group says which header it belongs to.
 */
#ifndef SAMPLES_XEN_H
#define SAMPLES_XEN_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char s8;
typedef int s32;
typedef long long s64;
typedef unsigned long ulong;

#define NULL ((void *)0)
#define PAGE_SHIFT 12
#define PAGE_SIZE 4096ul

/* xen.h: hypercall numbers. */
#define HYPERCALL_set_trap_table 0
#define HYPERCALL_mmu_update 1
#define HYPERCALL_set_gdt 2
#define HYPERCALL_stack_switch 3
#define HYPERCALL_set_callbacks 4
#define HYPERCALL_fpu_taskswitch 5
#define HYPERCALL_sched_op_compat 6
#define HYPERCALL_platform_op 7
#define HYPERCALL_set_debugreg 8
#define HYPERCALL_get_debugreg 9
#define HYPERCALL_update_descriptor 10
#define HYPERCALL_memory_op 12
#define HYPERCALL_multicall 13
#define HYPERCALL_update_va_mapping 14
#define HYPERCALL_set_timer_op 15
#define HYPERCALL_event_channel_op_compat 16
#define HYPERCALL_xen_version 17
#define HYPERCALL_console_io 18
#define HYPERCALL_physdev_op_compat 19
#define HYPERCALL_grant_table_op 20
#define HYPERCALL_vm_assist 21
#define HYPERCALL_update_va_mapping_otherdomain 22
#define HYPERCALL_iret 23
#define HYPERCALL_vcpu_op 24
#define HYPERCALL_set_segment_base 25
#define HYPERCALL_mmuext_op 26
#define HYPERCALL_xsm_op 27
#define HYPERCALL_nmi_op 28
#define HYPERCALL_sched_op 29
#define HYPERCALL_callback_op 30
#define HYPERCALL_xenoprof_op 31
#define HYPERCALL_event_channel_op 32
#define HYPERCALL_physdev_op 33
#define HYPERCALL_hvm_op 34
#define HYPERCALL_sysctl 35
#define HYPERCALL_domctl 36
#define HYPERCALL_kexec_op 37
#define HYPERCALL_tmem_op 38
#define HYPERCALL_argo_op 39
#define HYPERCALL_xenpmu_op 40

#define DOMID_SELF 0x7ff0
#define DOMID_IO 0x7ff1
#define DOMID_XEN 0x7ff2

/* errno.h */
#define EPERM 1
#define ENOENT 2
#define ESRCH 3
#define EINTR 4
#define EIO 5
#define E2BIG 7
#define EBADF 9
#define EAGAIN 11
#define ENOMEM 12
#define EACCES 13
#define EFAULT 14
#define EBUSY 16
#define EEXIST 17
#define EXDEV 18
#define ENODEV 19
#define EINVAL 22
#define ENOSPC 28
#define ERANGE 34
#define ENOSYS 38
#define EOPNOTSUPP 95

/* arch-x86/xen-x86_32.h, arch-x86/xen-x86_64.h: the flat segments of Xen's own GDT. */
#ifdef __x86_64__
#define FLAT_KERNEL_CS 0xe033
#define FLAT_KERNEL_DS 0x0000
#define FLAT_KERNEL_SS 0xe02b
#define FLAT_USER_CS 0xe033
#define FLAT_USER_CS32 0xe023
#define FLAT_USER_SS 0xe02b
#define VIRT_BASE 0xffffffff80000000ul
#define PT_LEVELS 4
#else
#define FLAT_KERNEL_CS 0xe019
#define FLAT_KERNEL_DS 0xe021
#define FLAT_KERNEL_SS 0xe021
#define FLAT_USER_CS 0xe02b
#define FLAT_USER_DS 0xe033
#define FLAT_USER_SS 0xe033
#define VIRT_BASE 0xc0000000ul
#ifdef PAE_MODE_NO /* two levels, as an i386 kernel of 2007 could be built and as no living Xen runs it */
#define PT_LEVELS 2
#else
#define PT_LEVELS 3
#endif
#endif
#define FIRST_RESERVED_GDT_ENTRY 7168

/* xen.h: start_info. */
#define SIF_PRIVILEGED 1u
#define SIF_INITDOMAIN 2u
#define SIF_MULTIBOOT_MOD 4u
#define SIF_MOD_START_PFN 8u
#define MAX_GUEST_CMDLINE 1024

struct start_info {
    char magic[32];
    ulong nr_pages;
    ulong shared_info; /* machine address */
    u32 flags;         /* SIF_* */
    ulong store_mfn;
    u32 store_evtchn;
    union {
        struct {
            ulong mfn;
            u32 evtchn;
        } domU;
        struct {
            u32 info_off;
            u32 info_size;
        } dom0;
    } console;
    ulong pt_base; /* virtual address of the top-level table */
    ulong nr_pt_frames;
    ulong mfn_list; /* virtual address of the p2m list */
    ulong mod_start;
    ulong mod_len;
    char cmd_line[MAX_GUEST_CMDLINE];
    ulong first_p2m_pfn;
    ulong nr_p2m_frames;
};

/* xen.h: shared_info. */
#define XEN_LEGACY_MAX_VCPUS 32

struct vcpu_time_info {
    u32 version;
    u32 pad0;
    u64 tsc_timestamp;
    u64 system_time;
    u32 tsc_to_system_mul;
    s8 tsc_shift;
    u8 flags;
    u8 pad1[2];
};

struct vcpu_info {
    u8 evtchn_upcall_pending;
    u8 evtchn_upcall_mask;
    u8 pad0[2];
    ulong evtchn_pending_sel;
    ulong cr2;
#ifdef __x86_64__
    ulong pad2;
#else
    ulong pad2[5];
#endif
    struct vcpu_time_info time;
};

struct shared_info {
    struct vcpu_info vcpu_info[XEN_LEGACY_MAX_VCPUS];
    ulong evtchn_pending[sizeof(ulong) * 8];
    ulong evtchn_mask[sizeof(ulong) * 8];
    u32 wc_version;
    u32 wc_sec;
    u32 wc_nsec;
#ifdef __x86_64__
    u32 wc_sec_hi; /* on i386 it follows arch.p2m_generation */
#endif
    ulong max_pfn; /* arch, from here on */
    ulong pfn_to_mfn_frame_list_list;
    ulong nmi_reason;
};

/* io/console.h */
struct xencons_interface {
    char in[1024];
    char out[2048];
    u32 in_cons, in_prod;
    u32 out_cons, out_prod;
};
#define CONSOLEIO_write 0
#define CONSOLEIO_read 1

/* sched.h */
#define SCHEDOP_yield 0
#define SCHEDOP_block 1
#define SCHEDOP_shutdown 2
#define SCHEDOP_poll 3
#define SCHEDOP_remote_shutdown 4
#define SCHEDOP_shutdown_code 5
#define SCHEDOP_watchdog 6
#define SHUTDOWN_poweroff 0
#define SHUTDOWN_reboot 1
#define SHUTDOWN_suspend 2
#define SHUTDOWN_crash 3
#define SHUTDOWN_watchdog 4
#define SHUTDOWN_soft_reset 5

struct sched_poll {
    u32 *ports;
    u32 nr_ports;
    u64 timeout;
};

/* event_channel.h */
#define EVTCHNOP_bind_interdomain 0
#define EVTCHNOP_bind_virq 1
#define EVTCHNOP_bind_pirq 2
#define EVTCHNOP_close 3
#define EVTCHNOP_send 4
#define EVTCHNOP_status 5
#define EVTCHNOP_alloc_unbound 6
#define EVTCHNOP_bind_ipi 7
#define EVTCHNOP_bind_vcpu 8
#define EVTCHNOP_unmask 9
#define EVTCHNOP_reset 10
#define EVTCHNOP_init_control 11
#define EVTCHNOP_expand_array 12
#define EVTCHNOP_set_priority 13
#define EVTCHN_FIFO_PRIORITY_DEFAULT 7
#define EVTCHN_FIFO_PRIORITY_MIN 15
#define EVTCHN_FIFO_PENDING (1u << 31)
#define EVTCHN_FIFO_MASKED (1u << 30)
#define EVTCHN_FIFO_LINKED (1u << 29)
#define EVTCHN_FIFO_BUSY (1u << 28)
#define EVTCHN_FIFO_LINK_BITS 17
#define EVTCHN_FIFO_LINK_MASK ((1u << EVTCHN_FIFO_LINK_BITS) - 1)
#define EVTCHNSTAT_closed 0
#define EVTCHNSTAT_unbound 1
#define EVTCHNSTAT_interdomain 2
#define EVTCHNSTAT_pirq 3
#define EVTCHNSTAT_virq 4
#define EVTCHNSTAT_ipi 5

struct evtchn_fifo_control_block {
    u32 ready, _rsvd;
    u32 head[EVTCHN_FIFO_PRIORITY_MIN + 1];
};

#define VIRQ_TIMER 0
#define VIRQ_DEBUG 1
#define VIRQ_CONSOLE 2
#define VIRQ_DOM_EXC 3

/* callback.h */
#define CALLBACKOP_register 0
#define CALLBACKOP_unregister 1
#define CALLBACKTYPE_event 0
#define CALLBACKTYPE_failsafe 1
#define CALLBACKTYPE_syscall 2
#define CALLBACKTYPE_sysenter 5
#define CALLBACKTYPE_nmi 4
#define CALLBACKTYPE_syscall32 7
#define CALLBACKF_mask_events 1

struct callback_register {
    u16 type;
    u16 flags;
#ifndef __x86_64__
    ulong cs;
#endif
    ulong address;
};

struct callback_unregister {
    u16 type;
    u16 pad;
};

/* arch-x86/xen.h: one row of the trap table. */
struct trap_info {
    u8 vector;
    u8 flags; /* bits 0-1: DPL; bit 2: mask events on entry */
    u16 cs;
    ulong address;
};

/* xen.h: page tables. */
#define PTE_PRESENT 0x001ull
#define PTE_RW 0x002ull
#define PTE_USER 0x004ull
#define PTE_ACCESSED 0x020ull
#define PTE_DIRTY 0x040ull
#define PTE_PSE 0x080ull
#define PTE_GLOBAL 0x100ull
#define PTE_NX 0x8000000000000000ull
#define PTE_MFN(pte) (((pte) & 0x000ffffffffff000ull) >> PAGE_SHIFT)

#define MMU_NORMAL_PT_UPDATE 0
#define MMU_MACHPHYS_UPDATE 1
#define MMU_PT_UPDATE_PRESERVE_AD 2
#define MMU_PT_UPDATE_NO_TRANSLATE 3

struct mmu_update {
    u64 ptr; /* machine address of the entry, the command in bits 0-1 */
    u64 val;
};

#define UVMF_NONE 0ul
#define UVMF_TLB_FLUSH 1ul
#define UVMF_INVLPG 2ul
#define UVMF_LOCAL 0ul
#define UVMF_ALL 4ul

#define MMUEXT_PIN_L1_TABLE 0
#define MMUEXT_PIN_L2_TABLE 1
#define MMUEXT_PIN_L3_TABLE 2
#define MMUEXT_PIN_L4_TABLE 3
#define MMUEXT_UNPIN_TABLE 4
#define MMUEXT_NEW_BASEPTR 5
#define MMUEXT_TLB_FLUSH_LOCAL 6
#define MMUEXT_INVLPG_LOCAL 7
#define MMUEXT_TLB_FLUSH_MULTI 8
#define MMUEXT_INVLPG_MULTI 9
#define MMUEXT_TLB_FLUSH_ALL 10
#define MMUEXT_INVLPG_ALL 11
#define MMUEXT_FLUSH_CACHE 12
#define MMUEXT_SET_LDT 13
#define MMUEXT_NEW_USER_BASEPTR 15
#define MMUEXT_CLEAR_PAGE 16
#define MMUEXT_COPY_PAGE 17
#define MMUEXT_FLUSH_CACHE_GLOBAL 18
#define MMUEXT_MARK_SUPER 19
#define MMUEXT_UNMARK_SUPER 20

struct mmuext_op {
    u32 cmd;
    ulong arg1; /* mfn or linear address */
    ulong arg2; /* nr_ents, vcpumask or src_mfn */
};

/* memory.h */
#define XENMEM_increase_reservation 0
#define XENMEM_decrease_reservation 1
#define XENMEM_maximum_ram_page 2
#define XENMEM_current_reservation 3
#define XENMEM_maximum_reservation 4
#define XENMEM_machphys_mfn_list 5
#define XENMEM_populate_physmap 6
#define XENMEM_add_to_physmap 7
#define XENMEM_memory_map 9
#define XENMEM_machine_memory_map 10
#define XENMEM_exchange 11
#define XENMEM_machphys_mapping 12
#define XENMEM_maximum_gpfn 14

struct xen_memory_reservation {
    ulong *extent_start;
    ulong nr_extents;
    u32 extent_order;
    u32 mem_flags;
    u16 domid;
};

struct xen_memory_exchange {
    struct xen_memory_reservation in;
    struct xen_memory_reservation out;
    ulong nr_exchanged;
};

struct xen_machphys_mapping {
    ulong v_start, v_end;
    ulong max_mfn;
};

struct xen_memory_map {
    u32 nr_entries;
    void *buffer;
};

/* version.h */
#define XENVER_version 0
#define XENVER_extraversion 1
#define XENVER_compile_info 2
#define XENVER_capabilities 3
#define XENVER_changeset 4
#define XENVER_platform_parameters 5
#define XENVER_get_features 6
#define XENVER_pagesize 7
#define XENVER_guest_handle 8
#define XENVER_commandline 9
#define XENVER_build_id 10

struct xen_feature_info {
    u32 submap_idx;
    u32 submap;
};

/* vcpu.h */
#define VCPUOP_initialise 0
#define VCPUOP_up 1
#define VCPUOP_down 2
#define VCPUOP_is_up 3
#define VCPUOP_get_runstate_info 4
#define VCPUOP_register_runstate_memory_area 5
#define VCPUOP_set_periodic_timer 6
#define VCPUOP_stop_periodic_timer 7
#define VCPUOP_set_singleshot_timer 8
#define VCPUOP_stop_singleshot_timer 9
#define VCPUOP_register_vcpu_info 10
#define VCPUOP_send_nmi 11
#define VCPUOP_get_physid 12
#define VCPUOP_register_vcpu_time_memory_area 13
#define VCPU_SSHOTTMR_future 1u

struct vcpu_set_singleshot_timer {
    u64 timeout_abs_ns;
    u32 flags;
};

struct vcpu_runstate_info {
    int state;
    u64 state_entry_time;
    u64 time[4];
} __attribute__((packed, aligned(4)));

/* arch-x86/xen.h: the whole of a vCPU, as VCPUOP_initialise takes it. */
#define VGCF_i387_valid 1ul
#define VGCF_in_kernel 4ul

#ifdef __x86_64__
struct cpu_user_regs {
    u64 r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi;
    u32 error_code, entry_vector;
    u64 rip;
    u16 cs, pad0;
    u8 saved_upcall_mask, pad1[3];
    u64 rflags, rsp;
    u16 ss, pad2[3], es, pad3[3], ds, pad4[3], fs, pad5[3], gs, pad6[3];
};
#else
struct cpu_user_regs {
    u32 ebx, ecx, edx, esi, edi, ebp, eax;
    u16 error_code, entry_vector;
    u32 eip;
    u16 cs;
    u8 saved_upcall_mask, pad0;
    u32 eflags, esp;
    u16 ss, pad1, es, pad2, ds, pad3, fs, pad4, gs, pad5;
};
#endif

struct vcpu_guest_context {
    u8 fpu_ctxt[512];
    ulong flags;
    struct cpu_user_regs user_regs;
    struct trap_info trap_ctxt[256];
    ulong ldt_base, ldt_ents;
    ulong gdt_frames[16], gdt_ents;
    ulong kernel_ss, kernel_sp;
    ulong ctrlreg[8];
    ulong debugreg[8];
#ifdef __x86_64__
    ulong event_callback_eip, failsafe_callback_eip, syscall_callback_eip;
#else
    ulong event_callback_cs, event_callback_eip;
    ulong failsafe_callback_cs, failsafe_callback_eip;
#endif
    ulong vm_assist;
#ifdef __x86_64__
    u64 fs_base, gs_base_kernel, gs_base_user;
#endif
};

/* xen.h: multicall. On i386 every field is 32 bits wide. */
struct multicall_entry {
    ulong op;
    long result;
    ulong args[6];
};

/* xen.h: vm_assist. */
#define VMASST_CMD_enable 0
#define VMASST_CMD_disable 1
#define VMASST_TYPE_4gb_segments 0
#define VMASST_TYPE_4gb_segments_notify 1
#define VMASST_TYPE_writable_pagetables 2
#define VMASST_TYPE_pae_extended_cr3 3
#define VMASST_TYPE_architectural_iopl 4
#define VMASST_TYPE_runstate_update_flag 5
#define VMASST_TYPE_m2p_strict 32

/* grant_table.h */
#define GNTTABOP_map_grant_ref 0
#define GNTTABOP_unmap_grant_ref 1
#define GNTTABOP_setup_table 2
#define GNTTABOP_dump_table 3
#define GNTTABOP_transfer 4
#define GNTTABOP_copy 5
#define GNTTABOP_query_size 6
#define GNTTABOP_unmap_and_replace 7
#define GNTTABOP_set_version 8
#define GNTTABOP_get_status_frames 9
#define GNTTABOP_get_version 10
#define GNTTABOP_swap_grant_ref 11

#endif
