/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A kernel whose page tables map themselves, as NetBSD's do: one entry of the root points back at the tables, read-only,
 * and every entry of the current address space can be read at an address that follows from the one it maps. On top of
 * that, address spaces that are filled, copied on write, forked and destroyed at random, each against a model of what
 * must be there. `ops=N` on the command line says how many acts, `seed=N` which.
 *
 * Each address space has the kernel's part in common (its lowest tables are shared) and CHUNKS * PER_CHUNK places for
 * user pages, far enough apart to need tables of their own.
 */
#include "guest.h"

#define ENTRIES (1u << PT_SHIFT)
#define LEAF (PTE_PRESENT | PTE_USER | PTE_ACCESSED | PTE_DIRTY)
#define TABLE (PTE_PRESENT | PTE_RW | PTE_USER | PTE_ACCESSED | PTE_DIRTY)

/* The entry of the root, or of a PAE kernel's own L2, that maps the tables. PAE has four, one for each gigabyte. */
#if PT_LEVELS == 4
#define SLOT 400u
#define WINDOW (0xffff000000000000ul | ((ulong)SLOT << 39))
#define KEPT 0x0000fffffffff000ul
#define CHUNK(i) (0x400000ul + (i) * 0x40200000ul) /* a gigabyte apart: an L2 and an L1 each */
#elif PT_LEVELS == 3
#define SLOT 300u
#define WINDOW (0xc0000000ul + ((ulong)SLOT << 21))
#define KEPT 0xfffff000ul
#define CHUNK(i) (0x01000000ul + (i) * 0x01200000ul)
#else
#define SLOT 700u
#define WINDOW ((ulong)SLOT << 22)
#define KEPT 0xfffff000ul
#define CHUNK(i) (0x01000000ul + (i) * 0x01400000ul)
#endif
#define TOP (PT_LEVELS == 3 ? 2 : PT_LEVELS) /* the highest level that is seen in the window */

#define CHUNKS 8u
#define PER_CHUNK 12u
#define PLACES (CHUNKS * PER_CHUNK)
#define SPACES 5u
#define PAGES 150u    /* data pages */
#define TABLES 40u    /* of one space, at most */
#define BATCH 32u

static u32 state;

static u32 random(u32 limit)
{
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state % limit;
}

static void fail(const char *what, ulong a, ulong b)
{
    printf("recursive: %s: %lx, %lx\n", what, a, b);
    shutdown(SHUTDOWN_crash);
}

static void must(long rc, const char *what)
{
    if (rc)
        fail(what, (ulong)rc, 0);
}

/* -- pages */

static void *spare[512];
static u32 spares;

static void *take(void)
{
    return spares ? spare[--spares] : alloc_page();
}

static void give(void *page)
{
    spare[spares++] = memset(page, 0, PAGE_SIZE);
}

static struct page {
    u64 *at; /* where the kernel has it: its number, then a value */
    u64 value;
    u32 users;
} pages[PAGES];

static struct space {
    u8 *tables[TABLES]; /* the root first */
    u32 count;
    struct {
        u8 page; /* its number + 1; 0: nothing there */
        u8 writable;
    } place[PLACES];
} spaces[SPACES], *current;

static ulong place_va(u32 place)
{
    return CHUNK(place / PER_CHUNK) + (place % PER_CHUNK) * 37 * PAGE_SIZE;
}

/* -- the window */

/* Where the entry is seen that maps `address` at `level`. */
static pte_t *entry_of(ulong address, int level)
{
    while (level--)
        address = WINDOW + ((address & KEPT) >> PAGE_SHIFT) * sizeof(pte_t);
    return (pte_t *)address;
}

/* The highest missing level above the leaf of `address`; 0 if its L1 entry can be seen. */
static int missing(ulong address)
{
    for (int level = TOP; level > 1; level--)
        if (!(*entry_of(address, level) & PTE_PRESENT))
            return level;
    return 0;
}

/* The machine address of an entry, read where the table that holds it is mapped. */
static u64 machine_of(ulong address, int level)
{
    pte_t *entry = entry_of(address, level);
    return (u64)PTE_MFN(*entry_of((ulong)entry, 1)) << PAGE_SHIFT | ((ulong)entry & (PAGE_SIZE - 1));
}

/* Updates are collected, as a kernel would. */
static struct mmu_update batch[BATCH];
static u32 batched;

static void flush(void)
{
    u32 done = 0;
    if (batched)
        must(HYPERCALL4(mmu_update, batch, batched, &done, DOMID_SELF), "mmu_update");
    batched = 0;
}

static void update(u64 machine, pte_t value)
{
    batch[batched++] = (struct mmu_update){ machine, value };
    if (batched == BATCH)
        flush();
}

/* -- address spaces */

