/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Two kinds of frame number: the guest counts its own memory in pfns, Xen counts the machine's in mfns. The
 * builder hands over the pfn-to-mfn list; the reverse table belongs to Xen, and every guest may read it.
 */
#include "guest.h"

static ulong *p2m;
static ulong *m2p;
static ulong next_page, last_page;

#define DEFAULT_M2P 0xffff800000000000ull

void memory_init(void)
{
    struct xen_machphys_mapping mapping;
    if (HYPERCALL2(memory_op, XENMEM_machphys_mapping, &mapping))
        mapping.v_start = (ulong)DEFAULT_M2P;
    p2m = (ulong *)start_info->mfn_list;
    m2p = (ulong *)mapping.v_start;
    /* Past the boot stack, up to the 4 MiB boundary where the builder's mapping ends. */
    next_page = start_info->pt_base + (start_info->nr_pt_frames + 1) * PAGE_SIZE;
    last_page = (next_page + 0x80000 + 0x3fffff) & ~0x3ffffful;
}

void *alloc_page(void)
{
    void *page = (void *)next_page;
    if (next_page == last_page) {
        printf("out of memory\n");
        shutdown(SHUTDOWN_crash);
    }
    next_page += PAGE_SIZE;
    return memset(page, 0, PAGE_SIZE);
}

ulong pfn_to_mfn(ulong pfn)
{
    return p2m[pfn];
}

ulong mfn_to_pfn(ulong mfn)
{
    return m2p[mfn];
}

ulong virt_to_mfn(const void *address)
{
    return pfn_to_mfn(((ulong)address - VIRT_BASE) >> PAGE_SHIFT);
}

u64 virt_to_machine(const void *address)
{
    return ((u64)virt_to_mfn(address) << PAGE_SHIFT) | ((ulong)address & (PAGE_SIZE - 1));
}

void *mfn_to_virt(ulong mfn)
{
    return (void *)(VIRT_BASE + (mfn_to_pfn(mfn) << PAGE_SHIFT));
}

pte_t *pte_of(const void *address, int level)
{
    pte_t *table = (pte_t *)start_info->pt_base;
    for (int at = PT_LEVELS;; at--) {
        pte_t *entry = table + (((ulong)address >> (PAGE_SHIFT + PT_SHIFT * (at - 1))) & ((1u << PT_SHIFT) - 1));
        if (at == level)
            return entry;
        if (!(*entry & PTE_PRESENT))
            return NULL;
        table = mfn_to_virt((ulong)PTE_MFN(*entry));
    }
}

long mmu_update_one(pte_t *entry, pte_t value, unsigned command)
{
    struct mmu_update update = { virt_to_machine(entry) | command, value };
    u32 done = 0;
    return HYPERCALL4(mmu_update, &update, 1, &done, DOMID_SELF);
}

long mmuext(unsigned cmd, ulong arg1, ulong arg2)
{
    struct mmuext_op op = { cmd, arg1, arg2 };
    u32 done = 0;
    return HYPERCALL4(mmuext_op, &op, 1, &done, DOMID_SELF);
}

long set_va(const void *address, pte_t value, ulong flags)
{
#ifdef __x86_64__
    return HYPERCALL3(update_va_mapping, address, value, flags);
#else
    return HYPERCALL4(update_va_mapping, address, value, (u64)value >> 32, flags);
#endif
}

long make_readonly(void *address)
{
    return set_va(address, *pte_of(address, 1) & ~PTE_RW, UVMF_INVLPG);
}

long make_writable(void *address)
{
    return set_va(address, *pte_of(address, 1) | PTE_RW, UVMF_INVLPG);
}
