/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "grants.h"

const char test_title[] = "A guest may map what it grants to itself: rights, flags in the table, handles, both ways to name the place";

static volatile struct entry *table;
static u16 own_domid;

static struct map last;

static int map(u64 where, u32 flags, u32 ref, u16 dom)
{
    last = (struct map){ where, flags, ref, dom, 99, 0, 0 };
    EXPECT_OK(OP(map_grant_ref, &last, 1));
    return last.status;
}

static int unmap(u64 where, u32 handle)
{
    struct unmap op = { where, 0, handle, 99 };
    EXPECT_OK(OP(unmap_grant_ref, &op, 1));
    return op.status;
}

static void store(void *address)
{
    *(volatile u8 *)address = 1;
}

#define EXPECT_STATUS(call, wanted) (count_refusal(), EXPECT_EQUAL(call, wanted))

void conform(void)
{
    ulong frames[1] = { 0 };
    struct setup_table setup = { DOMID_SELF, 1, 99, frames };
    u8 *page = alloc_page(), *window = alloc_page();
    u64 here = (ulong)window;
    own_domid = learn_domid();
    EXPECT_OK(OP(setup_table, &setup, 1));
    EXPECT_EQUAL(setup.status, GNTST_okay);
    table = alloc_page();
    EXPECT_OK(set_va((void *)table, ((u64)frames[0] << PAGE_SHIFT) | PTE_PRESENT | PTE_RW, UVMF_INVLPG));
    page[7] = 0x77;
    table[20] = (struct entry){ GTF_permit_access, own_domid, (u32)virt_to_mfn(page) };
    table[21] = (struct entry){ GTF_permit_access | GTF_readonly, own_domid, (u32)virt_to_mfn(page) };
    table[22] = (struct entry){ GTF_permit_access, 0x1234, (u32)virt_to_mfn(page) };
    table[24] = (struct entry){ GTF_permit_access, own_domid, (u32)virt_to_mfn((void *)start_info->pt_base) };

    EXPECT_OK(set_va(window, 0, UVMF_INVLPG)); /* a mapping is replaced without a flush */
    EXPECT_EQUAL(map(here, GNTMAP_host_map, 20, own_domid), GNTST_okay);
    u32 handle = last.handle;
    EXPECT_EQUAL(window[7], 0x77);
    store(window);
    EXPECT_EQUAL(page[0], 1);
    EXPECT_EQUAL(table[20].flags & (GTF_reading | GTF_writing), GTF_reading | GTF_writing);
    EXPECT_STATUS(unmap(here + PAGE_SIZE, handle), GNTST_general_error); /* elsewhere */
    EXPECT_STATUS(unmap(here, handle + 1), GNTST_bad_handle);
    EXPECT_EQUAL(unmap(here, handle), GNTST_okay);
    EXPECT_EQUAL(table[20].flags & (GTF_reading | GTF_writing), 0);
    EXPECT_STATUS(unmap(here, handle), GNTST_bad_handle);
    EXPECT_TRAP(store, window, TRAP_PF, 2);

    /* Read-only: asked so, or granted so (_set_status). */
    EXPECT_EQUAL(map(here, GNTMAP_host_map | GNTMAP_readonly, 21, own_domid), GNTST_okay);
    EXPECT_EQUAL(window[7], 0x77);
    EXPECT_TRAP(store, window, TRAP_PF, 3);
    EXPECT_EQUAL(table[21].flags & (GTF_reading | GTF_writing), GTF_reading);
    EXPECT_EQUAL(unmap(here, last.handle), GNTST_okay);
    EXPECT_STATUS(map(here, GNTMAP_host_map, 21, own_domid), GNTST_general_error);

    EXPECT_STATUS(map(here, GNTMAP_host_map, 22, own_domid), GNTST_general_error); /* another's */
    EXPECT_STATUS(map(here, GNTMAP_host_map, 23, own_domid), GNTST_general_error); /* not granted */
    EXPECT_STATUS(map(here, GNTMAP_host_map, 24, own_domid), GNTST_general_error); /* a page table, writable */
    EXPECT_STATUS(map(here, GNTMAP_host_map, 1u << 20, own_domid), GNTST_bad_gntref);
    EXPECT_STATUS(map(here, GNTMAP_host_map, 20, DOMID_SELF), GNTST_bad_domain); /* rcu_lock_domain_by_id */
    EXPECT_STATUS(map(here, 0, 20, own_domid), GNTST_bad_gntref);
    EXPECT_STATUS(map(0x10000000, GNTMAP_host_map, 20, own_domid), GNTST_general_error); /* no leaf table there */
    EXPECT_EQUAL(table[20].flags & (GTF_reading | GTF_writing), 0);

    /* The place by the machine address of its entry. */
    u64 entry = virt_to_machine(pte_of(window, 1));
    EXPECT_EQUAL(map(entry, GNTMAP_host_map | GNTMAP_contains_pte, 20, own_domid), GNTST_okay);
    mmuext(MMUEXT_INVLPG_LOCAL, (ulong)window, 0);
    EXPECT_EQUAL(window[7], 0x77);
    EXPECT_EQUAL(unmap(entry, last.handle), GNTST_okay);
    EXPECT_STATUS(map(entry + 1, GNTMAP_host_map | GNTMAP_contains_pte, 20, own_domid), GNTST_general_error);
    EXPECT_STATUS(map(virt_to_machine(page), GNTMAP_host_map | GNTMAP_contains_pte, 20, own_domid),
                  GNTST_general_error); /* no leaf table */
}
