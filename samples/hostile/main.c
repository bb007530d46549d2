/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A guest that means harm: random hypercalls, stores and instructions from its own ring, always the same for
 * the same seed=N; acts=N on the command line says how many. It leaves alone only what would end it at once.
 */
#include "guest.h"

#define PAGES 12

static u32 state;
static u8 *pages[PAGES];
static u8 arguments[4096] PAGE_ALIGNED;
static ulong done, refused, trapped;

static u32 random(void)
{
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

static u32 below(u32 limit)
{
    return random() % limit;
}

static const u32 odd[] = { 0,      1,          2,          7,          8,          0xfff,      0x1000,
                           0x7ff0, 0x7fffffff, 0x80000000, 0xffffffff, 0xfffff000, 0xf5800000, 0xf57ffff8 };

static ulong some_address(void)
{
    switch (below(8)) {
    case 0:
        return odd[below(ARRAY_SIZE(odd))];
    case 1:
        return (ulong)arguments + below(4096);
    case 2: /* a page table of its own, through its read-only mapping */
        return (ulong)pte_of(pages[below(PAGES)], 1) & ~7ul;
    default:
        return (ulong)pages[below(PAGES)] + (below(512) << 3);
    }
}

static ulong some_frame(void)
{
    switch (below(10)) {
    case 0:
        return random();
    case 1:
        return virt_to_mfn((void *)((ulong)pte_of(pages[0], 1 + below(PT_LEVELS)) & ~4095ul));
    case 2:
        return start_info->shared_info >> PAGE_SHIFT;
    default:
        return virt_to_mfn(pages[below(PAGES)]);
    }
}

static pte_t some_entry(void)
{
    static const u16 flags[] = { 0x21, 0x23, 0x61, 0x63, 0x67, 0, 0xe3, 0x25 };
    return (pte_t)some_frame() << PAGE_SHIFT | flags[below(ARRAY_SIZE(flags))];
}

static ulong some_word(void)
{
    switch (below(4)) {
    case 0:
        return below(16);
    case 1:
        return some_frame();
    case 2:
        return some_address();
    default:
        return odd[below(ARRAY_SIZE(odd))];
    }
}

static void fill_arguments(void)
{
    ulong *words = (ulong *)arguments;
    for (unsigned i = 0; i < 24; i++)
        words[i] = some_word();
}

static void count(long rc)
{
    if (rc < 0)
        refused++;
    else
        done++;
}

static void update_entry(void)
{
    u64 *request = (u64 *)arguments;
    request[0] = ((u64)some_frame() << PAGE_SHIFT | below(512) << 3) + below(4);
    request[1] = some_entry();
    count(HYPERCALL4(mmu_update, arguments, 1, 0, DOMID_SELF));
}

static void extended(void)
{
    static const u8 commands[] = { 0, 1, 2, 3, 4, 4, 4, 6, 7, 8, 10, 12, 13, 16, 17, 25 };
    count(mmuext(commands[below(ARRAY_SIZE(commands))], some_frame(), some_word()));
}

static void become_table(void)
{
    u8 *page = pages[below(PAGES)];
    make_writable(page);
    for (unsigned i = 0; i < 8; i++)
        ((pte_t *)page)[i] = some_entry();
    make_readonly(page);
    count(mmuext(below(4), virt_to_mfn(page), 0));
}

static void anything(void)
{
    u32 number = below(64);
    /* What these do to the guest itself is its own affair, and ends it. */
    if (number == HYPERCALL_iret || number == HYPERCALL_set_trap_table || number == HYPERCALL_stack_switch ||
        number == HYPERCALL_sched_op || number == 6 /* sched_op_compat */ || number == HYPERCALL_vcpu_op ||
        number == HYPERCALL_set_gdt || number == 4 /* set_callbacks */ || number == HYPERCALL_callback_op)
        return;
    fill_arguments();
    ulong second = below(2) ? (ulong)arguments : some_word();
    count(hypercall(number, some_word(), second, some_word(), below(4), DOMID_SELF));
}

static void argument_first(void)
{
    fill_arguments();
    static const u8 numbers[] = { HYPERCALL_memory_op, HYPERCALL_event_channel_op, HYPERCALL_grant_table_op,
                                  HYPERCALL_physdev_op, HYPERCALL_multicall, HYPERCALL_xen_version };
    u32 number = numbers[below(ARRAY_SIZE(numbers))];
    if (number == HYPERCALL_multicall)
        ((ulong *)arguments)[0] = HYPERCALL_update_va_mapping;
    ulong first = number == HYPERCALL_multicall ? (ulong)arguments : below(24);
    ulong second = number == HYPERCALL_multicall ? 1 : (ulong)arguments;
    count(hypercall(number, first, second, 1, 0, 0));
}

static void store(void)
{
    *(volatile ulong *)some_address() = some_word();
    done++;
}

static void instruction(void)
{
    switch (below(7)) {
    case 0:
        __asm__ volatile("mov %0, %%cr3" : : "r"(some_frame() << PAGE_SHIFT) : "memory");
        break;
    case 1:
        __asm__ volatile("lock cmpxchg %0, (%1)" : : "r"(some_word()), "r"(some_address()), "a"(0l) : "memory");
        break;
    case 2:
        __asm__ volatile("mov %0, %%gs" : : "r"((u32)some_word()));
        break;
    case 3:
        __asm__ volatile("wrmsr" : : "a"((u32)some_word()), "d"(0), "c"((u32)some_word()));
        break;
    case 4:
        __asm__ volatile("outb %b0, %w1" : : "a"(0), "d"((u32)some_word()));
        break;
    case 5: { /* often the one quotient that no register holds, -2**63 by -1 */
        u32 high = below(2) ? 0x80000000 : random(), low = below(2) ? 0 : random();
        __asm__ volatile("idivl %2" : "+a"(low), "+d"(high) : "r"(below(2) ? 0xffffffff : random()));
        break;
    }
    default:
        __asm__ volatile("invlpg (%0)" : : "r"(some_address()));
    }
    done++;
}

static void remap(void)
{
    u8 *page = pages[below(PAGES)];
    count(mmuext(4 /* unpin */, virt_to_mfn(page), 0));
    make_writable(page);
}

/* Event channels: their words and queues are pages that get stores, too. */
static void fifo(void)
{
    static const u8 commands[] = { EVTCHNOP_init_control, EVTCHNOP_expand_array, EVTCHNOP_set_priority,
                                   EVTCHNOP_bind_ipi,     EVTCHNOP_send,         EVTCHNOP_send,
                                   EVTCHNOP_unmask,       EVTCHNOP_close };
    u32 command = commands[below(ARRAY_SIZE(commands))], *words = (u32 *)arguments;
    memset(arguments, 0, 24);
    if (command == EVTCHNOP_init_control || command == EVTCHNOP_expand_array)
        *(ulong *)arguments = some_frame();
    else if (command != EVTCHNOP_bind_ipi) {
        words[0] = 3 + below(8); /* not the ports of the console and the store, which have to be heard */
        words[1] = below(17);
    }
    count(HYPERCALL2(event_channel_op, command, arguments));
}

static void act(void *argument)
{
    static void (*const acts[])(void) = { update_entry, extended, become_table, anything, argument_first,
                                          store,        store,    instruction,  remap,    remap,
                                          fifo };
    (void)argument;
    acts[below(ARRAY_SIZE(acts))]();
}

int main(void)
{
    long acts = command_line_number("acts", 10000);
    state = (u32)command_line_number("seed", 1) * 2654435761u | 1;
    for (unsigned i = 0; i < PAGES; i++)
        pages[i] = alloc_page();
    HYPERCALL2(vm_assist, 0, 2); /* writable page tables */
    for (long i = 0; i < acts; i++) {
        if (i % 1000 == 0)
            printf("hostile: %ld acts\n", i);
        if (probe(act, 0).vector != NO_TRAP)
            trapped++;
    }
    printf("hostile: %ld acts, %lu done, %lu refused, %lu trapped\n", acts, done, refused, trapped);
    return 0;
}
