/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "NX: a page without permission to execute does not execute";

static void call(void *address)
{
    ((void (*)(void))address)();
}

void conform(void)
{
    u8 *page = alloc_page();
    pte_t old = *pte_of(page, 1);
    page[0] = 0xc3; /* ret */
    EXPECT_NO_TRAP(call, page);
    EXPECT_OK(set_va(page, old | PTE_NX, UVMF_INVLPG));
    EXPECT_EQUAL(*pte_of(page, 1) & PTE_NX, PTE_NX);
    EXPECT_TRAP(call, page, TRAP_PF, 0x11);
    EXPECT_EQUAL(page[0], 0xc3);
    page[1] = 1;
    EXPECT_OK(set_va(page, old, UVMF_INVLPG));
    EXPECT_NO_TRAP(call, page);
    EXPECT_OK(set_va(page, old & ~PTE_PRESENT, UVMF_INVLPG));
    EXPECT_TRAP(call, page, TRAP_PF, 0x10);
}
