/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A few instructions in user mode: ring 3 under a 32-bit kernel, CPL 3 with the user page tables under a
 * 64-bit one. Both see the kernel's mapping here; user pages are those with the USER bit.
 */
#include "guest.h"

void enter_regs(struct regs *regs) __attribute__((noreturn));

static u8 kernel_stack[2 * PAGE_SIZE] PAGE_ALIGNED;
static struct {
    u8 *code, *stack;
} user;

/* The kernel's data segments would be emptied on the way to ring 3; those of user mode serve both. */
static void go(void *argument)
{
#ifndef __x86_64__
    __asm__ volatile("mov %0, %%ds; mov %0, %%es" : : "r"(FLAT_USER_DS));
#endif
    enter_regs(argument);
}

static u8 *user_page(void)
{
    u8 *page = alloc_page();
    set_va(page, *pte_of(page, 1) | PTE_USER, UVMF_INVLPG);
    return page;
}

static void prepare(void)
{
    user.code = user_page();
    user.stack = user_page();
    HYPERCALL2(stack_switch, FLAT_KERNEL_SS, kernel_stack + sizeof(kernel_stack));
#ifdef __x86_64__
    mmuext(MMUEXT_NEW_USER_BASEPTR, virt_to_mfn((void *)start_info->pt_base), 0);
#endif
}

ulong user_code(void)
{
    if (!user.code)
        prepare();
    return (ulong)user.code;
}

/* Run `size` bytes of code in user mode, with `ax` in its accumulator, until it traps. */
struct trap run_user(const void *code, ulong size, ulong ax)
{
    struct regs regs;
    memset(&regs, 0, sizeof(regs));
    memcpy((void *)user_code(), code, size);
    regs.ax = ax;
    regs.ip = (ulong)user.code;
    regs.cs = FLAT_USER_CS;
    regs.flags = 0x202;
    regs.sp = (ulong)user.stack + PAGE_SIZE;
    regs.ss = FLAT_USER_SS;
    return probe(go, &regs);
}
