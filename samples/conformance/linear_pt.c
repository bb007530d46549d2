/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Linear page tables: a table that names itself, or another of its own level, so that tables can be read where they
 * are mapped. Allowed at L2, L3 and L4 (PAE: at L2 alone), read-only, and one level deep: a table with linear entries
 * is in no other's, and the reverse (XSA-240; define_get_linear_pagetable() and linear_pt_count in xen/arch/x86/mm.c).
 */
#include "conform.h"

const char test_title[] = "Linear page tables: self-maps, one level of linear use, and its counts";

#define ENTRIES (1u << PT_SHIFT)
#define LINK PTE_PRESENT

/* What a check needs first: told of only when it fails. */
#define NEED(call)                   \
    do {                             \
        long rc = (call);            \
        if (rc)                      \
            EXPECT_EQUAL(rc, 0);     \
    } while (0)

static pte_t link_to(const void *table)
{
    return virt_to_machine(table) | LINK;
}

static long set(pte_t *entry, pte_t value)
{
    return mmu_update_one(entry, value, 0);
}

static long pin(const void *table, int level)
{
    return mmuext(MMUEXT_PIN_L1_TABLE + (unsigned)level - 1, virt_to_mfn(table), 0);
}

static long unpin(const void *table)
{
    return mmuext(MMUEXT_UNPIN_TABLE, virt_to_mfn(table), 0);
}

static pte_t *spare[16];
static u32 spares;

static pte_t *empty_page(void)
{
    return spares ? spare[--spares] : alloc_page();
}

static pte_t *a_table(int level)
{
    pte_t *table = empty_page();
    NEED(make_readonly(table));
    NEED(pin(table, level));
    return table;
}

/* A table that nobody uses any more is plain memory again: no use was leaked. */
static void let_go(pte_t *table)
{
    NEED(unpin(table));
    NEED(make_writable(table));
    spare[spares++] = memset(table, 0, PAGE_SIZE);
}

static void itself(int level)
{
    pte_t *t = a_table(level);
    EXPECT_REFUSED(set(t + 5, link_to(t) | PTE_RW), EINVAL); /* with write permission */
    EXPECT_EQUAL(t[5], 0);
    EXPECT_OK(set(t + 5, link_to(t)));
    EXPECT_EQUAL(PTE_MFN(t[5]), virt_to_mfn(t));
    EXPECT_REFUSED(set(t + 5, link_to(t) | PTE_RW), EINVAL); /* nor does the entry become writable later */
    EXPECT_EQUAL(t[5] & PTE_RW, 0);
    EXPECT_OK(set(t + 6, link_to(t))); /* as often as it likes */
    EXPECT_OK(set(t + 5, link_to(t) | PTE_ACCESSED));
    EXPECT_OK(unpin(t)); /* itself it does not hold */
    NEED(pin(t, level));
    NEED(set(t + 6, 0));
    let_go(t);
}

static void another(int level)
{
    pte_t *a = a_table(level), *b = a_table(level), *c = a_table(level), *d = a_table(level);
    EXPECT_REFUSED(set(a + 5, link_to(b) | PTE_RW), EINVAL);
    EXPECT_OK(set(a + 5, link_to(b)));
    EXPECT_OK(set(a + 6, link_to(b)));
    EXPECT_OK(set(d + 5, link_to(b)));
    /* What is in linear use has no linear entries... */
    EXPECT_REFUSED(set(b + 5, link_to(a)), EINVAL);
    EXPECT_REFUSED(set(b + 5, link_to(c)), EINVAL);
    EXPECT_OK(set(b + 5, link_to(b))); /* but its own */
    /* ...and what has them is in no linear use. */
    EXPECT_REFUSED(set(c + 5, link_to(a)), EINVAL);
    NEED(set(a + 5, 0));
    EXPECT_REFUSED(set(c + 5, link_to(a)), EINVAL);
    NEED(set(a + 6, 0));
    EXPECT_OK(set(c + 5, link_to(a)));
    EXPECT_REFUSED(set(a + 5, link_to(b)), EINVAL);
    EXPECT_OK(set(c + 5, link_to(b))); /* one for the other, in one step */
    EXPECT_OK(set(a + 5, link_to(b)));
    /* A linear use is a use: the table stays one without its pin, and goes with the last. */
    NEED(unpin(b));
    NEED(set(c + 5, 0));
    NEED(set(d + 5, 0));
    EXPECT_REFUSED(make_writable(b), EBUSY);
    EXPECT_OK(unpin(a)); /* which takes its last use with it */
    EXPECT_OK(make_writable(b));
    b[5] = 0;
    NEED(make_readonly(b));
    NEED(pin(b, level));
    EXPECT_OK(set(b + 5, link_to(c))); /* nothing is left of its uses */
    NEED(make_writable(a));
    spare[spares++] = memset(a, 0, PAGE_SIZE);
    let_go(b);
    let_go(c);
    let_go(d);
}

