/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * There is no such Xen any more; the rules are those of Xen 4.17 for the tables that both kinds have, and those of
 * Xen 3.x for where its own entries lie: at the top of every L2, from 0xfc000000 on.
 */
#include "conform.h"

const char test_title[] = "Two levels: 1024 entries of four bytes, changed one at a time";

#define HYPERVISOR_VIRT_START 0xfc000000ul
#define BEYOND_MEMORY 0xfffff000u

static u32 *entry;

static long update(u64 ptr, u64 val)
{
    struct mmu_update request = { ptr, val };
    return HYPERCALL4(mmu_update, &request, 1, 0, DOMID_SELF);
}

static void what_the_builder_made(void)
{
    u32 *base = (u32 *)start_info->pt_base;
    EXPECT(!strcmp(start_info->magic, "xen-3.0-x86_32"));
    EXPECT_EQUAL(pte_of((void *)VIRT_BASE, 2) - base, VIRT_BASE >> 22);
    EXPECT_EQUAL(start_info->nr_pt_frames, 2); /* the L2, and one L1 for the first 4 MiB */
    for (u32 i = 0; i < start_info->nr_pt_frames; i++)
        EXPECT_EQUAL(*pte_of((u8 *)base + i * PAGE_SIZE, 1) & PTE_RW, 0);
    EXPECT_EQUAL(base[0], 0);
    EXPECT_EQUAL(*pte_of((void *)start_info, 1) >> PAGE_SHIFT, virt_to_mfn(start_info));
}

static void one_entry(u8 *page, u8 *other)
{
    u64 at = virt_to_machine(entry);
    u32 old = *entry, before = entry[-1], after = entry[1];

    other[5] = 0x5a;
    EXPECT_OK(update(at, virt_to_machine(other) | PTE_PRESENT | PTE_RW));
    mmuext(MMUEXT_INVLPG_LOCAL, (ulong)page, 0);
    EXPECT_EQUAL(page[5], 0x5a);
    EXPECT_EQUAL(entry[-1], before); /* four bytes, and not eight */
    EXPECT_EQUAL(entry[1], after);
    EXPECT_OK(update(at, old));
    EXPECT_OK(update(at + 4, after));
    page[0] = 1;
    EXPECT_OK(update(at | MMU_PT_UPDATE_PRESERVE_AD, old & ~(u32)(PTE_ACCESSED | PTE_DIRTY)));
    EXPECT_EQUAL(*entry & (PTE_ACCESSED | PTE_DIRTY), PTE_ACCESSED | PTE_DIRTY);
    /* An entry has no upper half: bits that a PAE guest would use are not there. */
    EXPECT_OK(update(at, old | 0xffffffff00000000ull));
    EXPECT_EQUAL(*entry, old);
    EXPECT_OK(HYPERCALL4(update_va_mapping, page, old, 0xffffffff, UVMF_INVLPG));
    EXPECT_EQUAL(*entry, old);

    ulong mfn = virt_to_mfn(page), pfn = mfn_to_pfn(mfn);
    EXPECT_OK(update(((u64)mfn << PAGE_SHIFT) | MMU_MACHPHYS_UPDATE, 0x12345));
    EXPECT_EQUAL(mfn_to_pfn(mfn), 0x12345);
    EXPECT_OK(update(((u64)mfn << PAGE_SHIFT) | MMU_MACHPHYS_UPDATE, pfn));
}

static void refused_in_an_l1(void)
{
    u64 at = virt_to_machine(entry);
    u32 old = *entry;
    struct mmu_update pair[2] = { { at, old }, { at, BEYOND_MEMORY | PTE_PRESENT } };
    u32 done = 77;
    EXPECT_REFUSED(update(at, virt_to_machine((void *)start_info->pt_base) | PTE_PRESENT | PTE_RW), EBUSY);
    EXPECT_OK(update(at, virt_to_machine((void *)start_info->pt_base) | PTE_PRESENT));
    EXPECT_OK(update(at, old));
    EXPECT_REFUSED(update(at, BEYOND_MEMORY | PTE_PRESENT), EPERM); /* I/O space, and we are no driver domain */
    EXPECT_REFUSED(update(at, old | PTE_PSE), EINVAL);
    EXPECT_OK(update(at | MMU_PT_UPDATE_NO_TRANSLATE, old)); /* the low two bits are the command, here too */
    EXPECT_REFUSED(HYPERCALL4(mmu_update, pair, 2, &done, DOMID_SELF), EPERM);
    EXPECT_EQUAL(done, 1);
    EXPECT_EQUAL(*entry, old);
    EXPECT_REFUSED(set_va((void *)0x10000000, old, UVMF_NONE), EINVAL); /* no table there */
    EXPECT_REFUSED(set_va((void *)HYPERVISOR_VIRT_START, old, UVMF_NONE), EINVAL);
    EXPECT_REFUSED(set_va((void *)0xffffffff, old, UVMF_NONE), EINVAL);
}

