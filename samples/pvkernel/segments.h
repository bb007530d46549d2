/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * Our GDT, in Linux's order. The low two bits of a selector are the ring: 1 for this kernel, never 0.
 */
#ifndef PVKERNEL_SEGMENTS_H
#define PVKERNEL_SEGMENTS_H

#define GDT_ENTRY_TLS 6
#define GDT_ENTRY_KERNEL_CS 12
#define GDT_ENTRY_KERNEL_DS 13
#define GDT_ENTRY_USER_CS 14
#define GDT_ENTRY_USER_DS 15
#define GDT_ENTRIES 16

#define KERNEL_CS (12 * 8 + 1)
#define KERNEL_DS (13 * 8 + 1)
#define USER_CS (14 * 8 + 3)
#define USER_DS (15 * 8 + 3)
#define TLS_SELECTOR (6 * 8 + 3)

#endif