static u8 *new_table(struct space *s)
{
    if (s->count == TABLES)
        fail("too many tables", s->count, 0);
    return s->tables[s->count++] = take();
}

/* The tables of the current space that `address` lacks, from the top down. */
static void make_tables(ulong address)
{
    int level;
    while ((level = missing(address))) {
        u8 *table = new_table(current);
        must(make_readonly(table), "a table read-only");
        update(machine_of(address, level), virt_to_machine(table) | TABLE);
        flush();
    }
}

/* The tables under one entry of the current space, copied into `s`, all pages shared and read-only in both. */
static pte_t copy_table(struct space *s, ulong base, int level)
{
    pte_t *copy = (pte_t *)new_table(s), *seen = entry_of(base, level);
    ulong step = 1ul << (PAGE_SHIFT + PT_SHIFT * (level - 1));
    for (u32 i = 0; i < ENTRIES; i++) {
        if (!(seen[i] & PTE_PRESENT))
            continue;
        if (level > 1) {
            copy[i] = copy_table(s, base + i * step, level - 1);
        } else {
            copy[i] = seen[i] & ~PTE_RW;
            if (seen[i] & PTE_RW)
                update(machine_of(base + i * step, 1), copy[i]);
        }
    }
    must(make_readonly(copy), "a copied table read-only");
    return virt_to_machine(copy) | TABLE;
}

/* A space with the kernel's part, and the user part of the current one if it is to be a copy. */
static struct space *new_space(int copy)
{
    struct space *s = spaces;
    while (s->count)
        s++;
    pte_t *root = (pte_t *)new_table(s), *top = (pte_t *)start_info->pt_base;
    pte_t self = virt_to_machine(root) | PTE_PRESENT;
#if PT_LEVELS == 3
    pte_t *low, *high = (pte_t *)new_table(s), *kernel = (pte_t *)((ulong)pte_of((void *)VIRT_BASE, 2) & -PAGE_SIZE);
    if (copy) {
        root[0] = (copy_table(s, 0, 2) & ~(TABLE & ~PTE_PRESENT));
    } else {
        low = (pte_t *)new_table(s);
        must(make_readonly(low), "an L2 read-only");
        root[0] = virt_to_machine(low) | PTE_PRESENT;
    }
    for (u32 i = 0; i < SLOT; i++)
        high[i] = kernel[i];
    self = virt_to_machine(high) | PTE_PRESENT;
    high[SLOT] = root[0];
    high[SLOT + 3] = root[3] = self;
    must(make_readonly(high), "the kernel's L2 read-only");
    (void)top;
#else
    u32 first = PT_LEVELS == 4 ? 272 : VIRT_BASE >> 22, last = PT_LEVELS == 4 ? 512 : 1008;
    for (u32 i = first; i < last; i++)
        root[i] = top[i];
    root[SLOT] = self;
    if (copy)
        for (u32 i = 0; i < (PT_LEVELS == 4 ? 1 : 512); i++) {
            ulong base = (ulong)i << (PAGE_SHIFT + PT_SHIFT * (PT_LEVELS - 1));
            if (*entry_of(base, PT_LEVELS) & PTE_PRESENT)
                root[i] = copy_table(s, base, PT_LEVELS - 1);
        }
#endif
    must(make_readonly(root), "a root read-only");
    flush();
    must(mmuext(MMUEXT_PIN_L1_TABLE + PT_LEVELS - 1, virt_to_mfn(root), 0), "pin");
    if (copy)
        for (u32 i = 0; i < PLACES; i++) {
            s->place[i] = current->place[i];
            if (s->place[i].page) {
                pages[s->place[i].page - 1].users++;
                s->place[i].writable = current->place[i].writable = 0;
            }
        }
    must(mmuext(MMUEXT_TLB_FLUSH_LOCAL, 0, 0), "flush");
    return s;
}

static void switch_to(struct space *s)
{
    must(mmuext(MMUEXT_NEW_BASEPTR, virt_to_mfn(s->tables[0]), 0), "new base");
    current = s;
}

static void destroy(struct space *s)
{
    must(mmuext(MMUEXT_UNPIN_TABLE, virt_to_mfn(s->tables[0]), 0), "unpin");
    while (s->count) {
        u8 *table = s->tables[--s->count];
        must(make_writable(table), "a table that nothing uses");
        give(table);
    }
    for (u32 i = 0; i < PLACES; i++)
        if (s->place[i].page)
            pages[s->place[i].page - 1].users--;
    memset(s->place, 0, sizeof(s->place));
}

/* -- acts */

static u32 free_page(void)
{
    for (u32 i = 0; i < PAGES; i++)
        if (!pages[i].users)
            return i;
    return PAGES;
}

