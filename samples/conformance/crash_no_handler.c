/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conform.h"

const char test_title[] = "A fault without a handler is the end of the domain";

void conform(void)
{
    EXPECT_OK(HYPERCALL1(set_trap_table, 0));
    expect_end("crashed"); /* create_bounce_frame: a null selector */
    __asm__ volatile("ud2");
    give_up("went on after a fault that nothing handles");
}
