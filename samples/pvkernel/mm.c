/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * PAGETABLE SETUP. The tables that the processor uses are our own memory; Xen lets us read them, and change
 * them only through itself, because of two rules: a table in use is always valid, and nothing maps it writable.
 * So we do not build new tables, we take those that Xen's domain builder made as the template, and put in what
 * they lack: the memory past the initial mapping, and no-execute bits. set_pte_init() is what keeps the second
 * rule for us: of a page that is mapped read-only it assumes that this has a reason.
 */
#include "kernel.h"

#define MMU_BATCH 64

extern u8 _text[], _etext[];

pte_t *init_l3;
ulong hypervisor_virt_start;
pte_t pte_nx;

static const ulong *p2m; /* the builder's list: our frame number (pfn) to the machine's (mfn) */
static const ulong *m2p; /* Xen's list, for all of the machine: the other way round */
static struct mmu_update updates[MMU_BATCH];
static u32 queued;
static ulong kept_readonly, tables_added;

void mm_early_init(void)
{
    struct xen_machphys_mapping mapping;
    p2m = (const ulong *)start_info->mfn_list;
    must(HYPERCALL2(memory_op, XENMEM_machphys_mapping, &mapping), "machphys_mapping");
    m2p = (const ulong *)mapping.v_start;
    init_l3 = (pte_t *)start_info->pt_base;
}

ulong virt_to_mfn(const void *address)
{
    return p2m[((ulong)address - VIRT_BASE) >> PAGE_SHIFT];
}

void *mfn_to_virt(ulong mfn)
{
    return (void *)(VIRT_BASE + (m2p[mfn] << PAGE_SHIFT));
}

u64 virt_to_machine(const void *address)
{
    return ((u64)virt_to_mfn(address) << PAGE_SHIFT) | ((ulong)address & (PAGE_SIZE - 1));
}

pte_t mk_pte(const void *page, pte_t flags)
{
    return virt_to_machine(page) | flags;
}

/* The entry that maps `va` at `level`, or NULL where a table above it is missing. Entries hold mfns. */
pte_t *pte_of(pte_t *l3, ulong va, int level)
{
    pte_t *table = l3;
    for (int at = 3;; at--) {
        pte_t *entry = table + ((va >> (PAGE_SHIFT + 9 * (at - 1))) & (PTRS_PER_TABLE - 1));
        if (at == level)
            return entry;
        if (!(*entry & PTE_PRESENT))
            return NULL;
        table = mfn_to_virt((ulong)PTE_MFN(*entry));
    }
}

/* --- changing entries: HYPERVISOR_mmu_update takes many at a time, in order */

static void mmu_flush(void)
{
    u32 done = 0, count = queued;
    queued = 0;
    if (count)
        must(HYPERCALL4(mmu_update, updates, count, &done, DOMID_SELF), "mmu_update");
}

static void mmu_queue(pte_t *entry, pte_t value)
{
    if (queued == MMU_BATCH)
        mmu_flush();
    updates[queued++] = (struct mmu_update){ virt_to_machine(entry) | MMU_NORMAL_PT_UPDATE, value };
}

/* Set an entry during setup: never turns a read-only page writable, lets every other change happen. */
static void set_pte_init(pte_t *entry, pte_t value)
{
    if ((*entry & PTE_PRESENT) && !(*entry & PTE_RW)) {
        kept_readonly += !!(value & PTE_RW);
        value &= ~PTE_RW;
    }
    mmu_queue(entry, value);
}

/* Make a page that is filled in as a table one, and hook it in above. What is queued may concern the page. */
static void hook_l1(pte_t *l2_entry, pte_t *table)
{
    pte_t *own = pte_of(init_l3, (ulong)table, 1);
    mmu_flush();
    mmu_queue(own, *own & ~PTE_RW);
    mmu_queue(l2_entry, mk_pte(table, PTE_PRESENT | PTE_RW | PTE_USER | PTE_ACCESSED));
    mmu_flush();
    tables_added++;
}

