/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * pv_ro_page_fault() looks at the entry that maps the address and at no other: a store to an L1 table is emulated where
 * that entry is read-only, whatever the entries above it allow, and though it is an upper entry that a linear page table
 * shows. Elsewhere what is read-only above is read-only, to the guest and to Xen's copies.
 */
#include "conform.h"

const char test_title[] = "Stores to a leaf table through upper entries that are read-only";

static u8 *const fresh = (u8 *)(VIRT_BASE + 0x10000000ul);
static pte_t *table, *window;
static u8 *page, *other;
static u32 value;

static void by_mov(void *at)
{
    *(volatile u32 *)at = value;
}

static void by_add(void *at)
{
    __asm__ volatile("addl %1, %0" : "+m"(*(volatile u32 *)at) : "r"(value) : "cc");
}

static void by_bts(void *at)
{
    __asm__ volatile("lock; btsl $9, %0" : "+m"(*(volatile u32 *)at) : : "cc");
}

static void load(void *at)
{
    *(volatile u8 *)at;
}

/* Entry 3 of the table is stored to, where the guest sees it at `entries`. */
static void stores_at(pte_t *entries)
{
    u8 *mapped = fresh + 3 * PAGE_SIZE;
    pte_t *low = &entries[3];

    value = (u32)virt_to_machine(page) | PTE_PRESENT;
    EXPECT_NO_TRAP(by_mov, low);
    EXPECT_EQUAL(mapped[0], 1);
    value = (u32)(virt_to_machine(other) - virt_to_machine(page));
    EXPECT_NO_TRAP(by_add, low);
    mmuext(MMUEXT_INVLPG_LOCAL, (ulong)mapped, 0);
    EXPECT_EQUAL(mapped[0], 2);
    EXPECT_NO_TRAP(by_bts, low);
    EXPECT_EQUAL(*(volatile u32 *)&table[3] & ~(u32)(PTE_ACCESSED | PTE_USER), (u32)virt_to_machine(other) | PTE_PRESENT | 0x200);
    value = (u32)virt_to_machine((void *)start_info->pt_base) | PTE_PRESENT | PTE_RW;
    EXPECT_TRAP(by_mov, low, TRAP_PF, 3);
    value = 0x200;
    EXPECT_TRAP(by_mov, (u8 *)low + 2, TRAP_PF, 3);
    EXPECT_EQUAL(mapped[0], 2);
    value = 0;
    EXPECT_NO_TRAP(by_mov, low);
    mmuext(MMUEXT_INVLPG_LOCAL, (ulong)mapped, 0);
    EXPECT_TRAP(load, mapped, TRAP_PF, 0);
}

/* An L2 entry without write permission, over a writable leaf and over one that maps its own table. */
static void below_a_read_only_entry(void)
{
    pte_t *above = pte_of(fresh, 2);
    table[0] = virt_to_machine(page) | PTE_PRESENT | PTE_RW;
    table[1] = virt_to_machine(table) | PTE_PRESENT;
    EXPECT_OK(make_readonly(table));
    EXPECT_OK(mmu_update_one(above, virt_to_machine(table) | PTE_PRESENT | PTE_USER, 0));
    EXPECT_EQUAL(*above & PTE_RW, 0);
    value = 7;
    EXPECT_EQUAL(fresh[0], 1);
    EXPECT_TRAP(by_mov, fresh, TRAP_PF, 3);
    EXPECT_TRAP(by_add, fresh, TRAP_PF, 3);
    EXPECT_REFUSED(HYPERCALL2(xen_version, XENVER_capabilities, fresh), EFAULT);
    EXPECT_EQUAL(page[0], 1);
    stores_at((pte_t *)(fresh + PAGE_SIZE));
    stores_at(table); /* and where nothing else is */
}

#if PT_LEVELS == 4
#define SLOT 400u
#define SEEN ((ulong)0xffff000000000000ul | (ulong)SLOT << 39)
#define KEPT 0x0000fffffffff000ul
#else /* what the L2 of the fourth gigabyte maps, seen through itself */
#define SLOT 300u
#define SEEN (0xc0000000ul + (SLOT << 21))
#define KEPT 0x3ffff000ul
#endif

/* The leaf of a linear page table is the L2 entry: emulated where that is read-only, and a fault where it is not. */
static void in_a_linear_page_table(void)
{
    pte_t *top = PT_LEVELS == 3 ? (pte_t *)((ulong)pte_of((void *)VIRT_BASE, 2) & -PAGE_SIZE) : (pte_t *)start_info->pt_base;
    EXPECT_OK(mmu_update_one(top + SLOT, virt_to_machine(top) | PTE_PRESENT, 0));
    window = (pte_t *)(SEEN + (((ulong)fresh & KEPT) >> PAGE_SHIFT) * sizeof(pte_t));
    EXPECT_EQUAL(window[1], table[1]);
    stores_at(window);
    EXPECT_OK(mmu_update_one(pte_of(fresh, 2), virt_to_machine(table) | PTE_PRESENT | PTE_RW | PTE_USER, 0));
    value = 0;
    EXPECT_TRAP(by_mov, &window[3], TRAP_PF, 3);
    EXPECT_TRAP(by_bts, &window[3], TRAP_PF, 3);
    /* What it shows of the L2 itself is no leaf table. */
    pte_t *two = (pte_t *)(SEEN + (((ulong)window & KEPT) >> PAGE_SHIFT) * sizeof(pte_t));
    EXPECT_TRAP(by_bts, two, TRAP_PF, 3);
    EXPECT_OK(mmu_update_one(top + SLOT, 0, 0));
}

void conform(void)
{
    table = alloc_page();
    page = alloc_page();
    other = alloc_page();
    page[0] = 1;
    other[0] = 2;
    EXPECT_OK(HYPERCALL2(vm_assist, VMASST_CMD_enable, VMASST_TYPE_writable_pagetables));
    below_a_read_only_entry();
    in_a_linear_page_table();
}