static void of_other_kinds(int level)
{
    pte_t *a = a_table(level), *page = empty_page(), *empty = empty_page();
    EXPECT_REFUSED(set(a + 5, link_to(page)), EINVAL); /* writable, as its mapping is */
    NEED(make_readonly(empty));
    EXPECT_OK(set(a + 5, link_to(empty))); /* no table yet, so it becomes one of the level below */
    EXPECT_REFUSED(pin(empty, level), EINVAL);
    NEED(set(a + 5, 0));
    NEED(pin(empty, level));
    EXPECT_OK(set(a + 5, link_to(empty)));
    NEED(set(a + 5, 0));
    let_go(empty);
    spare[spares++] = page;
    EXPECT_REFUSED(set(a + 5, (pte_t)0x000ffffffffff000ull | LINK), EINVAL);
    EXPECT_REFUSED(set(a + 5, link_to(a) | PTE_PSE), EINVAL);
#if PT_LEVELS == 4
    for (int other = 1; other <= PT_LEVELS; other++) {
        pte_t *t = a_table(other);
        if (other == level || other == level - 1)
            EXPECT_OK(set(a + 5, link_to(t)));
        else
            EXPECT_REFUSED(set(a + 5, link_to(t)), EINVAL);
        NEED(set(a + 5, 0));
        let_go(t);
    }
#endif
    let_go(a);
}

/* Tables that are validated with linear entries in them, or refused with all that they had taken given back. */
static void validated_as_a_whole(int level)
{
    pte_t *t = empty_page(), *b = a_table(level), *c = a_table(level);
    t[3] = link_to(b);
    t[4] = link_to(t);
    t[9] = link_to(t) | PTE_RW;
    NEED(make_readonly(t));
    EXPECT_REFUSED(pin(t, level), EINVAL);
    EXPECT_OK(set(b + 5, link_to(c))); /* b is in no linear use */
    NEED(set(b + 5, 0));
    NEED(make_writable(t));
    t[9] = 0;
    NEED(make_readonly(t));
    NEED(pin(t, level));
    EXPECT_REFUSED(set(b + 5, link_to(c)), EINVAL);
    EXPECT_REFUSED(set(c + 5, link_to(t)), EINVAL);
    let_go(t);
    EXPECT_OK(set(b + 5, link_to(c)));
    t = empty_page();
    t[3] = link_to(b);
    NEED(make_readonly(t));
    EXPECT_REFUSED(pin(t, level), EINVAL); /* two levels */
    NEED(make_writable(t));
    spare[spares++] = memset(t, 0, PAGE_SIZE);
    let_go(b);
    let_go(c);
}

#define MOST_USES 32768u /* linear_pt_count has 16 bits */
#define SLOTS (PT_LEVELS == 2 ? 1008u : ENTRIES) /* a two-level guest's L2 has Xen's own entries at its top */

static void too_many_uses(void)
{
    pte_t *b = a_table(2), *one_more = a_table(2), *tables[MOST_USES / SLOTS + 1];
    u32 count = 0, uses = 0;
    while (uses < MOST_USES) {
        pte_t *t = tables[count++] = empty_page();
        for (u32 slot = 0; slot < SLOTS && uses < MOST_USES; slot++, uses++)
            t[slot] = link_to(b);
        NEED(make_readonly(t));
        NEED(pin(t, 2));
    }
    EXPECT_REFUSED(set(one_more + 5, link_to(b)), EINVAL);
    NEED(set(tables[0] + 7, 0));
    EXPECT_OK(set(one_more + 5, link_to(b)));
    EXPECT_REFUSED(set(tables[0] + 7, link_to(b)), EINVAL);
    for (u32 i = 0; i < count; i++)
        NEED(unpin(tables[i]));
    let_go(one_more);
    let_go(b);
}

static void load(void *address)
{
    *(volatile u8 *)address;
}

static void store(void *address)
{
    *(volatile pte_t *)address = 0;
}

#define SLOT (PT_LEVELS == 4 ? 400u : PT_LEVELS == 3 ? 300u : 700u)

#if PT_LEVELS == 4
#define WINDOW (0xffff000000000000ul | ((ulong)SLOT << 39))
#define KEPT 0x0000fffffffff000ul
#else /* what an L2 maps, seen through itself: of the fourth gigabyte, or of all */
#define WINDOW (PT_LEVELS == 3 ? 0xc0000000ul + (SLOT << 21) : (ulong)SLOT << 22)
#define KEPT (PT_LEVELS == 3 ? 0x3ffff000ul : 0xfffff000ul)
#endif

