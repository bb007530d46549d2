/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Suspending as `xl save` asks for it, in parts: each kernel unmaps and maps shared_info, masks events and finds
 * its console again in its own way, between hand_back_and_suspend() and after it.
 */
#ifndef SAMPLES_SUSPEND_H
#define SAMPLES_SUSPEND_H

#include "xen.h"

/* What the kernel brings along. Both guest.h and pvkernel's kernel.h have it. */
extern struct start_info *start_info;
long hypercall(ulong nr, ulong a1, ulong a2, ulong a3, ulong a4, ulong a5);
void *alloc_page(void);
ulong virt_to_mfn(const void *address);
void *mfn_to_virt(ulong mfn);
u64 system_time(void);

/* What it gets. */
void store_init(void); /* at first, and after each suspension */
void wait_for_suspend_request(void);
void publish_p2m(volatile struct shared_info *shared_info); /* at first, and after each suspension */
/* With shared_info unmapped and events masked: 0 in the domain that was restored, 1 where the old one goes on. */
long hand_back_and_suspend(void);

#endif
