/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Every form of store to a leaf table: narrow, locked, compared, misaligned, halves in either order";

static ulong value, accumulator;

/* One instruction that stores to (di): its source in cx, the accumulator in ax. */
#define STORE(name, text)                                                                                  \
    static void name(void *at)                                                                             \
    {                                                                                                      \
        ulong a = accumulator, c = value;                                                                  \
        __asm__ volatile(text : "+a"(a), "+c"(c), "+D"(at) : : "memory", "cc");                            \
        accumulator = a;                                                                                   \
        value = c;                                                                                         \
    }

STORE(byte, "movb %%cl, (%2)")
STORE(two_bytes, "movw %%cx, (%2)")
STORE(four_bytes, "movl %%ecx, (%2)")
STORE(exchange, "xchgl %%ecx, (%2)")
STORE(compare, "cmpxchgl %%ecx, (%2)")
STORE(locked_compare, "lock; cmpxchgl %%ecx, (%2)")
STORE(locked_or, "lock; orl %%ecx, (%2)")
STORE(locked_and_byte, "lock; andb %%cl, (%2)")
STORE(add, "addl %%ecx, (%2)")
STORE(exchange_add, "lock; xaddl %%ecx, (%2)")
STORE(string, "cld; stosl")

#define SOFTWARE_BIT 0x200u /* _PAGE_AVAIL0 */
#define AD (PTE_ACCESSED | PTE_DIRTY)

static u32 *low;
static u8 *page;

static void expect_bits(u32 own, u32 set)
{
    EXPECT_EQUAL(*(volatile u32 *)low & ~(u32)AD, (own | set) & ~(u32)AD);
}

static void accepted(u32 own)
{
    value = (own >> 8 | 2) & 0xff;
    EXPECT_NO_TRAP(byte, (u8 *)low + 1);
    expect_bits(own, SOFTWARE_BIT);
    value = own & 0xffff;
    EXPECT_NO_TRAP(two_bytes, low);
    expect_bits(own, 0);
    value = SOFTWARE_BIT;
    EXPECT_NO_TRAP(locked_or, low);
    expect_bits(own, SOFTWARE_BIT);
    value = 0xfd;
    EXPECT_NO_TRAP(locked_and_byte, (u8 *)low + 1);
    expect_bits(own, 0);
    value = SOFTWARE_BIT;
    EXPECT_NO_TRAP(add, low);
    expect_bits(own, SOFTWARE_BIT);
    EXPECT_NO_TRAP(exchange_add, low);
    EXPECT_EQUAL(value & ~AD, (own | SOFTWARE_BIT) & ~AD); /* what was there comes back */
    accumulator = own;
    EXPECT_NO_TRAP(string, low);
    expect_bits(own, 0);
    /* A comparison that fails stores nothing and hands over what is there (X86EMUL_CMPXCHG_FAILED). */
    value = own | SOFTWARE_BIT;
    accumulator = 0x1111;
    EXPECT_NO_TRAP(compare, low);
    EXPECT_EQUAL(accumulator & ~AD, own & ~AD);
    expect_bits(own, 0);
    accumulator = *(volatile u32 *)low;
    EXPECT_NO_TRAP(compare, low);
    expect_bits(own, SOFTWARE_BIT);
    value = own;
    accumulator = *(volatile u32 *)low;
    EXPECT_NO_TRAP(locked_compare, low);
    expect_bits(own, 0);
}

/* ptwr_emulated_update: only naturally aligned stores, and nothing that get_page_from_l1e would refuse. */
static void refused(u32 own)
{
    u32 table = (u32)(virt_to_machine((void *)start_info->pt_base) | PTE_PRESENT | PTE_RW);
    value = own >> 8;
    EXPECT_TRAP(two_bytes, (u8 *)low + 1, TRAP_PF, 3);
    value = own >> 16;
    EXPECT_TRAP(four_bytes, (u8 *)low + 2, TRAP_PF, 3);
    EXPECT_TRAP(four_bytes, (u8 *)low + 1, TRAP_PF, 3);
    value = table;
    EXPECT_TRAP(four_bytes, low, TRAP_PF, 3);
    EXPECT_TRAP(exchange, low, TRAP_PF, 3);
    EXPECT_EQUAL(value, table);
    accumulator = *(volatile u32 *)low;
    EXPECT_TRAP(locked_compare, low, TRAP_PF, 3);
    accumulator = *(volatile u32 *)low;
    EXPECT_TRAP(compare, low, TRAP_PF, 3);
    accumulator = table;
    EXPECT_TRAP(string, low, TRAP_PF, 3);
    value = (ulong)-1;
    expect_bits(own, 0);
    EXPECT_EQUAL(low[1] & 0xfffff, 0); /* above it are bits that Xen sets (_PAGE_GUEST_KERNEL) */
    EXPECT_EQUAL(page[0], 0x3c);
}

/* The upper half first makes the entry absent for the while, on a 32-bit guest alone. */
static void upper_half_first(u32 own)
{
    value = 0xfff;
#ifdef __x86_64__
    EXPECT_TRAP(four_bytes, low + 1, TRAP_PF, 3);
    expect_bits(own, 0);
#else
    EXPECT_NO_TRAP(four_bytes, low + 1);
    EXPECT_EQUAL(low[1], 0xfff);
    EXPECT_EQUAL(low[0] & PTE_PRESENT, 0);
    value = own;
    EXPECT_TRAP(four_bytes, low, TRAP_PF, 3); /* now it would be present, and beyond memory */
    value = 0;
    EXPECT_NO_TRAP(four_bytes, low + 1);
    value = own;
    EXPECT_NO_TRAP(four_bytes, low);
    expect_bits(own, 0);
    value = 0xfff;
    EXPECT_TRAP(exchange, low + 1, TRAP_PF, 3 * !!(own & PTE_PRESENT));
#endif
}

void conform(void)
{
    page = alloc_page();
    page[0] = 0x3c;
    low = (u32 *)pte_of(page, 1);
    EXPECT_OK(HYPERCALL2(vm_assist, VMASST_CMD_enable, VMASST_TYPE_writable_pagetables));
    u32 own = *low;
    accepted(own);
    refused(own);
    upper_half_first(own);
}