/* Where the entry that maps `address` at level 1 is seen. */
static pte_t *seen(const void *address)
{
    return (pte_t *)(WINDOW + (((ulong)address & KEPT) >> PAGE_SHIFT) * sizeof(pte_t));
}

static void looked_through(void)
{
    pte_t *top = PT_LEVELS == 3 ? (pte_t *)((ulong)pte_of((void *)VIRT_BASE, 2) & -PAGE_SIZE) : (pte_t *)start_info->pt_base;
    u8 *page = alloc_page(), *fresh = (u8 *)VIRT_BASE + 0x10000000;
    pte_t *first = alloc_page(), *second = alloc_page(), flags = PTE_PRESENT | PTE_RW | PTE_USER;

    EXPECT_TRAP(load, seen(page), TRAP_PF, 0);
    EXPECT_OK(set(top + SLOT, link_to(top)));
    EXPECT_EQUAL(*seen(page), *pte_of(page, 1));
    EXPECT_EQUAL(*seen(seen(page)), *pte_of(page, 2));
    /* It is read-only: to stores, though the entry that maps the table is writable, and to Xen's copies. */
    EXPECT(*seen(seen(page)) & PTE_RW);
    EXPECT_TRAP(store, seen(page), TRAP_PF, 3);
    EXPECT_TRAP(store, seen(seen(page)), TRAP_PF, 3);
    EXPECT_REFUSED(HYPERCALL2(xen_version, XENVER_capabilities, seen(page)), EFAULT);
    /* update_va_mapping changes L1 tables, and what maps this is none. */
    EXPECT_REFUSED(set_va(seen(page), *pte_of(page, 1), UVMF_NONE), EINVAL);
    EXPECT_REFUSED(set_va(seen(page), 0, UVMF_NONE), EINVAL);

    /* What an L2 names is seen at once: mmu_update drops the TLB (flush_linear_pt). */
    first[0] = virt_to_machine(page) | PTE_PRESENT;
    second[0] = virt_to_machine(page) | PTE_PRESENT | PTE_RW;
    NEED(make_readonly(first));
    NEED(make_readonly(second));
    EXPECT_TRAP(load, seen(fresh), TRAP_PF, 0);
    EXPECT_OK(set(pte_of(fresh, 2), virt_to_machine(first) | flags));
    EXPECT_EQUAL(*seen(fresh) & PTE_RW, 0);
    EXPECT_OK(set(pte_of(fresh, 2), virt_to_machine(second) | flags));
    EXPECT_EQUAL(*seen(fresh) & PTE_RW, PTE_RW);
    fresh[1] = 7;
    EXPECT_EQUAL(page[1], 7);
    EXPECT_EQUAL(*seen(fresh) & PTE_DIRTY, PTE_DIRTY);
    NEED(set(pte_of(fresh, 2), 0));
    EXPECT_TRAP(load, seen(fresh), TRAP_PF, 0);
    EXPECT_TRAP(load, fresh, TRAP_PF, 0);
    NEED(make_writable(first));
    NEED(make_writable(second));

    NEED(set(top + SLOT, 0));
    EXPECT_TRAP(load, seen(page), TRAP_PF, 0);
}

#if PT_LEVELS == 3
/* The L3 of a PAE guest is what the processor has as four entries: none of them may be an L3. */
static void not_at_the_top(void)
{
    pte_t *top = (pte_t *)start_info->pt_base, *l2 = a_table(2), before = top[1];
    EXPECT_REFUSED(set(top + 1, link_to(top)), EINVAL);
    EXPECT_EQUAL(top[1], before);
    /* The L2 with Xen's entries may be in linear use as any other, and may have such entries: NetBSD's does. */
    pte_t *kernel = (pte_t *)((ulong)pte_of((void *)VIRT_BASE, 2) & -PAGE_SIZE);
    EXPECT_OK(set(l2 + 5, link_to(kernel)));
    EXPECT_REFUSED(set(kernel + SLOT, link_to(l2)), EINVAL);
    NEED(set(l2 + 5, 0));
    EXPECT_OK(set(kernel + SLOT, link_to(l2)));
    EXPECT_REFUSED(set(l2 + 5, link_to(kernel)), EINVAL);
    NEED(set(kernel + SLOT, 0));
    let_go(l2);
}
#endif

void conform(void)
{
    for (int level = 2; level <= (PT_LEVELS == 3 ? 2 : PT_LEVELS); level++) {
        itself(level);
        another(level);
        of_other_kinds(level);
        validated_as_a_whole(level);
    }
    looked_through();
#if PT_LEVELS == 3
    not_at_the_top();
#endif
    too_many_uses();
}
