/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "An iret whose frame cannot be read is the end of the domain";

void conform(void)
{
    EXPECT(start_info->nr_pages > 0);
    expect_end("crashed"); /* do_iret, compat_iret */
#ifdef __x86_64__
    __asm__ volatile("movq $0x3000, %%rsp; movl $23, %%eax; syscall" : : : "memory");
#else
    __asm__ volatile("movl $0x3000, %%esp; movl $23, %%eax; int $0x82" : : : "memory");
#endif
    give_up("went on after an iret without a frame");
}
