/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * PRIVILEGED INSTRUCTIONS: Segmentation. lgdt is a hypercall: it takes the frames of the table. From then on
 * they are descriptor pages, which like page tables nobody may map writable; entries change one by one through
 * update_descriptor, where Xen sees to it that no segment reaches into Xen and none is of ring 0.
 */
#include "kernel.h"

/* A page of its own: Xen takes the whole frame, so nothing else of ours may lie in it. */
static u64 gdt[PTRS_PER_TABLE] PAGE_ALIGNED_DATA = {
    [GDT_ENTRY_KERNEL_CS] = 0x00cfbb000000ffffull, /* 4 GiB, present, DPL 1, code, readable, accessed */
    [GDT_ENTRY_KERNEL_DS] = 0x00cfb3000000ffffull, /* 4 GiB, present, DPL 1, data, writable, accessed */
    [GDT_ENTRY_USER_CS] = 0x00cffb000000ffffull,   /* the same with DPL 3 */
    [GDT_ENTRY_USER_DS] = 0x00cff3000000ffffull,
};

static void load_segments(void)
{
    __asm__ volatile("movl %0, %%ss\n\t"
                     "movl %1, %%ds\n\t"
                     "movl %1, %%es\n\t"
                     "movl %2, %%fs\n\t"
                     "movl %2, %%gs\n\t"
                     "ljmp %3, $1f\n"
                     "1:"
                     :
                     : "r"(KERNEL_DS), "r"(USER_DS), "r"(0), "i"(KERNEL_CS)
                     : "memory");
}

void segments_init(void)
{
    ulong frames[1] = { virt_to_mfn(gdt) };
    ulong cs;
    mc_make_readonly(gdt);
    mc_add(HYPERCALL_set_gdt, (ulong)frames, GDT_ENTRIES, 0, 0);
    mc_flush("set_gdt");
    load_segments();
    __asm__("movl %%cs, %0" : "=r"(cs));
    printf("segments: our GDT is loaded; code runs on selector %lx, in ring %lu\n", cs, cs & 3);
}

/* A data segment of ring 3 for thread-local storage. */
u64 data_descriptor(ulong base, ulong limit)
{
    u32 low = (u32)(base << 16 | (limit & 0xffff));
    u32 high = (u32)((base & 0xff000000) | (limit & 0xf0000) | 0x0040f300 | ((base >> 16) & 0xff));
    return (u64)high << 32 | low;
}

void mc_load_tls(u64 descriptor)
{
    u64 where = virt_to_machine(&gdt[GDT_ENTRY_TLS]);
    mc_add(HYPERCALL_update_descriptor, (ulong)where, (ulong)(where >> 32), (ulong)descriptor,
           (ulong)(descriptor >> 32));
}
