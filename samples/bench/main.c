/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * What Xen's services cost a guest: each is called many times between two lines, and whoever reads the console
 * takes the time between them, as scripts/bench_xen.py does here and under real Xen. `scale=N` (percent) makes it
 * longer or shorter, `only NAME...` leaves the others out.
 */
#include "guest.h"

static long scale;

static ulong times(ulong count)
{
    return count / 100 * (ulong)scale; /* all are hundreds, of which 32 bits hold enough */
}

/* -- Xen's services */

static void empty_hypercall(ulong count)
{
    while (count--)
        HYPERCALL2(xen_version, XENVER_version, 0);
}

static u8 *target; /* a page that nothing else uses */
static pte_t read_only, writable;

static void update_va_mapping(ulong count)
{
    for (ulong i = 0; i < count; i++)
        set_va(target, i & 1 ? writable : read_only, UVMF_INVLPG);
}

#define LIST 32

static void multicall(ulong count)
{
    struct multicall_entry calls[LIST];
    for (unsigned i = 0; i < LIST; i++) {
        pte_t pte = i & 1 ? writable : read_only;
        calls[i] = (struct multicall_entry){ .op = HYPERCALL_update_va_mapping };
        calls[i].args[0] = (ulong)target;
        calls[i].args[1] = (ulong)pte;
#ifndef __x86_64__
        calls[i].args[2] = (ulong)(pte >> 32);
#endif
    }
    for (ulong i = 0; i < count / LIST; i++)
        HYPERCALL2(multicall, calls, LIST);
}

static void mmu_update(ulong count)
{
    struct mmu_update requests[LIST];
    for (unsigned i = 0; i < LIST; i++) {
        requests[i].ptr = virt_to_machine(pte_of(target, 1));
        requests[i].val = i & 1 ? writable : read_only;
    }
    for (ulong i = 0; i < count / LIST; i++)
        HYPERCALL4(mmu_update, requests, LIST, 0, DOMID_SELF);
}

static ulong roots[2];

static void context_switch(ulong count)
{
    for (ulong i = 0; i < count; i++) {
        HYPERCALL2(stack_switch, 0, (ulong)&i);
        mmuext(MMUEXT_NEW_BASEPTR, roots[i & 1], 0);
    }
}

/* A second address space with the same contents. A PAE guest goes on with the one that it has. */
static void second_root(void)
{
    roots[0] = roots[1] = virt_to_mfn((void *)start_info->pt_base);
#ifdef __x86_64__
    u64 *root = alloc_page(), *old = mfn_to_virt(roots[0]);
    for (unsigned i = 0; i < 512; i++)
        root[i] = i >= 256 && i < 272 ? 0 : old[i];
    make_readonly(root);
    if (!mmuext(MMUEXT_PIN_L4_TABLE, virt_to_mfn(root), 0))
        roots[1] = virt_to_mfn(root);
#endif
}

/* -- traps */

#define LOAD_SIZE 2 /* mov (%rax), %al */

static void skip_load(struct regs *regs)
{
    regs->ip += LOAD_SIZE;
}

static void page_fault(ulong count)
{
    trap_handler(TRAP_PF, skip_load);
    while (count--)
        __asm__ volatile(".byte 0x8a, 0x00" : : "a"(0x1000ul) : "memory");
    trap_handler(TRAP_PF, 0);
}

static void page_table_store(ulong count)
{
    volatile pte_t *entry = pte_of(target, 1);
    HYPERCALL2(vm_assist, VMASST_CMD_enable, VMASST_TYPE_writable_pagetables);
    for (ulong i = 0; i < count; i++)
        *entry = i & 1 ? writable : read_only;
}

/* -- code alone */

static volatile ulong sink;

static void alu(ulong count)
{
    ulong x = 1;
    for (ulong i = 0; i < count; i++)
        x = (x ^ i) * 5;
    sink = x;
}

static void memory(ulong count)
{
    static ulong words[1024];
    for (ulong i = 0; i < count; i++)
        words[i & 1023] += i;
    sink = words[5];
}

static const struct {
    const char *name;
    void (*run)(ulong count);
    ulong count;
} cases[] = {
    { "hypercall", empty_hypercall, 1000000 },
    { "update_va_mapping", update_va_mapping, 200000 },
    { "multicall_entry", multicall, 640000 },
    { "mmu_update_entry", mmu_update, 640000 },
    { "context_switch", context_switch, 100000 },
    { "page_fault", page_fault, 100000 },
    { "page_table_store", page_table_store, 100000 },
    { "alu", alu, 400000000 },
    { "memory", memory, 51200000 },
};

int main(void)
{
    scale = command_line_number("scale", 100);
    target = alloc_page();
    target[0] = 1;
    writable = *pte_of(target, 1);
    read_only = writable & ~(pte_t)PTE_RW;
    second_root();
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
        ulong count = times(cases[i].count);
        if (on_command_line("only") && !on_command_line(cases[i].name)) /* "only NAME..." */
            continue;
        printf("bench begin %s %lu\n", cases[i].name, count);
        console_drain();
        cases[i].run(count);
        printf("bench end %s\n", cases[i].name);
        console_drain();
    }
    return 0;
}
