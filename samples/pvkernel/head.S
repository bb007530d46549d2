/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * BOOTING AND SETUP. A PV kernel has no boot protocol but its notes: the domain builder reads them, lays out
 * the address space that they ask for, and starts us at ENTRY: 32-bit protected mode, paging on, flat segments,
 * ring 1, events masked, esi = struct start_info, esp = the end of a boot stack of one page.
 */
#define VIRT_BASE 0xc0000000

    .section .text.start, "ax", @progbits
    .globl startup_xen
startup_xen:
    cld
    movl $boot_stack_end, %esp
    xorl %ebp, %ebp
    pushl %esi
    call start_kernel
1:  jmp 1b

/* A page of stubs, one of 32 bytes for each hypercall: Xen writes them before we start, we only call. */
    .section .text.hypercall_page, "ax", @progbits
    .balign 4096
    .globl hypercall_page
hypercall_page:
    .skip 4096, 0xcc

    .section .bss, "aw", @nobits
    .balign 4096
    .skip 8192
boot_stack_end:

/* An ELF note: lengths of name and descriptor, type, name "Xen", descriptor. Types: public/elfnote.h. */
    .macro NOTE_STRING type, text
    .long 4, 2f - 1f, \type
    .asciz "Xen"
1:  .asciz "\text"
2:  .balign 4
    .endm
    .macro NOTE_ADDRESS type, value
    .long 4, 4, \type
    .asciz "Xen"
    .long \value
    .endm

    .section .note.Xen, "a", @note
    NOTE_STRING 6, "pvkernel"               /* GUEST_OS */
    NOTE_STRING 5, "xen-3.0"                /* XEN_VERSION: the ABI */
    NOTE_STRING 8, "generic"                /* LOADER */
    NOTE_STRING 9, "yes"                    /* PAE_MODE: three-level tables, the only kind left */
    NOTE_STRING 10, "!writable_page_tables|pae_pgdir_above_4gb" /* FEATURES; ! marks a required one */
    NOTE_ADDRESS 3, VIRT_BASE               /* VIRT_BASE: where pfn 0 is to be mapped */
    NOTE_ADDRESS 4, 0                       /* PADDR_OFFSET: our physical addresses begin at 0 */
    NOTE_ADDRESS 1, startup_xen             /* ENTRY */
    NOTE_ADDRESS 2, hypercall_page          /* HYPERCALL_PAGE */
