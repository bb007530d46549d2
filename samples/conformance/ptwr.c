/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Stores to a leaf table are emulated, with the assist; to any other table they fault";

static pte_t *entry;
static u8 *page, *other;
static u32 low;

static void by_mov(void *unused)
{
    (void)unused;
    *(volatile u32 *)entry = low;
}

static void by_xchg(void *unused)
{
    u32 value = low;
    (void)unused;
    __asm__ volatile("xchgl %0, %1" : "+r"(value), "+m"(*(volatile u32 *)entry));
    EXPECT(value != low);
}

static void by_cmpxchg8b(void *unused)
{
    u32 old_low = (u32)*entry, old_high = (u32)(*entry >> 32);
    u8 equal;
    (void)unused;
    __asm__ volatile("lock; cmpxchg8b %1; sete %0"
                     : "=q"(equal), "+m"(*(volatile u64 *)entry), "+a"(old_low), "+d"(old_high)
                     : "b"(low), "c"(0)
                     : "cc");
    EXPECT(equal);
}

static void by_bts(void *unused)
{
    (void)unused;
    __asm__ volatile("lock; btsl $1, %0" : "+m"(*(volatile u32 *)entry) : : "cc"); /* _PAGE_RW */
}

static void to_the_table_above(void *unused)
{
    (void)unused;
    *(volatile u32 *)pte_of(page, 2) = low;
}

static void to_the_base(void *unused)
{
    (void)unused;
    *(volatile u32 *)start_info->pt_base = low;
}

static void maps(u8 expected)
{
    mmuext(MMUEXT_INVLPG_LOCAL, (ulong)page, 0);
    EXPECT_EQUAL(page[0], expected);
}

void conform(void)
{
    page = alloc_page();
    other = alloc_page();
    page[0] = 1;
    other[0] = 2;
    entry = pte_of(page, 1);
    u32 own = (u32)*entry, others = (u32)(virt_to_machine(other) | PTE_PRESENT | PTE_RW | PTE_ACCESSED | PTE_DIRTY);

    low = others;
    /* Only for a guest that asked for it; dom0 has it in any case (fixup_page_fault). */
    if (!(start_info->flags & SIF_INITDOMAIN)) {
        EXPECT_TRAP(by_mov, NULL, TRAP_PF, 3);
        maps(1);
    }
    EXPECT_OK(HYPERCALL2(vm_assist, VMASST_CMD_enable, VMASST_TYPE_writable_pagetables));
    EXPECT_NO_TRAP(by_mov, NULL);
    maps(2);
    low = own;
    EXPECT_NO_TRAP(by_xchg, NULL);
    maps(1);
    low = others;
    EXPECT_NO_TRAP(by_cmpxchg8b, NULL);
    maps(2);
    low = own & ~(u32)PTE_RW;
    EXPECT_NO_TRAP(by_mov, NULL);
    maps(1);
    EXPECT_NO_TRAP(by_bts, NULL);
    mmuext(MMUEXT_INVLPG_LOCAL, (ulong)page, 0);
    page[0] = 3;
    EXPECT_EQUAL(page[0], 3);

    /* What mmu_update would refuse is a fault here (ptwr_emulated_update), and changes nothing. */
    low = (u32)(virt_to_machine((void *)start_info->pt_base) | PTE_PRESENT | PTE_RW);
    EXPECT_TRAP(by_mov, NULL, TRAP_PF, 3);
    EXPECT_EQUAL((u32)*entry & ~(u32)(PTE_ACCESSED | PTE_DIRTY), own & ~(u32)(PTE_ACCESSED | PTE_DIRTY));
    EXPECT_TRAP(to_the_table_above, NULL, TRAP_PF, 3);
    EXPECT_TRAP(to_the_base, NULL, TRAP_PF, 3);
}
