/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Where Xen comes in: a stub for each vector, the event upcall and the failsafe callback. Each leaves a struct
 * regs (guest.h) on the stack, calls C, and goes back through the iret hypercall, which sets the event mask
 * from the saved flags' IF in the same step, as no plain iret could.
 */
#define IRET_STUB (hypercall_page + 23 * 32)
#define VECTOR_EVENT 0x100
#define VECTOR_FAILSAFE 0x101

    .text
#ifdef __x86_64__
    /* Xen pushes rcx and r11 above what the CPU would, for its own return by sysret. */
    .macro TAKE_XENS_REGISTERS
    popq %rcx
    popq %r11
    .endm
    .macro PUSH value
    pushq $\value
    .endm
common:
    pushq %rax
    pushq %rbx
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %rbp
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    cld
    movq %rsp, %rdi
    movq %rsp, %rbx
    andq $-16, %rsp
    call from_xen
    movq %rbx, %rsp
    .globl return_to
return_to:
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rbp
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rbx
    popq %rax
    addq $16, %rsp
    pushq $0                    /* no VGCF_in_syscall: rcx and r11 are restored */
    jmp IRET_STUB
#else
    .macro TAKE_XENS_REGISTERS
    .endm
    .macro PUSH value
    pushl $\value
    .endm
common:
    pushal
    cld
    pushl %esp
    call from_xen
    addl $4, %esp
    .globl return_to
return_to:
    popal
    addl $8, %esp
    jmp IRET_STUB
#endif

/* void enter_regs(struct regs *regs): go on as regs say; what is below regs->ip in *regs is overwritten. */
    .globl enter_regs
enter_regs:
#ifdef __x86_64__
    movq %rdi, %rsp
#else
    movl 4(%esp), %esp
#endif
    jmp return_to

    .macro TRAP vector, pushes_error_code=0
entry_\vector:
    TAKE_XENS_REGISTERS
    .if \pushes_error_code == 0
    PUSH 0
    .endif
    PUSH \vector
    jmp common
    .endm

    TRAP 0
    TRAP 1
    TRAP 2
    TRAP 3
    TRAP 4
    TRAP 5
    TRAP 6
    TRAP 7
    TRAP 8, 1
    TRAP 9
    TRAP 10, 1
    TRAP 11, 1
    TRAP 12, 1
    TRAP 13, 1
    TRAP 14, 1
    TRAP 15
    TRAP 16
    TRAP 17, 1
    TRAP 18
    TRAP 19
    TRAP 128

    .globl event_entry
event_entry:
    TAKE_XENS_REGISTERS
    PUSH 0
    PUSH VECTOR_EVENT
    jmp common

    .globl failsafe_entry
failsafe_entry:                 /* ds, es, fs and gs lie above the frame, as they were to be loaded */
#ifdef __x86_64__
    TAKE_XENS_REGISTERS
    addq $32, %rsp
#else
    addl $16, %esp
#endif
    PUSH 0
    PUSH VECTOR_FAILSAFE
    jmp common

/* int probe_call(void (*function)(void *), void *argument): 0 when it returned, 1 when probe_escape ended it. */
    .globl probe_call, probe_escape
#ifdef __x86_64__
probe_call:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, probe_stack
    subq $8, %rsp
    movq %rdi, %rax
    movq %rsi, %rdi
    call *%rax
    xorl %eax, %eax
    jmp 1f
probe_escape:
    movl $1, %eax
1:  movq probe_stack, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
#else
probe_call:
    pushl %ebp
    pushl %ebx
    pushl %esi
    pushl %edi
    movl 20(%esp), %eax
    movl 24(%esp), %edx
    movl %esp, probe_stack
    pushl %edx
    call *%eax
    xorl %eax, %eax
    jmp 1f
probe_escape:
    movl $1, %eax
1:  movl probe_stack, %esp
    popl %edi
    popl %esi
    popl %ebx
    popl %ebp
    ret
#endif

    .section .bss
    .balign 8
probe_stack:
    .skip 8

    .section .rodata
    .balign 8
    .globl trap_entries
trap_entries:
#ifdef __x86_64__
#define ADDRESS .quad
#else
#define ADDRESS .long
#endif
    ADDRESS entry_0, entry_1, entry_2, entry_3, entry_4, entry_5, entry_6, entry_7, entry_8, entry_9
    ADDRESS entry_10, entry_11, entry_12, entry_13, entry_14, entry_15, entry_16, entry_17, entry_18, entry_19
    .globl entry_syscall
entry_syscall:
    ADDRESS entry_128
