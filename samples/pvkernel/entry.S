/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * UPCALLS, and the traps. Xen builds the frame that the processor would have built: [error code], ip, cs, flags
 * and from ring 3 also sp and ss; on the stack of stack_switch when it came from ring 3. Two things differ: the
 * upper half of cs holds the event mask as it was, and IF in flags is its negation.
 *
 * The way back is the iret hypercall: it sets the event mask from the frame's IF and returns, in one step. (An
 * iret of our own works from ring 1 to ring 3, but then the mask is cleared some instructions earlier, and an
 * event in between would have to be noticed by its address. Linux does that, to save the trap.)
 */
#include "segments.h"

#define IRET_STUB (hypercall_page + 23 * 32)
#define VECTOR_EVENT 0x100
#define VECTOR_FAILSAFE 0x101

    .text
/* On the stack: vector, error code, and Xen's frame. Leaves a struct regs (kernel.h). */
common:
    pushl %ds
    pushl %es
    pushal
    cld
    movl $USER_DS, %eax         /* as Linux: a return to ring 3 would null a segment of ring 1 */
    movl %eax, %ds
    movl %eax, %es
    pushl %esp
    call from_xen
    addl $4, %esp
    .globl return_from_trap
return_from_trap:
    popal
    popl %es
    popl %ds
    addl $8, %esp
    jmp IRET_STUB               /* it pushes eax, where iret looks for it */

    .macro TRAP name, vector, has_error_code=0
    .globl entry_\name
entry_\name:
    .if \has_error_code == 0
    pushl $0
    .endif
    pushl $\vector
    jmp common
    .endm

    TRAP divide_error, 0
    TRAP debug, 1
    TRAP breakpoint, 3
    TRAP overflow, 4
    TRAP bounds, 5
    TRAP invalid_op, 6
    TRAP device_not_available, 7
    TRAP double_fault, 8, 1
    TRAP invalid_tss, 10, 1
    TRAP segment_not_present, 11, 1
    TRAP stack_segment, 12, 1
    TRAP general_protection, 13, 1
    TRAP page_fault, 14, 1
    TRAP coprocessor_error, 16
    TRAP alignment_check, 17, 1
    TRAP system_call, 0x80
    TRAP event, VECTOR_EVENT

/*
 * The failsafe callback: Xen could not load a segment register, on its way back to us or to a process, has left
 * all four null, and tells the selectors: ds, es, fs and gs lie below the frame.
 */
    .globl entry_failsafe
entry_failsafe:
    addl $16, %esp
    pushl $0
    pushl $VECTOR_FAILSAFE
    jmp common

/* void switch_stacks(ulong *save, ulong load): returns on the other stack, to whoever left it there. */
    .globl switch_stacks
switch_stacks:
    movl 4(%esp), %eax
    movl 8(%esp), %edx
    pushl %ebp
    pushl %ebx
    pushl %esi
    pushl %edi
    movl %esp, (%eax)
    movl %edx, %esp
    popl %edi
    popl %esi
    popl %ebx
    popl %ebp
    ret
