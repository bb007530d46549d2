/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A guest that suspends as `xl save` asks it to, and goes on wherever it is resumed: what of itself a guest has
 * to hand back, give up and find again. `rounds=N` on the command line: how often, before it powers off.
 */
#include "guest.h"
#include "suspend.h"

#define WITNESSES 16

/* -- suspended, and back */

static void map_shared_info(u64 machine)
{
    set_va(shared_info, machine | PTE_PRESENT | PTE_RW | PTE_ACCESSED | PTE_DIRTY, UVMF_INVLPG);
}

static long suspend(void)
{
    events_disable();
    map_shared_info(virt_to_machine(shared_info)); /* the page of our own that lies under it */
    long cancelled = hand_back_and_suspend();
    map_shared_info(start_info->shared_info);
    memset(shared_info->evtchn_mask, 0xff, sizeof(shared_info->evtchn_mask));
    store_init();
    console_init();
    publish_p2m(shared_info);
    return cancelled;
}

/* -- what has to be there afterwards */

static u64 *witnesses[WITNESSES];
static u8 own_l1[PAGE_SIZE] PAGE_ALIGNED, read_only[PAGE_SIZE] PAGE_ALIGNED;

static u64 witness(u64 page, u64 word)
{
    return page << 32 | word << 4 | 5;
}

static void prepare_witnesses(void)
{
    for (ulong i = 0; i < WITNESSES; i++) {
        witnesses[i] = alloc_page();
        for (ulong word = 0; word < PAGE_SIZE / 8; word++)
            witnesses[i][word] = witness(i, word);
    }
    ((pte_t *)own_l1)[7] = virt_to_machine(witnesses[3]) | PTE_PRESENT;
    make_readonly(own_l1);
    mmuext(MMUEXT_PIN_L1_TABLE, virt_to_mfn(own_l1), 0);
    make_readonly(read_only);
}

static void write_to(void *address)
{
    *(volatile u8 *)address = 1;
}

static int check(const char *what, int holds)
{
    if (!holds)
        printf("FAILED: %s\n", what);
    return !holds;
}

static int count_failures(void)
{
    int failures = 0;
    for (ulong i = 0; i < WITNESSES; i++)
        for (ulong word = 0; word < PAGE_SIZE / 8; word++)
            if (witnesses[i][word] != witness(i, word)) {
                failures += check("a page holds what it held", 0);
                break;
            }
    for (ulong pfn = 0; pfn < start_info->nr_pages; pfn++)
        if (mfn_to_pfn(pfn_to_mfn(pfn)) != pfn)
            return failures + check("p2m and m2p agree", 0);
    failures += check("a page table names the frame of today", PTE_MFN(((pte_t *)own_l1)[7]) == virt_to_mfn(witnesses[3]));
    failures += check("a pinned table is read-only", probe(write_to, own_l1).vector == TRAP_PF);
    failures += check("it is pinned", mmuext(MMUEXT_PIN_L1_TABLE, virt_to_mfn(own_l1), 0) != 0);
    failures += check("a page that was read-only is", probe(write_to, read_only).vector == TRAP_PF);
    failures += check("system time goes on", system_time() > 0);
    return failures;
}

int main(void)
{
    long rounds = command_line_number("rounds", 1);
    int failures = 0;
    store_init();
    publish_p2m(shared_info);
    prepare_witnesses();
    failures += count_failures();
    for (long round = 1; round <= rounds; round++) {
        printf("ready for round %ld\n", round);
        wait_for_suspend_request();
        printf("suspending\n");
        console_drain();
        long cancelled = suspend();
        printf("%s round %ld\n", cancelled ? "cancelled in" : "resumed after", round);
        failures += count_failures();
    }
    printf("Test result: %s\n", failures ? "FAILURE" : "SUCCESS");
    return failures ? SHUTDOWN_crash : SHUTDOWN_poweroff;
}
