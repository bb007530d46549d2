/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Free pages. At first those that the builder mapped behind everything else; each table that paging_init()
 * adds makes more of them reachable. Pages that come back are kept in a list.
 */
#include "kernel.h"

static ulong next, end;
static void *list;
static ulong listed;

void pages_init(ulong first, ulong mapped_end)
{
    next = first;
    end = mapped_end;
}

/* All memory below `mapped_end` can be reached by now. */
void pages_mapped(ulong mapped_end)
{
    if (mapped_end > end)
        end = mapped_end;
}

void *alloc_page(void)
{
    void *page = list;
    if (page) {
        list = *(void **)page;
        listed--;
    } else if (next < end) {
        page = (void *)next;
        next += PAGE_SIZE;
    } else {
        panic("out of memory");
    }
    return memset(page, 0, PAGE_SIZE);
}

void free_page(void *page)
{
    *(void **)page = list;
    list = page;
    listed++;
}

ulong pages_free(void)
{
    return (end - next) / PAGE_SIZE + listed;
}
