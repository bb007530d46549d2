/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Two levels: stores to a leaf table, four bytes at a time";

static u32 *entry, *table;
static u8 *page, *other;
static u32 value;

static void by_mov(void *unused)
{
    (void)unused;
    *(volatile u32 *)entry = value;
}

static void by_byte(void *unused)
{
    (void)unused;
    *(volatile u8 *)entry = (u8)value;
}

static void by_xchg(void *unused)
{
    u32 old = value;
    (void)unused;
    __asm__ volatile("xchgl %0, %1" : "+r"(old), "+m"(*(volatile u32 *)entry));
    EXPECT(old != value);
}

static void by_cmpxchg(void *unused)
{
    u32 old = *entry;
    u8 equal;
    (void)unused;
    __asm__ volatile("lock; cmpxchgl %3, %1; sete %0"
                     : "=q"(equal), "+m"(*(volatile u32 *)entry), "+a"(old)
                     : "r"(value)
                     : "cc");
    EXPECT(equal);
}

static void by_bts(void *unused)
{
    (void)unused;
    __asm__ volatile("lock; btsl $1, %0" : "+m"(*(volatile u32 *)entry) : : "cc"); /* PTE_RW */
}

static void two_entries(void *unused)
{
    u32 low = entry[0], high = entry[1];
    u8 equal;
    (void)unused;
    __asm__ volatile("lock; cmpxchg8b %1; sete %0"
                     : "=q"(equal), "+m"(*(volatile u64 *)entry), "+a"(low), "+d"(high)
                     : "b"(value), "c"(high ^ (u32)PTE_ACCESSED)
                     : "cc");
}

static void to_the_base(void *unused)
{
    (void)unused;
    *(volatile u32 *)pte_of(page, 2) = value;
}

static void maps(u8 expected)
{
    mmuext(MMUEXT_INVLPG_LOCAL, (ulong)page, 0);
    EXPECT_EQUAL(page[0], expected);
}

void conform(void)
{
    do
        page = alloc_page(); /* one whose entry begins eight bytes */
    while ((ulong)pte_of(page, 1) & 7);
    other = alloc_page();
    page[0] = 1;
    other[0] = 2;
    entry = pte_of(page, 1);
    u32 own = *entry, others = virt_to_machine(other) | PTE_PRESENT | PTE_RW | PTE_ACCESSED | PTE_DIRTY;
    u32 after = entry[1];

    value = others;
    EXPECT_TRAP(by_mov, NULL, TRAP_PF, 3); /* the assist has not been asked for */
    maps(1);
    EXPECT_OK(HYPERCALL2(vm_assist, VMASST_CMD_enable, VMASST_TYPE_writable_pagetables));
    EXPECT_NO_TRAP(by_mov, NULL);
    maps(2);
    value = own;
    EXPECT_NO_TRAP(by_xchg, NULL);
    maps(1);
    value = others;
    EXPECT_NO_TRAP(by_cmpxchg, NULL);
    maps(2);
    value = own & ~(u32)PTE_RW;
    EXPECT_NO_TRAP(by_mov, NULL);
    maps(1);
    EXPECT_NO_TRAP(by_bts, NULL);
    mmuext(MMUEXT_INVLPG_LOCAL, (ulong)page, 0);
    page[0] = 3;
    EXPECT_EQUAL(page[0], 3);
    value = (u8)(*entry ^ PTE_ACCESSED);
    EXPECT_NO_TRAP(by_byte, NULL);
    EXPECT_EQUAL(entry[1], after);

    /* What mmu_update would refuse is a fault, and so is a store that is wider than an entry. */
    own = *entry;
    value = (u32)virt_to_machine((void *)start_info->pt_base) | PTE_PRESENT | PTE_RW;
    EXPECT_TRAP(by_mov, NULL, TRAP_PF, 3);
    value = own | PTE_PSE;
    EXPECT_TRAP(by_mov, NULL, TRAP_PF, 3);
    value = others;
    EXPECT_TRAP(two_entries, NULL, TRAP_PF, 3);
    EXPECT_EQUAL(*entry, own);
    EXPECT_EQUAL(entry[1], after);
    EXPECT_TRAP(to_the_base, NULL, TRAP_PF, 3);

    /* A table of our own is one as soon as it is pinned, and no longer when it is not. */
    table = alloc_page();
    EXPECT_OK(make_readonly(table));
    EXPECT_OK(mmuext(MMUEXT_PIN_L1_TABLE, virt_to_mfn(table), 0));
    entry = table + 1023;
    value = others;
    EXPECT_NO_TRAP(by_mov, NULL);
    EXPECT_EQUAL(table[1023], others);
    value = 0;
    EXPECT_NO_TRAP(by_xchg, NULL);
    EXPECT_OK(mmuext(MMUEXT_UNPIN_TABLE, virt_to_mfn(table), 0));
    EXPECT_TRAP(by_mov, NULL, TRAP_PF, 3); /* a page that is merely read-only */
    EXPECT_OK(make_writable(table));
}
