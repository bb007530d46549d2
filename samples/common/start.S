/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The first instructions of every sample, and the notes by which Xen knows it. Xen enters at _start on its own
 * boot stack with the address of start_info in esi/rsi; we move to a stack of our own and call guest_main.
 */
#ifdef __x86_64__
#define ADDRESS .quad
#define ADDRESS_SIZE 8
#define VIRT_BASE 0xffffffff80000000
#else
#define ADDRESS .long
#define ADDRESS_SIZE 4
#define VIRT_BASE 0xc0000000
#endif

    .section .text.start, "ax", @progbits
    .globl _start
_start:
    cld
#ifdef __x86_64__
    movq $boot_stack_end, %rsp
    xorl %ebp, %ebp
    movq %rsi, %rdi
    call guest_main
#else
    movl $boot_stack_end, %esp
    xorl %ebp, %ebp
    pushl %esi
    call guest_main
#endif
1:  jmp 1b

/* long hypercall(ulong nr, ulong a1, ulong a2, ulong a3, ulong a4, ulong a5): through the page Xen filled in. */
    .text
    .globl hypercall
hypercall:
#ifdef __x86_64__
    movl %edi, %eax
    movq %rsi, %rdi
    movq %rdx, %rsi
    movq %rcx, %rdx
    movq %r8, %r10
    movq %r9, %r8
    shll $5, %eax
    leaq hypercall_page(%rax), %rax
    jmp *%rax
#else
    pushl %ebx
    pushl %esi
    pushl %edi
    movl 16(%esp), %eax
    movl 20(%esp), %ebx
    movl 24(%esp), %ecx
    movl 28(%esp), %edx
    movl 32(%esp), %esi
    movl 36(%esp), %edi
    shll $5, %eax
    addl $hypercall_page, %eax
    call *%eax
    popl %edi
    popl %esi
    popl %ebx
    ret
#endif

    .section .hypercall_page, "ax", @progbits
    .balign 4096
    .globl hypercall_page
hypercall_page:
    .skip 4096, 0xcc

    .section .bss.stack, "aw", @nobits
    .balign 4096
    .globl boot_stack
boot_stack:
    .skip 16384
    .globl boot_stack_end
boot_stack_end:

/* One note: name "Xen", a type of elfnote.h, and a descriptor of `size` bytes. */
    .macro NOTE_STRING type, text
    .long 4, 2f - 1f, \type
    .asciz "Xen"
1:  .asciz "\text"
2:  .balign 4
    .endm
    .macro NOTE_ADDRESS type, value
    .long 4, ADDRESS_SIZE, \type
    .asciz "Xen"
    ADDRESS \value
    .balign 4
    .endm

#ifndef XEN_FEATURES
#define XEN_FEATURES "!writable_page_tables|pae_pgdir_above_4gb"
#endif

    .section .note.Xen, "a", @note
    NOTE_STRING 6, "sample"                 /* GUEST_OS */
    NOTE_STRING 5, "xen-3.0"                /* XEN_VERSION */
    NOTE_STRING 8, "generic"                /* LOADER */
#ifdef PAE_MODE_NO
    NOTE_STRING 9, "no"                     /* PAE_MODE */
#else
    NOTE_STRING 9, "yes"
#endif
    NOTE_STRING 10, XEN_FEATURES            /* FEATURES */
    NOTE_ADDRESS 3, VIRT_BASE               /* VIRT_BASE */
    NOTE_ADDRESS 4, 0                       /* PADDR_OFFSET */
    NOTE_ADDRESS 1, _start                  /* ENTRY */
    NOTE_ADDRESS 2, hypercall_page          /* HYPERCALL_PAGE */
