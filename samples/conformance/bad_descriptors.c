/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "Descriptors: every system type refused but call gates, and every place that is no descriptor's";

static u64 *gdt;

void conform(void)
{
    gdt = alloc_page();
    u8 *page = alloc_page();
    ulong frames[1] = { virt_to_mfn(gdt) };
    EXPECT_OK(make_readonly(gdt));
    EXPECT_OK(HYPERCALL2(set_gdt, frames, 512));
    /* check_descriptor: types 1 to 15 of system segments, for each DPL. */
    for (u64 type = 1; type < 16; type++) {
        if (type == 12)
            continue;
        for (u64 dpl = 0; dpl < 4; dpl++)
            EXPECT_REFUSED(update_descriptor(virt_to_machine(gdt + 5), (0x80 | dpl << 5 | type) << 40 | 0x67), EINVAL);
    }
    EXPECT_EQUAL(gdt[5], 0);
#ifndef __x86_64__
    EXPECT_REFUSED(update_descriptor(virt_to_machine(gdt + 5), 0x00af9a000000ffffull), EINVAL); /* long mode code */
#endif
    /* Places: misaligned, in page tables, beyond memory (do_update_descriptor). */
    for (u64 offset = 1; offset < 8; offset++)
        EXPECT_REFUSED(update_descriptor(virt_to_machine(gdt) + offset, 0), EINVAL);
    for (ulong i = 0; i < start_info->nr_pt_frames; i++)
        EXPECT_REFUSED(update_descriptor(virt_to_machine((void *)(start_info->pt_base + i * PAGE_SIZE)), 0), EINVAL);
    EXPECT_REFUSED(update_descriptor(0xfffffff000ull, 0), EINVAL);
    EXPECT_OK(update_descriptor(virt_to_machine(page), 0x00cff2000000ffffull)); /* plain memory is fine */

    /* As a whole page, with one bad descriptor in it, it cannot become a GDT (validate_segdesc_page). */
    u64 *second = alloc_page();
    frames[0] = virt_to_mfn(second);
    for (u64 type = 1; type < 16; type++) {
        if (type == 12)
            continue;
        EXPECT(!make_writable(second));
        second[100] = (0x80 | type) << 40 | 0x67;
        EXPECT(!make_readonly(second));
        EXPECT_REFUSED(HYPERCALL2(set_gdt, frames, 512), EINVAL);
        EXPECT_REFUSED(HYPERCALL2(set_gdt, frames, 101), EINVAL);
    }
    EXPECT_REFUSED(HYPERCALL2(set_gdt, frames, FIRST_RESERVED_GDT_ENTRY + 1), EINVAL);
    EXPECT_REFUSED(HYPERCALL2(set_gdt, 16, 512), EFAULT);
    /* The one that was set is still in force: what is not there does not load. */
    for (ulong index = 1; index < 16; index++)
        EXPECT_TRAP(load_gs, index * 8 + 3, TRAP_GP, index * 8);
}