static void set_place(u32 place, u32 page, u32 writable)
{
    ulong va = place_va(place);
    pte_t value = page < PAGES ? virt_to_machine(pages[page].at) | LEAF | (writable ? PTE_RW : 0) : 0;
    if (page < PAGES)
        make_tables(va);
    if (random(3)) { /* by the entry's machine address, or by its virtual one */
        update(machine_of(va, 1), value);
        flush();
        must(mmuext(MMUEXT_INVLPG_LOCAL, va, 0), "invlpg");
    } else {
        must(set_va((void *)va, value, UVMF_INVLPG), "update_va_mapping");
    }
    current->place[place].page = (u8)(page < PAGES ? page + 1 : 0);
    current->place[place].writable = (u8)(page < PAGES && writable);
}

static void map(u32 place)
{
    u32 page = random(2) ? free_page() : random(PAGES);
    if (current->place[place].page || page >= PAGES)
        return;
    set_place(place, page, !pages[page].users && random(4));
    pages[page].users++;
}

static void unmap(u32 place)
{
    u32 page = current->place[place].page;
    if (!page)
        return;
    set_place(place, PAGES, 0);
    pages[page - 1].users--;
}

/* A store to a page that is shared: a copy of it, or the page itself where nobody else has it any more. */
static u32 copies, faulting;

static void page_fault(struct regs *regs)
{
    u32 place = faulting - 1;
    ulong cr2 = shared_info->vcpu_info[0].cr2;
    if (!faulting || (cr2 & -PAGE_SIZE) != place_va(place) || regs->error_code != 3)
        fail("a fault that nobody expected", cr2, regs->ip);
    u32 page = current->place[place].page - 1u, copy = page;
    if (pages[page].users > 1) {
        copy = free_page();
        memcpy(pages[copy].at, pages[page].at, PAGE_SIZE);
        pages[copy].at[0] = copy;
        pages[copy].value = pages[page].value;
        pages[page].users--;
        pages[copy].users++;
        copies++;
    }
    set_place(place, copy, 1);
    faulting = 0;
}

static void write(u32 place)
{
    if (!current->place[place].page || (!current->place[place].writable && free_page() == PAGES))
        return; /* nothing there, or no page for a copy */
    u64 value = (u64)random(~0u) << 20 | place;
    faulting = current->place[place].writable ? 0 : place + 1;
    barrier(); /* the handler changes the model */
    ((volatile u64 *)place_va(place))[1] = value;
    barrier();
    pages[current->place[place].page - 1].value = value;
}

/* The tables are what the model says, and what they map is what was written. */
static void look(void)
{
    for (u32 i = 0; i < PLACES; i++) {
        ulong va = place_va(i), page = current->place[i].page;
        pte_t seen = missing(va) ? 0 : *entry_of(va, 1);
        if (!page) {
            if (seen & PTE_PRESENT)
                fail("something where nothing is", va, (ulong)seen);
            continue;
        }
        if (PTE_MFN(seen) != virt_to_mfn(pages[page - 1].at) || !(seen & PTE_RW) != !current->place[i].writable)
            fail("another entry", va, (ulong)seen);
        u64 *data = (u64 *)va;
        if (data[0] != page - 1 || data[1] != pages[page - 1].value)
            fail("other data", va, (ulong)data[1]);
    }
}

static u32 alive(void)
{
    u32 count = 0;
    for (u32 i = 0; i < SPACES; i++)
        count += spaces[i].count != 0;
    return count;
}

static u32 forks, ends;

static void act(void)
{
    u32 place = random(PLACES), kind = random(100);
    if (kind < 35) {
        map(place);
    } else if (kind < 55) {
        unmap(place);
    } else if (kind < 85) {
        write(place);
    } else if (kind < 92) {
        struct space *s = spaces + random(SPACES);
        if (s->count)
            switch_to(s);
    } else if (kind < 96 && alive() < SPACES) {
        struct space *s = new_space(1);
        if (random(2))
            switch_to(s);
        forks++;
    } else if (alive() > 2) {
        struct space *s = spaces + random(SPACES);
        if (s->count && s != current) {
            destroy(s);
            ends++;
        }
    }
}

int main(void)
{
    long ops = command_line_number("ops", 20000), seconds = command_line_number("seconds", 0);
    u64 end = system_time() + (u64)seconds * 1000000000;
    state = (u32)command_line_number("seed", 1) * 2654435761u | 1;
    for (u32 i = 0; i < PAGES; i++) {
        pages[i].at = alloc_page();
        pages[i].at[0] = i;
    }
    trap_handler(TRAP_PF, page_fault);
    switch_to(new_space(0));
    long done = 0;
    for (; seconds ? system_time() < end : done < ops; done++) {
        act();
        if (done % 16 == 0)
            look();
        if (done % 4096 == 0)
            printf("recursive: %ld acts\n", done);
    }
    look();
    printf("recursive: %ld acts, %u forks, %u ends, %u pages copied on write\n", done, forks, ends, copies);
    return 0;
}
