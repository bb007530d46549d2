/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The order of things. Each step works with what the ones before it have set up; until paging_init() there is no
 * shared_info, until traps_init() any fault is the end.
 */
#include "kernel.h"

struct start_info *start_info;
volatile struct shared_info *shared_info;

void start_kernel(struct start_info *si) __attribute__((noreturn));

static void run_processes(void)
{
    ulong before = pages_free();
    spawn(1);
    spawn(2);
    run_until_all_exit();
    printf("faults: %lu pages on demand, %lu copied on write\n", demand_faults, cow_faults);
    printf("memory: %s\n", pages_free() == before ? "every page came back" : "pages are lost");
}

void start_kernel(struct start_info *si)
{
    start_info = si;
    mm_early_init();
    console_init();
    printf("pvkernel: %s, %lu MiB\n", si->magic, si->nr_pages >> 8);
    cpu_report();
    paging_init();
    segments_init();
    traps_init();
    events_init();
    events_report();

    run_processes();
    if (!strcmp(si->cmd_line, "suspend")) {
        suspend();
        run_processes();
    }
    printf("pvkernel: done\n");
    shutdown(SHUTDOWN_poweroff);
}
