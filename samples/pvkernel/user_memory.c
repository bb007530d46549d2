/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A process's address space: an L3 of its own, with the user's part in slot 0 and the kernel in slot 3. The
 * kernel's L1 tables are shared by all; its L2 cannot be, because Xen keeps its own entries in the L2 of slot 3
 * and so wants one for each L3.
 *
 * Tables are filled in as plain memory, made read-only, and pinned: Xen then checks the whole tree once, and it
 * stays valid while no processor uses it. All of that is one multicall.
 *
 * The program is mapped at once; its data read-only until the process writes there (copy-on-write), heap and
 * stack not at all until it touches them (demand paging).
 */
#include "kernel.h"

extern u8 user_start[], user_data[], user_end[], user_image[];

#define USER_REGION 0x08000000ul /* what the one L1 table maps */
#define HEAP_START 0x08100000ul
#define HEAP_END 0x08110000ul
#define STACK_START 0x081f0000ul
#define STACK_END 0x08200000ul
#define FIRST_XEN_SLOT ((hypervisor_virt_start >> 21) & (PTRS_PER_TABLE - 1))

#define PTE_COW 0x200ull /* one of three bits that are ours */
#define PFEC_PRESENT 1
#define PFEC_WRITE 2
#define PTE_PROCESS (PTE_PRESENT | PTE_USER | PTE_ACCESSED)

ulong demand_faults, cow_faults;

static pte_t *l1_entry(struct mm *mm, ulong va)
{
    return mm->l1 + ((va >> PAGE_SHIFT) & (PTRS_PER_TABLE - 1));
}

static int within(ulong va, const u8 *start, const u8 *end)
{
    return va >= (ulong)start && va < (ulong)end;
}

static int demand_paged(ulong va)
{
    return (va >= HEAP_START && va < HEAP_END) || (va >= STACK_START && va < STACK_END);
}

static void map_program(struct mm *mm)
{
    for (ulong va = (ulong)user_start; va < (ulong)user_end; va += PAGE_SIZE) {
        const u8 *page = user_image + (va - (ulong)user_start); /* as the kernel sees it */
        pte_t flags = va >= (ulong)user_data ? PTE_PROCESS | PTE_COW | pte_nx : PTE_PROCESS;
        *l1_entry(mm, va) = mk_pte(page, flags);
    }
}

void mm_create(struct mm *mm)
{
    pte_t *init_l2 = mfn_to_virt((ulong)PTE_MFN(init_l3[3]));
    mm->l3 = alloc_page();
    mm->l2_user = alloc_page();
    mm->l2_kernel = alloc_page();
    mm->l1 = alloc_page();
    map_program(mm);
    mm->l2_user[USER_REGION / TABLE_SPAN] = mk_pte(mm->l1, PTE_PROCESS | PTE_RW);
    memcpy(mm->l2_kernel, init_l2, FIRST_XEN_SLOT * sizeof(pte_t));
    mm->l3[0] = mk_pte(mm->l2_user, PTE_PRESENT);
    mm->l3[3] = mk_pte(mm->l2_kernel, PTE_PRESENT);
    mc_make_readonly(mm->l1);
    mc_make_readonly(mm->l2_kernel);
    mc_make_readonly(mm->l2_user);
    mc_make_readonly(mm->l3);
    mc_mmuext(MMUEXT_PIN_L3_TABLE, virt_to_mfn(mm->l3));
    mc_flush("a new address space");
}

/* To be called in another address space. Unpinned and used by nobody, the tables are plain memory again. */
void mm_destroy(struct mm *mm)
{
    mc_mmuext(MMUEXT_UNPIN_TABLE, virt_to_mfn(mm->l3));
    mc_make_writable(mm->l3);
    mc_make_writable(mm->l2_user);
    mc_make_writable(mm->l2_kernel);
    mc_make_writable(mm->l1);
    mc_flush("the end of an address space");
    for (ulong i = 0; i < PTRS_PER_TABLE; i++)
        if (mm->l1[i] & PTE_RW) /* what was mapped writable was this process's own */
            free_page(mfn_to_virt((ulong)PTE_MFN(mm->l1[i])));
    free_page(mm->l1);
    free_page(mm->l2_kernel);
    free_page(mm->l2_user);
    free_page(mm->l3);
}

/*
 * The entry is in a live table, which the kernel sees read-only: this store faults, and Xen, which was asked
 * for writable page tables (vm_assist), checks the new entry and carries the store out. One instruction for the
 * eight bytes, so that no half of an entry is ever seen.
 */
static void set_pte_in_place(pte_t *entry, pte_t value)
{
    pte_t old = *entry;
    u8 done;
    __asm__ volatile("lock; cmpxchg8b %0; sete %1"
                     : "+m"(*entry), "=q"(done), "+A"(old)
                     : "b"((u32)value), "c"((u32)(value >> 32))
                     : "memory", "cc");
    if (!done)
        panic("a page-table entry changed by itself");
}

static void copy_on_write(struct mm *mm, ulong va)
{
    pte_t *entry = l1_entry(mm, va);
    u8 *copy = memcpy(alloc_page(), mfn_to_virt((ulong)PTE_MFN(*entry)), PAGE_SIZE);
    set_pte_in_place(entry, mk_pte(copy, PTE_PROCESS | PTE_RW | PTE_DIRTY | pte_nx));
    mc_mmuext(MMUEXT_INVLPG_LOCAL, va); /* invlpg, as the hypercall that it is here */
    mc_flush("invlpg");
    cow_faults++;
}

static void demand_zero(ulong va)
{
    pte_t pte = mk_pte(alloc_page(), PTE_PROCESS | PTE_RW | PTE_DIRTY | pte_nx);
    must(HYPERCALL4(update_va_mapping, va & -PAGE_SIZE, pte, pte >> 32, UVMF_INVLPG), "update_va_mapping");
    demand_faults++;
}

/* A fault at `va`, in the current address space: 1 when it is made good. */
int user_fault(struct mm *mm, ulong va, ulong error_code)
{
    if (!mm->l3)
        return 0;
    if (!(error_code & PFEC_PRESENT) && demand_paged(va)) {
        demand_zero(va);
        return 1;
    }
    if ((error_code & PFEC_PRESENT) && (error_code & PFEC_WRITE) && within(va, user_data, user_end)
        && (*l1_entry(mm, va) & PTE_COW)) {
        copy_on_write(mm, va);
        return 1;
    }
    return 0;
}

/* Whether the kernel may read [va, va + size) on a process's behalf: pages that a fault can make good. */
int user_range_okay(ulong va, ulong size)
{
    for (ulong left = size; left; left--, va++)
        if (!within(va, user_start, user_end) && !demand_paged(va))
            return 0;
    return 1;
}