static pte_t wanted(ulong va)
{
    if (va >= (ulong)_text && va < (ulong)_etext)
        return mk_pte((void *)va, PTE_KERNEL);
    return mk_pte((void *)va, PTE_KERNEL | PTE_RW | pte_nx);
}

/* Map [va, end), which one L1 table covers: into the table that is there, or into a new one. */
static void map_span(ulong va, ulong end)
{
    pte_t *l2_entry = pte_of(init_l3, va, 2);
    if (*l2_entry & PTE_PRESENT) {
        for (; va < end; va += PAGE_SIZE)
            set_pte_init(pte_of(init_l3, va, 1), wanted(va));
        mmu_flush();
        return;
    }
    pte_t *table = alloc_page(); /* still plain memory: it can be written as such */
    for (; va < end; va += PAGE_SIZE)
        table[(va >> PAGE_SHIFT) & (PTRS_PER_TABLE - 1)] = wanted(va);
    hook_l1(l2_entry, table);
}

/* The end of what the builder mapped: entries without a gap, from VIRT_BASE on. */
static ulong initial_mapping_end(void)
{
    ulong va = VIRT_BASE;
    while (*pte_of(init_l3, va, 2) & PTE_PRESENT)
        va += TABLE_SPAN;
    return va;
}

/* --- the top of the address space is Xen's; the fixed mappings move below it */

static void reserve_top(void)
{
    must(HYPERCALL2(xen_version, XENVER_platform_parameters, &hypervisor_virt_start), "platform_parameters");
}

static void set_fixmap(pte_t pte)
{
    must(HYPERCALL4(update_va_mapping, shared_info, pte, pte >> 32, UVMF_INVLPG), "shared_info");
}

/* shared_info is Xen's page and has no pfn: only a mapping of its machine address makes it visible. */
void map_shared_info(void)
{
    set_fixmap(start_info->shared_info | PTE_KERNEL | PTE_RW | pte_nx);
}

void unmap_shared_info(void)
{
    set_fixmap(0);
}

static void fixmap_init(void)
{
    shared_info = (struct shared_info *)(hypervisor_virt_start - PAGE_SIZE);
    hook_l1(pte_of(init_l3, (ulong)shared_info, 2), alloc_page());
    map_shared_info();
}

void paging_init(void)
{
    reserve_top();
    pte_nx = cpu_has_nx() ? PTE_NX : 0;
    ulong fixmap = hypervisor_virt_start - TABLE_SPAN;
    ulong pages = (fixmap - VIRT_BASE) >> PAGE_SHIFT;
    ulong end = VIRT_BASE + (start_info->nr_pages < pages ? start_info->nr_pages : pages) * PAGE_SIZE;
    /* Past the tables and the boot stack, the last things that the builder placed. */
    pages_init(start_info->pt_base + (start_info->nr_pt_frames + 1) * PAGE_SIZE, initial_mapping_end());
    for (ulong va = VIRT_BASE; va < end; va += TABLE_SPAN) {
        ulong last = end - va < TABLE_SPAN ? end : va + TABLE_SPAN;
        map_span(va, last);
        pages_mapped(last);
    }
    must(HYPERCALL2(vm_assist, VMASST_CMD_enable, VMASST_TYPE_writable_pagetables), "vm_assist");
    printf("pagetables: Xen's are the template; %lu pages stay read-only, %lu tables are added\n", kept_readonly,
           tables_added);
    fixmap_init();
    printf("reserved: all from %lx up is Xen's\n", hypervisor_virt_start);
}

/* --- read-only and back, for pages that become tables of one kind or another */

static void mc_protect(void *page, pte_t flags)
{
    pte_t pte = mk_pte(page, PTE_KERNEL | pte_nx | flags);
    mc_add(HYPERCALL_update_va_mapping, (ulong)page, (ulong)pte, (ulong)(pte >> 32), UVMF_INVLPG);
}

void mc_make_readonly(void *page)
{
    mc_protect(page, 0);
}

void mc_make_writable(void *page)
{
    mc_protect(page, PTE_RW);
}