static void store(void *address)
{
    *(volatile u32 *)address = 0;
}

static void load(void *address)
{
    *(volatile u32 *)address;
}

/*
 * Segments end where the machine-to-phys table does. That table can be read; what lies above gives the #GP or the
 * #SS of a limit, whether anything is mapped there or not: the descriptor tables are, from 0xff800000 on, with
 * Xen's own entries in the page at 0xff80e000.
 */
static void xens_range(void)
{
    ulong m2p_entry = HYPERVISOR_VIRT_START + 4 * virt_to_mfn(start_info);
    EXPECT_NO_TRAP(load, m2p_entry);
    EXPECT_TRAP(store, m2p_entry, TRAP_PF, 3);
    EXPECT_TRAP(store, HYPERVISOR_VIRT_START + 0x400000, TRAP_GP, 0);
    EXPECT_TRAP(load, HYPERVISOR_VIRT_START + 0x800000, TRAP_GP, 0);
    EXPECT_TRAP(store, 0xff800000, TRAP_GP, 0);
    EXPECT_TRAP(store, 0xff80e018, TRAP_GP, 0);
    EXPECT_TRAP(store, 0xfffffffc, TRAP_GP, 0);
}

/* The same for ring 3, where the stack may be anywhere. */
static void from_user_mode(void)
{
    static const u8 push[] = { 0x89, 0xc4, 0x50 };  /* mov %eax, %esp; push %eax */
    static const u8 write[] = { 0xc6, 0x00, 0x01 }; /* movb $1, (%eax) */
    struct trap trap = run_user(push, sizeof(push), HYPERVISOR_VIRT_START + 0x800000);
    EXPECT_EQUAL(trap.vector, TRAP_SS);
    EXPECT_EQUAL(trap.error_code, 0);
    trap = run_user(write, sizeof(write), HYPERVISOR_VIRT_START + 0x800000);
    EXPECT_EQUAL(trap.vector, TRAP_GP);
    EXPECT_EQUAL(trap.error_code, 0);
    trap = run_user(write, sizeof(write), HYPERVISOR_VIRT_START);
    EXPECT_EQUAL(trap.vector, TRAP_PF);
    EXPECT_EQUAL(trap.error_code, 7);
}

/* A GDT of our own, of descriptors that nobody has used: the processor notes the first use. */
static void a_gdt(void)
{
    static u64 gdt[512] __attribute__((aligned(4096)));
    ulong frame = virt_to_mfn(gdt);
    gdt[1] = 0x00cfb2000000ffffull; /* 4 GiB of data, DPL 1, not accessed */
    gdt[2] = 0x0040b20000000fffull; /* 4 KiB from 0 on */
    EXPECT_OK(make_readonly(gdt));
    EXPECT_OK(HYPERCALL2(set_gdt, &frame, 512));
    EXPECT_EQUAL(gdt[1], 0x00cfb2000000c3ffull); /* cut off at 0xfc400000 */
    __asm__ volatile("movl %0, %%fs\n\tmovl %1, %%gs" : : "r"(0x09), "r"(0x11));
    EXPECT_EQUAL(gdt[1], 0x00cfb3000000c3ffull);
    EXPECT_EQUAL(gdt[2], 0x0040b30000000fffull);
    __asm__ volatile("movl %0, %%fs\n\tmovl %0, %%gs" : : "r"(0));
    EXPECT_TRAP(store, 0xff800008, TRAP_GP, 0); /* it is mapped there */
    EXPECT_TRAP(store, 0xff800018, TRAP_GP, 0);
    EXPECT_OK(HYPERCALL2(set_gdt, &frame, 0));
    EXPECT_OK(make_writable(gdt));
}

void conform(void)
{
    u8 *page = alloc_page(), *other = alloc_page();
    entry = pte_of(page, 1);
    what_the_builder_made();
    one_entry(page, other);
    refused_in_an_l1();
    xens_range();
    from_user_mode();
    a_gdt();
}
