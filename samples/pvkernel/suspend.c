/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * SUSPENDING, as xl save asks for it. The next host has other frames for us: Xen's tools find our page tables and
 * the p2m list and change every entry, so nothing else may name a frame. shared_info is Xen's own page, which no
 * other host has: its mapping goes. What start_info names goes back as pfns (../common/suspend.c). Trap table, GDT,
 * callbacks and stacks are the vCPU's, and come back with it; event channels do not.
 */
#include "kernel.h"
#include "suspend.h"

void suspend(void)
{
    store_init();
    publish_p2m(shared_info);
    printf("suspend: ready\n");
    wait_for_suspend_request();
    console_drain();
    unmap_shared_info();
    long cancelled = hand_back_and_suspend();
    map_shared_info();
    console_init();
    printf("suspend: %s\n", cancelled ? "not saved after all" : "here again, with other frames");
}
